"""What goes wrong at a site: whose failure it is, how long who waits, and that nothing is lost but what is broken."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
from ledger_promises import SITE, admission, counts, report
from msgspec.structs import replace

from crawler import limits
from crawler.frontier import lease as lease_module
from crawler.frontier import orders, politeness, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.job import Job, Scope
from crawler.messages import Admission, BackOff, Batch, Cause, Link, Report, Request, Retry, UrlResult

REFUSED = BackOff(reason="connection refused", cause=Cause.CONNECT)


def unfetched(batch: Batch, back_off: BackOff | None = None) -> Report:
    return report(batch, results=[], unfetched=[target.url for target in batch.targets], back_off=back_off)


def retried(batch: Batch, cause: Cause = Cause.SERVER_ERROR) -> Report:
    retries = [Retry(url=target.url, reason="HTTP 500", cause=cause) for target in batch.targets]
    return report(batch, results=[], retries=retries)


Answer = Callable[[float, str], str]
"""What a site says at a time to a URL: "page", "500", or "refused"."""


def worker(batch: Batch, now: float, answer: Answer) -> Report:
    """As a worker reports: a 500 is the URL's own; a refusal ends the batch, if one more URL is refused as well."""
    made = report(batch, results=[])
    targets = [target.url for target in batch.targets]
    while targets:
        url = targets[0]
        said = answer(now, url)
        if said == "refused":
            made.back_off = REFUSED
            break
        targets.pop(0)
        made.requests.append(Request(url=url, at=now, status=200 if said == "page" else 500, seconds=0.1))
        if said == "page":
            made.results.append(UrlResult(url=url, state="done", fetched_at=now, status=200))
        else:
            made.retries.append(Retry(url=url, reason="HTTP 500", cause=Cause.SERVER_ERROR))
    made.unfetched = targets
    return made


def crawled(ledger: Ledger, answer: Answer, *paths: str, hours: float = 6) -> tuple[float, dict[str, list[float]]]:
    """Crawl to the end on a fake clock of one tick a second; when that was, and when each URL was asked for."""
    admit(ledger, admission(*paths, delay=0), now=0)
    asked: dict[str, list[float]] = {}
    now = 0.0
    while now < hours * 3600:
        for batch in lease(ledger, 10, now):
            said = worker(batch, now, answer)
            for request in said.requests:
                asked.setdefault(request.url, []).append(now)
            record(ledger, [said], now)
        tidy.tidy(ledger, now)
        if status.snapshots(ledger, now)[0]["state"] == "done":
            return now, asked
        snapshot = status.snapshots(ledger, now)[0]
        due = snapshot["next_attempt_at"] if snapshot["waiting"] == snapshot["counts"]["queued"] else None
        now = max(now + 1, due or 0)
    raise AssertionError("the crawl did not end")


PATHS = [f"/calendar/{number:02}" for number in range(30)] + [f"/docs/{number:02}" for number in range(50)]


def test_one_broken_section_costs_no_other(ledger: Ledger) -> None:
    """E1: 30 URLs always answer 500, 50 beside them are fine."""
    ended, asked = crawled(ledger, lambda _, url: "500" if "/calendar/" in url else "page", *PATHS)
    assert counts(ledger, ended) == {"done": 50, "failed": 30}
    assert {page["cause"] for page in status.pages(ledger, "j") if page["state"] == "failed"} == {"server_error"}
    assert max(asked[SITE + f"/docs/{number:02}"][0] for number in range(50)) < 60
    for number in range(30):
        attempts = asked[SITE + f"/calendar/{number:02}"]
        assert len(attempts) == Job(name="j").max_attempts
        assert attempts[-1] - attempts[0] > 3600


@pytest.mark.parametrize("answer", ["500", "refused"])
def test_a_site_that_is_down_for_ten_minutes_loses_nothing(ledger: Ledger, answer: str) -> None:
    """E2: whether it refuses connections or answers 502. It begins in the middle of the crawl."""
    down = iter(range(20))

    def site(now: float, _: str) -> str:
        if now == 0:
            return "page" if next(down, None) is not None else answer
        return answer if now < 600 else "page"

    ended, asked = crawled(ledger, site, *PATHS)
    assert counts(ledger, ended) == {"done": 80}
    assert ended < 3600
    assert len(asked) == 80


def test_waits_grow_and_end(ledger: Ledger) -> None:
    assert [politeness.retry_wait(n, 3600, jitter=lambda: 0) for n in (1, 2, 3, 4, 9)] == [30, 180, 1080, 3600, 3600]
    assert politeness.retry_wait(1, 3600, jitter=lambda: 1) == 45
    assert politeness.retry_wait(3, 100, jitter=lambda: 1) == 100
    admit(ledger, admission("/a", "/b", max_attempts=2, retry_wait=60), now=0)
    (batch,) = lease(ledger, 1, now=0)
    first = retried(batch)
    first.retries.pop()
    first.results = [UrlResult(url=SITE + "/b", state="done", fetched_at=0, status=200)]
    record(ledger, [first], now=1)
    assert lease(ledger, 1, now=30.9) == []
    (snapshot,) = status.snapshots(ledger, 31)
    assert (snapshot["waiting"], snapshot["counts"]["queued"]) == (1, 1)
    assert 31 <= snapshot["next_attempt_at"] <= 46
    tidy.tidy(ledger, 31)
    assert status.snapshots(ledger, 31)[0]["state"] == "running"
    (batch,) = lease(ledger, 1, now=61.1)
    assert status.snapshots(ledger, 61)[0]["waiting"] == 0
    record(ledger, [retried(batch)], now=62)
    assert counts(ledger) == {"done": 1, "failed": 1}
    page = next(page for page in status.pages(ledger, "j") if page["state"] == "failed")
    assert (page["reason"], page["cause"], page["attempts"]) == ("HTTP 500", "server_error", 2)


def test_a_waiting_url_does_not_keep_new_ones_waiting(ledger: Ledger) -> None:
    """All that is queued of a.test waits; b.test links to a new page of it."""
    job, seeds = Job(name="j", delay=0, scope=Scope(kind="any")), [SITE + "/a", "http://b.test/"]
    admit(ledger, Admission(job=job, seeding="s", chunk=0, chunks=1, urls=seeds), now=0)
    batches = {batch.host: batch for batch in lease(ledger, 2, now=0)}
    record(ledger, [retried(batches["a.test"])], now=1)
    assert lease(ledger, 5, now=2) == []
    record(ledger, [report(batches["b.test"], links=("/new",))], now=3)
    (batch,) = lease(ledger, 5, now=3)
    assert [target.url for target in batch.targets] == [SITE + "/new"]
    record(ledger, [report(batch)], now=4)
    assert lease(ledger, 5, now=5) == []
    (batch,) = lease(ledger, 5, now=47)
    assert [target.url for target in batch.targets] == [SITE + "/a"]


def test_a_retry_of_an_old_lease_does_not_disturb_the_new_one(ledger: Ledger) -> None:
    admit(ledger, admission("/a", max_attempts=1), now=0)
    (old,) = lease(ledger, 1, now=0)
    tidy.tidy(ledger, 601)
    (new,) = lease(ledger, 1, now=601)
    record(ledger, [retried(old)], now=602)
    assert counts(ledger) == {"leased": 1}
    assert record(ledger, [report(new)], now=603) == 1
    assert counts(ledger) == {"done": 1}


def test_what_a_report_forgets_is_queued_again(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    only_one = report(batch)
    only_one.results.pop()
    record(ledger, [only_one], now=1)
    assert counts(ledger) == {"done": 1, "queued": 1}


def test_back_off_grows_and_a_dead_host_is_given_up_after_an_hour(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    now, rests = 0.0, []
    while batches := lease(ledger, 1, now=now):
        record(ledger, [unfetched(batches[0], REFUSED)], now=now)
        tidy.tidy(ledger, now)
        rest = min(politeness.BACK_OFF_FIRST * 2 ** len(rests), politeness.BACK_OFF_MAX)
        rests.append(rest)
        if counts(ledger) == {"queued": 1}:
            assert lease(ledger, 1, now=now + rest - 0.1) == []
            now += rest * 1.5 + 1.1
    assert counts(ledger) == {"failed": 1}
    assert now >= 3600
    assert len(rests) >= politeness.MAX_HOST_FAILURES
    page = next(status.pages(ledger, "j"))
    assert (page["reason"], page["cause"]) == ("host given up: connection refused", "host_given_up")
    assert page["attempts"] == 0


def test_an_hour_alone_gives_no_host_up(ledger: Ledger) -> None:
    """Seven failures in a long time are too few; and what lies long back does not count."""
    admit(ledger, admission("/a"), now=0)
    now = 0.0
    for _ in range(politeness.MAX_HOST_FAILURES - 1):
        (batch,) = lease(ledger, 1, now)
        record(ledger, [unfetched(batch, REFUSED)], now)
        tidy.tidy(ledger, now)
        now += 3000
    assert counts(ledger) == {"queued": 1}
    (batch,) = lease(ledger, 1, now + 86400)  # the fleet was down for a day
    record(ledger, [unfetched(batch, REFUSED)], now + 86400)
    tidy.tidy(ledger, now + 86400)
    assert counts(ledger) == {"queued": 1}


def test_a_host_that_gives_pages_between_failures_is_not_dead(ledger: Ledger) -> None:
    admit(ledger, admission(*(f"/{number}" for number in range(40)), delay=0), now=0)
    now = 0.0
    for _ in range(2 * politeness.MAX_HOST_FAILURES):
        now += 3000
        (batch,) = lease(ledger, 1, now)
        first, *rest = (target.url for target in batch.targets)
        one = [UrlResult(url=first, state="done", fetched_at=now, status=200)]
        record(ledger, [report(batch, results=one, unfetched=rest, back_off=REFUSED)], now)
        tidy.tidy(ledger, now)
    assert counts(ledger, now) == {"done": 16, "queued": 24}


def test_no_answer_at_all_says_nothing_about_a_host(ledger: Ledger) -> None:
    """A batch that comes back unfetched, or with what robots.txt refuses, leaves the failures where they were."""
    admit(ledger, admission("/a", "/b"), now=0)
    now = 0.0
    for number in range(40):
        batches = lease(ledger, 1, now)
        if not batches:
            break
        failed = REFUSED if number % 2 else None
        record(ledger, [unfetched(batches[0], failed)], now)
        tidy.tidy(ledger, now)
        now += 1000 if failed else 2
    assert counts(ledger) == {"failed": 2}


def test_a_rest_that_is_asked_for_never_gives_a_host_up(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", delay=0), now=0)
    now = 0.0
    limited = BackOff(reason="HTTP 429", cause=Cause.RATE_LIMITED)
    rests = []
    for _ in range(20):
        (batch,) = lease(ledger, 1, now)
        record(ledger, [unfetched(batch, limited)], now)
        tidy.tidy(ledger, now)
        due = status.audit(ledger, "a.test")["next_due"]
        rests.append(due - now)
        now = due + 1.1
    assert counts(ledger) == {"queued": 2}
    assert all(later >= 1.3 * rest for rest, later in itertools.pairwise(rests[:9]))
    assert max(rests) <= 1.5 * politeness.BACK_OFF_MAX


@pytest.mark.parametrize(("asked", "delay", "rest"), [(100, 1, 100), (0, 30, 30), (7200, 1, 7200)])
def test_retry_after_is_kept_and_the_delay_as_well(ledger: Ledger, asked: float, delay: float, rest: float) -> None:
    admit(ledger, admission("/a", "/b"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    limited = BackOff(reason="HTTP 429", cause=Cause.RATE_LIMITED, seconds=asked)
    record(ledger, [replace(unfetched(batch, limited), delay=delay)], now=0)
    assert lease(ledger, 1, now=rest - 1) == []
    assert lease(ledger, 1, now=rest + 1)


def test_a_host_s_rest_never_gets_shorter(ledger: Ledger) -> None:
    """A report that arrives late, of a quicker batch, does not bring the next turn forward."""
    admit(ledger, admission(*(f"/{number}" for number in range(100)), connections=2, delay=0), now=0)
    first, second = lease(ledger, 1, now=0) + lease(ledger, 1, now=0.1)
    asked = BackOff(reason="HTTP 429", cause=Cause.RATE_LIMITED, seconds=500)
    record(ledger, [unfetched(first, asked)], now=1)
    record(ledger, [report(second)], now=2)
    assert lease(ledger, 1, now=499) == []
    assert lease(ledger, 1, now=502)


def test_other_jobs_try_a_dead_host_again_some_day(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    now = 0.0
    while batches := lease(ledger, 1, now):
        record(ledger, [unfetched(batches[0], REFUSED)], now)
        tidy.tidy(ledger, now)
        now = status.audit(ledger, "a.test")["next_due"] + 1.1
    assert counts(ledger, now) == {"failed": 1}
    dead_at = now

    admit(
        ledger,
        Admission(
            job=Job(name="linked", scope=Scope(kind="any")), seeding="l", chunk=0, chunks=1, urls=["http://b.test/"]
        ),
        now,
    )
    (batch,) = lease(ledger, 1, now)
    record(ledger, [replace(report(batch), links=[Link(SITE + "/b", 1, "http://b.test/")])], now)
    tidy.tidy(ledger, now + 1)
    assert lease(ledger, 1, now + 4000) == []  # it was dead a little while ago

    admit(ledger, Admission(job=Job(name="asked"), seeding="a", chunk=0, chunks=1, urls=[SITE + "/c"]), now + 2)
    tidy.tidy(ledger, now + 3)
    (batch,) = lease(ledger, 1, now + 10)  # but somebody wants to know
    assert batch.job.name == "asked"
    record(ledger, [unfetched(batch, REFUSED)], now + 11)

    later = dead_at + politeness.GIVEN_UP_SECONDS + 10_000
    admit(
        ledger,
        Admission(
            job=Job(name="later", scope=Scope(kind="any")), seeding="b", chunk=0, chunks=1, urls=["http://c.test/"]
        ),
        later,
    )
    batch = next(batch for batch in lease(ledger, 9, later) if batch.job.name == "later")
    record(ledger, [replace(report(batch), links=[Link(SITE + "/d", 1, "http://c.test/")])], later)
    tidy.tidy(ledger, later + 1)
    assert {page["url"]: page["state"] for page in status.pages(ledger, "later")}[SITE + "/d"] == "queued"


def test_a_day_later_a_dead_host_is_tried_again(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    now = 0.0
    while batches := lease(ledger, 1, now):
        record(ledger, [unfetched(batches[0], REFUSED)], now)
        tidy.tidy(ledger, now)
        now = status.audit(ledger, "a.test")["next_due"] + 1.1
    admit(
        ledger,
        Admission(
            job=Job(name="linked", scope=Scope(kind="any")), seeding="l", chunk=0, chunks=1, urls=["http://b.test/"]
        ),
        now,
    )
    (batch,) = lease(ledger, 1, now)
    later = now + politeness.GIVEN_UP_SECONDS + 1
    record(ledger, [replace(report(batch), links=[Link(SITE + "/b", 1, "http://b.test/")])], later)
    tidy.tidy(ledger, later)
    (batch,) = lease(ledger, 1, later + 2)
    assert [target.url for target in batch.targets] == [SITE + "/b"]


def test_retry_asks_a_host_again_that_was_given_up(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    now = 0.0
    while batches := lease(ledger, 1, now):
        record(ledger, [unfetched(batches[0], REFUSED)], now)
        tidy.tidy(ledger, now)
        now = status.audit(ledger, "a.test")["next_due"] + 1.1
    assert counts(ledger, now) == {"failed": 1}
    assert orders.retry(ledger, "j", None, now) == 1
    tidy.tidy(ledger, now)
    assert counts(ledger, now) == {"queued": 1}
    assert lease(ledger, 1, now + 2)


def test_a_redelivered_batch_leaves_its_lease_to_the_first_holder(ledger: Ledger) -> None:
    admit(ledger, admission("/a", delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch, results=[], unfetched=[SITE + "/a"], redelivered=True)], now=1)
    assert lease(ledger, 1, now=100) == []
    assert record(ledger, [report(batch)], now=101) == 1
    assert counts(ledger, 101) == {"done": 1}


def test_a_lost_worker_s_host_rests_for_the_job_s_delay(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", delay=7), now=0)
    (batch,) = lease(ledger, 1, now=0)
    assert tidy.all_leases(ledger) == [batch.lease]
    assert tidy.expired(ledger, limits.LEASE - 1) == []
    assert tidy.expired(ledger, limits.LEASE) == [batch.lease]
    assert tidy.take_back(ledger, [batch.lease, "another"], 50, begun=True) == [batch.lease]
    assert counts(ledger, 50) == {"queued": 2}
    assert lease(ledger, 1, now=56.9) == []
    (again,) = lease(ledger, 1, now=57)
    assert again.lost_before
    assert record(ledger, [report(batch)], now=58) == 0  # the first holder's: leased again meanwhile


def test_a_batch_that_nobody_took_is_no_suspect(ledger: Ledger) -> None:
    admit(ledger, admission("/a", "/b", delay=5), now=0)
    for now in range(2 * lease_module.MAX_EXPIRIES):
        (batch,) = lease(ledger, 1, now)
        assert len(batch.targets) == 2
        assert not batch.lost_before
        assert tidy.take_back(ledger, [batch.lease], now, begun=False) == [batch.lease]


def test_a_call_of_tidy_can_leave_leases_to_their_holds(ledger: Ledger) -> None:
    admit(ledger, admission("/a"), now=0)
    lease(ledger, 1, now=0)
    tidy.tidy(ledger, limits.LEASE + 1, expire=False)
    assert counts(ledger) == {"leased": 1}
    tidy.tidy(ledger, limits.LEASE + 1)
    assert counts(ledger) == {"queued": 1}
