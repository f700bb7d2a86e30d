"""A crawl, from the seeds to the last page."""

from __future__ import annotations

import re
import time

import pytest
from fleet import Fleet

AGENT = re.compile(r'"CrawlerFleet/[0-9.]+ \(\+https://example\.org/demo-crawler\)"$')


@pytest.fixture(scope="module")
def requests(fleet: Fleet) -> list[tuple[str, float, str, str]]:
    """What web1 was asked for during a crawl, as (site, time, path, user agent)."""
    web = fleet.host(fleet.groups["web"][0])
    before = int(web.check_output("wc --lines < /var/log/nginx/sites.log"))
    job = f"exact-{time.time():.0f}"
    summary = fleet.crawl(job)
    assert fleet.done(job) == fleet.pages()
    counts = summary["counts"]
    assert counts["queued"] == counts["leased"] == 0
    assert counts["discovered"] == counts["done"] + counts["failed"] + counts["excluded"]
    log = web.check_output(f"tail --lines=+{before + 1} /var/log/nginx/sites.log")
    entries = re.findall(r'^(\S+) \S+ ([\d.]+) \d+ "GET (\S+) HTTP/1.1" (".*")$', log, flags=re.MULTILINE)
    return [(site, float(moment), path, agent) for site, moment, path, agent in entries]


def test_every_page_is_fetched_and_only_once(fleet: Fleet, requests: list[tuple[str, float, str, str]]) -> None:
    fetched = sorted(f"http://{site}{path}" for site, _, path, _ in requests if path != "/robots.txt")
    assert len(fetched) == len(set(fetched))
    assert {url for pages in fleet.pages().values() for url in pages} <= set(fetched)


def test_robots_txt_is_read_and_obeyed(fleet: Fleet, requests: list[tuple[str, float, str, str]]) -> None:
    log = fleet.host(fleet.groups["web"][0]).file("/var/log/nginx/sites.log")  # of earlier crawls as well
    for site in fleet.pages():
        assert log.contains(f"^{site} .*GET /robots.txt ")
    assert not [path for site, _, path, _ in requests if site == "python.test" and path.startswith("/distutils/")]


def test_sites_learn_who_asks(requests: list[tuple[str, float, str, str]]) -> None:
    assert not [agent for *_, agent in requests if not AGENT.search(agent)]


def test_all_workers_take_part(fleet: Fleet) -> None:
    newest = max(fleet.status().values(), key=lambda job: job["created_at"])
    crawled = {worker["worker"].partition("@")[2] for worker in newest["workers"] if worker["pages"]}
    assert crawled == set(fleet.groups["workers"])


@pytest.mark.parametrize("workers", [1, 20])
def test_embedded_finds_the_same_pages(fleet: Fleet, workers: int) -> None:
    assert fleet.crawl_embedded("--workers", str(workers), "--delay", "0") == fleet.pages()
