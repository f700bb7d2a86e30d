"""The hostile site, embedded: every URL of it ends as one row with a readable reason."""

from __future__ import annotations

from pathlib import Path

import hostile
import pytest
from gevent.event import Event
from website import Site

from crawler import fetch, local, operations, urls
from crawler import ledger as ledger_module
from crawler.archive import Archive
from crawler.job import Job
from crawler.ledger import Ledger
from crawler.messages import Admission


def test_it_is_crawled_to_the_end(site: Site, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "BACK_OFF_FIRST", 0.1)
    monkeypatch.setattr(fetch, "DEADLINE", 2.0)
    expected = hostile.furnish(site)
    job = Job(name="j", **{**hostile.JOB, "max_attempts": 2})
    seeds = Admission(job=job, seeding="s", chunk=0, chunks=1, urls=[f"{site.url}/"])
    archive = Archive(tmp_path, host="here", worker="test")
    local.crawl(ledger, [seeds], Event(), lambda _: None, archive)
    archive.close()
    hostile.check(expected, {urls.path_of(row["url"]): row for row in operations.pages(ledger, "j")})
