"""Executes what a job says under `extract` (fields.py): CSS selectors, or a function of crawler/extractors/."""

from __future__ import annotations

import contextlib
import functools
import importlib
import json
import signal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import gevent
from selectolax.lexbor import LexborHTMLParser, LexborNode, SelectolaxError

from crawler.fields import Rule, Spec
from crawler.patterns import compiled
from crawler.worker.html_bounds import bounded

if TYPE_CHECKING:
    from bs4 import BeautifulSoup

MAX_BYTES = 128 * 1024
"""JSON of one page's fields at most: 50 pages travel in one message, and brokers take 16 MiB."""
MAX_SECONDS = 10.0
"""CPU time that one page may take, and as much waiting: fifty hosts share the process."""
EXTRACTORS = "crawler.extractors"
"""Where Python extractors live. A job can name no other module: whoever may hand over URLs must not choose what code
the fleet runs."""
Fields = dict[str, Any]
Extracted = Fields | list[Fields]


@dataclass
class Page:
    """A page as an extractor sees it."""

    url: str
    """Normalised; of the page itself, for redirects are pages of their own."""
    status: int
    headers: Mapping[str, str]
    text: str
    """The body, decoded."""
    links: list[str] = field(default_factory=list)
    """Normalised, each once, in the order of the page."""

    @functools.cached_property
    def tree(self) -> LexborHTMLParser:
        """selectolax's tree, built when first asked for; of hostile pages, what can be built in bounded time."""
        return LexborHTMLParser(bounded(self.text))

    @functools.cached_property
    def soup(self) -> BeautifulSoup:
        """BeautifulSoup's tree, built when first asked for: some 40 ms for a 37 KiB page."""
        from bs4 import BeautifulSoup  # a tenth of a worker's start, for the extractors that want it

        return BeautifulSoup(self.text, "html.parser")


def problems(spec: Spec | None) -> list[str]:
    """Why `spec` cannot be executed here, a line each: selectors that are none, a Python extractor that is not there.
    Reading a job does not ask this: a worker with another release must be able to read it, crawl, and record what it
    cannot extract."""
    if isinstance(spec, str):
        try:
            _load(spec)
        except Exception as error:  # whatever an import may raise
            return [f"extract: {_first_line(error)}"]
        return []
    found = []
    for name, rule in spec or ():
        try:
            LexborHTMLParser("<html>").css(rule.css)
        except SelectolaxError:
            hint = "; to take an attribute, write {css: a, attribute: href}" if "::" in rule.css else ""
            found.append(f"extract.{name}.css: {rule.css!r} is no CSS selector{hint}")
    return found


def extract(spec: Spec, page: Page) -> tuple[Extracted | None, str | None]:
    """(what was found on the page, None), or (None, why nothing could be). Never raises."""
    try:
        with _limited():
            fields = _compiled(spec)(page)
        return (None, None) if fields is None else (_checked(fields), None)
    except _TooLongError:
        return None, f"took longer than {MAX_SECONDS:g} s"
    except Exception as error:  # an extractor may do what it likes
        return None, _first_line(error)


class _TooLongError(BaseException):
    """No Exception, so that an extractor that catches those ends as well."""


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    """Raise _TooLongError, again every second, once the process has spent MAX_SECONDS of CPU time in here, or after
    MAX_SECONDS of waiting. Regular expressions of an extractor that backtrack for ever are interrupted, too."""
    greenlet = gevent.getcurrent()

    def expire(*_: object) -> None:
        if gevent.getcurrent() is greenlet:  # an extractor that waits lets others run
            raise _TooLongError

    before = signal.signal(signal.SIGVTALRM, expire)
    signal.setitimer(signal.ITIMER_VIRTUAL, MAX_SECONDS, 1.0)
    try:
        with gevent.Timeout(MAX_SECONDS, _TooLongError):
            yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


@functools.lru_cache(maxsize=1000)
def _compiled(spec: Spec) -> Callable[[Page], object]:
    if isinstance(spec, str):
        return _load(spec)
    rules = [(name, rule, compiled(rule.regex) if rule.regex else None) for name, rule in spec]
    return lambda page: {name: _find(rule, pattern, page.tree) for name, rule, pattern in rules}


class ExtractorError(Exception):
    """An extractor that is not there, or returned what cannot be recorded."""


def _load(reference: str) -> Callable[[Page], object]:
    module_name, _, function_name = reference.partition(":")
    path = f"{EXTRACTORS}.{module_name}"
    try:
        module = importlib.import_module(path)
    except ModuleNotFoundError as error:
        if not f"{path}.".startswith(f"{error.name}."):
            raise  # it is there, but needs what is not
        file = f"crawler/extractors/{module_name.replace('.', '/')}.py"
        raise ExtractorError(f"no extractor {reference!r}: write {file}, and deploy") from None
    function = getattr(module, function_name, None)
    # Its own functions only: what it imports (`os.system`, say) is nobody's extractor.
    if not callable(function) or getattr(function, "__module__", None) != path:
        raise ExtractorError(f"no extractor {reference!r}: {path} defines no function {function_name!r}")
    return function  # type: ignore[no-any-return]


def _find(rule: Rule, pattern: Any, tree: LexborHTMLParser) -> str | list[str] | None:
    found: list[str] = []
    size = 0
    for node in tree.css(rule.css):
        value = _value(rule, node)
        if value is not None and pattern:
            match = pattern.search(value)
            value = match[1 if pattern.groups else 0] if match else None
        if value is not None:
            found.append(value)
            size += len(value)
            if size > MAX_BYTES:  # before it is many times that: nested elements hold one another's text
                raise ExtractorError(f"more than {MAX_BYTES} characters of {rule.css!r}")
            if not rule.all:
                break
    return found if rule.all else next(iter(found), None)


def _value(rule: Rule, node: LexborNode) -> str | None:
    if rule.attribute:
        attributes = node.attributes
        name = rule.attribute.lower()
        return (attributes[name] or "") if name in attributes else None
    if rule.html:
        return node.html
    return " ".join(node.text().split())


def _checked(fields: object) -> Extracted:
    """`fields` as they come out of JSON, which is how the ledger keeps them."""
    many = isinstance(fields, list)
    for number, item in enumerate(fields if isinstance(fields, list) else [fields]):
        place = f"item {number}: " if many else ""
        if not isinstance(item, dict):
            raise ExtractorError(f"{place}an extractor returns a dict or a list of dicts, not {type(item).__name__}")
        for key, value in item.items():
            if not isinstance(key, str):
                raise ExtractorError(f"{place}{key!r} is no field name: it is no str but {type(key).__name__}")
            try:
                json.dumps(value, allow_nan=False)
            except (TypeError, ValueError, RecursionError) as error:
                raise ExtractorError(f"{place}field {key!r} is not JSON: {_first_line(error)}") from None
    text = json.dumps(fields)
    if len(text) > MAX_BYTES:
        raise ExtractorError(f"{len(text)} bytes of fields; at most {MAX_BYTES} of a page are recorded")
    plain: Extracted = json.loads(text)
    return _text_only(plain) if "\\u0000" in text or "\\ud" in text else plain


def _text_only(value: Any) -> Any:
    """Without what is text in Python alone: NUL (PostgreSQL refuses it) and half surrogate pairs (UTF-8 does)."""
    if isinstance(value, str):
        return value.replace("\0", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, list):
        return [_text_only(item) for item in value]
    if isinstance(value, dict):
        return {_text_only(key): _text_only(item) for key, item in value.items()}
    return value


def _first_line(error: BaseException) -> str:
    text = str(error).strip().partition("\n")[0][:300]
    if isinstance(error, ExtractorError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
