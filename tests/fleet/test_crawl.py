"""A crawl, from the seeds to the last page."""

from __future__ import annotations

import re

import pytest
from fleet import Crawl, Fleet

AGENT = re.compile(r'"CrawlerFleet/[0-9.]+ \(\+https://example\.org/demo-crawler\)"$')


@pytest.fixture(scope="module")
def requests(crawl: Crawl) -> list[tuple[str, str, str]]:
    """What web1 was asked for during the crawl, as (site, path, user agent)."""
    found = re.findall(r'^(\S+) \S+ [\d.]+ \d+ "GET (\S+) HTTP/1.1" (".*")$', crawl.log, flags=re.MULTILINE)
    assert len(found) == len(crawl.log.splitlines()) > 1000
    return found


def test_finds_exactly_the_pages_that_links_lead_to(fleet: Fleet, crawl: Crawl) -> None:
    assert fleet.done(crawl.job) == fleet.pages()
    counts = crawl.summary["counts"]
    assert counts["queued"] == counts["leased"] == 0
    assert counts["discovered"] == counts["done"] + counts["failed"] + counts["excluded"]


def test_every_page_is_fetched_and_only_once(fleet: Fleet, requests: list[tuple[str, str, str]]) -> None:
    fetched = sorted(f"http://{site}{path}" for site, path, _ in requests if path != "/robots.txt")
    assert len(fetched) == len(set(fetched))
    assert {url for pages in fleet.pages().values() for url in pages} <= set(fetched)


def test_robots_txt_is_read_and_obeyed(fleet: Fleet, requests: list[tuple[str, str, str]]) -> None:
    log = fleet.host(fleet.groups["web"][0]).file("/var/log/nginx/sites.log")  # of earlier crawls as well
    for site in fleet.pages():
        assert log.contains(f"^{site} .*GET /robots.txt ")
    assert not [path for site, path, _ in requests if site == "python.test" and path.startswith("/distutils/")]


def test_sites_learn_who_asks(requests: list[tuple[str, str, str]]) -> None:
    assert not [agent for *_, agent in requests if not AGENT.search(agent)]


def test_all_workers_take_part(fleet: Fleet, crawl: Crawl) -> None:
    crew = {worker["worker"].partition("@")[2] for worker in crawl.summary["workers"] if worker["pages"]}
    assert crew == set(fleet.groups["workers"])


@pytest.mark.parametrize("workers", [1, 20])
def test_embedded_finds_the_same_pages(fleet: Fleet, workers: int) -> None:
    assert fleet.crawl_embedded("--workers", str(workers), "--delay", "0") == fleet.pages()
