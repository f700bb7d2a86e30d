"""What travels through the broker: a Batch to a worker, its Hold and its Report back, and the seeds' Admission.

All are JSON (`encode`, `decode`). A field that is added later gets a default, which is left out when a message is
written, and fields that this release does not know are passed over: so old and new workers can share one queue.
Everything else about a message is checked when it is read: who sent it is not believed.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from enum import StrEnum
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import msgspec
from msgspec import Meta
from msgspec.structs import replace
from pydantic import ValidationError

from crawler import urls
from crawler.job import Job

Outcome = Literal["done", "failed", "excluded"]
TERMINAL: tuple[Outcome, ...] = ("done", "failed", "excluded")

Small = Annotated[int, Meta(ge=0, le=2**31 - 1)]
"""A number as PostgreSQL's integer holds it."""
Large = Annotated[int, Meta(ge=0, le=2**63 - 1)]
"""A number as PostgreSQL's bigint holds it."""
LinkURL = Annotated[str, Meta(max_length=urls.MAX_LENGTH)]
"""A URL that the ledger may come to know by a message: no longer than its index can hold."""


Status = Annotated[int, Meta(ge=100, le=999)]
"""An HTTP status: any of three digits, as servers send them."""
Rest = Annotated[float, Meta(ge=0, le=86400)]
"""Seconds for which a host is left alone: a day at most."""
Name = Annotated[str, Meta(max_length=300)]
"""Of a lease, job, host, worker or release."""


class Cause(StrEnum):
    """Why a URL is in its state: what the code decides by. The `reason` beside it is for people alone."""

    # Never asked for: the way on which it was found led out of the job's limits.
    DEPTH = "depth"
    SCOPE = "scope"
    TRAP = "trap"
    # Asked for, or about to be, and no page.
    ROBOTS = "robots"
    REDIRECT = "redirect"
    SITEMAP = "sitemap"
    CONTENT_TYPE = "content_type"
    # Not asked for: where its host is, or its port, is none of those that may be connected to (worker/egress.py).
    ADDRESS = "address"
    PORT = "port"
    # A page, and what is to be said of it.
    NOINDEX = "noindex"
    UNCHANGED = "unchanged"
    # The job's limits, and what a person ordered.
    MAX_PAGES = "max_pages"
    MAX_PAGES_PER_HOST = "max_pages_per_host"
    MAX_PAGES_PER_DOMAIN = "max_pages_per_domain"
    MAX_PAGES_PER_PREFIX = "max_pages_per_prefix"
    BLOCKED = "blocked"
    CANCELLED = "cancelled"
    # What went wrong with this URL.
    HTTP = "http"
    SERVER_ERROR = "server_error"
    RATE_LIMITED = "rate_limited"
    TIMEOUT = "timeout"
    HUNG_UP = "hung_up"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    BAD_REDIRECT = "bad_redirect"
    LEASE_LOST = "lease_lost"
    CRAWLER_ERROR = "crawler_error"
    # What went wrong with its host.
    DNS = "dns"
    CONNECT = "connect"
    TLS = "tls"
    ROBOTS_UNREACHABLE = "robots_unreachable"
    HOST_GIVEN_UP = "host_given_up"


AnyCause = str
"""A Cause as it arrives: a newer release may know words that this one does not."""


class Message(msgspec.Struct, omit_defaults=True):
    """Part of what travels. Checked when it is read, not when it is made."""


class Texts(Message):
    """A part with text from the web, in `_TEXTS`: what JSON or PostgreSQL cannot hold of it (NUL, lone surrogates) is
    replaced when it is made and when it is read."""

    _TEXTS: ClassVar[tuple[str, ...]]

    def __post_init__(self) -> None:
        for name in self._TEXTS:
            text = getattr(self, name)
            if text is not None and not (text.isascii() and "\0" not in text):
                setattr(self, name, text.encode("utf-8", "replace").decode().replace("\0", "\ufffd"))


class RobotsFile(Texts, gc=False):
    """One origin's robots.txt as last fetched."""

    fetched_at: float
    """Seconds since the epoch."""
    status: Annotated[int, Meta(ge=0, le=999)]
    """The HTTP status it came with; 0: no answer at all."""
    body: str = ""

    _TEXTS = ("body",)


class Target(Message, gc=False):
    """A URL to fetch, with what is known of it from an earlier visit."""

    url: str
    depth: Small
    hops: Small = 0
    """Redirects that led here."""
    nested: Small = 0
    """Sitemap indexes that led here."""
    sitemap: bool = False
    seed: bool = False
    """Handed over from outside, or what such a URL redirects to: it has the right to name a new host."""
    etag: str | None = None
    last_modified: str | None = None
    digest: str | None = None
    warc_file: str | None = None
    warc_offset: Large | None = None
    """Where the response record of the body with that digest begins: while the body stays the same, it is archived as a
    `revisit` that refers to it. None: it is in no archive."""
    warc_date: float | None = None
    """When that body was fetched, in seconds since the epoch."""


class Batch(Message):
    """Some URLs of one host, leased to one worker."""

    lease: str
    job: Job
    host: str
    targets: list[Target]
    expires_at: float
    """Seconds since the epoch after which nothing of this batch may be fetched: the frontier leases it anew."""
    begin_by: float | None = None
    """Seconds since the epoch after which no worker may begin it. None: from a frontier that asks for no holds."""
    robots: dict[str, RobotsFile] = {}
    """By origin."""
    delay: float = 0.0
    """Least seconds between two requests, whatever the job says: what its domain and server want (frontier/caps.py)."""
    lost_before: bool = False
    """An earlier lease of one of these URLs ran out: its links may be lost as well."""
    blocked: frozenset[str] = frozenset()
    """Hosts that must not be asked, where this batch may ask another host than its own: for robots.txt, which redirects
    may lead away. Empty where the batch brings fresh rules."""


class Request(Texts, gc=False, kw_only=True):
    """One request made to the host, for its owner to see."""

    url: str
    at: float
    """Seconds since the epoch when it was sent."""
    status: Status | None = None
    reason: str | None = None
    """Why there is no status."""
    seconds: float
    """Until the last byte."""

    _TEXTS = ("reason",)


class UrlResult(Texts):
    """What became of one URL."""

    url: str
    state: Outcome
    fetched_at: float
    reason: str | None = None
    """Why it failed or was excluded, for a person to read."""
    cause: AnyCause | None = None
    status: Status | None = None
    title: str | None = None
    content_type: str | None = None
    bytes: Large | None = None
    """Length of the body after decompression."""
    digest: str | None = None
    """SHA-256 of the body after decompression, hexadecimal."""
    canonical: str | None = None
    etag: str | None = None
    last_modified: str | None = None
    fields: Any = None
    """What the job's extractor found: a dict, or a list of dicts."""
    extract_error: str | None = None
    """Why the extractor found nothing."""
    warc_file: str | None = None
    warc_offset: Large | None = None
    """Where the page's response record begins in that file, in bytes."""
    warc_date: float | None = None
    """When the body in that record was fetched, in seconds since the epoch."""

    _TEXTS = ("reason", "title", "content_type", "etag", "last_modified", "extract_error")


class Link(Message, gc=False):
    """A URL seen on a page."""

    url: LinkURL
    depth: Small
    found_on: str | None = None
    hops: Small = 0
    nested: Small = 0
    sitemap: bool = False
    seed: bool = False
    excluded: str | None = None
    """Why it is not followed, for a person to read; None: to be crawled."""
    cause: AnyCause | None = None


class Retry(Texts, gc=False):
    """A URL whose fetch went wrong in a way that may pass."""

    url: str
    reason: str
    cause: AnyCause | None = None

    _TEXTS = ("reason",)


class BackOff(Texts, gc=False):
    """The host asked for, or needs, a rest."""

    reason: str
    cause: AnyCause | None = None
    seconds: Rest | None = None
    """As the host asked (Retry-After); None: the frontier chooses, longer each time."""

    _TEXTS = ("reason",)


class Report(Message):
    """A batch's outcome, whole: every target is in exactly one of results, retries and unfetched."""

    lease: Name
    job: Name
    host: Name
    worker: Name
    release: Name
    delay: Rest
    """Seconds to leave this host alone after the batch."""
    requests: list[Request] = []
    results: list[UrlResult] = []
    retries: list[Retry] = []
    unfetched: list[str] = []
    links: list[Link] = []
    robots: dict[str, RobotsFile] = {}
    """Only what was fetched anew."""
    back_off: BackOff | None = None
    redelivered: bool = False
    """The batch had been at another worker, which may still have it: nothing was fetched here."""

    def parts(self, size: int) -> Iterator[Report]:
        """This report, after reports of links alone that take what is above `size` characters of links: brokers refuse
        messages of many megabytes."""
        part: list[Link] = []
        room = size
        for link in self.links:
            room -= len(link.url) + len(link.found_on or "") + 60
            if room < 0 and part:
                yield replace(self, **LINKS_ALONE, links=part)
                part, room = [], size
            part.append(link)
        yield replace(self, links=part)


LINKS_ALONE: dict[str, Any] = {
    "lease": "",
    "requests": [],
    "results": [],
    "retries": [],
    "unfetched": [],
    "robots": {},
    "back_off": None,
}
"""What makes a report one of links alone, without a lease."""


class Hold(Message):
    """What one worker holds at a moment. The next one replaces it."""

    worker: str
    leases: list[str] = []
    """Whose batches it may be fetching."""
    reported: list[str] = []
    """Whose reports the broker has confirmed since the last hold."""


class Admission(Message):
    """URLs handed over from outside: one of `chunks` pieces of one seeding."""

    job: Job
    seeding: str
    """Unique per run of seed.py."""
    chunk: Small
    """0-based; a piece seen twice is admitted once."""
    chunks: Small | None = None
    """In the last piece: how many there were. The job cannot be done before all have arrived."""
    urls: list[str] = []


class Nothing(msgspec.Struct, forbid_unknown_fields=True):
    """An object without fields: what tasks of ours have in the places of Celery's named arguments and callbacks."""


class MessageError(ValueError):
    """What arrived is not the message it should be; the text says what it should be, where, and what is there."""


M = TypeVar("M", bound=Message)


def encode(content: object) -> bytes:
    """A message, or plain dicts and lists with messages in them, as JSON, without what has its default."""
    try:
        return _ENCODER.encode(content)
    except UnicodeEncodeError:  # half a surrogate pair, in what nobody has taken for text from the web
        plain = msgspec.to_builtins(content, enc_hook=lambda job: json.loads(_job_text(job)))
        return json.dumps(plain, ensure_ascii=False).encode("utf-8", "replace")


def decode(kind: type[M], content: bytes) -> M:
    """The message of a `kind` in JSON. Raises MessageError."""
    return _read(kind, lambda: _decoder(kind).decode(content))


def decode_task(kind: type[M], body: bytes) -> M:
    """The message of a `kind` that is the one argument of a Celery task (task protocol 2). Raises MessageError."""
    return _read(kind, lambda: _task_decoder(kind).decode(body)[0][0])


def convert(kind: type[M], plain: object) -> M:
    """The message of a `kind` that was read from JSON as plain dicts and lists. Raises MessageError."""
    return _read(kind, lambda: msgspec.convert(plain, kind, dec_hook=_as_job))


def _read(kind: type[M], reading: Callable[[], M]) -> M:
    try:
        return reading()
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise MessageError(f"no {kind.__name__}: {error}") from None


@functools.lru_cache
def _decoder(kind: type[M]) -> msgspec.json.Decoder[M]:
    return msgspec.json.Decoder(kind, dec_hook=_as_job)


@functools.lru_cache
def _task_decoder(kind: type[M]) -> msgspec.json.Decoder[tuple[tuple[M], Nothing, Nothing]]:
    return msgspec.json.Decoder(tuple[tuple[kind], Nothing, Nothing], dec_hook=_as_job)  # type: ignore[valid-type]


# A job travels with every batch, and there are few: pydantic, which explains to a person what is wrong with one, reads
# and writes each of them once.


def _of_job(job: object) -> msgspec.Raw:
    if not isinstance(job, Job):
        raise TypeError(f"a {type(job).__name__} is no part of a message")
    return msgspec.Raw(_job_text(job))


@functools.lru_cache(maxsize=256)
def _job_text(job: Job) -> str:
    return job.model_dump_json(exclude_defaults=True)


def _as_job(_: type, plain: object) -> Job:
    return _job(msgspec.json.encode(plain))


@functools.lru_cache(maxsize=256)
def _job(text: bytes) -> Job:
    try:
        return Job.model_validate_json(text)
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "all of it"
        raise ValueError(f"a job that cannot be read: {where}: {problem['msg']}") from None


_ENCODER = msgspec.json.Encoder(enc_hook=_of_job)
