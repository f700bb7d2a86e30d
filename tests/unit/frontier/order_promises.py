"""What a person asks of the ledger and orders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa
from ledger_promises import SITE, admission, counts, report
from msgspec.structs import replace

from crawler import urls
from crawler.frontier import orders, request_log, schema, status, sweeps, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import requests
from crawler.job import Job
from crawler.messages import Admission, Link, Request, Retry, UrlResult


def crawled(ledger: Ledger) -> None:
    """/a is done, /b failed, and both led to /c."""
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    pages = [
        UrlResult(url=SITE + "/a", state="done", fetched_at=1, status=200, title="A", digest="d"),
        UrlResult(url=SITE + "/b", state="failed", fetched_at=2, status=404, reason="HTTP 404"),
    ]
    asked = [Request(url=SITE + "/a", at=1, status=200, seconds=0.5), Request(url=SITE + "/b", at=3, seconds=0.1)]
    record(ledger, [report(batch, results=pages, links=("/c",), requests=asked)], now=4)


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
    asked = [
        Request(url=f"{SITE}/robots.txt", at=1, status=301, seconds=0.1),
        Request(url="http://www.a.test/robots.txt", at=1.5, status=200, seconds=0.1),
    ]
    record(ledger, [report(batch, requests=asked)], now=2)
    with ledger.transaction() as tx:
        assert tx.execute(sa.select(requests.c.host).order_by(requests.c.at)).scalars().all() == [
            "a.test",
            "www.a.test",
        ]


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
    record(ledger, [report(batch, results=[], unfetched=[SITE + "/a"])], now=2)
    tidy.tidy(ledger, 3)
    assert counts(ledger) == {"excluded": 1}


def test_pause_resume_cancel(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    orders.set_state(ledger, "j", "paused", now=1)
    assert lease(ledger, 1, now=2) == []
    orders.set_state(ledger, "j", "running", now=3)
    (batch,) = lease(ledger, 1, now=4)
    record(ledger, [report(batch, links=("/b",))], now=5)
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


# --- each order moves what it says, and nothing else ------------------------------------------------------------------

OTHER_REASONS = {
    "robots": "robots.txt",
    "content_type": "content type image/png",
    "depth": "depth",
    "http": "HTTP 404",
    "address": "address not public: 10.0.0.1",
}


def with_all_kinds(ledger: Ledger) -> None:
    """A job with one URL excluded, or failed, by each of many causes, and two queued; and another job on the host."""
    admit(ledger, admission(*(f"/{cause}" for cause in OTHER_REASONS), delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    pages = [
        UrlResult(
            url=SITE + f"/{cause}",
            state="failed" if cause == "http" else "excluded",
            fetched_at=1,
            cause=cause,
            reason=reason,
        )
        for cause, reason in OTHER_REASONS.items()
    ]
    record(ledger, [report(batch, results=pages, links=("/q1", "/q2"))], now=1)


def test_resume_brings_back_what_cancel_dropped_and_nothing_else(ledger: Ledger) -> None:
    with_all_kinds(ledger)
    orders.block(ledger, "other.test", now=2)
    before = counts(ledger)
    assert before == {"queued": 2, "excluded": 4, "failed": 1}
    assert orders.set_state(ledger, "j", "cancelled", now=3) == 2
    (job,) = status.snapshots(ledger, 4)
    assert (job["state"], job["finished_at"]) == ("cancelled", 3)
    assert counts(ledger) == {"excluded": 6, "failed": 1}
    assert orders.set_state(ledger, "j", "running", now=5) == 2
    assert counts(ledger) == before
    (job,) = status.snapshots(ledger, 6)
    assert (job["state"], job["finished_at"]) == ("running", None)


def test_unblock_brings_back_what_block_dropped_and_nothing_else(ledger: Ledger) -> None:
    with_all_kinds(ledger)
    before = counts(ledger)
    assert orders.block(ledger, "a.test", now=3) == 2
    tidy.tidy(ledger, 4)
    assert status.snapshots(ledger, 4)[0]["state"] == "done"
    assert orders.unblock(ledger, "a.test", now=5) == 2
    assert counts(ledger) == before
    assert status.snapshots(ledger, 4)[0]["state"] == "running"
    with pytest.raises(status.UnknownError, match=r"never\.test: unknown, so not blocked"):
        orders.unblock(ledger, "never.test", now=6)


def test_retry_queues_failures_alone(ledger: Ledger) -> None:
    with_all_kinds(ledger)
    orders.set_state(ledger, "j", "cancelled", now=2)
    assert orders.retry(ledger, "j", None, now=3) == 1
    assert counts(ledger) == {"queued": 1, "excluded": 6}
    (job,) = status.snapshots(ledger, 4)
    assert (job["state"], job["finished_at"]) == ("running", None)
    (batch,) = lease(ledger, 1, now=10)
    assert [target.url for target in batch.targets] == [SITE + "/http"]
    assert next(status.pages(ledger, "j", [schema.urls.c.url == SITE + "/http"]))["attempts"] == 0


def test_retry_with_its_reason_queues_what_no_worker_was_allowed_to_connect_to(ledger: Ledger) -> None:
    with_all_kinds(ledger)
    assert orders.retry(ledger, "j", "robots.txt", now=3) == 0
    assert orders.retry(ledger, "j", "address not public", now=3) == 1
    (queued,) = status.pages(ledger, "j", [schema.urls.c.url == SITE + "/address"])
    assert (queued["state"], queued["cause"], queued["attempts"]) == ("queued", None, 0)


def test_a_job_that_ends_says_when(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch)], now=5)
    tidy.tidy(ledger, 7)
    (job,) = status.snapshots(ledger, 100)
    assert (job["state"], job["finished_at"]) == ("done", 7)
    assert status.snapshots(ledger, 100, finished_since=6) != []
    assert status.snapshots(ledger, 100, finished_since=8) == []


def test_the_rate_is_that_of_the_last_minute(ledger: Ledger) -> None:
    admit(ledger, admission(*(f"/{number}" for number in range(100)), delay=0), now=0)
    status.sample(ledger, 0)
    for now in (10, 110):
        (batch,) = lease(ledger, 1, now=now)
        record(ledger, [report(batch)], now=now)
        status.sample(ledger, now)
        if now == 10:
            assert status.snapshots(ledger, 20)[0]["rate"] == 2.5  # 50 pages in 20 s
            status.sample(ledger, 100)
    (job,) = status.snapshots(ledger, 120)
    assert job["rate"] == 2.5  # 50 pages in the 20 s since the first sample of the last minute
    assert [(worker["worker"], worker["pages"]) for worker in job["workers"]] == [("w", 100)]
    tidy.tidy(ledger, 120)
    assert status.snapshots(ledger, 500)[0]["rate"] == 2.5  # of a job that has ended: its last minute


# --- orders that take many transactions -------------------------------------------------------------------------------


class Killed(BaseException):
    """The process that works an order off ends."""


def killed_after(chunks: int) -> Callable[[int], None]:
    """A `shown` that is killed after so many chunks."""
    left = iter(range(chunks))

    def shown(_: int) -> None:
        if next(left, None) is None:
            raise Killed

    return shown


def on_three_hosts(ledger: Ledger, order: str) -> None:
    """A job of three hosts, 9 URLs each, with all that `order` could move or must leave alone; 9 of another job."""
    admit(ledger, on_hosts("abc", max_attempts=1), now=0)
    admit(ledger, on_hosts("a", name="k"), now=0)
    if order == "retry":
        for batch in lease(ledger, 10, now=0):
            bad = [Retry(url=target.url, reason="HTTP 500", cause="server_error") for target in batch.targets]
            record(ledger, [report(batch, results=[], retries=bad)], now=1)
    elif order == "running":
        orders.set_state(ledger, "j", "cancelled", now=2)
    elif order == "unblock":
        orders.block(ledger, "a.test", now=2)


def given(ledger: Ledger, order: str, shown: Callable[[int], None] = lambda _: None) -> None:
    if order == "retry":
        orders.retry(ledger, "j", "500", 3, shown)
    elif order in ("block", "unblock"):
        getattr(orders, order)(ledger, "a.test", 3, shown)
    else:
        orders.set_state(ledger, "j", order, 3, shown)


def states_of(ledger: Ledger) -> dict[tuple[str, str], str]:
    for job in status.snapshots(ledger, 4, recount=True):
        assert job["counts"] == job["by_host"] == job["recounted"]
    return {(job, row["url"]): row["state"] for job in ("j", "k") for row in status.pages(ledger, job)}


@pytest.mark.parametrize("chunks", range(5))
@pytest.mark.parametrize("order", ["cancelled", "running", "block", "unblock", "retry"])
def test_an_order_whose_process_was_killed_is_finished_by_tidy(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, order: str, chunks: int
) -> None:
    """After any chunk; the counts are true after each."""
    other = Ledger.open(f"sqlite:///{tmp_path}/other.sqlite")
    other.create()
    on_three_hosts(other, order)
    given(other, order)
    on_three_hosts(ledger, order)
    before = states_of(ledger)
    monkeypatch.setattr(sweeps, "CHUNK", 4)
    monkeypatch.setattr(tidy, "URLS", 2)
    try:
        given(ledger, order, killed_after(chunks))
    except Killed:
        moved = [url for url, state in states_of(ledger).items() if state != before[url]]
        assert len(moved) <= 4 * chunks
    if order in ("cancelled", "block"):  # in force from the first transaction on
        leased = {(batch.job.name, batch.host) for batch in lease(ledger, 10, now=4)}
        assert leased == ({("k", "a.test")} if order == "cancelled" else {("j", "b.test"), ("j", "c.test")})
        tidy.take_back_leases(ledger, now=5)
    tidy.tidy(ledger, 6, seconds=60)
    assert states_of(ledger) == states_of(other) != before


def test_a_call_of_tidy_takes_no_longer_for_a_long_order(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    on_three_hosts(ledger, "cancelled")
    monkeypatch.setattr(tidy, "URLS", 2)
    with pytest.raises(Killed):
        given(ledger, "cancelled", killed_after(0))
    clock = iter(range(1000))
    dropped = []
    for _ in range(3):
        tidy.tidy(ledger, 4, seconds=3.5, clock=lambda: next(clock))  # each look at it takes a second
        dropped.append(sum(state == "excluded" for state in states_of(ledger).values()))
    assert 0 < dropped[0] < dropped[1] < dropped[2] < 27


@pytest.mark.parametrize(("earlier", "later"), [("cancelled", "running"), ("block", "unblock")])
def test_of_two_orders_the_later_counts(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch, earlier: str, later: str
) -> None:
    """Though the earlier has not been worked off."""
    on_three_hosts(ledger, earlier)
    monkeypatch.setattr(sweeps, "CHUNK", 4)
    with pytest.raises(Killed):
        given(ledger, earlier, killed_after(1))
    given(ledger, later)
    assert set(states_of(ledger).values()) == {"queued"}
    tidy.tidy(ledger, 4, seconds=60)
    assert set(states_of(ledger).values()) == {"queued"}


def test_a_job_does_not_end_before_its_orders_are_worked_off(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    on_three_hosts(ledger, "running")
    monkeypatch.setattr(tidy, "URLS", 2)
    with pytest.raises(Killed):
        given(ledger, "running", killed_after(0))
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(sweeps, "work", lambda *_, **__: False)  # others have its row locked
    tidy.tidy(ledger, 4, clock=lambda: next(clock))
    assert status.snapshots(ledger, 4)[0]["state"] == "running"


def test_another_description_of_a_large_job_is_worked_off_in_chunks(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sweeps, "CHUNK", 4)
    admit(ledger, on_hosts("abc", max_pages=1), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch)], now=1)
    tidy.tidy(ledger, 2, seconds=60)
    tidy.tidy(ledger, 3, seconds=60)
    assert counts(ledger) == {"done": 1, "excluded": 26}
    admit(ledger, replace(on_hosts("abc"), seeding="2", urls=[SITE + "/0"]), now=4)
    assert 0 < counts(ledger)["queued"] < 26
    tidy.tidy(ledger, 5, seconds=60)
    assert counts(ledger) == {"done": 1, "queued": 26}
    assert status.snapshots(ledger, 5)[0]["state"] == "running"


def test_a_flag_that_is_no_longer_true_is_cleared(ledger: Ledger) -> None:
    """A host was given up a day ago, or a limit has got wider since."""
    admit(ledger, on_hosts("ab"), now=0)
    with ledger.transaction() as tx:
        flagged = schema.host_queues.update().where(schema.host_queues.c.host == "a.test")
        tx.execute(flagged.values(give_up=True, next_due=1e9))
    assert [batch.host for batch in lease(ledger, 5, now=1)] == ["b.test"]
    tidy.tidy(ledger, 2)
    assert counts(ledger) == {"queued": 9, "leased": 9}
    assert [batch.host for batch in lease(ledger, 5, now=2)] == ["a.test"]


# --- delete -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", range(6))
def test_delete_leaves_requests_and_other_jobs(ledger: Ledger, monkeypatch: pytest.MonkeyPatch, chunks: int) -> None:
    crawled(ledger)
    admit(ledger, on_hosts("a", name="k"), now=4)
    status.sample(ledger, 5)
    orders.set_state(ledger, "j", "cancelled", now=6)
    monkeypatch.setattr(sweeps, "CHUNK", 1)
    with contextlib.suppress(Killed):
        assert orders.delete(ledger, "j", 7, killed_after(chunks)) == 3
    assert [job["job"] for job in status.snapshots(ledger, 8)] == ["k"]
    with pytest.raises(status.UnknownError, match=r"No job 'j'. Known: k\."):
        status.job_named(ledger, "j")
    tidy.tidy(ledger, 9, seconds=60)
    with ledger.transaction() as tx:
        for table in (schema.urls, schema.host_queues, schema.job_counts, schema.seedings, schema.progress):
            assert tx.execute(sa.select(sa.func.count()).where(table.c.job_id == 1)).scalar_one() == 0, table.name
        assert tx.execute(sa.select(sa.func.count()).select_from(requests)).scalar_one() == 2
    assert len(states_of_job(ledger, "k")) == 9
    admit(ledger, admission("/a", seeding="s"), now=10)
    assert states_of_job(ledger, "j") == {SITE + "/a": "queued"}
    assert len(list(status.audit(ledger, "a.test")["requests"])) == 2
    assert status.explain(ledger, SITE + "/a")[0]["requests"] == []  # of another job


def states_of_job(ledger: Ledger, job: str) -> dict[str, str]:
    return {row["url"]: row["state"] for row in status.pages(ledger, job)}


def test_what_runs_is_not_deleted(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    for state in ("running", "paused"):
        orders.set_state(ledger, "j", state, now=1)
        with pytest.raises(orders.RefusedError, match=f"j is {state}: `crawler cancel j` first"):
            orders.delete(ledger, "j", now=2)
    orders.set_state(ledger, "j", "running", now=3)
    (batch,) = lease(ledger, 1, now=3)
    orders.set_state(ledger, "j", "cancelled", now=4)
    with pytest.raises(orders.RefusedError, match="Workers hold 1 batches"):
        orders.delete(ledger, "j", now=5)
    record(ledger, [report(batch)], now=6)
    assert orders.delete(ledger, "j", now=7) == 2
    assert record(ledger, [report(batch, links=("/late",))], now=8) == 0
    assert rows(ledger, schema.urls) == 0
    with pytest.raises(status.UnknownError):
        orders.delete(ledger, "j", now=8)


# --- retention --------------------------------------------------------------------------------------------------------

DAY = 86400.0


def rows(ledger: Ledger, table: sa.Table) -> int:
    with ledger.transaction() as tx:
        return int(tx.execute(sa.select(sa.func.count()).select_from(table)).scalar_one())


def test_requests_are_forgotten_after_their_days(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    crawled(ledger)  # asked at 1 and at 3
    monkeypatch.setattr(request_log, "CHUNK", 1)
    tidy.forget(ledger, 90 * DAY + 1, days=90, seconds=60)
    assert rows(ledger, requests) == 2
    tidy.forget(ledger, 90 * DAY + 3, days=90, seconds=60)
    (left,) = status.audit(ledger, "a.test")["requests"]
    assert left["at"] == 3
    tidy.forget(ledger, 7 * DAY + 3.5, days=7, seconds=60)
    assert rows(ledger, requests) == 0
    assert counts(ledger) == {"done": 1, "failed": 1, "queued": 1}


def test_a_call_forgets_no_more_than_there_is_time_for(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    crawled(ledger)
    monkeypatch.setattr(request_log, "CHUNK", 1)
    tidy.forget(ledger, 1e9, days=90, seconds=0)
    assert rows(ledger, requests) == 1


def test_what_ended_long_ago_is_forgotten_and_what_runs_is_not(ledger: Ledger) -> None:
    small = (schema.seedings, schema.workers, schema.sweeps, schema.progress)
    crawled(ledger)
    for now in (5, 10, 100):
        status.sample(ledger, now)
    tidy.forget(ledger, 1e9, days=90)
    assert [rows(ledger, table) for table in small] == [1, 1, 0, 3]
    orders.set_state(ledger, "j", "cancelled", now=101)
    tidy.forget(ledger, 102, days=90)
    assert [rows(ledger, table) for table in small] == [1, 1, 1, 3]
    rate = status.snapshots(ledger, 102)[0]["rate"]
    tidy.forget(ledger, 101 + 3601, days=90)
    assert [rows(ledger, table) for table in small] == [1, 1, 0, 1]
    assert status.snapshots(ledger, 102)[0]["rate"] == rate
    orders.delete(ledger, "j", now=103)
    tidy.forget(ledger, 90 * DAY, days=90)
    assert rows(ledger, schema.jobs) == 1
    tidy.forget(ledger, 90 * DAY + 104, days=90)
    assert [rows(ledger, table) for table in (*small, schema.jobs)] == [0] * 5


def test_hosts_that_no_job_has_are_forgotten(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """But not one that is blocked, and not one that another job came to meanwhile."""

    def hosts() -> set[str]:
        with ledger.transaction() as tx:
            return set(tx.execute(sa.select(schema.hosts.c.host)).scalars())

    monkeypatch.setattr(tidy, "HOSTS", 1)
    admit(ledger, on_hosts("abcd"), now=0)
    orders.block(ledger, "b.test", now=1)
    orders.set_state(ledger, "j", "cancelled", now=2)
    orders.delete(ledger, "j", now=3)
    admit(ledger, on_hosts("c", name="other"), now=4)
    tidy.forget(ledger, 90 * DAY, days=90, seconds=60)
    assert hosts() == {"a.test", "b.test", "c.test", "d.test"}
    tidy.forget(ledger, 90 * DAY + 4, days=90, seconds=60)
    assert hosts() == {"b.test", "c.test"}
    orders.unblock(ledger, "b.test", now=90 * DAY + 5)
    tidy.forget(ledger, 90 * DAY + 6, days=90, seconds=60)
    assert hosts() == {"c.test"}
    assert [batch.host for batch in lease(ledger, 9, now=90 * DAY + 7)] == ["c.test"]


def test_jobs_that_ended_are_not_read(ledger: Ledger) -> None:
    """Those that run again by themselves are, and those to which URLs came back."""
    admit(ledger, on_hosts("b", name="back"), now=0)
    (batch,) = lease(ledger, 9, now=0)
    for name, options in (("ended", {}), ("running", {}), ("again", {"recrawl": 100}), ("gone", {})):
        admit(ledger, on_hosts("a", name=name, **options), now=1)
    for name in ("ended", "again", "back", "gone"):
        orders.set_state(ledger, name, "cancelled", now=2)
    with ledger.transaction() as tx:
        done = schema.jobs.c.name.in_(("ended", "again"))
        tx.execute(schema.jobs.update().where(done).values(state="done"))
    assert {row.name for row in tidy._jobs(ledger)} == {"running", "again"}
    record(ledger, [report(batch, results=[], unfetched=[target.url for target in batch.targets])], now=4)
    assert {row.name for row in tidy._jobs(ledger)} == {"running", "again", "back"}


# --- limits and turns -------------------------------------------------------------------------------------------------


def on_hosts(names: str, **job: object) -> Admission:
    made = Job.model_validate({"name": "j", "delay": 0, **job})
    seeds = [f"http://{name}.test/{number}" for name in names for number in range(9)]
    return Admission(job=made, seeding="s", chunk=0, chunks=1, urls=seeds)


def test_pages_under_way_count_toward_max_pages(ledger: Ledger) -> None:
    """On several hosts, and on several connections to one."""
    admit(ledger, on_hosts("abc", max_pages=20, connections=2), now=0)
    first = lease(ledger, 10, now=0)
    assert [len(batch.targets) for batch in first] == [9, 9, 2]
    assert lease(ledger, 10, now=5) == []
    back = [target.url for target in first[0].targets]
    record(ledger, [report(first[0], results=[], unfetched=back)], now=6)
    assert sum(len(batch.targets) for batch in lease(ledger, 10, now=8)) == 9


def test_late_results_do_not_break_the_limit_of_a_host(ledger: Ledger) -> None:
    admit(ledger, on_hosts("a", max_pages_per_host=4), now=0)
    (first,) = lease(ledger, 1, now=0)
    assert len(first.targets) == 4
    tidy.tidy(ledger, 700)
    assert record(ledger, [report(first)], now=701) == 0
    assert counts(ledger) == {"queued": 9}
    (second,) = lease(ledger, 1, now=702)
    record(ledger, [report(second)], now=703)
    record(ledger, [report(first)], now=704)
    tidy.tidy(ledger, 705)
    assert counts(ledger) == {"done": 4, "excluded": 5}


def test_late_results_do_not_break_the_limit_of_a_job(ledger: Ledger) -> None:
    """The first batch's lease runs out; its pages would come beside those of the second, of another host."""
    admit(ledger, on_hosts("ab", max_pages=5), now=0)
    (first,) = lease(ledger, 1, now=0)
    assert len(first.targets) == 5
    tidy.tidy(ledger, 700)
    (second,) = (batch for batch in lease(ledger, 2, now=701) if batch.host != first.host)
    record(ledger, [report(second)], now=702)
    record(ledger, [report(first)], now=703)
    tidy.tidy(ledger, 704)
    assert counts(ledger) == {"done": 5, "excluded": 13}


def test_the_longest_waiting_host_is_next(ledger: Ledger) -> None:
    for number, name in enumerate("cab"):
        made = replace(on_hosts(name), seeding=name)
        admit(ledger, made, now=number)
    assert [batch.host for batch in lease(ledger, 2, now=10)] == ["c.test", "a.test"]
    assert [batch.host for batch in lease(ledger, 2, now=10)] == ["b.test"]


def test_after_a_killed_run_all_that_was_leased_is_queued_again(ledger: Ledger) -> None:
    admit(ledger, on_hosts("ab"), now=0)
    assert len(lease(ledger, 5, now=0)) == 2
    assert counts(ledger) == {"leased": 18}
    tidy.take_back_leases(ledger, now=1)
    assert counts(ledger) == {"queued": 18}
    assert len(lease(ledger, 5, now=1)) == 2


def test_a_new_visit_has_all_attempts_before_it(ledger: Ledger) -> None:
    admit(ledger, admission("/a", recrawl="1h", max_attempts=2, delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    bad = Retry(url=SITE + "/a", reason="HTTP 500", cause="server_error")
    record(ledger, [report(batch, results=[], retries=[bad])], now=1)
    (batch,) = lease(ledger, 1, now=50)
    record(ledger, [report(batch)], now=51)
    tidy.tidy(ledger, 5000)
    (batch,) = lease(ledger, 1, now=5000)
    record(ledger, [report(batch, results=[], retries=[bad])], now=5001)
    assert counts(ledger, 5001) == {"queued": 1}


def test_a_limit_leaves_pages_their_next_visit(ledger: Ledger) -> None:
    """A job at its limit of pages visits them again, and no others."""
    admit(ledger, on_hosts("a", max_pages=5, recrawl=3600), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch)], now=1)
    tidy.tidy(ledger, 2)
    assert counts(ledger, 2) == {"done": 5, "excluded": 4}
    tidy.tidy(ledger, 4000)
    (batch,) = lease(ledger, 1, now=4000)
    assert len(batch.targets) == 5
    fetched = [
        UrlResult(url=target.url, state="done", fetched_at=4000, status=200, digest="d") for target in batch.targets
    ]
    record(ledger, [report(batch, results=fetched)], now=4001)
    tidy.tidy(ledger, 4002)
    assert counts(ledger, 4002) == {"done": 5, "excluded": 4}


def test_without_the_trap_rule_traps_come_back(ledger: Ledger) -> None:
    admit(ledger, admission("/"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    trap = Link(SITE + "/a/a/a/a/a", 1, SITE + "/", excluded="trap: a path segment more than 3 times", cause="trap")
    record(ledger, [replace(report(batch), links=[trap])], now=1)
    assert counts(ledger) == {"done": 1, "excluded": 1}
    admit(ledger, admission("/", seeding="2", traps=False), now=2)
    assert counts(ledger) == {"done": 1, "queued": 1}


def test_a_piece_of_a_report_with_links_alone_ends_no_lease(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    long = report(batch, links=tuple(f"/{number}" for number in range(30)))
    parts = list(long.parts(500))
    assert len(parts) > 2
    for part in parts[:-1]:
        record(ledger, [part], now=1)
    assert counts(ledger)["leased"] == 1
    record(ledger, [parts[-1]], now=2)
    assert counts(ledger) == {"done": 1, "queued": 30}
