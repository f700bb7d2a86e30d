"""A job: what to crawl, how far, how gently. Written as YAML or on seed.py's command line; it needs no deploy."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import yaml
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from crawler import fields, patterns, urls
from crawler.patterns import Pattern

_MIXED = "|".join(
    f"{one}{{{number}}}{other}[0-9a-z]{{{23 - number},}}" if number < 24 else f"{one}{{24,}}{other}[0-9a-z]*"
    for one, other in (("[0-9]", "[a-z]"), ("[a-z]", "[0-9]"))
    for number in range(1, 25)
)
"""24 and more letters and digits, of each one at least: by where the first of the other kind stands."""
TRACKING = (
    "utm_.*",
    "[gf]clid",
    "mc_[ce]id",
    "jsessionid",
    "phpsessid",
    "aspsessionid.*",
    "cfid",
    "cftoken",
    f"sid=({_MIXED})",
)
"""Tracking parameters and session ids. `sid` is one only where its value looks like a session's hash: elsewhere it is
the number of a story (Slashcode, PHP-Nuke)."""
MAX_CHAIN = 200
"""Links from a seed beyond which even a job without a depth limit does not go: no site is that deep, but a calendar's
"next month" is."""

MAX_PREFIXES = 100
"""Prefixes with a number of pages in a job: it travels with every batch."""


class Refusal(NamedTuple):
    """Why a link is not followed."""

    cause: Literal["depth", "scope", "trap"]
    """A word of messages.Cause."""
    reason: str
    """For people."""


class JobError(ValueError):
    """A job that cannot be run; the message names the field, the value and the remedy."""


def _prefix(given: str) -> str:
    """A URL prefix as URLs are known in the ledger."""
    try:
        return urls.normalise(given)
    except urls.InvalidURLError as error:
        example = "write it with its host, such as 'https://example.org/forum/'"
        raise ValueError(f"{given!r} is no URL prefix ({error}): {example}") from None


Prefix = Annotated[str, AfterValidator(_prefix)]


class Scope(BaseModel):
    """Which discovered URLs belong to the job."""

    model_config = ConfigDict(frozen=True)

    kind: Literal["host", "domain", "prefix", "any"] = "host"
    """`host`: the page's own host; `domain`: its registrable domain; `prefix`: below one of `prefixes`; `any`: all."""
    prefixes: tuple[str, ...] = ()
    """URL prefixes for `prefix`; seed.py fills them with the seeds' folders."""
    allow: tuple[Pattern, ...] = ()
    """Regular expressions (searched in the URL), at least one of which must match."""
    deny: tuple[Pattern, ...] = ()
    """Regular expressions, none of which may match."""

    @model_validator(mode="after")
    def _prefix_needs_prefixes(self) -> Scope:
        if self.kind == "prefix" and not self.prefixes:
            raise ValueError("kind 'prefix' needs 'prefixes', such as ['https://example.org/docs/']")
        return self

    def refuses(self, url: str, found_on: str) -> str | None:
        """Why `url`, linked from the page `found_on` (both normalised), is out of scope; None if it is in scope.

        `host` and `domain` compare with the page rather than with the seeds: as every page is itself in scope, this
        says the same and needs no list of a million seeds on every worker.
        """
        if self.kind in ("host", "domain") and url.startswith(found_on[: found_on.index("/", 8) + 1]):
            pass  # one origin, as most links are
        elif self.kind == "host" and urls.host_of(url) != urls.host_of(found_on):
            return "scope: other host"
        elif self.kind == "domain" and urls.domain_of(urls.host_of(url)) != urls.domain_of(urls.host_of(found_on)):
            return "scope: other domain"
        if self.kind == "prefix" and not url.startswith(self.prefixes):
            return "scope: outside the prefixes"
        if self.allow and not any(patterns.found(pattern, url) for pattern in self.allow):
            return "scope: no allow pattern matches"
        for pattern in self.deny:
            if patterns.found(pattern, url):
                return f"scope: deny pattern {pattern}"
        return None


@lru_cache(maxsize=256)
def _stripping(given: tuple[str, ...]) -> Callable[[str], bool]:
    """Whether a parameter, written "name" or "name=value", is one that the patterns `given` take out."""
    names = _any_of([pattern for pattern in given if "=" not in pattern])
    names_and_values = _any_of([pattern for pattern in given if "=" in pattern])
    return lambda parameter: names(parameter.partition("=")[0]) or names_and_values(parameter)


def _any_of(given: list[str]) -> Callable[[str], bool]:
    """Whether one of the patterns `given` matches a text in full, in any case."""
    if not given:
        return lambda _: False
    together = patterns.compiled("|".join(f"(?:{pattern})" for pattern in given), ignore_case=True)
    return lambda text: together.fullmatch(text) is not None


def _seconds(value: object) -> object:
    """'7d' as seconds; what is no such text is left for pydantic to judge."""
    units = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 604800}
    if isinstance(value, str) and (given := re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([smhdw])\s*", value)):
        return float(given[1]) * units[given[2]]
    return value


PRIORITIES = {"low": 0.25, "normal": 1.0, "high": 4.0}


def _share(value: object) -> object:
    """A named priority as a number; what is no such name is left for pydantic to judge."""
    return PRIORITIES.get(value, value) if isinstance(value, str) else value


class Job(BaseModel):
    """Everything a worker has to know to crawl for a job; it travels with every batch.

    Fields that this release does not know are ignored when a job is read from the ledger or from a message, so that old
    and new releases can work side by side; where a person hands a job over (`checked`) they are errors.
    """

    model_config = ConfigDict(frozen=True)

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,79}$")]
    seeds: tuple[str, ...] = ()
    scope: Scope = Scope()
    first: tuple[Pattern, ...] = ()
    """Regular expressions (searched in the URL): what one of them matches is crawled before all else of its host."""
    last: tuple[Pattern, ...] = ()
    """As `first`, for what is crawled after all else of its host; `first` wins."""
    depth: Annotated[int, Field(ge=0)] | None = None
    """How many links away from a seed to go; None: no limit."""
    max_pages: Annotated[int, Field(ge=1)] | None = None
    """Stop at exactly this many pages done; None: no limit."""
    delay: Annotated[float, Field(ge=0, le=3600)] = 1.0
    """Seconds between two requests to one host; a longer robots Crawl-delay wins."""
    priority: Annotated[float, BeforeValidator(_share), Field(ge=0.01, le=100)] = 1.0
    """The job's share of the fleet, and of a host that other jobs want as well: 'low' (0.25), 'normal' (1), 'high' (4)
    or a number. Of two jobs one of which has twice the priority it gets twice the URLs, while both have some."""
    connections: Annotated[int, Field(ge=1, le=64)] = 1
    """Batches of one host under way at once. More than one only for sites whose owner allows it."""
    robots: bool = True
    """Obey robots.txt, robots meta tags and rel=nofollow. False only for sites of your own."""
    follow: tuple[Literal["iframe", "next"], ...] = ()
    """What to follow besides `a` and `area`: `iframe`, and `link rel=next`, the next part of a long text."""
    content_types: tuple[str, ...] = ("text/html", "application/xhtml+xml")
    """What counts as a page; anything else is excluded unread."""
    max_body: Annotated[int, Field(ge=1024)] = 10 * 1024 * 1024
    """Largest body taken, in bytes after decompression."""
    max_pages_per_host: Annotated[int, Field(ge=1)] | None = None
    """Take at most this many pages from any one host; None: no limit."""
    max_pages_per_domain: Annotated[int, Field(ge=1)] | None = None
    """Take at most this many pages from all hosts of any one registrable domain together; None: no limit."""
    max_pages_per_prefix: Annotated[dict[Prefix, Annotated[int, Field(ge=1)]], Field(max_length=MAX_PREFIXES)] = {}
    """Take at most this many pages whose URLs begin with a prefix, such as {'https://example.org/forum/': 500}. Of
    several prefixes that a URL begins with, each counts it."""
    recrawl: Annotated[float, BeforeValidator(_seconds), Field(ge=60)] | None = None
    """Visit a page again when its last visit is this old: seconds, or '12h', '7d'. None: once is enough."""
    strip_parameters: tuple[Pattern, ...] = TRACKING
    """Regular expressions for the URL parameters that say who clicks, not what is shown: taken out of links. They match
    a parameter's name in full, in any case; one with "=" in it matches name=value."""
    traps: bool = True
    """Leave out URLs that look like one of endlessly many (urls.trap), chains of more than MAX_CHAIN links, and what is
    found in parts of a large site whose pages are copies of earlier ones (frontier/traps.py)."""
    sitemaps: bool = False
    """Crawl what robots.txt's Sitemap lines lead to as well."""
    max_attempts: Annotated[int, Field(ge=1, le=20)] = 5
    """Fetches of one URL before it is failed."""
    retry_wait: Annotated[float, BeforeValidator(_seconds), Field(ge=0, le=86400)] = 3600.0
    """Longest wait between two attempts at one URL: seconds, or '10m', '1h'. The waits are 30 s, 3 min, 18 min, 1 h."""
    extract: fields.Spec | None = None
    """What to take from every page: see fields.py."""
    client: Literal["own", "requests"] = "own"
    """What speaks HTTP: our own client, or the library requests, at two and a half times the CPU time, for a site that
    ours cannot read."""
    archive: Literal["warc", "none"] = "warc"
    """Keep every page, as fetched, in WARC files on the worker that fetched it."""

    def __hash__(self) -> int:
        return hash(self.name)  # max_pages_per_prefix has none

    @classmethod
    def from_file(cls, path: Path) -> Job:
        """Read a job from a YAML file. Raises JobError with one line for each thing that is wrong."""
        try:
            loaded = yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as error:
            raise JobError(f"{path}: {error}") from None
        if not isinstance(loaded, dict):
            raise JobError(f"{path}: a job is a mapping with at least 'name' and 'seeds'")
        return cls.checked(loaded, origin=str(path))

    @classmethod
    def checked(cls, given: dict[str, object], origin: str) -> Job:
        """A job of plain values. Raises JobError naming `origin` and each wrong field."""
        try:
            return cls.model_validate(given, extra="forbid", context={"extra": "forbid"})
        except ValidationError as error:
            lines = [
                f"{origin}: {'.'.join(str(part) for part in problem['loc']) or 'job'}: {problem['msg']}"
                + (f" (given: {problem['input']!r})" if problem["type"] not in ("missing", "extra_forbidden") else "")
                for problem in error.errors()
            ]
            raise JobError("\n".join(lines)) from None

    def refusal(self, url: str, found_on: str, depth: int) -> Refusal | None:
        """Why a link to `url` at `depth`, on the page `found_on` (both normalised), is not followed; None if it is."""
        if self.depth is not None and depth > self.depth:
            return Refusal("depth", "depth")
        if reason := self.scope.refuses(url, found_on):
            return Refusal("scope", reason)
        if self.traps and depth > MAX_CHAIN:
            return Refusal("trap", f"trap: more than {MAX_CHAIN} links from a seed")
        if self.traps and (reason := urls.trap(url)):
            return Refusal("trap", reason)
        return None

    def refuses(self, url: str, found_on: str, depth: int) -> str | None:
        """The reason of `refusal`."""
        refusal = self.refusal(url, found_on, depth)
        return refusal and refusal.reason

    @property
    def limited(self) -> bool:
        """Whether any number of pages is a limit."""
        per_part = (self.max_pages_per_host, self.max_pages_per_domain, self.max_pages_per_prefix)
        return self.max_pages is not None or any(per_part)

    def budgets(self, url: str) -> list[str]:
        """Those of max_pages_per_prefix that count a normalised `url`."""
        return [prefix for prefix in self.max_pages_per_prefix if url.startswith(prefix)]

    def turn(self, url: str) -> int:
        """-1 where a normalised `url` is to be crawled before others of its host, 1 where after them, else 0."""
        if any(patterns.found(pattern, url) for pattern in self.first):
            return -1
        return int(any(patterns.found(pattern, url) for pattern in self.last))

    def cleaned(self, url: str) -> str:
        """A normalised `url` without the parameters the job strips."""
        if not self.strip_parameters or not ("?" in url or ";" in url):
            return url
        return urls.without_parameters(url, _stripping(self.strip_parameters))
