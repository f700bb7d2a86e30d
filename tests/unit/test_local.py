"""From a job's description to what a person holds in the end: fields, archive and export, through the whole circle."""

from __future__ import annotations

import json
import os
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from gevent.event import Event
from warcio.archiveiterator import ArchiveIterator
from website import Answer, Site

from crawler import local
from crawler.frontier import export, status, traps
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import hosts, urls
from crawler.job import Job
from crawler.messages import Admission, Cause
from crawler.worker import extract
from crawler.worker.archive import Archive


def crawled(site: Site, ledger: Ledger, keep: Archive | None, **job: Any) -> list[dict[str, Any]]:
    made = Job.checked({"name": "j", "delay": 0, "robots": False, **job}, origin="test")
    admission = Admission(job=made, seeding="s", chunk=0, chunks=1, urls=[site.url + "/"])
    local.crawl(ledger, [admission], Event(), lambda _: None, keep)
    if keep:
        keep.close()
    return sorted(status.pages(ledger, "j"), key=lambda row: row["url"])


def archive_at(path: Path, **options: Any) -> Archive:
    return Archive(path / "archive", **{"host": "h", "worker": "w", "floor_bytes": 0, **options})


def test_every_page_done_is_in_the_archive_where_the_ledger_says(site: Site, ledger: Ledger, tmp_path: Path) -> None:
    site.tree(30)
    site.pages["/3"] = Answer("gone", 410)
    rows = crawled(site, ledger, archive_at(tmp_path))
    done = [row for row in rows if row["state"] == "done"]
    assert len(done) == 23  # /3 failed, and the six pages below it were never seen
    for row in done:
        with (tmp_path / "archive" / row["warc_file"]).open("rb") as stream:
            stream.seek(row["warc_offset"])
            record = next(iter(ArchiveIterator(stream, check_digests="raise")))
            assert record.rec_headers["WARC-Target-URI"] == row["url"]
            assert record.rec_headers["WARC-Payload-Digest"] == f"sha256:{row['digest']}"
            assert record.rec_headers["WARC-IP-Address"] == "127.0.0.1"
            assert len(record.content_stream().read()) == row["bytes"]
    assert all(row["warc_file"] is None for row in rows if row["state"] != "done")


def test_a_web_that_leads_inward_is_crawled_to_its_end(site: Site, ledger: Ledger) -> None:
    """Its host is not taken for one that fails, and nothing is asked for twice."""
    site.pages["/"] = Answer(f"<a href='{site.url}/to'>x</a><a href='http://169.254.169.254/x'>y</a><a href='/3'>z</a>")
    site.pages["/to"] = Answer("", 302, {"Location": "http://10.0.0.1/"})
    site.pages["/3"] = Answer("x")
    rows = crawled(site, ledger, None, robots=True, scope={"kind": "any"})
    became = {row["url"].removeprefix(site.url): (row["state"], row["cause"], row["reason"]) for row in rows}
    assert became == {
        "/": ("done", None, None),
        "/3": ("done", None, None),
        "/to": ("excluded", Cause.REDIRECT, "redirect to http://10.0.0.1/"),
        "http://10.0.0.1/": ("excluded", Cause.ADDRESS, "address not public: 10.0.0.1"),
        "http://169.254.169.254/x": ("excluded", Cause.ADDRESS, "address not public: 169.254.169.254"),
    }
    with ledger.transaction() as tx:
        for host in tx.execute(sa.select(hosts)):
            assert (host.failures, host.failure, host.given_up_at) == (0, None, None), host
    (job,) = status.snapshots(ledger, 0, recount=True)
    assert (job["state"], job["counts"]) == ("done", job["recounted"])


def test_a_visit_that_finds_nothing_new_is_a_revisit_record(site: Site, ledger: Ledger, tmp_path: Path) -> None:
    site.tree(3)
    first = crawled(site, ledger, archive_at(tmp_path / "1"), recrawl=60)
    with ledger.transaction() as tx:
        tx.execute(urls.update().values(fetched_at=urls.c.fetched_at - 100))
    site.pages["/2"] = Answer("<title>New</title>")
    second = crawled(site, ledger, archive_at(tmp_path / "2"), recrawl=60)
    kinds, refers_to = {}, {}
    for path in (tmp_path / "2" / "archive").iterdir():
        with path.open("rb") as stream:
            for record in ArchiveIterator(stream):
                if record.rec_type in ("response", "revisit"):
                    url = record.rec_headers["WARC-Target-URI"]
                    kinds[url] = record.rec_type
                    refers_to[url] = record.rec_headers["WARC-Refers-To-Date"]
    paths = [row["url"].removeprefix(site.url) for row in first]
    assert [kinds[row["url"]] for row in first] == ["revisit", "revisit", "response"], paths
    where = [(row["warc_file"], row["warc_offset"], row["warc_date"]) for row in first]
    again = [(row["warc_file"], row["warc_offset"], row["warc_date"]) for row in second]
    assert again[:2] == where[:2]  # the body is where it was
    assert again[2] != where[2]
    date = datetime.fromisoformat(refers_to[first[0]["url"]])
    assert abs(date.timestamp() - first[0]["warc_date"]) < 0.001


def test_fields_reach_the_export(site: Site, ledger: Ledger, tmp_path: Path) -> None:
    site.tree(3)
    crawled(site, ledger, None, extract={"title": "title", "links": {"css": "a", "attribute": "href", "all": True}})
    out = tmp_path / "out.jsonl"
    assert export.write(status.pages(ledger, "j", export.conditions("url~/$")), "jsonl", out) == 1
    assert json.loads(out.read_text())["fields"] == {"title": "Page 0", "links": ["/", "/1", "/2"]}


def test_a_page_whose_extractor_fails_is_done_and_says_so(
    site: Site, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.tree(1)
    monkeypatch.setattr(extract, "_compiled", lambda _: lambda _: {"n": 1 / 0})
    (row,) = crawled(site, ledger, None, extract="example:page")
    assert (row["state"], row["fields"]) == ("done", None)
    assert row["extract_error"] == "ZeroDivisionError: division by zero"


def test_archive_none_keeps_nothing(site: Site, ledger: Ledger, tmp_path: Path) -> None:
    site.tree(3)
    rows = crawled(site, ledger, archive_at(tmp_path), archive="none")
    assert all(row["state"] == "done" and row["warc_file"] is None for row in rows)
    assert not list((tmp_path / "archive").iterdir())


def test_a_page_the_disk_does_not_take_is_fetched_again_later(
    site: Site, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    site.tree(7)
    real, left = os.pwrite, iter([True] * 5 + [False] * 1)

    def sometimes_full(descriptor: int, data: Any, offset: int) -> int:
        if not next(left, True):
            raise OSError(28, "No space left on device")
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", sometimes_full)
    rows = crawled(site, ledger, archive_at(tmp_path))
    assert [row["state"] for row in rows] == ["done"] * 7
    assert len(site.paths) == 8


class Calendar(dict[str, Any]):
    """A site's pages, and one that answers for every day, with relative links to ten more: 10, 100, 1000, and so on."""

    def get(self, path: str, default: Any = None) -> Any:
        if not path.startswith("/en/calendar/"):
            return super().get(path, default)
        return Answer("Nothing on this day. " + "".join(f"<a href='{day}/'>{day}</a>" for day in "abcdefghij"))


def test_a_calendar_without_end_ends_by_itself_and_the_site_is_whole(site: Site, ledger: Ledger) -> None:
    site.tree(150)
    site.pages["/"] = Answer(f"{site.pages['/'].body}<a href='/en/calendar/'>calendar</a>")  # type: ignore[union-attr]
    site.pages = Calendar(site.pages)
    rows = crawled(site, ledger, None)
    of_calendar = [row for row in rows if "/en/calendar/" in row["url"]]
    days = [row for row in of_calendar if row["state"] == "done"]
    assert {row["url"] for row in rows if row not in of_calendar} == {f"{site.url}/{n or ''}" for n in range(150)}
    assert {row["state"] for row in rows if row not in of_calendar} == {"done"}
    assert traps.RUN < len(days) < 500
    others = {(row["state"], row["cause"]) for row in of_calendar if row not in days}
    assert others == {("excluded", Cause.TRAP)}
    assert len(site.paths) == len(set(site.paths)) == 150 + len(days)
    (job,) = status.snapshots(ledger, 0)
    (closed,) = job["closed"]
    assert (closed["host"], closed["section"]) == (site.host, "/en/calendar/")


def test_of_a_part_of_the_site_as_many_pages_as_the_job_wants(site: Site, ledger: Ledger) -> None:
    site.tree(150)
    site.pages["/"] = Answer(f"{site.pages['/'].body}<a href='/en/calendar/'>calendar</a>")  # type: ignore[union-attr]
    site.pages = Calendar(site.pages)
    rows = crawled(site, ledger, None, max_pages_per_prefix={f"{site.url}/en/calendar/": 70}, traps=False)
    days = [row for row in rows if "/en/calendar/" in row["url"] and row["state"] == "done"]
    assert (len(days), len(site.paths)) == (70, 220)
