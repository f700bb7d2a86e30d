"""What a person asks of the ledger and orders."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from ledger_promises import SITE, admission, counts, report

from crawler import urls
from crawler.frontier import orders, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import requests
from crawler.messages import Request, UrlResult


def crawled(ledger: Ledger) -> None:
    """/a is done, /b failed, and both led to /c."""
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    pages = [
        UrlResult(url=SITE + "/a", state="done", fetched_at=1, status=200, title="A", digest="d"),
        UrlResult(url=SITE + "/b", state="failed", fetched_at=2, status=404, reason="HTTP 404"),
    ]
    asked = [Request(url=SITE + "/a", at=1, status=200, seconds=0.5), Request(url=SITE + "/b", at=3, seconds=0.1)]
    record(ledger, report(batch, results=pages, links=("/c",), requests=asked), now=4)


def test_explain_tells_a_url_s_life(ledger: Ledger) -> None:
    crawled(ledger)
    (told,) = status.explain(ledger, SITE + "/a")
    assert (told["job"], told["state"], told["title"], told["discovered_at"]) == ("j", "done", "A", 0)
    assert [(request["status"], request["worker"]) for request in told["requests"]] == [(200, "w")]
    (told,) = status.explain(ledger, SITE + "/c")
    assert (told["state"], told["next_due"]) == ("queued", 5)
    with pytest.raises(status.UnknownError, match="no job has seen this URL"):
        status.explain(ledger, SITE + "/nowhere")


def test_audit_shows_every_request_and_the_rest_before_it(ledger: Ledger) -> None:
    crawled(ledger)
    asked = list(status.audit(ledger, "a.test")["requests"])
    assert [(request["url"], request["gap"]) for request in asked] == [(SITE + "/a", None), (SITE + "/b", 1.5)]
    with pytest.raises(status.UnknownError):
        status.audit(ledger, "never.test")


def test_a_request_is_shown_to_the_host_that_was_asked(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    asked = [Request(url="http://www.a.test/robots.txt", at=1, status=200, seconds=0.1)]
    record(ledger, report(batch, requests=asked), now=2)
    with ledger.transaction() as tx:
        assert tx.execute(sa.select(requests.c.host)).scalars().all() == ["www.a.test"]


def test_a_host_is_written_as_people_write_it(ledger: Ledger) -> None:
    crawled(ledger)
    assert orders.block(ledger, "HTTP://A.test:80/some/page", now=5) == 1
    assert orders.unblock(ledger, "A.TEST", now=6) == 1
    with pytest.raises(urls.InvalidURLError):
        orders.block(ledger, "no host at all", now=7)


def test_block_drops_and_unblock_brings_back(ledger: Ledger) -> None:
    crawled(ledger)
    assert orders.block(ledger, "a.test", now=5) == 1
    assert counts(ledger) == {"done": 1, "failed": 1, "excluded": 1}
    admit(ledger, admission("/new", seeding="2"), now=6)
    assert lease(ledger, 10, now=100) == []
    tidy.tidy(ledger, 101)
    assert counts(ledger) == {"done": 1, "failed": 1, "excluded": 2}
    assert orders.unblock(ledger, "a.test", now=102) == 2
    assert len(lease(ledger, 10, now=103)) == 1


def test_a_batch_under_way_at_a_block_is_dropped_when_it_returns(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    orders.block(ledger, "a.test", now=1)
    record(ledger, report(batch, results=[], unfetched=[SITE + "/a"]), now=2)
    tidy.tidy(ledger, 3)
    assert counts(ledger) == {"excluded": 1}


def test_pause_resume_cancel(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    orders.set_state(ledger, "j", "paused", now=1)
    assert lease(ledger, 1, now=2) == []
    orders.set_state(ledger, "j", "running", now=3)
    (batch,) = lease(ledger, 1, now=4)
    record(ledger, report(batch, links=("/b",)), now=5)
    assert orders.set_state(ledger, "j", "cancelled", now=6) == 1
    assert counts(ledger) == {"done": 1, "excluded": 1}
    assert orders.set_state(ledger, "j", "running", now=7) == 1
    assert counts(ledger) == {"done": 1, "queued": 1}
    with pytest.raises(status.UnknownError, match="Known: j"):
        orders.set_state(ledger, "k", "paused", now=7)


def test_retry_queues_failures_again(ledger: Ledger) -> None:
    crawled(ledger)
    assert orders.retry(ledger, "j", "HTTP 5", now=5) == 0
    assert orders.retry(ledger, "j", "404", now=5) == 1
    assert counts(ledger) == {"done": 1, "queued": 2}
