"""The ledger's promises, tested with whatever database the fixture `ledger` is on: SQLite here, PostgreSQL in
tests/integration."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given, settings
from hypothesis import strategies as st

from crawler import limits
from crawler.frontier import lease as lease_module
from crawler.frontier import orders, politeness, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.job import Job, Scope
from crawler.messages import Admission, BackOff, Batch, Link, Report, Retry, UrlResult

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
            "links": [Link(url=SITE + path, depth=1) for path in links],
            **fields,
        }
    )


def counts(ledger: Ledger, now: float = 0) -> dict[str, int]:
    (job,) = status.snapshots(ledger, now)
    assert job["counts"] == status.count_again(ledger, "j")
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
    record(ledger, report(batch, results=[], unfetched=[target.url for target in batch.targets], links=("/c",)), now=2)
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
    record(ledger, report(batch, delay=7), now=10)
    assert lease(ledger, 10, now=16.9) == []
    assert len(lease(ledger, 10, now=17.1)) == 1


def test_two_jobs_share_a_host_politely(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    admit(ledger, admission("/b", name="k"), now=0)
    (batch,) = lease(ledger, 10, now=0)
    assert lease(ledger, 10, now=1.5) == []
    record(ledger, report(batch, delay=5), now=2)
    assert lease(ledger, 10, now=6.9) == []
    (other,) = lease(ledger, 10, now=7.1)
    assert {batch.job.name, other.job.name} == {"j", "k"}


def test_connections_allow_more(ledger: Ledger) -> None:
    admit(ledger, admission(*(f"/{n}" for n in range(120)), connections=2, delay=0), now=0)
    first = lease(ledger, 1, now=0) + lease(ledger, 1, now=0.1) + lease(ledger, 1, now=0.2)
    assert len(first) == 2
    assert not {t.url for t in first[0].targets} & {t.url for t in first[1].targets}


def test_recording_twice_changes_nothing(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    result = report(batch, links=("/a", "/b", "/c"))
    assert record(ledger, result, now=1) == 1
    before = counts(ledger)
    assert record(ledger, result, now=2) == 0
    assert counts(ledger) == before == {"done": 1, "queued": 2}


def test_what_was_not_fetched_is_queued_again(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, report(batch, results=[], unfetched=[SITE + "/a", SITE + "/b"]), now=1)
    assert counts(ledger) == {"queued": 2}


def test_retries_end(ledger: Ledger) -> None:
    admit(ledger, admission("/a", max_attempts=2), now=0)
    for now in (0, 100):
        (batch,) = lease(ledger, 1, now=now)
        record(ledger, report(batch, results=[], retries=[Retry(url=SITE + "/a", reason="HTTP 500")]), now=now + 1)
    assert counts(ledger) == {"failed": 1}
    (page,) = status.pages(ledger, "j")
    assert (page["reason"], page["attempts"]) == ("HTTP 500", 2)


def test_an_expired_lease_is_queued_again_and_its_late_report_still_counts(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    tidy.tidy(ledger, now=limits.LEASE + 1)
    assert counts(ledger) == {"queued": 1}
    assert record(ledger, report(batch), now=limits.LEASE + 2) == 1
    assert counts(ledger) == {"done": 1}


def test_a_late_report_does_not_disturb_the_new_lease(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    (old,) = lease(ledger, 1, now=0)
    later = limits.LEASE + 1
    tidy.tidy(ledger, now=later)
    (new,) = lease(ledger, 1, now=later)
    record(ledger, report(old, results=[], unfetched=[SITE + "/a"]), now=later + 1)
    assert counts(ledger) == {"leased": 1}
    record(ledger, report(new), now=later + 2)
    assert counts(ledger) == {"done": 1}


def test_back_off_grows_and_a_dead_host_is_given_up(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    now, rests = 0.0, []
    while batches := lease(ledger, 1, now=now):
        failed = report(batches[0], results=[], unfetched=[SITE + "/a"], back_off=BackOff(reason="refused"))
        record(ledger, failed, now=now)
        tidy.tidy(ledger, now)
        rests.append(politeness.BACK_OFF_FIRST * 2 ** len(rests))
        if len(rests) < politeness.MAX_HOST_FAILURES:
            assert lease(ledger, 1, now=now + rests[-1] - 0.1) == []
        now += rests[-1] * 1.6
    assert len(rests) == politeness.MAX_HOST_FAILURES
    assert counts(ledger) == {"failed": 1}
    assert next(status.pages(ledger, "j"))["reason"] == "host given up: refused"


def test_retry_after_is_kept(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    rest = report(batch, results=[], unfetched=[SITE + "/a"], back_off=BackOff(reason="HTTP 429", seconds=100))
    record(ledger, rest, now=0)
    assert lease(ledger, 1, now=99) == []
    assert lease(ledger, 1, now=101)


def test_max_pages_is_exact(ledger: Ledger) -> None:
    admit(ledger, admission("/0", max_pages=70, delay=0), now=0)
    now = 0.0
    while status.snapshots(ledger, now)[0]["state"] == "running":
        now += 1
        for batch in lease(ledger, 10, now):
            links = tuple(f"/{int(t.url.rpartition('/')[2]) * 3 + n}" for t in batch.targets for n in (1, 2, 3))
            record(ledger, report(batch, links=links), now)
        tidy.tidy(ledger, now)
    assert counts(ledger)["done"] == 70
    assert set(counts(ledger)) == {"done", "excluded"}


def test_a_job_is_done_when_all_pieces_arrived_and_nothing_is_open(ledger: Ledger) -> None:
    admit(ledger, admission("/b", chunk=1), now=0)  # the last piece overtook the first
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, report(batch), now=1)
    tidy.tidy(ledger, 1)
    assert status.snapshots(ledger, 1)[0]["state"] == "running"
    admit(ledger, admission("/a", chunk=0, last=False), now=2)
    (batch,) = lease(ledger, 1, now=10)
    record(ledger, report(batch), now=11)
    tidy.tidy(ledger, 11)
    assert status.snapshots(ledger, 11)[0]["state"] == "done"
    admit(ledger, admission("/c", seeding="later"), now=12)
    assert status.snapshots(ledger, 12)[0]["state"] == "running"


@settings(max_examples=30, deadline=None)
@given(
    st.lists(
        st.sampled_from(["admit", "lease", "record", "repeat", "lose", "return", "redeliver", "tidy"]), max_size=25
    ),
    st.data(),
)
def test_conservation_whatever_happens_in_whatever_order(events: list[str], data: st.DataObject) -> None:
    """Every discovered URL is in exactly one state, and the kept counts are the true ones, after any event."""
    ledger = Ledger.open("sqlite://")
    ledger.create()
    admit(ledger, admission("/0", delay=0), now=0)
    now, away, seen = 0.0, [], []
    for number, event in enumerate(events):
        now += data.draw(st.sampled_from([0.0, 1.0, limits.LEASE + 1]))
        links = tuple(f"/{data.draw(st.integers(0, 9))}" for _ in range(3))
        if event == "admit":
            admit(ledger, admission(*links, seeding=str(number), delay=0), now)
        elif event == "lease":
            away += lease(ledger, 3, now)
        elif event == "tidy":
            tidy.tidy(ledger, now)
        elif event == "repeat" and seen:
            record(ledger, data.draw(st.sampled_from(seen)), now)
        elif away and event != "repeat":
            batch = away.pop(data.draw(st.integers(0, len(away) - 1)))
            urls = [target.url for target in batch.targets]
            result = report(batch, links=links)
            if event == "redeliver":
                result = report(batch, results=[], unfetched=urls, redelivered=True)
            if event == "return":
                result = report(batch, results=[], unfetched=urls[1:], retries=[Retry(url=urls[0], reason="x")])
            if event != "lose":
                seen.append(result)
                record(ledger, result, now)
        counts(ledger, now)


def test_back_off_is_capped_and_jittered() -> None:
    assert politeness.back_off(1, jitter=lambda: 0) == politeness.BACK_OFF_FIRST
    assert politeness.back_off(3, jitter=lambda: 1) == politeness.BACK_OFF_FIRST * 4 * 1.5
    assert politeness.back_off(50, jitter=lambda: 0) == pytest.approx(politeness.BACK_OFF_MAX)


def test_depth_is_exact_whatever_is_found_first(ledger: Ledger) -> None:
    """A deep page met on a long way first must not cut off what hangs on its short way."""
    admit(ledger, admission("/0", "/1", depth=2, delay=0), now=0)
    (batch,) = lease(ledger, 5, now=0)
    record(ledger, report(batch, links=("/x", "/y")), now=1)
    (batch,) = lease(ledger, 5, now=2)
    assert {target.depth for target in batch.targets} == {1}  # a batch never mixes levels
    again = report(batch, results=[], unfetched=[SITE + "/y"])
    again.results = [UrlResult(url=SITE + "/x", state="done", fetched_at=1, status=200)]
    again.links = [Link(url=SITE + "/deep", depth=2)]
    record(ledger, again, now=3)
    (batch,) = lease(ledger, 5, now=4)
    assert [target.url for target in batch.targets] == [SITE + "/y"]


def test_levels_wait_for_each_other_over_hosts(ledger: Ledger) -> None:
    admit(
        ledger,
        Admission(
            job=Job(name="j", depth=2, delay=0, scope=Scope(kind="any")),
            seeding="s",
            chunk=0,
            chunks=1,
            urls=["http://a.test/", "http://b.test/"],
        ),
        now=0,
    )
    one, other = lease(ledger, 5, now=0)
    record(ledger, report(one, links=("/next",)), now=1)
    assert lease(ledger, 5, now=2) == []
    record(ledger, report(other), now=3)
    assert len(lease(ledger, 5, now=10)) == 1


def test_max_pages_per_host(ledger: Ledger) -> None:
    admit(ledger, admission(*(f"/{n}" for n in range(9)), max_pages_per_host=4, delay=0), now=0)
    (batch,) = lease(ledger, 5, now=0)
    assert len(batch.targets) == 4
    record(ledger, report(batch), now=1)
    tidy.tidy(ledger, 2)
    assert counts(ledger) == {"done": 4, "excluded": 5}


def test_recrawl_visits_again_with_what_is_known(ledger: Ledger) -> None:
    admit(ledger, admission("/a", recrawl="1h"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    page = UrlResult(url=SITE + "/a", state="done", fetched_at=10, status=200, title="A", etag='"1"', digest="d")
    record(ledger, report(batch, results=[page]), now=10)
    tidy.tidy(ledger, 11)
    assert status.snapshots(ledger, 11)[0]["state"] == "done"
    tidy.tidy(ledger, 3000)
    assert lease(ledger, 1, now=3000) == []
    tidy.tidy(ledger, 3700)
    (batch,) = lease(ledger, 1, now=3700)
    assert (batch.targets[0].etag, batch.targets[0].digest) == ('"1"', "d")
    same = UrlResult(url=SITE + "/a", state="done", fetched_at=3700, status=304, reason="not modified")
    record(ledger, report(batch, results=[same]), now=3701)
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
    record(ledger, report(batch, results=pages, retries=[Retry(url=SITE + "/c", reason="HTTP 500")]), now=2)
    tidy.tidy(ledger, 3)
    assert counts(ledger, 3) == {"failed": 2, "excluded": 1}
    tidy.tidy(ledger, 3700)
    (batch,) = lease(ledger, 1, now=3700)
    assert len(batch.targets) == 3


def test_what_is_kept_out_on_one_way_may_come_in_on_another(ledger: Ledger) -> None:
    admit(ledger, admission("/"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    out, nearer = "scope: other host", Link(url=SITE + "/near", depth=5)
    links = [Link(url="http://b.test/x", depth=1, excluded=out), Link(url=SITE + "/y", depth=9, excluded="depth")]
    record(ledger, report(batch).model_copy(update={"links": [*links, nearer]}), now=1)
    assert counts(ledger) == {"done": 1, "queued": 1, "excluded": 2}
    (batch,) = lease(ledger, 1, now=10)
    found = [
        Link(url="http://b.test/x", depth=1, found_on="http://b.test/"),
        Link(url=SITE + "/y", depth=9, excluded="depth"),
        Link(url=SITE + "/", depth=1),
    ]
    record(ledger, report(batch, results=[], unfetched=[nearer.url]).model_copy(update={"links": found}), now=11)
    assert counts(ledger) == {"done": 1, "queued": 2, "excluded": 1}
    assert admit(ledger, admission("/y", "/near", seeding="by hand"), now=12) == 1
    assert counts(ledger) == {"done": 1, "queued": 3}
    batches = lease(ledger, 5, now=100)
    assert {(target.url, target.depth, target.seed) for batch in batches for target in batch.targets} == {
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
    record(ledger, report(batch).model_copy(update={"links": links}), now=1)
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
    record(ledger, report(batch, results=[], unfetched=[SITE + "/bad"]), now)
    for _ in range(lease_module.MAX_EXPIRIES):
        now += 1
        for batch in lease(ledger, 1, now):
            (target,) = batch.targets
            if target.url == SITE + "/good":
                record(ledger, report(batch), now)
            else:
                record(ledger, report(batch, results=[], unfetched=[target.url], redelivered=True), now)
                record(ledger, report(batch, results=[], unfetched=[target.url], redelivered=True), now)  # twice
    tidy.tidy(ledger, now)
    assert counts(ledger, now) == {"done": 1, "failed": 1}


def test_late_reports_do_not_break_the_limit(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", "/c", "/d", max_pages=2, delay=0), now=0)
    (first,) = lease(ledger, 1, now=0)
    tidy.tidy(ledger, 700)
    (second,) = lease(ledger, 1, now=700)
    record(ledger, report(second), now=701)
    record(ledger, report(first), now=702)
    tidy.tidy(ledger, 703)
    assert counts(ledger, 703) == {"done": 2, "excluded": 2}


def test_a_host_that_gives_pages_is_not_dead(ledger: Ledger) -> None:
    admit(ledger, admission(*(f"/{number}" for number in range(40)), delay=0, max_attempts=20), now=0)
    now = 0.0
    for _ in range(2 * politeness.MAX_HOST_FAILURES):
        now += 10_000
        (batch,) = lease(ledger, 1, now)
        first, second, *rest = (target.url for target in batch.targets)
        limited = report(batch, unfetched=rest, back_off=BackOff(reason="HTTP 429"))
        limited.results, limited.retries = limited.results[:1], [Retry(url=second, reason="HTTP 429")]
        record(ledger, limited, now)
        tidy.tidy(ledger, now)
    assert counts(ledger, now) == {"done": 16, "queued": 24}
    assert first


def test_other_jobs_try_a_dead_host_again_some_day(ledger: Ledger) -> None:
    admit(ledger, admission("/a", max_attempts=20), now=0)
    now = 0.0
    while batches := lease(ledger, 1, now):
        failed = [Retry(url=SITE + "/a", reason="refused")]
        record(ledger, report(batches[0], results=[], retries=failed, back_off=BackOff(reason="refused")), now)
        tidy.tidy(ledger, now)
        now += 10_000
    assert counts(ledger, now) == {"failed": 1}

    admit(ledger, Admission(job=Job(name="linked"), seeding="l", chunk=0, chunks=1, urls=["http://b.test/"]), now)
    (batch,) = lease(ledger, 1, now)
    found = report(batch).model_copy(update={"links": [Link(url=SITE + "/b", depth=1)]})
    record(ledger, found, now)
    tidy.tidy(ledger, now + 1)
    assert lease(ledger, 1, now + 10) == []  # it was dead an hour ago

    admit(ledger, Admission(job=Job(name="asked"), seeding="a", chunk=0, chunks=1, urls=[SITE + "/c"]), now)
    tidy.tidy(ledger, now + 2)
    assert len(lease(ledger, 1, now + 10)) == 1  # but somebody wants to know


def test_a_seeding_that_was_broken_off_does_not_keep_its_job_open(ledger: Ledger) -> None:
    admit(ledger, admission("/a", last=False), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, report(batch), now=1)
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
    record(ledger, report(batch), now=2)
    assert counts(ledger) == {"done": 1}


def test_a_wider_limit_goes_on_where_the_narrower_one_stopped(ledger: Ledger) -> None:
    def crawl(now: float) -> None:
        while batches := lease(ledger, 1, now):
            depth = batches[0].targets[0].depth + 1
            excluded = batches[0].job.refuses(f"{SITE}/{depth}", f"{SITE}/", depth)
            link = Link(url=f"{SITE}/{depth}", depth=depth, excluded=excluded)
            record(ledger, report(batches[0]).model_copy(update={"links": [link]}), now)
            tidy.tidy(ledger, now)

    admit(ledger, admission("/0", depth=1, delay=0), now=0)
    crawl(0)
    assert counts(ledger) == {"done": 2, "excluded": 1}
    admit(ledger, admission("/0", depth=3, delay=0, seeding="again"), now=1)
    assert status.snapshots(ledger, 1)[0]["state"] == "running"
    crawl(2)
    assert counts(ledger) == {"done": 4, "excluded": 1}
