"""The hostile site, embedded: every URL of it ends as one row with a readable reason."""

from __future__ import annotations

import hostile
import pytest
from gevent.event import Event
from website import Site

from crawler import fetch, local, operations, urls
from crawler import ledger as ledger_module
from crawler.job import Job
from crawler.ledger import Ledger
from crawler.messages import Admission


def test_it_is_crawled_to_the_end(site: Site, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger_module, "BACK_OFF_FIRST", 0.1)
    monkeypatch.setattr(fetch, "DEADLINE", 2.0)
    expected = hostile.furnish(site)
    job = Job(name="j", delay=0, depth=hostile.CALENDAR, max_body=1_000_000, max_attempts=2)
    local.crawl(
        ledger, [Admission(job=job, seeding="s", chunk=0, chunks=1, urls=[f"{site.url}/"])], Event(), lambda _: None
    )
    hostile.check(expected, {urls.path_of(row["url"]): row for row in operations.pages(ledger, "j")})
