"""robots.txt: the cases of RFC 9309, section by section."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from crawler.messages import RobotsFile
from crawler.settings import PRODUCT
from crawler.worker import robots


def rules(body: str, status: int = 200) -> robots.Rules:
    return robots.Rules(RobotsFile(fetched_at=0, status=status, body=body), PRODUCT)


@pytest.mark.parametrize(
    ("body", "path", "allowed"),
    [
        ("", "/x", True),
        ("User-agent: *\nDisallow: /", "/x", False),
        ("User-agent: *\nDisallow:", "/x", True),
        # 2.2.1: our own group wins over *, whatever its case; other groups are not ours; groups of one name merge
        ("User-agent: *\nDisallow: /\n\nUser-agent: crawlerfleet\nDisallow: /private", "/x", True),
        ("User-agent: *\nDisallow: /\n\nUser-agent: CRAWLERFLEET\nAllow: /", "/x", True),
        ("User-agent: other\nDisallow: /", "/x", True),
        ("User-agent: CrawlerFleet\nDisallow: /a\n\nUser-agent: CrawlerFleet\nDisallow: /b", "/b", False),
        ("User-agent: other\nUser-agent: CrawlerFleet\nDisallow: /a", "/a", False),
        # 2.2.1: the product token of a line is its leading letters, "_" and "-"; it matches as a whole or not at all
        ("User-agent: C\nAllow: /\n\nUser-agent: *\nDisallow: /", "/x", False),
        ("User-agent: Crawler\nDisallow: /", "/x", True),
        ("User-agent: CrawlerFleetNews\nDisallow: /", "/x", True),
        ("User-agent: My-CrawlerFleet\nDisallow: /", "/x", True),
        ("User-agent: CrawlerFleet/1.0\nDisallow: /", "/x", False),
        ("User-agent: crawlerfleet 2 (beta)\nDisallow: /", "/x", False),
        ("User-agent: CrawlerFleet*\nDisallow: /", "/x", False),
        ("User-agent: CrawlerFleet # ours\nDisallow: /", "/x", False),
        ("USER-AGENT:\tCrawlerFleet\nDisallow: /", "/x", False),
        ("User agent: CrawlerFleet\nDisallow: /", "/x", False),  # as Protego reads it
        ("User-agent CrawlerFleet/1.0\nDisallow: /", "/x", False),
        ("User-agent: *bot\nDisallow: /", "/x", True),
        ("User-agent: 99\nDisallow: /", "/x", True),
        ("User-agent:\nDisallow: /", "/x", True),
        ("User-agent: *\rDisallow: /\r\rUser-agent: C\rAllow: /", "/x", False),  # 2.2: CR alone ends a line
        ("User-agent: *\nDisallow: /x\n# User-agent: CrawlerFleet\nDisallow: /y", "/y", False),
        ("User-agent: *\nDisallow: /user-agent: x", "/user-agent:%20x", False),
        ("User-agent: C\nDisallow: /\nUser-agent: CrawlerFleet\nAllow: /", "/x", True),
        # 2.2.2: the longest match wins; Allow wins a draw; /robots.txt itself is allowed
        ("User-agent: *\nDisallow: /a\nAllow: /a/b", "/a/b/c", True),
        ("User-agent: *\nAllow: /a\nDisallow: /a/b", "/a/b/c", False),
        ("User-agent: *\nDisallow: /page\nAllow: /page", "/page", True),
        ("User-agent: *\nDisallow: /A", "/a", True),  # paths are case-sensitive
        # 2.2.3: special characters
        ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif", False),
        ("User-agent: *\nDisallow: /*.gif$", "/x/y.gif?z", True),
        ("User-agent: *\nDisallow: /a*c", "/abc/d", False),
        ("User-agent: * # all\nDisallow: /x # not this\n", "/x", False),
        # 2.2.2: percent-encoding compares equal
        ("User-agent: *\nDisallow: /foo/bar?baz=http://foo.bar", "/foo/bar?baz=http://foo.bar", False),
        ("User-agent: *\nDisallow: /foo/bar/ツ", "/foo/bar/%E3%83%84", False),
        ("User-agent: *\nDisallow: /a%3Cd.html", "/a%3Cd.html", False),
        ("User-agent: *\nDisallow: /%7Ejoe", "/~joe", False),
        # 2.3.1.5 and parsing: garbage lines are passed over, what is readable counts
        ("<html>oops</html>\nUser-agent: *\nDisallow: /x", "/x", False),
        ("\ufeffUser-agent: *\nDisallow: /x", "/x", False),
        ("\ufeffUser-agent: CrawlerFleet/1.0\nDisallow: /x", "/x", False),
        ("User-agent: *\r\nDisallow: /x\r\n", "/x", False),
    ],
)
def test_rules(body: str, path: str, allowed: bool) -> None:
    assert rules(body).allows(f"http://example.org{path}") is allowed


@pytest.mark.parametrize(
    ("status", "allowed", "unreachable"),
    [
        (200, False, False),
        (203, False, False),  # any 2xx brings rules
        (299, False, False),
        (404, True, False),
        (401, True, False),
        (403, True, False),
        (500, False, True),
        (503, False, True),
        (0, False, True),
    ],
)
def test_statuses(status: int, allowed: bool, unreachable: bool) -> None:
    """2.3.1.3: 4xx means there are no rules; 2.3.1.4: 5xx or silence means not yet."""
    answer = rules("User-agent: *\nDisallow: /", status)
    assert answer.allows("http://example.org/x") is allowed
    assert answer.unreachable is unreachable


@pytest.mark.parametrize(
    ("body", "seconds"),
    [
        ("User-agent: *\nCrawl-delay: 2.5", 2.5),
        ("User-agent: *\nCrawl-delay: 86400", robots.MAX_CRAWL_DELAY),
        ("User-agent: *\nCrawl-delay: soon", 0),
        ("User-agent: *\nCrawl-delay: -1", 0),
        ("User-agent: other\nCrawl-delay: 9", 0),
        ("User-agent: Crawler\nCrawl-delay: 9", 0),
        ("User-agent: CrawlerFleet/1.0\nCrawl-delay: 9", 9),
    ],
)
def test_crawl_delay(body: str, seconds: float) -> None:
    assert rules(body).crawl_delay == seconds


def test_a_copy_is_used_for_a_day_and_a_failure_not_at_all() -> None:
    """2.4, and 2.3.1.4."""
    assert robots.is_fresh(RobotsFile(fetched_at=0, status=200), now=robots.MAX_AGE - 1)
    assert not robots.is_fresh(RobotsFile(fetched_at=0, status=200), now=robots.MAX_AGE + 1)
    assert not robots.is_fresh(RobotsFile(fetched_at=0, status=503), now=1)


def test_rules_are_parsed_once_and_known_by_their_text() -> None:
    cache = robots.RulesCache()
    first = RobotsFile(fetched_at=0, status=200, body="User-agent: *\nDisallow: /x\nCrawl-delay: 2")
    again = cache.get(replace(first, fetched_at=99), PRODUCT)
    assert cache.get(first, PRODUCT) is again
    assert (again.allows("http://a.test/x"), again.allows("http://a.test/y"), again.crawl_delay) == (False, True, 2)
    other = cache.get(replace(first, body="User-agent: *\nDisallow: /y"), PRODUCT)
    assert (other.allows("http://a.test/x"), other.allows("http://a.test/y")) == (True, False)
    # A failure says nothing of the rules, whatever came with it.
    assert cache.get(replace(first, status=503), PRODUCT).unreachable
    assert cache.get(replace(first, status=404), PRODUCT).allows("http://a.test/x")


def test_the_cache_of_rules_has_a_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(robots.RulesCache, "MAX_SIZE", 50_000)
    cache = robots.RulesCache()
    files = [RobotsFile(fetched_at=0, status=200, body=f"# {number}" + "x" * 3_000) for number in range(100)]
    kept = {number: cache.get(file, PRODUCT) for number, file in enumerate(files)}
    assert cache.size <= 50_000
    assert cache.get(files[99], PRODUCT) is kept[99]
    assert cache.get(files[0], PRODUCT) is not kept[0]
