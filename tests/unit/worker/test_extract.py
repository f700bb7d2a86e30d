"""What a job's `extract` finds, what it says when it is wrong, and that no extractor can do harm."""

from __future__ import annotations

import contextlib
import json
import re
import sys
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import gevent
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from crawler import fields
from crawler.fields import Spec
from crawler.job import Job, JobError
from crawler.worker import extract
from crawler.worker.extract import Page

HTML = """<!doctype html><title>Shop</title>
<h1>  The
 <b>best</b> shop </h1>
<ul class=items>
 <li data-id=1><a href="/1">One</a> <span class=price>EUR 10.50</span>
 <li data-id=2><a href="/2">Two</a> <span class=price>sold out</span>
 <li><a href="/3">Three</a> <span class=price>EUR 30</span>
</ul>
<input checked><script type="application/ld+json">{"a": 1}</script>"""


def page(text: str = HTML, **more: Any) -> Page:
    return Page(**{"url": "http://example.org/", "status": 200, "headers": {}, "text": text, **more})


def job(given: object) -> Job:
    """A job as it arrives at a worker: through the control node's file, and through the broker."""
    loaded = Job.checked({"name": "j", "extract": given}, origin="job.yml")
    if wrong := extract.problems(loaded.extract):
        raise JobError("\n".join(wrong))
    travelled = Job.model_validate(json.loads(json.dumps(loaded.model_dump(exclude_defaults=True))))
    assert travelled == loaded == Job.model_validate_json(loaded.model_dump_json())
    assert hash(travelled) == hash(loaded)
    return travelled


def found(given: object, text: str = HTML) -> Any:
    spec = job(given).extract
    assert spec is not None
    fields, error = extract.extract(spec, page(text))
    assert error is None
    return fields


@pytest.mark.parametrize(
    ("rule", "value"),
    [
        ("title", "Shop"),
        ("h1", "The best shop"),
        ({"css": "h1"}, "The best shop"),
        ("h2", None),
        ({"css": "h2", "all": True}, []),
        ({"css": "li a", "all": True}, ["One", "Two", "Three"]),
        ({"css": "li a", "attribute": "href"}, "/1"),
        ({"css": "li", "attribute": "data-id", "all": True}, ["1", "2"]),
        ({"css": "li:last-child", "attribute": "data-id"}, None),
        ({"css": "input", "attribute": "CHECKED"}, ""),
        ({"css": "h1 b", "html": True}, "<b>best</b>"),
        ({"css": ".price", "regex": r"[\d.]+"}, "10.50"),
        ({"css": ".price", "regex": r"EUR (\d+)", "all": True}, ["10", "30"]),
        ({"css": ".price", "regex": r"sold (out)"}, "out"),  # the first match of the pattern, not of the selector
        ({"css": ".price", "regex": r"USD"}, None),
        ({"css": "script[type='application/ld+json']"}, '{"a": 1}'),
        ("li:has(span), nothing", "One EUR 10.50"),
    ],
)
def test_fields(rule: object, value: object) -> None:
    assert found({"it": rule}) == {"it": value}


def test_garbage_for_a_page_is_no_error() -> None:
    for text in ("", "\0", "<", "<li <li <a href", "\ud800"):
        assert found({"it": "li"}, text) in ({"it": None}, {"it": ""})


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"price": "div["}, r"extract.price.css: 'div\[' is no CSS selector$"),
        ({"a": "h1", "b": {"css": "a::attr(href)"}}, "extract.b.css: .*to take an attribute, write {css: a, attribute"),
        ({"price": {"css": "p", "regex": "("}}, "extract.price.regex: .*'[(]' is no regular expression: missing [)]"),
        ({"price": {"css": "p", "get": "text"}}, "job.yml: extract.price.get: Extra inputs are not permitted"),
        ({"price": {"all": True}}, "extract.price.css: Field required"),
        ({"price": 7}, "extract.price: "),
        ({"price": {"css": "a", "html": True, "attribute": "href"}}, "extract.price: .*either 'attribute' or 'html'"),
        ({"price": {"css": "a", "all": "often"}}, "extract.price.all: Input should be a valid boolean"),
        ({}, "extract: .*a mapping of field names to CSS selectors, such as"),
        (["h1"], "extract: .*a mapping of field names to CSS selectors, such as"),
        ("h1", "extract: .*'h1' names no extractor: write 'module:function'"),
        ("../../evil:page", "names no extractor"),
    ],
)
def test_a_wrong_description_is_named(given: object, complaint: str) -> None:
    with pytest.raises(JobError, match=complaint):
        job(given)


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(JobError) as caught:
        job({"a": {"css": "p", "regex": ")"}, "b": {"css": "p", "regex": "("}})
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == [" extract.a.regex", " extract.b.regex"]
    selectors = Job.checked({"name": "j", "extract": {"a": "div[", "b": "p]"}}, "job.yml").extract
    assert [problem.split(":")[0] for problem in extract.problems(selectors)] == ["extract.a.css", "extract.b.css"]


def test_what_selectors_find_has_a_bound_however_often_it_is_nested() -> None:
    spec = job({"all": {"css": "div", "all": True}, "one": "div"}).extract
    assert spec is not None
    nested = "<div>" * 400 + "x" * 1000 + "</div>" * 400
    found, error = extract.extract(spec, page(nested))
    assert (found, error) == (None, "more than 131072 characters of 'div'")


def test_names_are_known_beforehand_only_of_selectors() -> None:
    assert fields.names(job({"title": "h1", "price": ".price"}).extract) == ["title", "price"]
    assert fields.names("example:page") == fields.names(None) == []


# --- Python extractors ------------------------------------------------------------------------------------------------


@pytest.fixture
def extractor(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Callable[[Page], Any]], str]]:
    """Makes a function an extractor, and returns how a job names it."""
    name = f"{extract.EXTRACTORS}.made_up"

    def make(function: Callable[[Page], Any]) -> str:
        extract._compiled.cache_clear()
        module = types.ModuleType(name)
        function.__module__ = name
        module.page = function  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, name, module)
        return "made_up:page"

    yield make
    extract._compiled.cache_clear()


def test_the_example_works() -> None:
    fields = found("example:page", '<meta name=author content="Me"><h1>A</h1><h2>B <i>c</i></h2>')
    assert fields == {"headings": ["A", "B c"], "meta": {"author": "Me"}}
    assert extract.problems(TypeAdapter(Spec).validate_python("example:page")) == []


def test_soup_and_tree_are_built_only_when_touched() -> None:
    visited = page()
    assert not {"soup", "tree"} & vars(visited).keys()
    assert visited.soup is visited.soup
    assert visited.tree is visited.tree


def test_what_an_extractor_may_return(extractor: Any) -> None:
    for value in ({"a": [1, 2.5, None, {"b": "é"}]}, [{"a": 1}, {"b": 2}], [], {}, None):
        assert extract.extract(extractor(lambda _, value=value: value), page()) == (value, None)
    assert extract.extract(extractor(lambda _: {"a": (1, 2)}), page()) == ({"a": [1, 2]}, None)


def test_text_that_no_database_takes_is_replaced(extractor: Any) -> None:
    given = {"a": "x\0y\ud800z", "b": ["\0"], "\0c": "\\u0000 \U0001f600"}
    fields, error = extract.extract(extractor(lambda _: given), page())
    assert error is None
    assert fields == {"a": "x\ufffdy\ufffdz", "b": ["\ufffd"], "\ufffdc": "\\u0000 \U0001f600"}


def _raise(error: BaseException) -> Any:
    raise error


@pytest.mark.parametrize(
    ("behaviour", "error"),
    [
        (lambda _: 1 / 0, "ZeroDivisionError: division by zero"),
        (lambda _: _raise(ValueError("first\nsecond")), "ValueError: first"),
        (lambda _: _raise(RuntimeError()), "RuntimeError"),
        (lambda page: page.soup.find("table").text, "AttributeError: 'NoneType' object has no attribute 'text'"),
        (lambda _: "text", "an extractor returns a dict or a list of dicts, not str"),
        (lambda _: [{"a": 1}, "b"], "item 1: an extractor returns a dict or a list of dicts, not str"),
        (
            lambda _: {"a": 1, "b": {1, 2}},
            "field 'b' is not JSON: TypeError: Object of type set is not JSON serializable",
        ),
        (lambda page: [{"link": page.tree.css_first("a")}], "item 0: field 'link' is not JSON: TypeError: "),
        (lambda _: {"a": float("nan")}, "field 'a' is not JSON: ValueError: "),
        (lambda _: {1: "a"}, "1 is no field name: it is no str but int"),
        (lambda page: {"a": page.text * 1000}, "bytes of fields; at most 131072"),
    ],
)
def test_an_extractor_that_fails_is_an_error_to_record(behaviour: Any, error: str, extractor: Any) -> None:
    fields, told = extract.extract(extractor(behaviour), page())
    assert fields is None
    assert told is not None
    assert error in told
    assert "\n" not in told


def spin(_: Page) -> None:
    while True:
        with contextlib.suppress(Exception):
            while True:
                pass


@pytest.mark.parametrize(
    "behaviour",
    [spin, lambda _: re.search("(a+)+$", "a" * 60 + "b"), lambda _: gevent.sleep(60)],
    ids=["loops", "backtracks", "waits"],
)
def test_an_extractor_that_never_returns_is_stopped(
    behaviour: Any, extractor: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(extract, "MAX_SECONDS", 0.2)
    began = time.process_time()
    assert extract.extract(extractor(behaviour), page()) == (None, "took longer than 0.2 s")
    assert time.process_time() - began < 5
    deadline = time.process_time() + 1.3
    while time.process_time() < deadline:
        pass  # and nobody else is


def test_a_circular_value_is_an_error_to_record(extractor: Any) -> None:
    circle: dict[str, Any] = {}
    circle["self"] = circle
    assert extract.extract(extractor(lambda _: circle), page())[1] == (
        "field 'self' is not JSON: ValueError: Circular reference detected"
    )


@pytest.mark.parametrize(
    ("reference", "problem"),
    [
        ("nowhere:page", "no extractor 'nowhere:page': write crawler/extractors/nowhere.py, and deploy"),
        ("example:nothing", "no extractor 'example:nothing': crawler.extractors.example defines no function 'nothing'"),
        ("os:system", "no extractor 'os:system': write crawler/extractors/os.py, and deploy"),
        ("example:Any", "defines no function 'Any'"),  # imported there, not its own
        ("example:Page", "defines no function 'Page'"),
    ],
)
def test_an_unknown_extractor_is_named_and_harmless(reference: str, problem: str) -> None:
    """The control node refuses it; a worker of another release reads the job all the same, and records the error."""
    spec = TypeAdapter(Spec).validate_python(reference)
    (told,) = extract.problems(spec)
    assert problem in told
    assert extract.extract(spec, page()) == (None, told.removeprefix("extract: "))


@given(st.text(), st.text())
def test_no_selector_and_no_page_raises(selector: str, text: str) -> None:
    try:
        spec = job({"it": selector}).extract
    except JobError:
        return
    assert spec is not None
    assert extract.extract(spec, page(text))[1] is None


def test_the_tree_of_a_hostile_page_is_bounded() -> None:
    """Whole, it would take from a minute to hours."""
    page = extract.Page("http://h.test/", 200, {}, "<div>" * 200_000 + "<a href=x>1</a>")
    began = time.process_time()
    assert page.tree.css_first("a").text() == "1"
    assert time.process_time() - began < 10
