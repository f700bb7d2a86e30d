"""A worker process stays within its memory, whatever fifty hosts send at once."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import gevent
import pytest
from website import Answer, Site

from crawler.job import Job
from crawler.messages import Cause
from crawler.worker import memory
from crawler.worker.found_links import FoundLinks
from crawler.worker.memory import NoPlaceError, Places

from test_batch import crawl  # isort: skip


@pytest.mark.parametrize(
    ("kind", "hosts", "most"),
    [
        ("blank", 20, 100),  # MiB; release d0fe49f: 940, now 0
        ("links", 10, 200),  # 454, 67
        ("page", 20, 150),  # 224, 90
        ("base", 10, 200),  # 71
    ],
)
def test_what_unpacks_to_much_takes_a_bounded_part_of_it(kind: str, hosts: int, most: int) -> None:
    program = Path(__file__).with_name("large_bodies.py")
    command = [sys.executable, "-m", "gevent.monkey", program, kind, str(hosts)]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    _, added = map(int, ran.stdout.split())
    assert added < most


def test_only_so_many_batches_are_large_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PATIENCE", 0.05)
    places = Places(2)
    first, second, third = places.share(), places.share(), places.share()
    for share in (first, second, first):  # a batch takes one place, however often it asks
        share.body_grows(memory.LARGE_BODY + 1)
    third.body_grows(memory.LARGE_BODY)
    third.links_grow(memory.LARGE_LINKS)
    with pytest.raises(NoPlaceError):
        third.links_grow(memory.LARGE_LINKS + 1)
    first.leave()
    first.leave()
    third.body_grows(memory.LARGE_BODY + 1)
    with pytest.raises(NoPlaceError):
        first.take()


def test_a_batch_waits_for_a_place() -> None:
    places = Places(1)
    with places.share() as first:
        first.take()
        waiting = gevent.spawn(places.share().take)
        gevent.sleep(0.05)
        assert not waiting.ready()
    waiting.get(timeout=5)


def test_without_a_place_a_large_page_goes_back_unfetched_and_ordinary_ones_are_done(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "PATIENCE", 0.05)
    monkeypatch.setattr(memory, "LARGE_BODY", 50_000)
    monkeypatch.setattr(memory, "PLACES_OF_PROCESS", Places(1))
    site.pages["/small"] = Answer("x" * 50_000)
    site.pages["/large"] = Answer("x" * 500_000)
    with memory.PLACES_OF_PROCESS.share() as other:
        other.take()
        report = crawl(site, "/small", "/large", "/small?2")
        assert [result.url for result in report.results] == [f"{site.url}/small"]
        assert report.unfetched == [f"{site.url}/large", f"{site.url}/small?2"]
        assert (report.retries, report.back_off) == ([], None)
    report = crawl(site, "/large", "/large?2", "/small")
    assert [result.state for result in report.results] == ["done", "failed", "done"]
    with memory.PLACES_OF_PROCESS.share() as other:
        other.take()  # was left with the report


def test_a_place_is_kept_until_a_report_with_many_links_is_sent(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(memory, "PATIENCE", 0.05)
    monkeypatch.setattr(memory, "LARGE_LINKS", 20_000)
    places = Places(1)
    site.pages["/"] = Answer("".join(f"<a href=/{number}>" for number in range(1_000)))
    share = places.share()
    report = crawl(site, "/", "/1", share=share)
    assert len(report.links) == 1_000
    assert report.unfetched == [f"{site.url}/1"]
    with pytest.raises(NoPlaceError):
        places.share().take()
    share.leave()
    places.share().take()


def test_links_beyond_what_memory_allows_are_left_out_and_the_page_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crawler.worker.found_links.MAX_SIZE", 20_000)
    site.pages["/"] = Answer("".join(f"<a href=/{number}>" for number in range(1_000)))
    report = crawl(site, "/")
    assert 100 < len(report.links) < 200
    (page,) = report.results
    assert page.reason == f"{1_000 - len(report.links)} links had no room"
    assert (page.state, page.cause) == ("done", Cause.TOO_LARGE)


@pytest.mark.usefixtures("parser")
def test_links_that_had_no_room_are_said_to_be_left_out_of_each_page(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("crawler.worker.found_links.MAX_SIZE", 20_000)
    for path in ("/", "/1"):
        site.pages[path] = Answer("".join(f"<a href=/{number}>" for number in range(1_000)))
    report = crawl(site, "/", "/1")
    assert [page.reason for page in report.results] == [f"{1_000 - len(report.links)} links had no room"] * 2


def test_found_links_tell_how_large_they_are() -> None:
    sizes: list[int] = []
    links = FoundLinks(Job(name="j"), sizes.append)
    links.add("http://a.test/1", 1, "http://a.test/")
    links.add("http://a.test/1", 1, "http://a.test/")  # known
    links.add("http://a.test/2", 1, "http://a.test/")
    assert sizes == [129, 258]
    assert links.size == 258
