"""Proof: what of a report counts. A worker is believed in what it says of the pages that it was given, and little else.

Who has a worker's password can send any message. It may claim, and what stops that:

    results of URLs it was not given   only URLs that are leased under the report's lease change (record.py)
    another's lease                    a lease is of one job and one host: the whole report is refused
    rest, robots.txt, requests         count with a lease of that host; robots.txt for the host's two origins, requests
                                       for the report's URLs and for what a robots.txt redirects to
    links on pages of its own making   a link counts if the page that it is on is one that its job asks for
    links out of the scope             what is new is spelled once more, and judged by the job
    links nearer than they are         none is nearer to a seed than its page says
    links as seeds                     only where a seed redirects to
    links as excluded                  only by depth, scope or trap, which another path takes back
    a delay of 1e300, the year 3000    numbers and times have bounds
    escapes, a megabyte, ../../etc     texts are cut, and without control characters; a WARC file is a name

What it still can do: lie about the pages that it was given, let their host rest for a day, and find links in scope on
pages of its jobs that are not there.

Links are proved by their page, not by the lease: a report may come in parts that are links alone (messages.Report), and
a recorder may take in the last part, which ends the lease, before another the first. What does not count is left out,
with a warning; a report that is wrong as a whole raises, and becomes a dead letter.

Links are looked at only if they are new: after recorder and ledger have passed over those that are known. Measured:
1.2 us a page and 3.4 us a new link, and the look for their pages; with one new link a page, 0.02 to 0.03 ms of 0.18.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from typing import Any, NamedTuple

import sqlalchemy as sa
from msgspec.structs import replace
from sqlalchemy.engine import Connection

from crawler import limits
from crawler import urls as url_rules
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import host_queues, leases, urls
from crawler.job import Job
from crawler.messages import LINKS_ALONE, BackOff, Cause, Link, Report, Request, Retry, RobotsFile, UrlResult

log = logging.getLogger(__name__)

CLOCK = limits.LEASE_MARGIN
"""Seconds by which the clock of a worker's host may differ from ours. A time that differs by more is wrong."""
DAY = 86400.0
MAX_CRAWL_DELAY = 30.0
"""Seconds of delay that a robots.txt can ask for (worker/robots.py)."""
MAX_ROBOTS = 500 * 1024
"""Characters of a robots.txt (RFC 9309, section 2.5)."""
MAX_REDIRECTS = 5
"""Of a robots.txt (section 2.3.1.2)."""
REDIRECTS = frozenset((301, 302, 303, 307, 308))
MAX_REQUESTS = 2 * limits.BATCH_URLS + 2 * (1 + MAX_REDIRECTS)
"""Made for a batch: each URL, once more where a connection was stale, and the robots.txt of a host's two origins."""
MAX_TEXT = 300
"""Characters of a header, and of why an extractor failed."""
TEXTS = {
    "reason": MAX_TEXT + url_rules.MAX_LENGTH,
    "cause": 40,
    "title": 500,
    "content_type": MAX_TEXT,
    "canonical": url_rules.MAX_LENGTH,
    "extract_error": 2 * MAX_TEXT,
}
"""Texts of a result, which are cut to so many characters."""
MAX_FIELDS = 256 * 1024
"""Characters of a page's fields as JSON (worker/extract.py takes 128 KiB)."""

_CONTROL = re.compile("[\0-\x1f\x7f-\x9f]")
_WARC_FILE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@+-]{0,254}")
_ROBOTS_TXT = "/robots.txt"
_KEPT_OUT = {Cause.DEPTH: "depth", Cause.SCOPE: "scope:", Cause.TRAP: "trap:"}
"""Causes for which a worker does not follow a link, and how a release that knew no causes wrote them."""


class ForgedError(ValueError):
    """A report that no worker of ours makes."""


class OfJob(NamedTuple):
    """A job that some of the reports are for."""

    job_id: int
    job: Job
    is_known: bool
    """Whether its description could be read: links are not judged by another."""


# --- reports ----------------------------------------------------------------------------------------------------------


def of_leases(
    ledger: Ledger, tx: Connection, reports: Sequence[Report], of_job: Mapping[str, OfJob], now: float
) -> list[Report]:
    """What counts of `reports`, their links apart: all of one that is as it should be. What has no lease that is, or
    just was, of its job and host, is left with links alone. Raises ForgedError for one that names the lease of another
    job or host. A look for all, by primary key; locks nothing."""
    names = [{"lease": name} for name in sorted({report.lease for report in reports} - {""})]
    known = {row.lease: row for row in ledger.run(tx, _of_names, names)} if names else {}
    late = [report for report in reports if report.lease and report.lease not in known]
    still = _still_named(ledger, tx, late, of_job)
    taken = []
    for report in reports:
        job_id, job, _ = of_job[report.job]
        row, since = known.get(report.lease), now - DAY
        if row is not None:
            if (row.job_id, row.host) != (job_id, report.host):
                raise ForgedError(f"{report.worker}: lease {report.lease} is not of {report.host} and {report.job}")
            since = row.deadline - limits.LEASE
        elif (report.lease, job_id, report.host) not in still:
            if report.lease:
                log.info("%s, lease %s: it is over, so links alone are taken", report.worker, report.lease)
            taken.append(replace(report, **LINKS_ALONE))
            continue
        least = ledger.ceilings.delay, ledger.caps.domain.delay, ledger.caps.address.delay
        longest = max(job.delay, MAX_CRAWL_DELAY, *least)
        taken.append(of_lease(report, since - CLOCK, now + CLOCK, longest))
    return taken


def _of_names(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, leases.c.lease)
    return sa.select(*(leases.c[name] for name in ("lease", "job_id", "host", "deadline"))).join(
        given, given.c.lease == leases.c.lease
    )


def _still_named(
    ledger: Ledger, tx: Connection, reports: Iterable[Report], of_job: Mapping[str, OfJob]
) -> set[tuple[str, int, str]]:
    """Those of leases that were taken back, with job_id and host, under which no other lease has begun yet for some of
    their reports' URLs (lease.lose). By primary key."""
    rows = [
        {"job_id": of_job[report.job].job_id, "host": report.host, "url": url, "lease": report.lease}
        for report in reports
        for url in _named(report)
    ]
    return {(row.lease, row.job_id, row.host) for row in ledger.run(tx, _of_urls, rows)} if rows else set()


def _of_urls(ledger: Ledger) -> sa.Select[Any]:
    names = ("job_id", "host", "url", "lease")
    given = ledger.given(None, *(urls.c[name] for name in names))
    same = sa.and_(*(urls.c[name] == given.c[name] for name in names))
    return sa.select(urls.c.lease, urls.c.job_id, urls.c.host).join(given, same).distinct()


def of_lease(report: Report, since: float, until: float, longest: float) -> Report:
    """What counts of a report that has its lease. `since`, `until`: when its requests can have been made; `longest`:
    seconds of delay that its host can need."""
    left_out: list[str] = []
    counts: dict[str, Any] = {
        "worker": _text(report.worker, MAX_TEXT),
        "release": _text(report.release, MAX_TEXT),
        "delay": min(max(report.delay, 0.0), longest) if math.isfinite(report.delay) else longest,
        "results": [_result(page, since, until) for page in report.results],
        "retries": [_retry(retry) for retry in report.retries],
    }
    if report.requests:
        counts["requests"] = _requests(report, since, until, left_out)
    if report.robots:
        counts["robots"] = _robots(report, since, until, left_out)
    if report.back_off is not None:
        counts["back_off"] = _back_off(report.back_off)
    if left_out:
        said = "; ".join(left_out)
        log.warning("%s, lease %s: left out: %.1000s", report.worker, report.lease, said)
    return replace(report, **counts)


def _named(report: Report) -> Iterable[str]:
    """The URLs of which a report says what became of them."""
    return (*(page.url for page in report.results), *(retry.url for retry in report.retries), *report.unfetched)


def _text(text: str, most: int) -> str:
    """`text`, cut to so many characters, without control characters."""
    if len(text) <= most and text.isprintable():
        return text
    return _CONTROL.sub("\ufffd", text[:most])


def _within(at: float, since: float, until: float) -> float:
    """A time; the nearest that it can be, if it cannot be that. False numbers are none."""
    return min(max(at, since), until) if math.isfinite(at) else until


def _result(page: UrlResult, since: float, until: float) -> UrlResult:
    counts: dict[str, Any] = {}
    for name, most in TEXTS.items():
        text = getattr(page, name)
        if text is not None and (fits := _text(text, most)) is not text:
            counts[name] = fits
    for name in ("etag", "last_modified", "digest"):  # which are compared, by us or by the host: whole or not at all
        text = getattr(page, name)
        if text is not None and (len(text) > MAX_TEXT or _CONTROL.search(text)):
            counts[name] = None
    if not since <= page.fetched_at <= until:
        counts["fetched_at"] = _within(page.fetched_at, since, until)
    if page.warc_file is not None and not _WARC_FILE.fullmatch(page.warc_file):
        counts |= {"warc_file": None, "warc_offset": None, "warc_date": None}
    elif page.warc_date is not None and not 0 <= page.warc_date <= until:
        counts["warc_date"] = _within(page.warc_date, 0, until)
    return replace(page, **counts) if counts else page


def _retry(retry: Retry) -> Retry:
    reason, cause = _text(retry.reason, TEXTS["reason"]), retry.cause and _text(retry.cause, TEXTS["cause"])
    return retry if (reason, cause) == (retry.reason, retry.cause) else replace(retry, reason=reason, cause=cause)


def _back_off(asked: BackOff) -> BackOff:
    reason, cause = _text(asked.reason, TEXTS["reason"]), asked.cause and _text(asked.cause, TEXTS["cause"])
    seconds = None if asked.seconds is None else _within(asked.seconds, 0, DAY)
    return BackOff(reason=reason, cause=cause, seconds=seconds)


def _requests(report: Report, since: float, until: float, left_out: list[str]) -> list[Request]:
    """Those for the report's URLs, for the robots.txt of its host, and for what that redirects to, one by one."""
    taken: list[Request] = []
    of_report, of_origins = set(_named(report)), {f"{origin}{_ROBOTS_TXT}" for origin in _origins(report.host)}
    hops = MAX_REDIRECTS  # so many, and no robots.txt is being asked for
    may_follow = False
    for request in report.requests:
        is_robots = request.url in of_origins
        follows = may_follow and hops < MAX_REDIRECTS and not is_robots
        hops = 0 if is_robots else hops + 1
        may_follow = (is_robots or follows) and request.status in REDIRECTS
        if not (is_robots or request.url in of_report or (follows and _is_spelled(request.url))):
            left_out.append(f"a request for {request.url[:MAX_TEXT]}, which was not its to ask for")
        elif not since <= request.at <= until:
            left_out.append(f"a request of another time: {request.at:.0f}")
        elif len(taken) == MAX_REQUESTS:
            left_out.append(f"requests beyond {MAX_REQUESTS}")
            break
        else:
            reason, seconds = (
                request.reason and _text(request.reason, TEXTS["reason"]),
                _within(request.seconds, 0, DAY),
            )
            same = reason is request.reason and seconds == request.seconds
            taken.append(request if same else replace(request, reason=reason, seconds=seconds))
    return taken


def _origins(host: str) -> tuple[str, str]:
    return f"http://{host}", f"https://{host}"


def _is_spelled(url: str) -> bool:
    """Whether a URL is one, and spelled as the ledger does."""
    try:
        return url_rules.normalise(url) == url
    except url_rules.InvalidURLError:
        return False


def _robots(report: Report, since: float, until: float, left_out: list[str]) -> dict[str, RobotsFile]:
    """Those of the host's origins, fetched for the lease."""
    taken = {}
    for origin, file in report.robots.items():
        if origin not in _origins(report.host):
            left_out.append(f"robots.txt of {origin[:MAX_TEXT]}, another host than {report.host}")
        elif not since <= file.fetched_at <= until or len(file.body) > MAX_ROBOTS:
            left_out.append(f"robots.txt of {origin}: of another time, or too long")
        else:
            taken[origin] = file
    return taken


# --- links ------------------------------------------------------------------------------------------------------------


class Page(NamedTuple):
    """What the ledger says of the page that a link is on."""

    depth: int
    hops: int
    nested: int
    sitemap: bool
    seed: bool


Pages = dict[tuple[int, str], Page]
"""By job_id and URL; a robots.txt as what names sitemaps, which it may be besides a page, with _SITEMAPS behind it."""
_SITEMAPS = "#sitemaps"
_ROBOTS_PAGE = Page(depth=0, hops=0, nested=-1, sitemap=True, seed=False)
"""A robots.txt as the page that names sitemaps."""


def to_judge(links: Iterable[Link]) -> list[Link]:
    """`links`; one that is excluded for what no worker may judge, as one that is not. For every link: what costs more
    is done only for those that are new."""
    return [
        link if link.excluded is None or _is_kept_out(link) else replace(link, excluded=None, cause=None)
        for link in links
    ]


def _is_kept_out(link: Link) -> bool:
    if link.cause is None:
        return bool(link.excluded and link.excluded.startswith(tuple(_KEPT_OUT.values())))
    return link.cause in _KEPT_OUT


def pages(ledger: Ledger, tx: Connection, links: Mapping[int, Iterable[Link]]) -> Pages:
    """The pages that `links`, by job_id, are on: those of their job that were asked for or may be, and the robots.txt
    of its hosts. A look for each of the two, by primary key; locks nothing."""
    rows: set[tuple[int, str, str]] = set()
    of_robots: set[tuple[int, str, str]] = set()
    for job_id, of_job in links.items():
        for link in of_job:
            if link.found_on is not None and link.found_on.count("/") >= 3:
                is_robots = _is_of_robots(link)
                (of_robots if is_robots else rows).add((job_id, url_rules.host_of(link.found_on), link.found_on))
    found: Pages = {}
    if rows:
        keys = [{"job_id": job_id, "host": host, "url": url} for job_id, host, url in sorted(rows)]
        for row in ledger.run(tx, _asked_for, keys):
            found[row.job_id, row.url] = Page(row.depth, row.hops, row.nested, row.sitemap, row.seed)
    if of_robots:
        keys = [{"job_id": job_id, "host": host} for job_id, host in sorted({key[:2] for key in of_robots})]
        hosts = {(row.job_id, row.host) for row in ledger.run(tx, _of_hosts, keys)}
        found |= {(job_id, url + _SITEMAPS): _ROBOTS_PAGE for job_id, host, url in of_robots if (job_id, host) in hosts}
    return found


def _is_of_robots(link: Link) -> bool:
    if not link.sitemap or link.hops or link.found_on is None:
        return False
    return link.found_on in (f"{origin}{_ROBOTS_TXT}" for origin in _origins(url_rules.host_of(link.found_on)))


def _page_of(link: Link) -> str:
    """What the page of a link is called in Pages."""
    return f"{link.found_on}{_SITEMAPS}" if _is_of_robots(link) else link.found_on or ""


def _asked_for(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, *(urls.c[name] for name in ("job_id", "host", "url")))
    same = sa.and_(*(urls.c[name] == given.c[name] for name in ("job_id", "host", "url")))
    # What was kept out by the job's limits is no page of it: a link on it could be in its scope.
    asked_for = sa.or_(urls.c.state != "excluded", urls.c.fetched_at.is_not(None))
    columns = (urls.c[name] for name in ("job_id", "url", *Page._fields))
    return sa.select(*columns).join(given, same).where(asked_for)


def _of_hosts(ledger: Ledger) -> sa.Select[Any]:
    queue = host_queues.c
    given = ledger.given(None, queue.job_id, queue.host)
    same = sa.and_(queue.job_id == given.c.job_id, queue.host == given.c.host)
    return sa.select(queue.job_id, queue.host).join(given, same).where(queue.discovered > queue.excluded)


class Judged(NamedTuple):
    """Links as they count."""

    links: list[Link]
    refused: set[str]
    """URLs of those that do not count, or not as they were reported: nobody may take them for known."""


def judged(of_job: OfJob, links: Iterable[Link], found: Pages) -> Judged:
    """Those of `links` that count, as they count; several may be to one URL. `found`: the pages that they are on."""
    taken, refused = [], set()
    for link in links:
        page = found.get((of_job.job_id, _page_of(link)))
        counts = None if page is None else _as_it_counts(of_job, link, page)
        if counts is not None:
            taken.append(counts)
        if counts is not link:
            refused.add(link.url)
    return Judged(taken, refused)


def say_refused(reports: Iterable[Report], job: str, refused: Set[str]) -> None:
    """Warn of links of a job that are refused, by who reported them."""
    for report in reports if refused else ():
        forged = [link.url for link in report.links if link.url in refused] if report.job == job else []
        if forged:
            log.warning(
                "%s, lease %s: %d links that their pages cannot have are left out or changed, such as %.300s",
                report.worker,
                report.lease or "none",
                len(forged),
                forged[0],
            )


def of_seeds(job_id: int, links: Iterable[Link], found: Pages) -> list[Link]:
    """Those of `links` that a seed redirects to."""
    on = ((link, found.get((job_id, _page_of(link)))) for link in links)
    of_seeds = (link for link, page in on if page is not None and link.hops and link.seed and page.seed)
    return [link for link in of_seeds if _is_spelled(link.url)]  # "https://" begins every URL


def _as_it_counts(of_job: OfJob, link: Link, page: Page) -> Link | None:
    """A link on `page` as it can be: the same object, if it is; None, if it is none at all."""
    try:
        url = url_rules.normalise(link.url)
    except url_rules.InvalidURLError:
        return None
    # While the page was fetched, it may have come nearer to a seed: so these are least numbers.
    if link.hops:
        least, sitemap, seed = page.depth, link.sitemap and page.sitemap, link.seed and page.seed
        hops, nested = max(link.hops, page.hops + 1), max(link.nested, page.nested) if sitemap else 0
    else:
        least, sitemap, seed = 0 if page.sitemap else page.depth + 1, link.sitemap and page.sitemap, False
        hops, nested = 0, max(link.nested, page.nested + 1) if sitemap else 0
    if page is _ROBOTS_PAGE and not of_job.job.sitemaps:
        return None
    depth, excluded, cause = max(link.depth, least), link.excluded, link.cause
    if excluded is not None:
        excluded = _text(excluded, TEXTS["reason"])
    elif seed or not of_job.is_known:
        cause = None
    elif refusal := of_job.job.refusal(url, link.found_on or "", depth):
        cause, excluded = refusal
    else:
        cause = None
    counts = (url, depth, link.found_on, hops, nested, sitemap, seed, excluded, cause)
    return link if counts == _values(link) else Link(*counts)


def _values(link: Link) -> tuple[Any, ...]:
    return (
        link.url,
        link.depth,
        link.found_on,
        link.hops,
        link.nested,
        link.sitemap,
        link.seed,
        link.excluded,
        link.cause,
    )
