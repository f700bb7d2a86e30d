"""The ledger's promises, tested with whatever database the fixture `ledger` is on: SQLite here, PostgreSQL in
tests/integration."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from msgspec.structs import replace

from crawler import limits
from crawler.frontier import lease as lease_module
from crawler.frontier import orders, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import hosts
from crawler.job import Job
from crawler.messages import Admission, BackOff, Batch, Cause, Link, Report, Retry, UrlResult

SITE = "http://a.test"


def admission(*paths: str, chunk: int = 0, last: bool = True, seeding: str = "s", **job: Any) -> Admission:
    return Admission(
        job=Job(**{"name": "j", "delay": 1, **job}),
        seeding=seeding,
        chunk=chunk,
        chunks=chunk + 1 if last else None,
        urls=[SITE + path for path in paths],
    )


def report(batch: Batch, *, links: tuple[str, ...] = (), **fields: Any) -> Report:
    """Everything in `batch` was fetched, unless `fields` say otherwise."""
    pages = [UrlResult(url=target.url, state="done", fetched_at=1, status=200) for target in batch.targets]
    return Report(
        **{
            "lease": batch.lease,
            "job": batch.job.name,
            "host": batch.host,
            "worker": "w",
            "release": "r",
            "delay": batch.job.delay,
            "results": pages,
            "links": [Link(SITE + path, 1, batch.targets[0].url) for path in links],
            **fields,
        }
    )


def counts(ledger: Ledger, now: float = 0) -> dict[str, int]:
    (job,) = status.snapshots(ledger, now, recount=True)
    assert job["counts"] == job["by_host"] == job["recounted"]
    return {state: count for state, count in job["counts"].items() if count and state != "discovered"}


@pytest.mark.parametrize(("order", "left"), [("block", "excluded"), ("cancelled", "excluded"), ("paused", "queued")])
def test_what_workers_hold_is_recalled(ledger: Ledger, order: str, left: str) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    assert tidy.recalled(ledger) == []
    if order == "block":
        orders.block(ledger, "a.test", now=1)
    else:
        orders.set_state(ledger, "j", order, now=1)
    assert tidy.recalled(ledger) == [batch.lease]
    record(
        ledger, [report(batch, results=[], unfetched=[target.url for target in batch.targets], links=("/c",))], now=2
    )
    assert tidy.recalled(ledger) == []
    tidy.tidy(ledger, now=3)
    assert counts(ledger) == {left: 3}
    assert lease(ledger, 1, now=100) == []


def test_a_url_is_admitted_once(ledger: Ledger) -> None:
    assert admit(ledger, admission("/a", "/b", "/a"), now=0) == 2
    assert admit(ledger, admission("/a", "/b", "/a"), now=0) == 0  # the same piece, redelivered
    assert admit(ledger, admission("/b", "/c", seeding="other"), now=0) == 1
    assert counts(ledger) == {"queued": 3}


def test_a_host_has_one_batch_at_a_time_and_rests_after_it(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 10, now=0)
    assert [target.url for target in batch.targets] == [SITE + "/a", SITE + "/b"]
    admit(ledger, admission("/c", seeding="2"), now=0)
    assert lease(ledger, 10, now=1) == []
    record(ledger, [report(batch, delay=7)], now=10)
    assert lease(ledger, 10, now=16.9) == []
    assert len(lease(ledger, 10, now=17.1)) == 1


def test_two_jobs_share_a_host_politely(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    admit(ledger, admission("/b", name="k"), now=0)
    (batch,) = lease(ledger, 10, now=0)
    assert lease(ledger, 10, now=1.5) == []
    record(ledger, [report(batch, delay=5)], now=2)
    assert lease(ledger, 10, now=6.9) == []
    (other,) = lease(ledger, 10, now=7.1)
    assert {batch.job.name, other.job.name} == {"j", "k"}


def test_connections_allow_more(ledger: Ledger) -> None:
    admit(ledger, admission(*(f"/{n}" for n in range(120)), connections=2, delay=0), now=0)
    first = lease(ledger, 1, now=0) + lease(ledger, 1, now=0.1) + lease(ledger, 1, now=0.2)
    assert len(first) == 2
    assert not {t.url for t in first[0].targets} & {t.url for t in first[1].targets}


def test_a_report_of_a_job_that_is_gone_costs_its_companions_nothing(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    gone = replace(report(batch), job="deleted meanwhile")
    assert record(ledger, [gone, report(batch), gone], now=1) == 1
    assert counts(ledger) == {"done": 1}
    assert record(ledger, [gone], now=2) == record(ledger, [], now=2) == 0


def test_reports_of_one_host_in_one_transaction_count_each_failure_once(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", connections=2, delay=100), now=0)
    admit(ledger, admission("/c", "/d", connections=2, delay=100, name="k"), now=0)
    batches = lease(ledger, 1, now=0) + lease(ledger, 1, now=1)
    assert len(batches) == 2
    refused = BackOff(reason="refused", cause=Cause.CONNECT)
    urls = [[target.url for target in batch.targets] for batch in batches]
    said = [
        report(batch, results=[], unfetched=left, back_off=refused) for batch, left in zip(batches, urls, strict=True)
    ]
    record(ledger, [*said, *said], now=10)
    with ledger.transaction() as tx:
        assert tx.execute(sa.select(hosts.c.failures)).scalar_one() == 2
    assert lease(ledger, 5, now=15) == []  # the longer rest of the two


def test_recording_twice_changes_nothing(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    result = report(batch, links=("/a", "/b", "/c"))
    assert record(ledger, [result], now=1) == 1
    before = counts(ledger)
    assert record(ledger, [result], now=2) == 0
    assert counts(ledger) == before == {"done": 1, "queued": 2}


def test_what_was_not_fetched_is_queued_again(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch, results=[], unfetched=[SITE + "/a", SITE + "/b"])], now=1)
    assert counts(ledger) == {"queued": 2}


def test_retries_end(ledger: Ledger) -> None:
    admit(ledger, admission("/a", max_attempts=2), now=0)
    for now in (0, 100):
        (batch,) = lease(ledger, 1, now=now)
        record(ledger, [report(batch, results=[], retries=[Retry(url=SITE + "/a", reason="HTTP 500")])], now=now + 1)
    assert counts(ledger) == {"failed": 1}
    (page,) = status.pages(ledger, "j")
    assert (page["reason"], page["attempts"]) == ("HTTP 500", 2)


def test_an_expired_lease_is_queued_again_and_its_late_report_still_counts(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    tidy.tidy(ledger, now=limits.LEASE + 1)
    assert counts(ledger) == {"queued": 1}
    assert record(ledger, [report(batch)], now=limits.LEASE + 2) == 1
    assert counts(ledger) == {"done": 1}


def test_a_late_report_does_not_disturb_the_new_lease(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (old,) = lease(ledger, 1, now=0)
    later = limits.LEASE + 1
    tidy.tidy(ledger, now=later)
    (new,) = lease(ledger, 1, now=later)
    record(ledger, [report(old, results=[], unfetched=[SITE + "/a"])], now=later + 1)
    assert counts(ledger) == {"leased": 1}
    record(ledger, [report(new)], now=later + 2)
    assert counts(ledger) == {"done": 1}


def test_max_pages_is_exact(ledger: Ledger) -> None:
    admit(ledger, admission("/0", max_pages=70, delay=0), now=0)
    now = 0.0
    while status.snapshots(ledger, now)[0]["state"] == "running":
        now += 1
        for batch in lease(ledger, 10, now):
            links = tuple(f"/{int(t.url.rpartition('/')[2]) * 3 + n}" for t in batch.targets for n in (1, 2, 3))
            record(ledger, [report(batch, links=links)], now)
        tidy.tidy(ledger, now)
    assert counts(ledger)["done"] == 70
    assert set(counts(ledger)) == {"done", "excluded"}


def test_a_job_is_done_when_all_pieces_arrived_and_nothing_is_open(ledger: Ledger) -> None:
    admit(ledger, admission("/b", chunk=1), now=0)  # the last piece overtook the first
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch)], now=1)
    tidy.tidy(ledger, 1)
    assert status.snapshots(ledger, 1)[0]["state"] == "running"
    admit(ledger, admission("/a", chunk=0, last=False), now=2)
    (batch,) = lease(ledger, 1, now=10)
    record(ledger, [report(batch)], now=11)
    tidy.tidy(ledger, 11)
    assert status.snapshots(ledger, 11)[0]["state"] == "done"
    admit(ledger, admission("/c", seeding="later"), now=12)
    assert status.snapshots(ledger, 12)[0]["state"] == "running"


def test_max_pages_per_host(ledger: Ledger) -> None:
    admit(ledger, admission(*(f"/{n}" for n in range(9)), max_pages_per_host=4, delay=0), now=0)
    (batch,) = lease(ledger, 5, now=0)
    assert len(batch.targets) == 4
    record(ledger, [report(batch)], now=1)
    tidy.tidy(ledger, 2)
    assert counts(ledger) == {"done": 4, "excluded": 5}


def test_recrawl_visits_again_with_what_is_known(ledger: Ledger) -> None:
    admit(ledger, admission("/a", recrawl="1h"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    page = UrlResult(url=SITE + "/a", state="done", fetched_at=10, status=200, title="A", etag='"1"', digest="d")
    record(ledger, [report(batch, results=[page])], now=10)
    tidy.tidy(ledger, 11)
    assert status.snapshots(ledger, 11)[0]["state"] == "done"
    tidy.tidy(ledger, 3000)
    assert lease(ledger, 1, now=3000) == []
    tidy.tidy(ledger, 3700)
    (batch,) = lease(ledger, 1, now=3700)
    assert (batch.targets[0].etag, batch.targets[0].digest) == ('"1"', "d")
    same = UrlResult(url=SITE + "/a", state="done", fetched_at=3700, status=304, reason="not modified")
    record(ledger, [report(batch, results=[same])], now=3701)
    (row,) = status.pages(ledger, "j")
    assert (row["title"], row["etag"], row["status"], row["reason"]) == ("A", '"1"', 304, "not modified")
    assert counts(ledger) == {"done": 1}


def test_recrawl_visits_what_was_no_page_as_well(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", "/c", recrawl="1h", max_attempts=1), now=0)
    (batch,) = lease(ledger, 1, now=0)
    pages = [
        UrlResult(url=SITE + "/a", state="failed", fetched_at=1, status=404, reason="HTTP 404"),
        UrlResult(url=SITE + "/b", state="excluded", fetched_at=1, status=302, reason="redirect to"),
    ]
    record(ledger, [report(batch, results=pages, retries=[Retry(url=SITE + "/c", reason="HTTP 500")])], now=2)
    tidy.tidy(ledger, 3)
    assert counts(ledger, 3) == {"failed": 2, "excluded": 1}
    tidy.tidy(ledger, 3700)
    (batch,) = lease(ledger, 1, now=3700)
    assert len(batch.targets) == 3


def test_what_is_kept_out_on_one_way_may_come_in_on_another(ledger: Ledger) -> None:
    admit(ledger, admission("/"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    page, out = SITE + "/", "scope: other host"
    nearer, far = Link(SITE + "/near", 5, page), Link(SITE + "/y", 9, page, excluded="depth")
    links = [Link("http://b.test/x", 1, page, excluded=out), far]
    record(ledger, [replace(report(batch), links=[*links, nearer])], now=1)
    assert counts(ledger) == {"done": 1, "queued": 1, "excluded": 2}
    (batch,) = lease(ledger, 1, now=10)
    other = Admission(job=batch.job, seeding="b", chunk=0, chunks=1, urls=["http://b.test/"])
    admit(ledger, other, now=10)
    found = [Link("http://b.test/x", 1, "http://b.test/"), far, Link(SITE + "/", 1, page)]
    record(ledger, [replace(report(batch, results=[], unfetched=[nearer.url]), links=found)], now=11)
    assert counts(ledger) == {"done": 1, "queued": 3, "excluded": 1}
    assert admit(ledger, admission("/y", "/near", seeding="by hand"), now=12) == 1
    assert counts(ledger) == {"done": 1, "queued": 4}
    batches = lease(ledger, 5, now=100)
    assert {(target.url, target.depth, target.seed) for batch in batches for target in batch.targets} == {
        ("http://b.test/", 0, True),
        ("http://b.test/x", 1, False),
        (SITE + "/y", 0, True),
        (nearer.url, 0, True),
    }


def test_a_wider_scope_brings_in_what_the_narrower_one_kept_out(ledger: Ledger) -> None:
    admit(ledger, admission("/"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    links = [
        Link(url=f"http://b.test/{number}", depth=1, found_on=SITE + "/", excluded="scope: other host")
        for number in range(3)
    ]
    record(ledger, [replace(report(batch), links=links)], now=1)
    tidy.tidy(ledger, 2)
    wider = {"kind": "any", "deny": ("/2$",)}
    admit(ledger, admission("/", seeding="again", scope=wider), now=3)
    assert counts(ledger) == {"done": 1, "queued": 2, "excluded": 1}


def test_a_url_that_is_lost_again_and_again_is_isolated_and_given_up(ledger: Ledger) -> None:
    admit(ledger, admission("/bad", "/good", delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    assert not batch.lost_before
    now = 0.0
    for _ in range(lease_module.SUSPICIOUS):
        now += 700
        tidy.tidy(ledger, now)
        (batch,) = lease(ledger, 1, now)
        assert batch.lost_before
    assert [target.url for target in batch.targets] == [SITE + "/bad"]  # alone, though it was not alone to blame
    record(ledger, [report(batch, results=[], unfetched=[SITE + "/bad"])], now)
    for _ in range(lease_module.MAX_EXPIRIES):
        now += 1
        for batch in lease(ledger, 1, now):
            (target,) = batch.targets
            if target.url == SITE + "/good":
                record(ledger, [report(batch)], now)
            else:
                assert tidy.take_back(ledger, [batch.lease], now, begun=True) == [batch.lease]
                assert tidy.take_back(ledger, [batch.lease], now, begun=True) == []
    tidy.tidy(ledger, now)
    assert counts(ledger, now) == {"done": 1, "failed": 1}


def test_late_reports_do_not_break_the_limit(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", "/c", "/d", max_pages=2, delay=0), now=0)
    (first,) = lease(ledger, 1, now=0)
    tidy.tidy(ledger, 700)
    (second,) = lease(ledger, 1, now=700)
    record(ledger, [report(second)], now=701)
    record(ledger, [report(first)], now=702)
    tidy.tidy(ledger, 703)
    assert counts(ledger, 703) == {"done": 2, "excluded": 2}


def test_a_seeding_that_was_broken_off_does_not_keep_its_job_open(ledger: Ledger) -> None:
    admit(ledger, admission("/a", last=False), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch)], now=1)
    tidy.tidy(ledger, 2)
    assert status.snapshots(ledger, 2)[0]["state"] == "running"
    tidy.tidy(ledger, tidy.SEEDING_PATIENCE + 1)
    assert status.snapshots(ledger, 2)[0]["state"] == "done"


def test_urls_for_a_cancelled_job_let_it_go_on_unless_they_were_under_way(ledger: Ledger) -> None:
    admit(ledger, admission("/a", last=False), now=0)
    orders.set_state(ledger, "j", "cancelled", now=1)
    admit(ledger, admission("/b", chunk=1), now=2)
    tidy.tidy(ledger, 3)
    assert counts(ledger, 3) == {"excluded": 2}
    admit(ledger, admission("/c", seeding="later"), now=4)
    tidy.tidy(ledger, 5)
    assert counts(ledger, 5) == {"queued": 3}


def test_an_older_schema_grows(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    with ledger.engine.begin() as tx:
        tx.execute(sa.text("ALTER TABLE urls DROP COLUMN canonical"))
        tx.execute(sa.text("ALTER TABLE urls DROP COLUMN sitemap"))
        tx.execute(sa.text("DROP TABLE requests"))
    assert ledger.create()
    assert not ledger.create()
    (batch,) = lease(ledger, 1, now=1)
    record(ledger, [report(batch)], now=2)
    assert counts(ledger) == {"done": 1}


def test_a_wider_limit_goes_on_where_the_narrower_one_stopped(ledger: Ledger) -> None:
    def crawl(now: float) -> None:
        while batches := lease(ledger, 1, now):
            depth = batches[0].targets[0].depth + 1
            excluded = batches[0].job.refuses(f"{SITE}/{depth}", f"{SITE}/", depth)
            link = Link(f"{SITE}/{depth}", depth, batches[0].targets[0].url, excluded=excluded)
            record(ledger, [replace(report(batches[0]), links=[link])], now)
            tidy.tidy(ledger, now)

    admit(ledger, admission("/0", depth=1, delay=0), now=0)
    crawl(0)
    assert counts(ledger) == {"done": 2, "excluded": 1}
    admit(ledger, admission("/0", depth=3, delay=0, seeding="again"), now=1)
    assert status.snapshots(ledger, 1)[0]["state"] == "running"
    crawl(2)
    assert counts(ledger) == {"done": 4, "excluded": 1}
