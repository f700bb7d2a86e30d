"""What a stolen worker sends, and what an honest one sends beside it: only what is proved counts (proof.py)."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import sqlalchemy as sa
from ledger_promises import SITE, admission, counts, report
from msgspec.structs import replace

from crawler.ceilings import Ceilings
from crawler.frontier import proof, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import hosts, requests, urls
from crawler.job import Job
from crawler.messages import Admission, BackOff, Batch, Cause, Link, Request, RobotsFile, UrlResult
from crawler.worker import retry_after, robots

OTHER = "http://b.test"


def leased(ledger: Ledger, *paths: str, now: float = 0, **job: Any) -> Batch:
    """A batch of these paths."""
    admit(ledger, admission(*(paths or ("/",)), **{"delay": 0, **job}), now)
    (batch,) = lease(ledger, 1, now)
    return batch


def row(ledger: Ledger, url: str) -> Any:
    with ledger.transaction() as tx:
        return tx.execute(sa.select(urls).where(urls.c.url == url)).one()


def asked(ledger: Ledger) -> list[str]:
    with ledger.transaction() as tx:
        return list(tx.execute(sa.select(requests.c.url).order_by(requests.c.at)).scalars())


def host(ledger: Ledger, name: str = "a.test") -> Any:
    with ledger.transaction() as tx:
        return tx.execute(sa.select(hosts).where(hosts.c.host == name)).one()


def states(ledger: Ledger) -> dict[str, str]:
    return {page["url"]: page["state"] for page in status.pages(ledger, "j")}


def found(ledger: Ledger, batch: Batch, *links: Link, now: float = 1) -> set[tuple[str, str]]:
    """Record a batch whose pages have these links; those that were refused."""
    refused: set[tuple[str, str]] = set()
    record(ledger, [replace(report(batch), links=list(links))], now, refused)
    return refused


# --- the lease --------------------------------------------------------------------------------------------------------


def test_pages_count_only_for_the_lease_that_has_them(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", delay=50), now=0)
    (batch,) = lease(ledger, 1, now=0)
    mine, others = (
        (target.url for target in batch.targets[:2]) if len(batch.targets) > 1 else (batch.targets[0].url, "")
    )
    forged = [UrlResult(url, "done", 1, status=200) for url in (SITE + "/new", others or SITE + "/b", mine)]
    page = replace(report(batch), results=forged)
    assert record(ledger, [page], now=1) == 1 + bool(others)
    assert SITE + "/new" not in states(ledger)


def test_the_lease_of_another_host_or_job_is_no_lease(ledger: Ledger) -> None:
    admit(ledger, admission("/"), now=0)
    admit(ledger, Admission(job=Job(name="k"), seeding="s", chunk=0, chunks=1, urls=[OTHER + "/"]), now=0)
    batches = {batch.host: batch for batch in lease(ledger, 5, now=0)}
    stolen, mine = batches["a.test"], batches["b.test"]
    of_others = (
        replace(report(mine), lease=stolen.lease),
        replace(report(stolen), job="k"),
        replace(report(stolen), host="b.test"),
    )
    for forged in of_others:
        with pytest.raises(proof.ForgedError, match=f"lease {stolen.lease} is not of"):
            record(ledger, [forged], now=1)
    assert record(ledger, [report(stolen), report(mine)], now=2) == 2


@pytest.mark.parametrize("lease_name", ["", "none-such"])
def test_without_a_lease_nothing_counts_but_links(ledger: Ledger, lease_name: str) -> None:
    batch = leased(ledger, "/", "/b")
    forged = replace(
        report(batch, links=("/next",)),
        lease=lease_name,
        delay=3000,
        back_off=BackOff("away", Cause.RATE_LIMITED, 80_000),
        robots={SITE: RobotsFile(1, 200, "User-agent: *")},
        requests=[Request(url=SITE + "/", at=1, seconds=1, status=200)],
    )
    before = host(ledger)
    assert record(ledger, [forged], now=1) == 0
    assert states(ledger) == {SITE + "/": "leased", SITE + "/b": "leased", SITE + "/next": "queued"}
    assert host(ledger) == before
    assert asked(ledger) == []
    assert record(ledger, [replace(forged, lease=batch.lease)], now=2) == 2
    assert host(ledger).robots
    assert asked(ledger) == [SITE + "/"]
    assert host(ledger).next_due > 80_000


def test_a_forged_report_of_a_host_that_nobody_knows_stops_no_other(ledger: Ledger) -> None:
    batch = leased(ledger)
    forged = replace(report(batch), lease="", host="never-leased.test", back_off=BackOff("?", Cause.DNS))
    assert record(ledger, [forged, report(batch)], now=1) == 1
    assert counts(ledger) == {"done": 1}


def test_a_report_of_a_lease_that_was_taken_back_counts_until_another_has_its_urls(ledger: Ledger) -> None:
    batch = leased(ledger)
    tidy.take_back(ledger, [batch.lease], 100, True)
    late = replace(report(batch), requests=[Request(url=SITE + "/", at=1, seconds=1, status=200)], delay=20)
    assert record(ledger, [late], now=101) == 1
    assert asked(ledger) == [SITE + "/"]
    assert host(ledger).next_due == 121


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "link",
    [
        Link(OTHER + "/", 1, SITE + "/"),  # out of scope
        Link(OTHER + "/", 0, SITE + "/", seed=True),  # as a seed
        Link(OTHER + "/", 0, SITE + "/", hops=1),  # as a redirect
        Link(SITE + "/deny/x", 1, SITE + "/"),
        Link(SITE + "/a/a/a/a/a", 1, SITE + "/"),
        Link(SITE + "/deep", 0, SITE + "/two"),  # nearer than its page
    ],
)
def test_a_link_is_judged_by_the_job_again(ledger: Ledger, link: Link) -> None:
    batch = leased(ledger, scope={"deny": ["/deny/"]}, depth=2)
    found(ledger, batch, Link(SITE + "/two", 2, SITE + "/"))
    (batch,) = lease(ledger, 1, now=10)
    honest = Link(SITE + "/deny", 2, SITE + "/")
    assert found(ledger, batch, link, honest, now=11) == {("j", link.url)}
    of_link = row(ledger, link.url)
    expected = Cause.DEPTH if link.url.endswith("/deep") else Cause.TRAP if "/a/a" in link.url else Cause.SCOPE
    assert (of_link.state, of_link.cause, bool(of_link.seed)) == ("excluded", expected, False)
    assert states(ledger)[honest.url] == "queued"


@pytest.mark.parametrize(
    "page", [None, "", "nonsense", SITE + "/never-seen", OTHER + "/", "javascript://a.test/robots.txt"]
)
def test_a_link_is_on_a_page_of_the_job(ledger: Ledger, page: str | None) -> None:
    """The page of another host is in the ledger as one that was kept out: what links to itself is in its own scope."""
    batch = leased(ledger, "/", "/b", delay=40, sitemaps=True)
    assert len(batch.targets) == 2
    record(ledger, [replace(report(batch, results=[]), lease="", links=[Link(OTHER + "/", 1, SITE + "/")])], now=1)
    assert states(ledger)[OTHER + "/"] == "excluded"
    goal = OTHER + "/inside" if page == OTHER + "/" else SITE + "/forged"
    sitemap = page is not None and page.endswith("robots.txt")
    assert found(ledger, batch, Link(goal, 0 if sitemap else 1, page, sitemap=sitemap)) == {("j", goal)}
    assert goal not in states(ledger)


def test_a_forged_link_displaces_no_honest_one(ledger: Ledger) -> None:
    batch = leased(ledger)
    forged, honest = Link(SITE + "/x", 0, SITE + "/nowhere"), Link(SITE + "/x", 1, SITE + "/")
    assert found(ledger, batch, forged, honest) == {("j", SITE + "/x")}  # so nobody takes it for known at depth 0
    assert row(ledger, SITE + "/x").depth == 1


def test_only_a_seed_redirects_to_a_seed(ledger: Ledger) -> None:
    batch = leased(ledger)
    goal = Link("https://www.b.test/", 0, SITE + "/", hops=1, seed=True)
    assert found(ledger, batch, goal, Link(SITE + "/page", 1, SITE + "/")) == set()
    assert row(ledger, goal.url).seed
    assert row(ledger, goal.url).state == "queued"
    (batch,) = [batch for batch in lease(ledger, 5, now=10) if batch.host == "a.test"]
    assert found(ledger, batch, Link("https://c.test/", 1, SITE + "/page", hops=1, seed=True), now=11)
    assert states(ledger)["https://c.test/"] == "excluded"


def test_only_a_seed_widens_the_prefixes(ledger: Ledger) -> None:
    batch = leased(ledger, "/docs/", scope={"kind": "prefix", "prefixes": (SITE + "/docs/",)})
    found(ledger, batch, Link(SITE + "/docs/one", 1, SITE + "/docs/"))
    (batch,) = lease(ledger, 1, now=10)
    for page in (SITE + "/docs/one", SITE + "/nowhere"):
        found(ledger, batch, Link(OTHER + "/all/", 0, page, hops=1, seed=True), now=11)
    found(ledger, batch, Link("http://", 0, SITE + "/docs/", hops=1, seed=True), now=12)
    assert status.job_named(ledger, "j").scope.prefixes == (SITE + "/docs/",)
    assert states(ledger).get(OTHER + "/all/") == "excluded"


def test_a_link_cannot_be_excluded_for_good(ledger: Ledger) -> None:
    batch = leased(ledger, "/", "/b", delay=40)
    forged = [
        Link(SITE + "/one", 1, SITE + "/", excluded="robots.txt", cause=Cause.ROBOTS),
        Link(SITE + "/two", 1, SITE + "/", excluded="a page like any other"),
        Link(SITE + "/three", 1, SITE + "/", excluded="scope: other host", cause=Cause.SCOPE),
    ]
    found(ledger, batch, *forged)
    now = states(ledger)
    assert (now[SITE + "/one"], now[SITE + "/two"], now[SITE + "/three"]) == ("queued", "queued", "excluded")
    (batch,) = lease(ledger, 1, now=60)
    found(ledger, batch, Link(SITE + "/three", 1, SITE + "/b"), now=61)
    assert states(ledger)[SITE + "/three"] == "queued"


@pytest.mark.parametrize(
    ("url", "known_as"),
    [
        ("http://A.test:80/x/../y", SITE + "/y"),
        ("http://a.test/x#part", SITE + "/x"),
        ("no url", None),
        ("ftp://a.test/x", None),
        ("http://user@a.test/x", None),
        ("http://a.test", None),
        ("///", None),
    ],
)
def test_a_url_is_spelled_as_the_ledger_does(ledger: Ledger, url: str, known_as: str | None) -> None:
    batch = leased(ledger)
    assert record(ledger, [replace(report(batch), links=[Link(url, 1, SITE + "/")])], now=1) == 1
    assert set(states(ledger)) == {SITE + "/", *([known_as] if known_as else [])}


def test_sitemaps_are_named_by_robots_txt_and_by_sitemaps(ledger: Ledger) -> None:
    batch = leased(ledger, sitemaps=True)
    of_robots = Link(SITE + "/s.xml", 0, SITE + "/robots.txt", sitemap=True)
    forged = [
        Link(SITE + "/p.xml", 1, SITE + "/", sitemap=True),  # by a page
        Link(OTHER + "/s.xml", 0, OTHER + "/robots.txt", sitemap=True),  # by a host that the job does not ask
        Link(SITE + "/near", 0, SITE + "/robots.txt"),  # no sitemap
    ]
    assert found(ledger, batch, of_robots, *forged) == {("j", link.url) for link in forged}
    assert (row(ledger, SITE + "/s.xml").sitemap, row(ledger, SITE + "/p.xml").sitemap) == (True, False)
    assert states(ledger).keys() == {SITE + "/", SITE + "/s.xml", SITE + "/p.xml"}
    batches = lease(ledger, 5, now=10)
    entries = [
        Link(SITE + "/entry", 0, SITE + "/s.xml"),
        Link(SITE + "/i.xml", 0, SITE + "/s.xml", nested=1, sitemap=True),
    ]
    assert found(ledger, batches[0], *entries, now=11) == set()
    assert row(ledger, SITE + "/i.xml").nested == 1


def test_without_sitemaps_a_robots_txt_names_none(ledger: Ledger) -> None:
    batch = leased(ledger)
    assert found(ledger, batch, Link(SITE + "/s.xml", 0, SITE + "/robots.txt", sitemap=True))
    assert SITE + "/s.xml" not in states(ledger)


def test_a_part_that_is_overtaken_by_the_last_one_still_counts(ledger: Ledger) -> None:
    batch = leased(ledger)
    *parts, last = report(batch, links=tuple(f"/{number}" for number in range(10))).parts(300)
    assert parts
    for part in (last, *parts):
        record(ledger, [part], now=1)
    assert counts(ledger) == {"done": 1, "queued": 10}


# --- requests, robots.txt, numbers, texts -----------------------------------------------------------------------------


def test_requests_are_those_of_the_lease(ledger: Ledger) -> None:
    batch = leased(ledger, now=1000)

    def request(url: str, at: float = 1001, code: int | None = 200, seconds: float = 1) -> Request:
        return Request(url=url, at=at, seconds=seconds, status=code)

    made = [
        request(OTHER + "/robots.txt", 1001),  # nobody redirected there
        request(SITE + "/robots.txt", 1002, 301),
        request("https://www.b.test/robots.txt", 1003, 302),
        request("https://c.test/r", 1004, 404),
        request("https://d.test/r", 1005),  # after a 404
        request(SITE + "/", 1006, 301, seconds=1e300),
        request(OTHER + "/", 1007),  # where a page redirects to, nobody follows
        request(SITE + "/not-leased", 1008),
        request(SITE + "/", 1009 - 3600),
        request(SITE + "/", 1e300),
    ]
    record(ledger, [replace(report(batch), requests=made)], now=1010)
    assert asked(ledger) == [
        SITE + "/robots.txt",
        "https://www.b.test/robots.txt",
        "https://c.test/r",
        SITE + "/",
    ]


def test_requests_end_somewhere(ledger: Ledger) -> None:
    batch = leased(ledger)
    made = [Request(url=SITE + "/", at=number / 1000, seconds=0, status=200) for number in range(1000)]
    record(ledger, [replace(report(batch), requests=made)], now=1)
    assert len(asked(ledger)) == proof.MAX_REQUESTS
    chain = [Request(url=SITE + "/robots.txt", at=1, seconds=0, status=301)]
    chain += [Request(url=f"{OTHER}/{number}", at=2, seconds=0, status=301) for number in range(10)]
    left_out: list[str] = []
    taken = proof._requests(replace(report(batch), requests=chain), 0, 10, left_out)
    assert len(taken) == 1 + proof.MAX_REDIRECTS
    assert len(left_out) == 5


def test_robots_txt_is_that_of_the_host(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    batch = leased(ledger)
    good = RobotsFile(1, 200, "User-agent: *")
    files = {SITE: good, "https://a.test": RobotsFile(1e12, 200, ""), OTHER: good, "a.test": good}
    with caplog.at_level(logging.WARNING):
        record(ledger, [replace(report(batch), worker="worker-1@x", robots=files)], now=1)
    admit(ledger, admission("/next", seeding="2", delay=0), now=2)
    (batch2,) = lease(ledger, 1, now=10)
    assert batch2.robots == {SITE: good}
    assert f"worker-1@x, lease {batch.lease}: left out: robots.txt of https://a.test" in caplog.text
    too_long = {SITE: RobotsFile(11, 200, "#" * (proof.MAX_ROBOTS + 1))}
    record(ledger, [replace(report(batch2), robots=too_long)], now=11)
    assert "#" not in host(ledger).robots


def test_a_delay_is_one_that_the_host_can_need(ledger: Ledger) -> None:
    for now, delay, counted in ((0, 1e300, 30), (100, 12, 12), (200, float("inf"), 30), (300, float("nan"), 30)):
        admit(ledger, admission(f"/{now}", seeding=str(now)), now)
        (batch,) = lease(ledger, 1, now)
        record(ledger, [report(batch, delay=delay)], now)
        assert host(ledger).next_due == now + counted


def test_a_delay_that_the_inventory_wants_is_one(ledger: Ledger) -> None:
    ledger.ceilings = Ceilings(delay=60)
    admit(ledger, admission("/", delay=0), 0)
    (batch,) = lease(ledger, 1, 0)
    record(ledger, [report(batch, delay=batch.job.delay)], 0)
    assert host(ledger).next_due == 60


def test_what_a_host_asks_for_is_a_day_at_most(ledger: Ledger) -> None:
    batch = leased(ledger)
    record(ledger, [report(batch, back_off=BackOff("429\x1b[2J", Cause.RATE_LIMITED, 1e300))], now=0)
    assert host(ledger).next_due == proof.DAY
    assert host(ledger).failure == "429\ufffd[2J"


def test_times_are_those_of_the_lease(ledger: Ledger) -> None:
    batch = leased(ledger, "/0", "/1", "/2", now=10_000)
    times = (10_001.5, 1e300, -5.0)
    pages = [UrlResult(target.url, "done", at, status=200) for target, at in zip(batch.targets, times, strict=True)]
    record(ledger, [report(batch, results=pages)], now=10_005)
    fetched = [row(ledger, target.url).fetched_at for target in batch.targets]
    assert fetched == [10_001.5, 10_005 + proof.CLOCK, 10_000 - proof.CLOCK]


def test_texts_are_bounded_and_without_control_characters(ledger: Ledger) -> None:
    batch = leased(ledger, "/", "/b")
    honest = {
        "title": "Ünïcode \u200f\u05d0 \u00a0",
        "content_type": "text/html",
        "etag": 'W/"1"',
        "last_modified": "Tue, 01 Dec 2026 03:09:47 GMT",
        "digest": "ab" * 32,
        "canonical": SITE + "/",
        "warc_file": "crawler-j-20261201T030947Z-host-worker_1-abc-00001.warc.gz",
        "warc_offset": 7,
        "warc_date": 1.0,
        "fields": {"a": "\x1b"},
    }
    forged = {
        "title": "\x1b]0;owned\x07" + "t" * 1_000_000,
        "content_type": "x" * 10_000,
        "reason": "r\n" * 5_000,
        "cause": "c" * 1_000,
        "etag": "x\r\nHost: evil.test",
        "last_modified": "l" * 1_000,
        "digest": "cd" * 32,
        "canonical": "x" * 10_000,
        "extract_error": "e" * 10_000,
        "warc_file": "../../etc/passwd",
        "warc_offset": 7,
        "warc_date": 1.0,
        "fields": {"a": "x" * 1_000_000},
    }
    pages = [
        UrlResult(target.url, "done", 1, status=200, **fields)
        for target, fields in zip(batch.targets, (honest, forged), strict=True)
    ]
    record(ledger, [replace(report(batch, results=pages), worker="w\x1b[2J")], now=1)
    kept, other = (row(ledger, target.url)._mapping for target in batch.targets)
    assert {name: kept[name] for name in honest if name != "fields"} == {
        name: value for name, value in honest.items() if name != "fields"
    }
    assert kept["worker"] == "w\ufffd[2J"
    assert other["title"].startswith("\ufffd]0;owned\ufffdttt")
    for name, most in proof.TEXTS.items():
        assert len(other[name]) <= most or name == "extract_error"
    assert other["reason"].count("\ufffd") > 1000
    for name in ("etag", "last_modified", "warc_file", "warc_offset", "warc_date", "fields"):
        assert other[name] is None


def test_bounds_are_those_of_the_worker() -> None:
    assert proof.MAX_CRAWL_DELAY == robots.MAX_CRAWL_DELAY
    assert proof.MAX_ROBOTS == robots.MAX_BYTES
    assert proof.MAX_REDIRECTS == robots.MAX_REDIRECTS
    assert proof.DAY == retry_after.MAX_SECONDS
