"""A worker's whole job: fetch one batch of one host, politely, and report what became of every URL in it."""

from __future__ import annotations

import email.utils
import hashlib
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from crawler import limits, settings, urls
from crawler.known_links import KnownLinks
from crawler.messages import BackOff, Batch, Link, Outcome, Report, Request, Retry, RobotsFile, Target, UrlResult
from crawler.worker import encoding, extract, fetch, parse, robots, sitemaps
from crawler.worker.archive import Archive

MAX_HOPS = 10
"""Redirects in a row before a chain is given up."""
MAX_HOP_REST = 20.0
"""Seconds waited at most between the redirects of one robots.txt, or a batch could outlast the task's time limit."""
MAX_TROUBLE = 3
"""URLs in a row without a usable answer after which the host gets a rest: by then it is the host, not the URLs."""
MAX_NESTED = 3
"""Sitemap indexes that may lead to one another; the protocol knows one."""
MAX_RETRY_AFTER = 24 * 3600.0
MAX_LINKS_SIZE, MAX_LINKS_OF_ONE = 4_000_000, 16_000_000
"""Characters of links after which a batch ends, so that what is left goes back unfetched; and after which those of a
single page, or sitemap, are left out."""
MAX_TEXT = 300
"""Characters of a header that are kept."""


log = logging.getLogger(__name__)


class _NotArchivedError(Exception):
    """The disk did not take a page. Its URL goes back unfetched."""


class Stop(Protocol):
    """Told to finish early: threading.Event does."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool: ...


class Client(Protocol):
    def get(
        self,
        url: str,
        *,
        max_body: int,
        wanted: tuple[str, ...] = ...,
        truncate: bool = ...,
        headers: dict[str, str] | None = ...,
    ) -> fetch.Response: ...


@dataclass
class _Visit:
    """One batch under way."""

    batch: Batch
    client: Client
    stop: Stop
    report: Report
    now: Callable[[], float]
    began: float
    archive: Archive | None = None
    last_request: float | None = None
    trouble: int = 0
    """URLs in a row that ended as retries."""
    rules: dict[str, robots.Rules] = field(default_factory=dict)
    links: dict[str, Link] = field(default_factory=dict)
    links_size: int = 0
    """Characters, about."""
    left_out: int = 0
    """Links for which there was no room."""

    @property
    def delay(self) -> float:
        """Seconds between two requests to this host, as far as is known by now."""
        return max([self.batch.job.delay, *(rules.crawl_delay for rules in self.rules.values())])

    def may_request(self, budget: float = limits.BATCH, longest: float = math.inf) -> bool:
        """Wait until the host's delay has passed, or `longest` seconds. False: no time is left, or we were told to
        stop."""
        wait = 0.0 if self.last_request is None else self.last_request + min(self.delay, longest) - self.now()
        resumes = self.now() + max(wait, 0)
        if self.stop.is_set() or resumes > self.batch.expires_at or (self.archive and not self.archive.has_room()):
            return False
        if self.last_request is not None and resumes - self.began > budget:
            return False
        if wait > 0:
            self.stop.wait(wait)
        return not self.stop.is_set()

    def request(self, url: str, **options: Any) -> fetch.Response:
        """Fetch, and note it: the delay is counted from the moment the host was done with us."""
        asked_at = self.now()
        entry = Request(url=url, at=asked_at, seconds=0)
        try:
            response = self.client.get(url, **options)
            entry.status = response.status
            return response
        except fetch.FetchError as error:
            entry.reason = error.reason
            raise
        finally:
            self.last_request = self.now()
            entry.seconds = round(self.last_request - asked_at, 4)
            self.report.requests.append(entry)


def fetch_batch(
    batch: Batch,
    client: Client,
    stop: Stop,
    *,
    worker: str,
    redelivered: bool = False,
    known_links: KnownLinks | None = None,
    archive: Archive | None = None,
    now: Callable[[], float] = time.time,
) -> Report:
    """Fetch the URLs of `batch` in their order, keeping the host's delay and robots.txt, until all are done, time is up
    (limits.BATCH, the lease), the host wants a rest, or `stop` is set. Never raises for anything a server does.

    `redelivered`: another worker was lost with this batch, perhaps after it had reported. Only the frontier knows, so
    all goes back to it. Links that `known_links` covers are left out of the report.
    """
    report = Report(
        lease=batch.lease, job=batch.job.name, host=batch.host, worker=worker, release=settings.release(), delay=0
    )
    keep = archive if batch.job.archive == "warc" else None
    visit = _Visit(batch, client, stop, report, now, began=now(), archive=keep)
    if batch.job.robots:  # all of them count for the delay, whichever is asked
        for origin, file in batch.robots.items():
            _take_rules(visit, origin, file)
    report.redelivered = redelivered
    targets = list(batch.targets)
    while targets and not redelivered:
        troubles = len(report.retries)
        if not _try_one(visit, targets[0]):
            break
        targets.pop(0)
        visit.trouble = visit.trouble + 1 if len(report.retries) > troubles else 0
        if visit.trouble >= MAX_TROUBLE and not report.back_off:
            report.back_off = BackOff(reason=report.retries[-1].reason)
        if report.back_off or visit.links_size > MAX_LINKS_SIZE:
            break
    report.unfetched = [target.url for target in targets]
    known = None if batch.lost_before else known_links
    report.links = [link for link in visit.links.values() if known is None or not known.covers(batch.job.name, link)]
    report.delay = visit.delay
    return report


def _try_one(visit: _Visit, target: Target) -> bool:
    """As _visit_one. Whatever we did not foresee costs this one URL, and not its whole batch again and again."""
    try:
        return _visit_one(visit, target)
    except Exception as error:
        log.exception("%s", target.url)
        _finish(visit, target, "failed", f"error in the crawler: {type(error).__name__}: {error}"[:300])
        return True


def _visit_one(visit: _Visit, target: Target) -> bool:
    """Deal with one URL. False: it was not touched and goes back unfetched."""
    job = visit.batch.job
    if job.robots:
        rules = _rules(visit, target.url)
        if rules is None:
            return False
        if rules.unreachable:
            visit.report.back_off = visit.report.back_off or BackOff(reason="robots.txt unreachable")
            return False
        if not rules.allows(target.url):
            _finish(visit, target, "excluded", "robots.txt")
            return True
    options: dict[str, Any] = {"max_body": job.max_body, "wanted": job.content_types, "headers": _conditions(target)}
    if target.sitemap:
        options |= {"max_body": sitemaps.MAX_BYTES, "wanted": ()}
    try:
        response = _ask(visit, target.url, options)
        if response is None:
            return False
    except fetch.FetchError as error:
        if error.final:
            _finish(visit, target, "failed", error.reason)
        else:
            visit.report.retries.append(Retry(url=target.url, reason=error.reason))
        if error.host_down:
            visit.report.back_off = BackOff(reason=error.reason)
        return True
    try:
        _judge(visit, target, response)
    except _NotArchivedError as error:
        log.error("%s: not archived, so not done: %s", target.url, error)
        return False
    return True


def _ask(visit: _Visit, url: str, options: dict[str, Any]) -> fetch.Response | None:
    """The answer to a request in its time; None: no time is left for it."""
    if not visit.may_request():
        return None
    try:
        return visit.request(url, **options)
    except fetch.FetchError as error:
        if not error.stale:
            raise
    return visit.request(url, **options) if visit.may_request() else None


def _rules(visit: _Visit, url: str) -> robots.Rules | None:
    """The rules of `url`'s origin, fetched if no fresh copy came with the batch. None: no time to fetch them."""
    origin = urls.origin_of(url)
    known = visit.report.robots.get(origin) or visit.batch.robots.get(origin)
    if known is None or (origin not in visit.report.robots and not robots.is_fresh(known, visit.now())):
        known = _fetch_robots(visit, origin)
        if known is None:
            return None
        visit.report.robots[origin] = known
        _take_rules(visit, origin, known)
    return visit.rules[origin]


def _take_rules(visit: _Visit, origin: str, file: RobotsFile) -> None:
    rules = visit.rules[origin] = robots.Rules(file, settings.PRODUCT)
    if visit.batch.job.sitemaps:
        for address in rules.sitemaps:
            _see(visit, address, 0, found_on=f"{origin}/robots.txt", sitemap=True)


def _fetch_robots(visit: _Visit, origin: str) -> RobotsFile | None:
    """The answer to /robots.txt, redirects followed; those to other hosts as well (RFC 9309, section 2.3.1.2), though
    it is not their turn. None: no time for it."""
    url = f"{origin}/robots.txt"
    response = None
    for hop in range(1 + robots.MAX_REDIRECTS):
        # A batch too short for all redirects would begin with the first of them again and again.
        in_time = visit.may_request(budget=math.inf, longest=MAX_HOP_REST) if hop else visit.may_request()
        if not in_time:
            return None
        try:
            response = visit.request(url, max_body=robots.MAX_BYTES, truncate=True)
        except fetch.FetchError as error:
            visit.report.back_off = BackOff(reason=f"robots.txt: {error.reason}")
            return RobotsFile(fetched_at=visit.now(), status=0)
        if not response.location:
            break
        try:
            url = urls.normalise(response.location, base=url)
        except urls.InvalidURLError:
            return RobotsFile(fetched_at=visit.now(), status=404)
    assert response is not None
    status = (
        404 if response.location else response.status
    )  # too many redirects: as if there were none (RFC 9309, 2.3.1.2)
    if status == 429 or status >= 500:
        seconds = _retry_after(response, visit.now())
        visit.report.back_off = BackOff(reason=f"robots.txt: HTTP {status}", seconds=seconds)
    if status == 429:
        status = 503  # "later", not "everything is allowed"
    return RobotsFile(
        fetched_at=visit.now(), status=status, body=response.body.decode("utf-8", "replace").replace("\0", "\ufffd")
    )


def _judge(visit: _Visit, target: Target, response: fetch.Response) -> None:
    """Turn an answer into the URL's final state, a retry, or a rest for the host."""
    job, status = visit.batch.job, response.status
    if status in (429, 503):
        seconds = _retry_after(response, visit.now())
        visit.report.retries.append(Retry(url=target.url, reason=f"HTTP {status}"))
        visit.report.back_off = BackOff(reason=f"HTTP {status}", seconds=seconds)
    elif status >= 500:
        visit.report.retries.append(Retry(url=target.url, reason=f"HTTP {status}"))
    elif response.location:
        _redirect(visit, target, response)
    elif status == 304 and _conditions(target):
        _finish(visit, target, "done", "not modified", response)
    elif not 200 <= status < 300:
        _finish(visit, target, "failed", f"HTTP {status}", response)
    elif target.sitemap:
        _read_sitemap(visit, target, response)
    elif response.content_type not in job.content_types:
        _finish(visit, target, "excluded", f"content type {response.content_type or 'not given'}", response)
    else:
        _read(visit, target, response)


def _read(visit: _Visit, target: Target, response: fetch.Response) -> None:
    job = visit.batch.job
    text, codec = encoding.decode(response.body, response.headers.get("content-type", ""))
    document = parse.parse(text, response.url, settings.PRODUCT, job.follow, visit.now(), codec, obey=job.robots)
    nofollow, noindex = parse.header_directives(response.header_lines, settings.PRODUCT, visit.now())
    digest = hashlib.sha256(response.body).hexdigest()
    found: dict[str, Any] = {"digest": digest, "canonical": document.canonical}
    reason = "unchanged" if digest == target.digest else None
    if job.robots and (document.noindex or noindex):
        reason = "noindex: not kept"
    else:
        # Before anything is noted of a page that may have to wait for room on the disk.
        found |= _kept(visit, target, response, digest)
        found |= {
            "title": document.title,
            "etag": response.headers.get("etag"),
            "last_modified": response.headers.get("last-modified"),
        }
        if job.extract:
            page = extract.Page(response.url, response.status, response.headers, text, document.links)
            if document.tree:
                page.tree = document.tree
            found["fields"], found["extract_error"] = extract.extract(job.extract, page)
    left_out = visit.left_out
    if not (job.robots and (document.nofollow or nofollow)):
        for url in document.links:
            _see(visit, url, target.depth + 1, found_on=target.url)
    reason = ((reason or "") + _without(visit, left_out)).removeprefix("; ") or None
    _finish(visit, target, "done", reason, response, **found)


def _kept(visit: _Visit, target: Target, response: fetch.Response, digest: str) -> dict[str, Any]:
    """Archive a page, if the job wants that; where it is, as fields of UrlResult."""
    if visit.archive is None:
        return {}
    try:
        position = visit.archive.write(
            visit.batch.job.name,
            response,
            response.request_headers,
            status_line=response.status_line,
            headers=response.header_lines,
            address=response.address,
            digest=digest,
            about={"depth": target.depth, "worker": visit.report.worker, "release": visit.report.release},
        )
    except OSError as error:
        raise _NotArchivedError(error.strerror) from error
    return {"warc_file": position.file, "warc_offset": position.offset}


def _read_sitemap(visit: _Visit, target: Target, response: fetch.Response) -> None:
    addresses, are_sitemaps = sitemaps.parse(response.body)
    if are_sitemaps and target.hops >= MAX_NESTED:
        _finish(visit, target, "excluded", f"sitemap index behind {MAX_NESTED} others: not followed", response)
        return
    left_out = visit.left_out
    for address in addresses:
        nested = target.hops + 1 if are_sitemaps else 0
        _see(visit, address, 0, found_on=target.url, hops=nested, sitemap=are_sitemaps)
    _finish(visit, target, "excluded", f"sitemap of {len(addresses)} URLs{_without(visit, left_out)}", response)


def _without(visit: _Visit, before: int) -> str:
    """What to say of the links that had no room since `left_out` was `before`."""
    return f"; {visit.left_out - before} links had no room" if visit.left_out > before else ""


def _conditions(target: Target) -> dict[str, str]:
    """Headers that ask for the body only if it has changed since an earlier visit (RFC 9110, section 13.1)."""
    conditions = {"If-None-Match": target.etag, "If-Modified-Since": target.last_modified}
    return {name: value for name, value in conditions.items() if value}


def _redirect(visit: _Visit, target: Target, response: fetch.Response) -> None:
    """Record a redirect and hand its goal to the frontier as a URL of its own: politeness stays exact."""
    try:
        goal = urls.normalise(str(response.location), base=target.url)
    except urls.InvalidURLError as error:
        _finish(visit, target, "failed", f"redirect to an address that is not crawlable: {error}", response)
        return
    if goal == target.url:
        _finish(visit, target, "failed", "redirect to itself", response)
        return
    if target.hops >= MAX_HOPS:
        _finish(visit, target, "failed", f"more than {MAX_HOPS} redirects in a row", response)
        return
    _finish(visit, target, "excluded", f"redirect to {goal}", response)
    _see(
        visit,
        goal,
        target.depth,
        found_on=target.url,
        hops=target.hops + 1,
        seed=target.seed,
        sitemap=target.sitemap,
    )


def _see(
    visit: _Visit, address: str, depth: int, found_on: str, *, hops: int = 0, seed: bool = False, sitemap: bool = False
) -> None:
    """Note a URL for the frontier, once per batch. A redirected `seed` keeps a seed's right to choose the host."""
    job = visit.batch.job
    try:
        url = job.cleaned(urls.normalise(address) if depth == 0 else address)
    except urls.InvalidURLError:
        return
    known = visit.links.get(url)
    if known and known.depth <= depth and not (known.excluded and seed):
        return
    excluded = None if seed else job.refuses(url, found_on, depth)
    if known and excluded and not known.excluded:
        return
    size = len(url) + len(found_on) + 100
    if visit.links_size + size > MAX_LINKS_OF_ONE and not known:
        visit.left_out += 1
        return
    visit.links_size += size
    visit.links[url] = Link(
        url=url, depth=depth, found_on=found_on, hops=hops, sitemap=sitemap, seed=seed, excluded=excluded
    )


def _finish(
    visit: _Visit,
    target: Target,
    state: Outcome,
    reason: str | None,
    response: fetch.Response | None = None,
    **found: Any,
) -> None:
    """Note a URL's final state; `found`: more of UrlResult's fields."""
    if response is not None:
        found["status"] = response.status
        found["content_type"] = response.content_type or None
        found["bytes"] = len(response.body)
    asked_at = response.started_at if response else visit.now()
    for name in ("etag", "last_modified"):
        if len(found.get(name) or "") > MAX_TEXT:  # nothing to send back to anybody
            found[name] = None
    if found.get("content_type"):
        found["content_type"] = found["content_type"][:MAX_TEXT]
    reason = reason and fetch.readable(reason[: MAX_TEXT + urls.MAX_LENGTH])
    visit.report.results.append(UrlResult(url=target.url, state=state, reason=reason, fetched_at=asked_at, **found))


def _retry_after(response: fetch.Response, now: float) -> float | None:
    """Seconds the host asks us to stay away, from a number or a date (RFC 9110, section 10.2.3)."""
    value = (response.retry_after or "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_RETRY_AFTER)
    try:
        then = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(then - now, 0.0), MAX_RETRY_AFTER)
