"""What travels through the broker: a Batch to a worker, its Hold and its Report back, and the seeds' Admission.

All are JSON. A field that is added later gets a default, so that old and new workers can share one queue.
"""

from __future__ import annotations

from collections.abc import Iterator
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel

from crawler.job import Job

Outcome = Literal["done", "failed", "excluded"]
TERMINAL: tuple[Outcome, ...] = ("done", "failed", "excluded")


def _storable(text: str) -> str:
    if text.isascii() and "\0" not in text:
        return text
    return text.encode("utf-8", "replace").decode().replace("\0", "\ufffd")


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


AnyCause = Cause | str
"""A cause as it arrives: a newer release may know words that this one does not."""

Text = Annotated[str, AfterValidator(_storable)]
"""Text from the web, without the two things that JSON or PostgreSQL cannot hold: NUL and lone surrogates."""


class RobotsFile(BaseModel):
    """One origin's robots.txt as last fetched."""

    fetched_at: float
    """Seconds since the epoch."""
    status: int
    """The HTTP status it came with; 0: no answer at all."""
    body: Text = ""


class Target(BaseModel):
    """A URL to fetch, with what is known of it from an earlier visit."""

    url: str
    depth: int
    hops: int = 0
    """Redirects that led here."""
    nested: int = 0
    """Sitemap indexes that led here."""
    sitemap: bool = False
    seed: bool = False
    """Handed over from outside, or what such a URL redirects to: it has the right to name a new host."""
    etag: str | None = None
    last_modified: str | None = None
    digest: str | None = None
    warc_file: str | None = None
    warc_offset: int | None = None
    """Where the response record of the body with that digest begins: while the body stays the same, it is archived as a
    `revisit` that refers to it. None: it is in no archive."""
    warc_date: float | None = None
    """When that body was fetched, in seconds since the epoch."""


class Batch(BaseModel):
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


class Request(BaseModel):
    """One request made to the host, for its owner to see."""

    url: str
    at: float
    """Seconds since the epoch when it was sent."""
    status: int | None = None
    reason: Text | None = None
    """Why there is no status."""
    seconds: float
    """Until the last byte."""


class UrlResult(BaseModel):
    """What became of one URL."""

    url: str
    state: Outcome
    fetched_at: float
    reason: Text | None = None
    """Why it failed or was excluded, for a person to read."""
    cause: AnyCause | None = None
    status: int | None = None
    title: Text | None = None
    content_type: Text | None = None
    bytes: int | None = None
    """Length of the body after decompression."""
    digest: str | None = None
    """SHA-256 of the body after decompression, hexadecimal."""
    canonical: str | None = None
    etag: Text | None = None
    last_modified: Text | None = None
    fields: Any = None
    """What the job's extractor found: a dict, or a list of dicts."""
    extract_error: Text | None = None
    """Why the extractor found nothing."""
    warc_file: str | None = None
    warc_offset: int | None = None
    """Where the page's response record begins in that file, in bytes."""
    warc_date: float | None = None
    """When the body in that record was fetched, in seconds since the epoch."""


class Link(BaseModel):
    """A URL seen on a page."""

    url: str
    depth: int
    found_on: str | None = None
    hops: int = 0
    nested: int = 0
    sitemap: bool = False
    seed: bool = False
    excluded: str | None = None
    """Why it is not followed, for a person to read; None: to be crawled."""
    cause: AnyCause | None = None


class Retry(BaseModel):
    """A URL whose fetch went wrong in a way that may pass."""

    url: str
    reason: Text
    cause: AnyCause | None = None


class BackOff(BaseModel):
    """The host asked for, or needs, a rest."""

    reason: Text
    cause: AnyCause | None = None
    seconds: float | None = None
    """As the host asked (Retry-After); None: the frontier chooses, longer each time."""


class Report(BaseModel):
    """A batch's outcome, whole: every target is in exactly one of results, retries and unfetched."""

    lease: str
    job: str
    host: str
    worker: str
    release: str
    delay: float
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
                yield self.model_copy(update={**_LINKS_ALONE, "links": part})
                part, room = [], size
            part.append(link)
        yield self.model_copy(update={"links": part})


_LINKS_ALONE: dict[str, Any] = {
    "lease": "",
    "requests": [],
    "results": [],
    "retries": [],
    "unfetched": [],
    "robots": {},
    "back_off": None,
}


class Hold(BaseModel):
    """What one worker holds at a moment. The next one replaces it."""

    worker: str
    leases: list[str] = []
    """Whose batches it may be fetching."""
    reported: list[str] = []
    """Whose reports the broker has confirmed since the last hold."""


class Admission(BaseModel):
    """URLs handed over from outside: one of `chunks` pieces of one seeding."""

    job: Job
    seeding: str
    """Unique per run of seed.py."""
    chunk: int
    """0-based; a piece seen twice is admitted once."""
    chunks: int | None = None
    """In the last piece: how many there were. The job cannot be done before all have arrived."""
    urls: list[str] = []
