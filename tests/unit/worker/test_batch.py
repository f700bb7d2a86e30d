"""A batch against a real HTTP server: politeness, and one readable outcome for everything a server may do."""

from __future__ import annotations

import email.utils
import gzip
import itertools
import sys
import threading
import time
import tracemalloc
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from types import ModuleType
from typing import Any

import gevent
import pytest
from msgspec.structs import replace
from warcio.archiveiterator import ArchiveIterator
from website import HTML, Answer, Site

from crawler import settings, urls
from crawler.job import Job
from crawler.known_links import KnownLinks
from crawler.messages import BackOff, Batch, Cause, Link, Report, RobotsFile, Target, encode
from crawler.worker import memory, origin_rules, parse
from crawler.worker.active import ActiveBatches
from crawler.worker.archive import Archive
from crawler.worker.batch import fetch_batch
from crawler.worker.extract import Page
from crawler.worker.fetch import Client
from crawler.worker.fetch_errors import FetchError, HungUpError, TimedOutError
from crawler.worker.found_links import FoundLinks
from crawler.worker.memory import Share


def crawl(
    site: Site,
    *paths: str,
    redelivered: bool = False,
    stop: Any = None,
    known: dict[str, RobotsFile] | None = None,
    share: Share | None = None,
    **job: Any,
) -> Report:
    batch = Batch(
        lease="lease",
        job=Job(**{"name": "test", "delay": 0, **job}),
        host=site.host,
        targets=[Target(url=site.url + path, depth=0) for path in paths],
        expires_at=time.time() + 60,
        robots=known or {},
    )
    with Client("CrawlerFleet/test (+mailto:owner@example.org)") as client:
        return fetch_batch(
            batch, client, stop or threading.Event(), worker="test", redelivered=redelivered, share=share
        )


def outcome(site: Site, path: str, **job: Any) -> tuple[str, str | None]:
    """(state or 'retry', reason) of one URL."""
    report = crawl(site, path, **job)
    assert len(report.results) + len(report.retries) + len(report.unfetched) == 1
    if report.retries:
        return "retry", report.retries[0].reason
    return (report.results[0].state, report.results[0].reason) if report.results else ("unfetched", None)


def test_a_page_and_what_it_says(site: Site) -> None:
    site.pages["/"] = Answer('<title>Front</title><a href="/a">a</a><a href="http://other.test/">o</a>')
    report = crawl(site, "/")
    (page,) = report.results
    assert (page.state, page.status, page.title, page.content_type) == ("done", 200, "Front", "text/html")
    assert page.bytes == len(site.pages["/"].body)  # type: ignore[union-attr, arg-type]
    assert [(link.url, link.depth, link.excluded) for link in report.links] == [
        (f"{site.url}/a", 1, None),
        ("http://other.test/", 1, "scope: other host"),
    ]
    assert site.requests[-1].headers["User-Agent"] == "CrawlerFleet/test (+mailto:owner@example.org)"


def test_delay_is_kept_between_all_requests_robots_included(site: Site) -> None:
    site.tree(4)
    report = crawl(site, "/", "/1", "/2", "/3", delay=0.2)
    assert len(report.results) == 4
    assert site.paths[0] == "/robots.txt"
    times = [request.at for request in site.requests]
    assert min(later - earlier for earlier, later in itertools.pairwise(times)) >= 0.2
    assert report.delay == 0.2


def test_crawl_delay_wins_if_longer(site: Site) -> None:
    site.pages["/robots.txt"] = Answer("User-agent: *\nCrawl-delay: 0.3", headers={"Content-Type": "text/plain"})
    site.tree(2)
    report = crawl(site, "/", "/1", delay=0.1)
    assert site.requests[2].at - site.requests[1].at >= 0.3
    assert report.delay == 0.3


def test_a_redelivered_batch_goes_back_unfetched(site: Site) -> None:
    site.tree(3)
    known = {site.url: RobotsFile(fetched_at=time.time(), status=200, body="User-agent: *\nCrawl-delay: 3")}
    report = crawl(site, "/", "/1", redelivered=True, known=known)
    assert site.paths == []
    assert report.redelivered
    assert report.unfetched == [f"{site.url}/", f"{site.url}/1"]
    assert report.delay == 3  # its first worker may have asked a moment ago


def test_robots_txt_is_obeyed_and_kept(site: Site) -> None:
    site.pages["/robots.txt"] = Answer("User-agent: *\nDisallow: /private")
    site.pages["/private/x"] = Answer("secret")
    report = crawl(site, "/private/x")
    assert (report.results[0].state, report.results[0].reason) == ("excluded", "robots.txt")
    assert site.paths == ["/robots.txt"]
    assert report.robots[site.url].status == 200
    assert outcome(site, "/private/x", robots=False) == ("done", None)


def test_a_known_robots_txt_is_not_fetched_again(site: Site) -> None:
    site.tree(1)
    report = crawl(site, "/", known={site.url: RobotsFile(fetched_at=time.time(), status=404)})
    assert len(report.results) == 1
    assert site.paths == ["/"]


def test_robots_txt_that_fails_rests_the_host(site: Site) -> None:
    site.pages["/robots.txt"] = Answer(status=500)
    report = crawl(site, "/", "/1")
    assert report.unfetched == [f"{site.url}/", f"{site.url}/1"]
    assert report.back_off is not None
    assert report.back_off.reason == "robots.txt: HTTP 500"


@pytest.mark.parametrize("status", [429, 503])
def test_robots_txt_may_ask_for_a_rest(site: Site, status: int) -> None:
    site.pages["/robots.txt"] = Answer(status=status, headers={"Retry-After": "3600"})
    report = crawl(site, "/")
    assert report.unfetched == [f"{site.url}/"]
    assert report.back_off == BackOff(reason=f"robots.txt: HTTP {status}", cause=Cause.ROBOTS_UNREACHABLE, seconds=3600)


def test_robots_txt_redirects_keep_the_delay(site: Site) -> None:
    site.pages["/robots.txt"] = Answer("", 301, {"Location": "/r2"})
    site.pages["/r2"] = Answer("", 301, {"Location": "/r3"})
    site.tree(1)
    crawl(site, "/", delay=0.2)
    assert site.paths == ["/robots.txt", "/r2", "/r3", "/"]
    assert min(later.at - earlier.at for earlier, later in itertools.pairwise(site.requests)) >= 0.2


def test_robots_txt_that_redirects_is_read_however_long_the_delay(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(origin_rules, "MAX_HOP_REST", 0.2)
    site.pages["/robots.txt"] = Answer("", 301, {"Location": "/r2"})
    site.pages["/r2"] = Answer("User-agent: *\nDisallow: /private")
    report = crawl(site, "/", delay=3600)
    assert report.robots[site.url].status == 200
    assert site.paths == ["/robots.txt", "/r2"]
    assert report.unfetched == [f"{site.url}/"]  # its delay is kept


def test_robots_txt_redirects_are_followed(site: Site) -> None:
    site.pages["/robots.txt"] = Answer(status=301, headers={"Location": "/elsewhere"})
    site.pages["/elsewhere"] = Answer("User-agent: *\nDisallow: /")
    assert outcome(site, "/x") == ("excluded", "robots.txt")


def test_a_huge_robots_txt_is_read_in_part(site: Site) -> None:
    """RFC 9309, section 2.5."""
    site.pages["/robots.txt"] = Answer("User-agent: *\nDisallow: /x\n" + "# filler\n" * 100_000)
    assert outcome(site, "/x") == ("excluded", "robots.txt")


@pytest.mark.parametrize("status", [429, 503])
def test_a_host_that_asks_for_rest_gets_it(site: Site, status: int) -> None:
    site.pages["/"] = Answer(status=status, headers={"Retry-After": "120"})
    report = crawl(site, "/", "/1")
    assert [retry.reason for retry in report.retries] == [f"HTTP {status}"]
    assert report.unfetched == [f"{site.url}/1"]
    assert report.back_off is not None
    assert report.back_off.seconds == 120


def test_retry_after_as_a_date(site: Site) -> None:
    site.pages["/"] = Answer(status=503, headers={"Retry-After": email.utils.formatdate(time.time() + 60, usegmt=True)})
    back_off = crawl(site, "/").back_off
    assert back_off is not None
    assert 55 < (back_off.seconds or 0) <= 60


@pytest.mark.parametrize(
    ("said", "seconds"),
    [
        ("0", 0),
        ("99999999", 86400),
        (email.utils.formatdate(time.time() + 30 * 86400, usegmt=True), 86400),
        (email.utils.formatdate(time.time() - 60, usegmt=True), 0),
        ("soon", None),
        ("-5", None),
    ],
)
def test_no_host_is_left_alone_for_more_than_a_day(site: Site, said: str, seconds: float | None) -> None:
    site.pages["/"] = Answer(status=503, headers={"Retry-After": said})
    back_off = crawl(site, "/").back_off
    assert back_off == BackOff(reason="HTTP 503", cause=Cause.RATE_LIMITED, seconds=seconds)


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (Answer("x", 404), ("failed", "HTTP 404")),
        (Answer("x", 410), ("failed", "HTTP 410")),
        (Answer("x", 599), ("retry", "HTTP 599")),
        (Answer("x", 299), ("done", None)),
        (Answer("x", 200, {"Content-Type": "Text/HTML; Charset=UTF-8"}), ("done", None)),
        (Answer("x", 308, {"Location": "/b"}), ("excluded", "redirect to {url}/b")),
        (Answer("", 204), ("done", None)),
        (Answer("x", 200, {"Content-Type": "application/pdf"}), ("excluded", "content type application/pdf")),
        (Answer("x", 200, {}), ("excluded", "content type not given")),
        (Answer("<html>x", 200, {}), ("done", None)),
        (Answer("<html>x", 200, {"X-Content-Type-Options": "nosniff"}), ("excluded", "content type not given")),
        (Answer("<html>x", 200, {"Content-Type": "text/plain"}), ("excluded", "content type text/plain")),
        (Answer("x", 302, {"Location": "/b"}), ("excluded", "redirect to {url}/b")),
        (Answer("x", 302, {"Location": "/x"}), ("failed", "redirect to itself")),
        (Answer("x", 302, {"Location": "mailto:x@y"}), ("failed", "redirect to an address that is not crawlable")),
        (Answer("x", 304), ("failed", "HTTP 304")),
        (Answer("x" * 5000, 200), ("failed", "body larger than 4096 bytes")),
        (
            Answer(gzip.compress(b"x" * 5_000_000), 200, {**HTML, "Content-Encoding": "gzip"}),
            ("failed", "body larger than 4096 bytes"),
        ),
        (
            Answer("not gzip", 200, {**HTML, "Content-Encoding": "gzip"}),
            ("retry", "could not decode its content"),
        ),
    ],
)
def test_answers(site: Site, answer: Answer, expected: tuple[str, str | None]) -> None:
    site.pages["/x"] = answer
    state, reason = outcome(site, "/x", max_body=4096)
    assert state == expected[0]
    assert (reason or "").startswith((expected[1] or "").format(url=site.url))


def drip(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nab")


def nonsense(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"\0\1\2 hello\r\n\r\n")


def silence(_: BaseHTTPRequestHandler) -> None:
    return


def endless_header(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n")


def http_1_0(handler: BaseHTTPRequestHandler) -> None:
    handler.wfile.write(b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<title>old</title>")


@pytest.mark.parametrize(
    ("write", "state"),
    [(drip, "retry"), (nonsense, "retry"), (silence, "retry"), (endless_header, "retry"), (http_1_0, "done")],
)
def test_broken_servers_never_raise(site: Site, write: Any, state: str) -> None:
    site.raw["/x"] = write
    assert outcome(site, "/x")[0] == state


def test_told_to_stop_it_returns_the_rest(site: Site) -> None:
    site.tree(10)
    stop = threading.Event()

    def second(_: int) -> Answer:
        stop.set()
        return Answer("<title>last</title>")

    site.pages["/1"] = second
    report = crawl(site, "/", "/1", "/2", "/3", stop=stop)
    assert [page.url for page in report.results] == [f"{site.url}/", f"{site.url}/1"]
    assert report.unfetched == [f"{site.url}/2", f"{site.url}/3"]


def test_a_redirect_chain_has_an_end(site: Site) -> None:
    site.pages["/x"] = Answer("", 302, {"Location": "/y"})
    batch = Batch(
        lease="l",
        job=Job(name="t", delay=0),
        host=site.host,
        targets=[Target(url=f"{site.url}/x", depth=0, hops=10)],
        expires_at=time.time() + 60,
    )
    with Client("x") as client:
        report = fetch_batch(batch, client, threading.Event(), worker="t")
    assert report.results[0].reason == "more than 10 redirects in a row"


def test_an_expired_lease_is_not_fetched(site: Site) -> None:
    batch = Batch(
        lease="l",
        job=Job(name="t", delay=0),
        host=site.host,
        targets=[Target(url=f"{site.url}/x", depth=0)],
        expires_at=time.time() - 1,
    )
    with Client(settings.user_agent()) as client:
        report = fetch_batch(batch, client, threading.Event(), worker="t")
    assert report.unfetched
    assert not site.requests


def test_a_known_page_is_asked_for_only_if_changed(site: Site) -> None:
    def page(_: int) -> Answer:
        unchanged = site.requests[-1].headers.get("If-None-Match") == '"1"'
        return Answer("", 304) if unchanged else Answer("<title>x</title>", headers={**HTML, "ETag": '"1"'})

    site.pages["/"] = page
    first = crawl(site, "/").results[0]
    assert (first.etag, first.reason) == ('"1"', None)
    again = Target(url=f"{site.url}/", depth=0, etag=first.etag, digest=first.digest)
    assert fetch_one(site, again).reason == "not modified"
    assert fetch_one(site, replace(again, etag=None)).reason == "unchanged"


def fetch_one(site: Site, target: Target) -> Any:
    batch = Batch(lease="l", job=Job(name="t", delay=0), host=site.host, targets=[target], expires_at=time.time() + 60)
    with Client("x") as client:
        return fetch_batch(batch, client, threading.Event(), worker="t").results[0]


def test_a_page_without_an_etag_is_asked_for_only_if_modified_since(site: Site) -> None:
    date = "Mon, 21 Sep 2026 14:13:20 GMT"

    def page(_: int) -> Answer:
        unchanged = site.requests[-1].headers.get("If-Modified-Since") == date
        return Answer("", 304) if unchanged else Answer("<title>x</title>", headers={**HTML, "Last-Modified": date})

    site.pages["/"] = page
    first = crawl(site, "/").results[0]
    assert (first.state, first.cause, first.last_modified) == ("done", None, date)
    again = fetch_one(site, Target(url=f"{site.url}/", depth=0, last_modified=first.last_modified))
    assert (again.state, again.cause, again.reason) == ("done", Cause.UNCHANGED, "not modified")


def test_a_validator_too_long_to_be_sent_back_is_not_kept(site: Site) -> None:
    site.pages["/"] = Answer("x", headers={**HTML, "ETag": "e" * 301, "Last-Modified": "m" * 300})
    page = crawl(site, "/").results[0]
    assert (page.etag, page.last_modified) == (None, "m" * 300)


def test_sitemaps_are_found_through_robots_txt(site: Site) -> None:
    site.pages["/robots.txt"] = Answer(f"Sitemap: {site.url}/map.xml\nSitemap: http://other.test/map.xml")
    site.pages["/"] = Answer("")
    report = crawl(site, "/", sitemaps=True)
    assert [(link.url, link.sitemap, link.excluded) for link in report.links] == [
        (f"{site.url}/map.xml", True, None),
        ("http://other.test/map.xml", True, "scope: other host"),
    ]
    site.pages["/map.xml"] = Answer(f"<urlset><url><loc>{site.url}/hidden</loc></url></urlset>", headers={})
    batch = Batch(
        lease="l",
        job=Job(name="t", delay=0),
        host=site.host,
        targets=[Target(url=f"{site.url}/map.xml", depth=0, sitemap=True)],
        expires_at=time.time() + 60,
    )
    with Client("x") as client:
        report = fetch_batch(batch, client, threading.Event(), worker="t")
    assert (report.results[0].state, report.results[0].reason) == ("excluded", "sitemap of 1 URLs")
    assert [(link.url, link.depth, link.sitemap) for link in report.links] == [(f"{site.url}/hidden", 0, False)]


def test_noindex_pages_lead_on_but_are_not_kept(site: Site) -> None:
    site.pages["/"] = Answer('<title>x</title><meta name=robots content=noindex><a href="/a">a</a>')
    report = crawl(site, "/")
    assert (report.results[0].reason, report.results[0].title) == ("noindex: not kept", None)
    assert len(report.links) == 1


def test_x_robots_tag_nofollow(site: Site) -> None:
    site.pages["/"] = Answer('<a href="/a">a</a>', headers={**HTML, "X-Robots-Tag": "nofollow"})
    assert crawl(site, "/").links == []
    assert len(crawl(site, "/", robots=False).links) == 1


@pytest.mark.parametrize(
    ("value", "links", "reason"),
    [
        ("otherbot: noindex, nofollow", 1, None),
        ("CrawlerFleet: noindex", 1, "noindex: not kept"),
        ("unavailable_after: 25 Jun 2010 15:00:00 PST", 1, "noindex: not kept"),
    ],
)
def test_x_robots_tag_for_one_crawler(site: Site, value: str, links: int, reason: str | None) -> None:
    site.pages["/"] = Answer('<a href="/a">a</a>', headers={**HTML, "X-Robots-Tag": value})
    report = crawl(site, "/")
    assert (len(report.links), report.results[0].reason) == (links, reason)


def test_the_archive_has_the_request_as_it_was_sent(site: Site, tmp_path: Path) -> None:
    site.pages["/?a[]=1"] = site.pages["/?a%5B%5D=1"] = Answer("<title>x</title>")
    url = urls.normalise(f"{site.url}/?a[]=1")
    batch = Batch(
        lease="l",
        job=Job(name="t", delay=0, robots=False, archive="warc"),
        host=site.host,
        targets=[Target(url=url, depth=0, etag='"1"', last_modified="Mon, 21 Sep 2026 14:13:20 GMT")],
        expires_at=time.time() + 60,
    )
    archive = Archive(tmp_path, host="h", worker="w", floor_bytes=0)
    with Client("x") as client:
        fetch_batch(batch, client, threading.Event(), worker="t", archive=archive)
    archive.close()
    (path,) = tmp_path.iterdir()
    with path.open("rb") as stream:
        (head,) = [record.http_headers for record in ArchiveIterator(stream) if record.rec_type == "request"]
    (received,) = site.requests
    assert f"{head.protocol} {head.statusline}" == f"GET {received.path} HTTP/1.1" == "GET /?a%5B%5D=1 HTTP/1.1"
    assert head.headers == list(received.headers.items())
    assert dict(head.headers) == {
        "Host": site.host,
        "User-Agent": "x",
        "Accept": "text/html,application/xhtml+xml,*/*;q=0.5",
        "Accept-Encoding": "gzip, deflate, br, zstd",
        "If-None-Match": '"1"',
        "If-Modified-Since": "Mon, 21 Sep 2026 14:13:20 GMT",
    }


def test_what_is_said_to_robots_may_be_ignored_on_a_site_of_your_own(site: Site) -> None:
    site.pages["/"] = Answer('<meta name=robots content=none><a href="/a" rel=nofollow>a</a>')
    assert crawl(site, "/").links == []
    report = crawl(site, "/", robots=False)
    assert [link.url for link in report.links] == [f"{site.url}/a"]
    assert report.results[0].reason is None


def test_links_the_frontier_has_are_not_sent_again(site: Site) -> None:
    site.tree(3)
    known = KnownLinks()
    batch = Batch(
        lease="l",
        job=Job(name="t", delay=0),
        host=site.host,
        targets=[Target(url=f"{site.url}/", depth=3)],
        expires_at=time.time() + 60,
    )
    with Client("x") as client:
        first = fetch_batch(batch, client, threading.Event(), worker="t", known_links=known)
        assert len(first.links) == 3
        again = fetch_batch(batch, client, threading.Event(), worker="t", known_links=known)
        assert len(again.links) == 3  # not confirmed, so sent again
        known.add("t", first.links)
        assert fetch_batch(batch, client, threading.Event(), worker="t", known_links=known).links == []
        batch.targets[0].depth = 2  # a shorter way is news
        assert len(fetch_batch(batch, client, threading.Event(), worker="t", known_links=known).links) == 3


def test_of_links_to_one_url_the_nearest_counts() -> None:
    known, page = KnownLinks(), "http://a.test/page"
    known.add("t", [Link(url="http://a.test/known", depth=3), Link(url="http://b.test/", depth=3, excluded="scope")])
    found = FoundLinks(Job(name="t"), lambda _: None, known)
    links = ["http://a.test/x", "http://a.test/x?sid=0123456789abcdef01234567", "http://a.test/known", "http://b.test/"]

    def noted() -> dict[str, int]:
        return {link.url: link.depth for link in found.all()}

    found.add_page(links, 4, page)
    assert noted() == {"http://a.test/x": 4}
    found.add_page(links, 5, page)
    assert noted() == {"http://a.test/x": 4}
    found.add_page(links, 2, page)
    assert noted() == {"http://a.test/x": 2, "http://a.test/known": 2, "http://b.test/": 2}
    found.add_page(links, 3, "http://b.test/")  # from there, the last one is in scope
    assert noted() == {"http://a.test/x": 2, "http://a.test/known": 2, "http://b.test/": 2}


@pytest.mark.usefixtures("parser")
def test_pages_of_a_batch_that_share_a_menu_are_reported_as_if_each_came_alone(site: Site) -> None:
    menu = "".join(f"<a href=/{number}>" for number in range(20)) + "<a href=http://other.test/>"
    hidden = {**HTML, "X-Robots-Tag": "nofollow"}
    site.pages = {
        "/": Answer(menu.replace("/1>", "/only-here>"), headers=hidden),
        "/a": Answer(menu + "<a href=/new-in-a>"),
        "/b/": Answer(menu + "<a href=new>"),
        "/c/": Answer(menu + "<a href=new>"),
    }
    found = {link.url: link.found_on for link in crawl(site, "/", "/a", "/b/", "/c/").links}
    assert "only-here" not in "".join(found)
    a, b, c = (f"{site.url}{path}" for path in ("/a", "/b/", "/c/"))
    news = {f"{site.url}/new-in-a": a, f"{b}new": b, f"{c}new": c}
    assert found == dict.fromkeys([*(f"{site.url}/{number}" for number in range(20)), "http://other.test/"], a) | news


@pytest.mark.usefixtures("parser")
def test_a_link_on_two_pages_of_a_batch_is_as_deep_as_the_nearer_one_makes_it(site: Site) -> None:
    site.tree(0)
    targets = [Target(url=f"{site.url}/{depth}", depth=depth) for depth in (4, 2, 6)]
    for target in targets:
        site.pages[urls.path_of(target.url)] = Answer("<a href=/x>")
    batch = Batch(lease="l", job=Job(name="t", delay=0), host=site.host, targets=targets, expires_at=time.time() + 60)
    with Client("x") as client:
        report = fetch_batch(batch, client, threading.Event(), worker="t")
    assert [(link.url, link.depth, link.found_on) for link in report.links] == [(f"{site.url}/x", 3, f"{site.url}/2")]


@pytest.mark.usefixtures("parser")
def test_an_extractor_is_shown_links_that_are_on_every_page(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "crawler.extractors.shows_links"
    module = ModuleType(name)

    def page(page: Page) -> dict[str, list[str]]:
        return {"links": page.links}

    page.__module__ = name
    module.page = page  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, name, module)
    site.tree(2)
    site.pages["/"] = site.pages["/1"] = Answer("<a href=/x>")
    report = crawl(site, "/", "/1", extract="shows_links:page")
    assert [page.fields for page in report.results] == [{"links": [f"{site.url}/x"]}] * 2


def test_remembering_links_takes_no_more_memory_with_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(KnownLinks, "PLACES", 4096)
    known = KnownLinks()
    old = [Link(url=f"http://a.test/{number}", depth=1) for number in range(100)]
    known.add("j", old)

    def covered(job: str) -> int:
        return sum(known.covers(job, link.url, link.depth, False) for link in old)

    assert covered("j") > 90  # a few displace one another
    assert covered("another") == 0
    tracemalloc.start()
    known.add("j", (Link(url=f"http://b.test/{number}", depth=1) for number in range(30_000)))
    assert tracemalloc.get_traced_memory()[0] < 10_000
    tracemalloc.stop()
    assert covered("j") < 10


def test_a_batch_is_recalled_wherever_it_is() -> None:
    active = ActiveBatches()
    with active.batch("a") as first, active.batch("a") as again, active.batch("b") as other:
        active.recall(["a", "c"])
        assert (first.is_set(), again.is_set(), other.is_set()) == (True, True, False)
    with active.batch("c") as late, active.batch("b") as other:
        assert (late.is_set(), other.is_set()) == (True, False)
        active.stop()
        assert other.is_set()
    with active.batch("d") as after:
        assert after.is_set()


def test_a_recalled_batch_does_not_wait_for_the_delay(site: Site) -> None:
    site.tree(3)
    active = ActiveBatches()
    with active.batch("lease") as told:
        gevent.spawn_later(0.3, active.recall, ["lease"])
        began = time.monotonic()
        report = crawl(site, "/", "/1", stop=told, delay=30)
        assert time.monotonic() - began < 5
    assert [page.url for page in report.results] == []
    assert report.unfetched == [f"{site.url}/", f"{site.url}/1"]


def test_an_error_of_our_own_costs_one_url(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.tree(3)
    read = parse.parse

    def broken(text: str, url: str, *more: Any, **options: Any) -> parse.Document:
        if url.endswith("/1"):
            raise RuntimeError("unforeseen")
        return read(text, url, *more, **options)

    monkeypatch.setattr(parse, "parse", broken)
    report = crawl(site, "/", "/1", "/2")
    assert [(page.state, page.reason) for page in report.results] == [
        ("done", None),
        ("failed", "error in the crawler: RuntimeError: unforeseen"),
        ("done", None),
    ]


def test_the_better_of_two_sightings_counts(site: Site) -> None:
    site.pages["/"] = Answer('<a href="/x">x</a>')
    site.pages["/r"] = Answer("", 302, {"Location": "/x"})
    (link,) = crawl(site, "/", "/r", depth=0).links
    assert (link.depth, link.excluded) == (0, None)
    (link,) = crawl(site, "/r", "/", depth=0).links
    assert (link.depth, link.excluded) == (0, None)


def test_a_sitemap_that_moved_is_still_a_sitemap(site: Site) -> None:
    site.pages["/robots.txt"] = Answer(f"Sitemap: {site.url}/sitemap.xml")
    site.pages["/sitemap.xml"] = Answer("", 301, {"Location": "/wp-sitemap.xml"})
    target = Target(url=f"{site.url}/sitemap.xml", depth=0, sitemap=True)
    batch = Batch(lease="l", job=Job(name="t", delay=0), host=site.host, targets=[target], expires_at=time.time() + 60)
    with Client("x") as client:
        (link,) = fetch_batch(batch, client, threading.Event(), worker="t").links
    assert (link.url, link.sitemap, link.excluded) == (f"{site.url}/wp-sitemap.xml", True, None)


def test_only_seeds_may_redirect_to_a_new_host(site: Site) -> None:
    site.pages["/"] = Answer("", 301, {"Location": "http://www.other.test/"})
    for seed, excluded in ((True, None), (False, "scope: other host")):
        target = Target(url=f"{site.url}/", depth=0, seed=seed)
        batch = Batch(
            lease="l", job=Job(name="t", delay=0), host=site.host, targets=[target], expires_at=time.time() + 60
        )
        with Client("x") as client:
            (link,) = fetch_batch(batch, client, threading.Event(), worker="t").links
        assert (link.excluded, link.seed) == (excluded, seed)


def test_a_flood_of_links_ends_the_batch(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "LARGE_LINKS", 30_000)
    for path in ("/", "/1", "/2"):
        site.pages[path] = Answer("".join(f"<a href='{path}/{number}'>x</a>" for number in range(150)))
    report = crawl(site, "/", "/1", "/2")
    assert [page.url for page in report.results] == [f"{site.url}/", f"{site.url}/1"]
    assert report.unfetched == [f"{site.url}/2"]
    parts = list(report.parts(5_000))
    assert len(parts) > 2
    assert [link for part in parts for link in part.links] == report.links
    assert [(part.lease, part.results, part.unfetched, part.requests) for part in parts[:-1]] == [("", [], [], [])] * (
        len(parts) - 1
    )
    assert replace(parts[-1], links=report.links) == report
    assert max(len(encode(part).decode()) for part in parts[:-1]) < 10_000


def test_links_are_all_reported_again_when_a_report_may_have_been_lost(site: Site) -> None:
    site.tree(3)
    known = KnownLinks()
    for lost_before, links in ((False, 3), (False, 0), (True, 3)):
        batch = Batch(
            lease="l",
            job=Job(name="t", delay=0),
            host=site.host,
            targets=[Target(url=f"{site.url}/", depth=0)],
            expires_at=time.time() + 60,
            lost_before=lost_before,
        )
        with Client("x") as client:
            report = fetch_batch(batch, client, threading.Event(), worker="t", known_links=known)
        assert len(report.links) == links
        known.add("t", report.links)


def test_a_connection_that_closes_as_it_is_used_costs_no_attempt_and_no_delay(site: Site) -> None:
    site.tree(2)
    asked = itertools.count()

    def close(handler: BaseHTTPRequestHandler) -> None:
        if next(asked):
            site.raw.pop("/1")
            handler.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 0\r\n\r\n")

    site.raw["/1"] = close
    report = crawl(site, "/", "/1", delay=0.2, robots=False)
    assert [(page.url, page.state) for page in report.results] == [(f"{site.url}/", "done"), (f"{site.url}/1", "done")]
    assert [request.status for request in report.requests] == [200, None, 200]
    assert min(later.at - earlier.at for earlier, later in itertools.pairwise(site.requests)) >= 0.2


def test_sitemaps_are_known_from_a_robots_txt_of_another_job_as_well(site: Site) -> None:
    site.tree(1)
    body = f"Sitemap: {site.url}/sitemap.xml"
    known = {site.url: RobotsFile(fetched_at=time.time(), status=200, body=body)}
    (link,) = (link for link in crawl(site, "/", sitemaps=True, known=known).links if link.sitemap)
    assert link.url == f"{site.url}/sitemap.xml"


def test_every_request_is_reported(site: Site) -> None:
    site.pages["/"] = Answer("")
    site.raw["/x"] = nonsense
    report = crawl(site, "/", "/x")
    assert [(request.url, request.status) for request in report.requests] == [
        (f"{site.url}/robots.txt", 404),
        (f"{site.url}/", 200),
        (f"{site.url}/x", None),
    ]
    assert report.requests[2].reason


# --- is it the URL, or the host? --------------------------------------------------------------------------------------


def retried(report: Report) -> dict[str, str | None]:
    """The paths to be asked for again, each with its cause."""
    return {urls.path_of(retry.url): retry.cause for retry in report.retries}


def done(report: Report) -> list[str]:
    return [urls.path_of(result.url) for result in report.results if result.state == "done"]


def unfetched(report: Report) -> list[str]:
    return [urls.path_of(url) for url in report.unfetched]


def fetch_targets(site: Site, *addresses: str, client: Any = None, **job: Any) -> Report:
    batch = Batch(
        lease="lease",
        job=Job(**{"name": "test", "delay": 0, "robots": False, **job}),
        host=site.host,
        targets=[Target(url=address, depth=0) for address in addresses],
        expires_at=time.time() + 60,
    )
    with Client("x") as real:
        return fetch_batch(batch, client or real, threading.Event(), worker="test")


def test_a_broken_section_costs_the_rest_of_the_site_nothing(site: Site) -> None:
    for number in range(30):
        site.pages[f"/calendar/{number}"] = Answer("", 500)
        site.pages[f"/docs/{number}"] = Answer("x")
    paths = [f"/{part}/{number}" for part in ("calendar", "docs") for number in range(25)]
    report = crawl(site, *paths)
    assert report.back_off is None
    assert retried(report) == dict.fromkeys(paths[:25], Cause.SERVER_ERROR)
    assert done(report) == paths[25:]
    assert report.unfetched == []


def test_503_with_retry_after_is_a_rest_and_without_it_the_url_s_own(site: Site) -> None:
    site.pages["/1"] = Answer("", 503)
    site.pages["/2"] = Answer("", 503, {"Retry-After": "7"})
    report = crawl(site, "/1", "/2", "/3")
    assert retried(report) == {"/1": Cause.SERVER_ERROR, "/2": Cause.RATE_LIMITED}
    assert report.back_off == BackOff(reason="HTTP 503", cause=Cause.RATE_LIMITED, seconds=7)
    assert unfetched(report) == ["/3"]


def test_429_without_a_time_rests_the_host_as_long_as_the_frontier_likes(site: Site) -> None:
    site.pages["/1"] = Answer("", 429)
    report = crawl(site, "/1", "/2")
    assert retried(report) == {"/1": Cause.RATE_LIMITED}
    assert report.back_off == BackOff(reason="HTTP 429", cause=Cause.RATE_LIMITED, seconds=None)


def gone() -> Site:
    """A host where nobody listens."""
    site = Site()
    site.close()
    return site


def test_a_host_that_refuses_connections_rests_and_no_attempt_is_used_up() -> None:
    site = gone()
    report = crawl(site, "/a/1", "/a/2", "/b/1", "/b/2", robots=False)
    assert report.back_off is not None
    assert report.back_off.cause == Cause.CONNECT
    assert "refused" in report.back_off.reason
    assert [urls.path_of(request.url) for request in report.requests] == ["/a/1", "/b/1"]  # of two parts of the site
    assert (report.retries, report.results) == ([], [])
    assert unfetched(report) == ["/a/1", "/a/2", "/b/1", "/b/2"]


def test_the_only_url_of_a_host_that_is_down_goes_back_unfetched() -> None:
    report = crawl(gone(), "/", robots=False)
    assert (unfetched(report), report.retries) == (["/"], [])
    assert report.back_off is not None


def test_a_broken_port_is_its_url_s_own_failure_while_another_answers(site: Site) -> None:
    """https is broken, http is not: the report of test_https says the same of a certificate."""
    addresses = [f"https://{site.host}/{number}" for number in range(3)] + [f"{site.url}/{n}" for n in range(5)]
    site.tree(6)
    site.pages["/0"] = Answer("x")
    report = fetch_targets(site, *addresses)
    assert [(retry.url, retry.cause) for retry in report.retries] == [(url, Cause.TLS) for url in addresses[:3]]
    assert done(report) == ["/0", "/1", "/2", "/3", "/4"]
    assert report.back_off is None


def test_a_name_that_is_not_in_dns() -> None:
    report = fetch_targets(gone(), "http://nowhere.invalid/")
    assert report.back_off is not None
    assert report.back_off.cause == Cause.DNS


class Silence:
    """A client whose requests under /silent/ bring nothing in time."""

    def __init__(self, error: type[FetchError] = TimedOutError, real: Client | None = None) -> None:
        self._error, self._real = error, real or Client("x")

    def get(self, url: str, **options: Any) -> Any:
        if "/silent/" in url:
            raise self._error("no answer")
        return self._real.get(url, **options)


@pytest.mark.parametrize(("error", "cause"), [(TimedOutError, Cause.TIMEOUT), (HungUpError, Cause.HUNG_UP)])
def test_a_silent_section_is_left_for_another_after_three_urls(
    site: Site, error: type[FetchError], cause: Cause
) -> None:
    site.pages["/docs/1"] = Answer("x")
    silent = [f"{site.url}/silent/{number}" for number in range(7)]
    report = fetch_targets(site, *silent, f"{site.url}/docs/1", client=Silence(error))
    asked = [urls.path_of(request.url) for request in report.requests]
    assert asked[:5] == ["/silent/0", "/silent/1", "/silent/2", "/docs/1", "/silent/3"]
    assert done(report) == ["/docs/1"]
    # Three more are silent, and so is the last one, of which there is no other part to be asked.
    assert retried(report) == dict.fromkeys([f"/silent/{number}" for number in range(6)], cause)
    assert report.back_off is not None
    assert report.back_off.cause == cause
    assert unfetched(report) == ["/silent/6"]


def test_silence_now_and_then_is_no_reason_for_a_rest(site: Site) -> None:
    site.tree(3)
    paths = ["/silent/1", "/silent/2", "/", "/1", "/silent/3"]  # and nothing left to ask instead
    report = fetch_targets(site, *(site.url + path for path in paths), client=Silence())
    assert (report.back_off, report.unfetched) == (None, [])
    assert done(report) == ["/", "/1"]


def test_a_body_that_is_cut_off_shows_that_the_host_is_alive(site: Site) -> None:
    site.raw["/cut"] = drip
    report = fetch_targets(site, f"https://{site.host}/", f"{site.url}/cut")
    assert [retry.cause for retry in report.retries] == [Cause.HUNG_UP, Cause.TLS]
    assert report.back_off is None


def test_what_has_a_robots_txt_of_its_own_is_not_held_by_another_origin(site: Site) -> None:
    """A broken https rests the host, and yet its http is crawled meanwhile."""
    site.tree(2)
    report = fetch_targets(site, f"https://{site.host}/", f"{site.url}/", f"{site.url}/1", robots=True)
    assert done(report) == ["/", "/1"]
    assert report.unfetched == [f"https://{site.host}/"]
    assert report.back_off is not None
    assert report.back_off.cause == Cause.ROBOTS_UNREACHABLE


def test_a_robots_txt_that_leads_to_a_blocked_host_is_unreachable(site: Site) -> None:
    blocked = Site()
    site.pages["/robots.txt"] = Answer("", 301, {"Location": f"{blocked.url}/robots.txt"})
    site.pages["/"] = Answer("x")
    batch = Batch(
        lease="l",
        job=Job(name="t", delay=0),
        host=site.host,
        targets=[Target(url=f"{site.url}/", depth=0)],
        expires_at=time.time() + 60,
        blocked=frozenset({blocked.host}),
    )
    with Client("x") as client:
        report = fetch_batch(batch, client, threading.Event(), worker="t")
        assert (blocked.paths, site.paths) == ([], ["/robots.txt"])
        assert unfetched(report) == ["/"]
        assert report.back_off is not None
        assert report.back_off.cause == Cause.ROBOTS_UNREACHABLE
        assert f"blocked host: {blocked.host}" in report.back_off.reason
        allowed = replace(batch, blocked=frozenset())
        assert done(fetch_batch(allowed, client, threading.Event(), worker="t")) == ["/"]
        assert blocked.paths == ["/robots.txt"]
    blocked.close()


# --- what a URL means -------------------------------------------------------------------------------------------------


def test_where_a_server_redirects_to_is_asked_for_as_it_said(site: Site) -> None:
    site.pages["/p"] = Answer("", 302, {"Location": "/p?PHPSESSID=abc"})
    site.pages["/q"] = Answer('<a href="/r?PHPSESSID=abc">r</a>')
    report = crawl(site, "/p", "/q")
    assert [urls.path_of(link.url) for link in report.links] == ["/p?PHPSESSID=abc", "/r"]
    assert [(page.state, page.cause) for page in report.results] == [("excluded", Cause.REDIRECT), ("done", None)]


def test_a_page_whose_type_the_server_did_not_name_is_read_whole(site: Site) -> None:
    site.pages["/"] = Answer("<html><title>T</title>" + "<!-- -->" * 20_000 + "<a href=/last>x</a>", 200, {})
    report = crawl(site, "/")
    (page,) = report.results
    assert (page.state, page.title, page.content_type) == ("done", "T", "text/html")
    assert page.bytes == len(site.pages["/"].body)  # type: ignore[union-attr, arg-type]
    assert [urls.path_of(link.url) for link in report.links] == ["/last"]


def visit(site: Site, target: Target, **job: Any) -> Report:
    batch = Batch(
        lease="l",
        job=Job(**{"name": "t", "delay": 0, **job}),
        host=site.host,
        targets=[target],
        expires_at=time.time() + 60,
    )
    with Client("x") as client:
        return fetch_batch(batch, client, threading.Event(), worker="t")


REFRESH = '<title>We have moved</title><meta http-equiv=refresh content="0; url=http://www.other.test/?sid=1">'


@pytest.mark.parametrize(("seed", "excluded"), [(True, None), (False, "scope: other host")])
def test_a_page_that_leads_on_by_itself_is_a_redirect_in_all_but_name(
    site: Site, seed: bool, excluded: str | None
) -> None:
    """With depth 0 what a seed shows is still reached, and a seed that has moved may name its new host."""
    site.pages["/"] = Answer(REFRESH)
    report = visit(site, Target(url=f"{site.url}/", depth=0, hops=3, seed=seed), depth=0)
    assert (report.results[0].state, report.results[0].title) == ("done", "We have moved")
    (link,) = report.links
    assert (link.url, link.depth, link.hops) == ("http://www.other.test/?sid=1", 0, 4)
    assert (link.seed, link.excluded, link.found_on) == (seed, excluded, f"{site.url}/")


def test_a_slide_show_goes_on_where_redirects_would_end(site: Site) -> None:
    site.pages["/10"] = Answer("<meta http-equiv=refresh content='5; url=/11'>")
    (link,) = visit(site, Target(url=f"{site.url}/10", depth=2, hops=10)).links
    assert (link.url, link.depth, link.hops) == (f"{site.url}/11", 3, 0)


def test_a_refresh_header_counts_and_one_to_itself_does_not(site: Site) -> None:
    site.pages["/"] = Answer("x", headers={**HTML, "Refresh": "0; url=/x"})
    site.pages["/news"] = Answer("x", headers={**HTML, "Refresh": "5; url=/news"})
    assert [link.url for link in crawl(site, "/", "/news").links] == [f"{site.url}/x"]


def test_a_seed_that_redirects_hands_its_right_on(site: Site) -> None:
    """From http to https, or to www: the frontier widens the job's prefixes by what such a link says."""
    site.pages["/docs/"] = Answer("", 301, {"Location": "https://www.other.test/docs/"})
    target = Target(url=f"{site.url}/docs/", depth=0, seed=True)
    (link,) = visit(site, target, scope={"kind": "prefix", "prefixes": [f"{site.url}/docs/"]}).links
    assert (link.url, link.seed, link.excluded) == ("https://www.other.test/docs/", True, None)
    assert link.found_on == target.url


def test_a_relative_sitemap_line_is_relative_to_robots_txt(site: Site) -> None:
    site.pages["/robots.txt"] = Answer("Sitemap: /map.xml\nSitemap: //other.test/map.xml\nSitemap: http://[\n")
    site.pages["/dir/"] = Answer("x")
    links = crawl(site, "/dir/", sitemaps=True).links
    assert [link.url for link in links] == [f"{site.url}/map.xml", "http://other.test/map.xml"]
    assert {(link.sitemap, link.found_on) for link in links} == {(True, f"{site.url}/robots.txt")}


def test_sitemaps_behind_one_another_are_counted_apart_from_redirects(site: Site) -> None:
    site.pages["/index"] = Answer(f"<sitemapindex><loc>{site.url}/map</loc></sitemapindex>", headers={})
    site.pages["/moved"] = Answer("", 301, {"Location": "/index"})
    (link,) = visit(site, Target(url=f"{site.url}/index", depth=0, sitemap=True, hops=9, nested=2)).links
    assert (link.url, link.sitemap, link.hops, link.nested) == (f"{site.url}/map", True, 0, 3)
    (link,) = visit(site, Target(url=f"{site.url}/moved", depth=0, sitemap=True, hops=9, nested=3)).links
    assert (link.url, link.sitemap, link.hops, link.nested) == (f"{site.url}/index", True, 10, 3)
    report = visit(site, Target(url=f"{site.url}/index", depth=0, sitemap=True, nested=3))
    assert report.links == []
    assert report.results[0].reason == "sitemap index behind 3 others: not followed"
    site.pages["/urls"] = Answer(f"<urlset><loc>{site.url}/page</loc></urlset>", headers={})
    (link,) = visit(site, Target(url=f"{site.url}/urls", depth=0, sitemap=True, nested=3)).links
    assert (link.url, link.sitemap, link.nested) == (f"{site.url}/page", False, 0)


def archived(directory: Path) -> list[tuple[str, str]]:
    """(kind of record, path) of all that was archived of pages."""
    found: list[tuple[str, str]] = []
    for path in sorted(directory.iterdir()):
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream, check_digests="raise"):
                if record.rec_type in ("response", "revisit"):
                    found.append((record.rec_type, urls.path_of(record.rec_headers["WARC-Target-URI"])))
    return found


def archiving(site: Site, directory: Path, *targets: Target, floor: int = 0, **job: Any) -> Report:
    batch = Batch(
        lease="l",
        job=Job(**{"name": "t", "delay": 0, **job}),
        host=site.host,
        targets=list(targets),
        expires_at=time.time() + 60,
    )
    archive = Archive(directory, host="h", worker="w", floor_bytes=floor)
    with Client("x") as client:
        report = fetch_batch(batch, client, threading.Event(), worker="t", archive=archive)
    archive.close()
    return report


def test_a_page_that_has_not_changed_is_archived_as_a_revisit_of_the_one_that_is_there(
    site: Site, tmp_path: Path
) -> None:
    site.pages["/"] = Answer("the same")
    first = archiving(site, tmp_path, Target(url=f"{site.url}/", depth=0)).results[0]
    known = Target(
        url=f"{site.url}/",
        depth=0,
        digest=first.digest,
        warc_file=first.warc_file,
        warc_offset=first.warc_offset,
        warc_date=first.fetched_at,
    )
    again = archiving(site, tmp_path / "2", known).results[0]
    assert (again.cause, again.digest) == (Cause.UNCHANGED, first.digest)
    assert (again.warc_file, again.warc_offset) == (first.warc_file, first.warc_offset)  # where the body is
    assert archived(tmp_path / "2") == [("revisit", "/")]
    # What is in no archive is archived whole, and so is what has changed.
    lost = archiving(site, tmp_path / "3", replace(known, warc_file=None)).results[0]
    assert lost.warc_file not in (None, first.warc_file)
    site.pages["/"] = Answer("something else")
    changed = archiving(site, tmp_path / "4", known).results[0]
    assert changed.warc_file not in (None, first.warc_file)
    assert archived(tmp_path / "3") == archived(tmp_path / "4") == [("response", "/")]


@pytest.mark.parametrize(
    "headers", [{"X-Robots-Tag": "noindex"}, {"X-Robots-Tag": "CrawlerFleet: none"}, {}], ids=["header", "ours", "meta"]
)
def test_what_must_not_be_indexed_is_not_archived(site: Site, tmp_path: Path, headers: dict[str, str]) -> None:
    meta = "" if headers else "<meta name=crawlerfleet content=noindex>"
    site.pages["/secret"] = Answer(f"<title>x</title>{meta}", headers={**HTML, **headers})
    site.pages["/open"] = Answer("<title>y</title>")
    targets = [Target(url=f"{site.url}/{path}", depth=0) for path in ("secret", "open")]
    secret, public = archiving(site, tmp_path, *targets).results
    assert archived(tmp_path) == [("response", "/open")]
    assert (secret.cause, secret.warc_file, secret.title, secret.fields) == (Cause.NOINDEX, None, None, None)
    assert public.warc_file
    archiving(site, tmp_path / "own", *targets, robots=False)
    assert len(archived(tmp_path / "own")) == 2


def test_a_disk_that_fills_up_ends_the_batch(site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site.tree(7)
    room = iter([True, True, True, False])  # robots.txt and two pages
    monkeypatch.setattr(Archive, "has_room", lambda _: next(room))
    targets = [Target(url=f"{site.url}/{path}", depth=0) for path in ("", "1", "2", "3")]
    report = archiving(site, tmp_path, *targets)
    assert done(report) == ["/", "/1"]
    assert unfetched(report) == ["/2", "/3"]


def test_every_state_but_a_plain_page_has_a_cause(site: Site) -> None:
    site.pages |= {
        "/": Answer('<a href="/deep">x</a><a href="http://other.test/">x</a><a href="/a/a/a/a/">x</a>'),
        "/robots.txt": Answer("User-agent: *\nDisallow: /private"),
        "/pdf": Answer("x", 200, {"Content-Type": "application/pdf"}),
        "/moved": Answer("", 301, {"Location": "/"}),
        "/loop": Answer("", 301, {"Location": "/loop"}),
        "/500": Answer("x", 500),
        "/large": Answer("x" * 2000),
        "/noindex": Answer("<meta name=robots content=noindex>"),
    }
    paths = ("/", "/private", "/pdf", "/moved", "/loop", "/404", "/large", "/noindex", "/500")
    report = crawl(site, *paths, max_body=1024)
    assert {urls.path_of(page.url): (page.state, page.cause) for page in report.results} == {
        "/": ("done", None),
        "/private": ("excluded", Cause.ROBOTS),
        "/pdf": ("excluded", Cause.CONTENT_TYPE),
        "/moved": ("excluded", Cause.REDIRECT),
        "/loop": ("failed", Cause.BAD_REDIRECT),
        "/404": ("failed", Cause.HTTP),
        "/large": ("failed", Cause.TOO_LARGE),
        "/noindex": ("done", Cause.NOINDEX),
    }
    assert retried(report) == {"/500": Cause.SERVER_ERROR}
    links = visit(site, Target(url=f"{site.url}/", depth=5), depth=5).links
    assert {link.cause for link in links} == {Cause.DEPTH}
    links = visit(site, Target(url=f"{site.url}/", depth=0)).links
    assert [link.cause for link in links] == [None, Cause.SCOPE, Cause.TRAP]
