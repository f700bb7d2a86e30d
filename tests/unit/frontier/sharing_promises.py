"""Who gets the next turn: jobs share the fleet, and a host that several want, by their priority; inside a job URLs have
an order."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import pytest
from ledger_promises import SITE, admission, counts, report
from msgspec.structs import replace

from crawler.ceilings import Ceilings
from crawler.frontier import lease as lease_module
from crawler.frontier import orders, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import host_queues
from crawler.job import Job
from crawler.messages import Admission, Batch, Link, Retry


def hosts_of(ledger: Ledger, name: str, number: int, pages: int, now: float = 0, **job: Any) -> None:
    """Admit a job that has `pages` URLs on each of `number` hosts of its own."""
    urls = [f"http://{name}{host}.test/{page}" for host in range(number) for page in range(pages)]
    made = Job(name=name, delay=0, **job)
    admit(ledger, Admission(job=made, seeding=name, chunk=0, chunks=1, urls=urls), now)


def three_jobs(ledger: Ledger, shared: int, own: int, pages: int) -> None:
    """Admit jobs of weights 1, 4 and 16, which have `pages` URLs on each of some hosts that all want, and of some that
    one has for itself; in batches of three."""
    for name, priority in (("low", 1), ("mid", 4), ("top", 16)):
        hosts = [f"shared{host}" for host in range(shared)] + [f"{name}{host}" for host in range(own)]
        urls = [f"http://{host}.test/{name}{page}" for host in hosts for page in range(pages)]
        job = Job(name=name, delay=22.5, priority=priority)
        admit(ledger, Admission(job=job, seeding=name, chunk=0, chunks=1, urls=urls), now=0)


def taken(batches: list[Batch]) -> Counter[str]:
    """URLs by job."""
    return Counter({batch.job.name: 0 for batch in batches}) + Counter(
        batch.job.name for batch in batches for _ in batch.targets
    )


def test_jobs_share_the_fleet_by_priority(ledger: Ledger) -> None:
    for name, priority in (("low", "low"), ("mid", "normal"), ("top", "high")):
        hosts_of(ledger, name, 60, 3, priority=priority)
    batches = lease(ledger, 63, now=1)
    shares = taken(batches)
    assert len(batches) == 63
    assert shares["top"] == pytest.approx(4 * shares["mid"], abs=6)
    assert shares["mid"] == pytest.approx(4 * shares["low"], abs=6)


def test_a_share_is_measured_in_urls_not_in_batches(ledger: Ledger) -> None:
    hosts_of(ledger, "wide", 300, 1)
    hosts_of(ledger, "deep", 30, 10)
    shares = taken([batch for now in range(1, 6) for batch in lease(ledger, 22, now)])
    assert shares["wide"] == pytest.approx(shares["deep"], abs=11)


def test_a_new_job_is_served_at_once_and_saves_up_no_turns(ledger: Ledger) -> None:
    hosts_of(ledger, "old", 400, 2)
    for now in range(1, 11):
        lease(ledger, 10, now)
    hosts_of(ledger, "new", 100, 2, now=11)
    assert taken(lease(ledger, 1, now=11)) == {"new": 2}
    shares = taken([batch for now in range(12, 17) for batch in lease(ledger, 10, now)])
    assert shares["old"] == pytest.approx(shares["new"], abs=2)  # not all to the new one, for turns it never wanted


@pytest.mark.parametrize("connections", [1, 2])
def test_jobs_share_one_host_by_priority(ledger: Ledger, connections: int) -> None:
    """Also where one of them may have several batches of it under way, which used to keep the other out for ever."""
    paths = [f"/{number}" for number in range(6_000)]
    admit(ledger, admission(*paths, name="j", delay=0, priority=1, connections=connections), now=0)
    admit(ledger, admission(*paths, name="k", delay=0, priority=2), now=0)
    shares: Counter[str] = Counter()
    under_way: list[Batch] = []
    for now in range(2, 150):
        under_way += lease(ledger, 5, now)
        if under_way:
            done = under_way.pop(0)
            shares += taken([done])
            record(ledger, [report(done)], now)
    assert sum(shares.values()) > 3_000
    assert shares["k"] == pytest.approx(2 * shares["j"], rel=0.1)


def test_a_job_has_its_turn_on_many_hosts_one_after_another(ledger: Ledger) -> None:
    """Not on all of them at once, though it began on all of them together: its share holds for any time."""
    for name, priority in (("low", 1), ("top", 7)):
        urls = [f"http://h{host}.test/{name}{page}" for host in range(40) for page in range(200)]
        job = Job(name=name, delay=22.5, priority=priority)  # batches of three
        admit(ledger, Admission(job=job, seeding=name, chunk=0, chunks=1, urls=urls), now=0)
    shares = []
    for now in range(100, 4100, 100):
        batches = lease(ledger, 80, now)
        assert len(batches) == 40
        shares.append(taken(batches)["low"] / sum(taken(batches).values()))
        record(ledger, [report(batch) for batch in batches], now)
    assert sum(shares[4:]) / len(shares[4:]) == pytest.approx(1 / 8, rel=0.1)
    assert max(shares[4:]) < 0.4


def test_shares_hold_over_hosts_of_one_s_own_and_shared_ones(ledger: Ledger) -> None:
    three_jobs(ledger, shared=10, own=20, pages=150)
    total: Counter[str] = Counter()
    for now in range(100, 10_100, 100):
        batches = lease(ledger, 12, now)
        total += taken(batches)
        record(ledger, [report(batch) for batch in batches], now)
    assert total["top"] == pytest.approx(4 * total["mid"], rel=0.1)
    assert total["mid"] == pytest.approx(4 * total["low"], rel=0.1)


def test_a_turn_that_another_job_s_host_gave_is_not_forgiven(ledger: Ledger) -> None:
    """Where many hosts are shared, most turns are not those that a job was picked for: others were brought up to where
    these left it, and the lesser jobs got half as much again as their shares."""
    chance = random.Random(7)  # noqa: S311
    three_jobs(ledger, shared=60, own=60, pages=120)
    total: Counter[str] = Counter()
    under_way: list[Batch] = []
    for now in range(100, 45_100, 100):
        under_way += lease(ledger, min(8, 40 - len(under_way)), now)
        chance.shuffle(under_way)
        done = [under_way.pop() for _ in range(min(chance.randint(2, 12), len(under_way)))]
        total += taken(done)
        record(ledger, [report(batch) for batch in done], now)
    assert sum(total.values()) > 8_000
    assert total["top"] == pytest.approx(4 * total["mid"], rel=0.15)
    assert total["mid"] == pytest.approx(4 * total["low"], rel=0.15)


def test_no_job_is_leased_beyond_the_ceilings(ledger: Ledger) -> None:
    ledger.ceilings = Ceilings(delay=10, connections=2, max_body=2048, without_robots=frozenset({"b.test"}))
    urls = [f"http://{host}.test/{page}" for host in "ab" for page in range(300)]
    bold = Job(name="j", delay=0, connections=64, robots=False)
    admit(ledger, Admission(job=bold, seeding="s", chunk=0, chunks=1, urls=urls), now=0)
    batches = lease(ledger, 20, now=1) + lease(ledger, 20, now=30) + lease(ledger, 20, now=60)
    assert Counter(batch.host for batch in batches) == {"a.test": 2, "b.test": 2}
    assert {(batch.job.delay, batch.job.connections, batch.job.max_body) for batch in batches} == {(10, 2, 2048)}
    assert {(batch.host, batch.job.robots) for batch in batches} == {("a.test", True), ("b.test", False)}
    assert {len(batch.targets) for batch in batches} == {5}


def test_what_a_paused_job_wants_of_a_host_keeps_nobody_out(ledger: Ledger) -> None:
    paths = [f"/{number}" for number in range(300)]
    admit(ledger, admission(*paths, name="j", delay=0), now=0)
    admit(ledger, admission(*paths, name="k", delay=0, priority=100), now=0)
    (batch,) = lease(ledger, 5, now=1)
    record(ledger, [report(batch)], now=2)
    orders.set_state(ledger, "k", "paused", now=2)
    for now in range(3, 8):
        (batch,) = lease(ledger, 5, now)
        assert batch.job.name == "j"
        record(ledger, [report(batch)], now)


def test_a_job_at_its_limit_of_pages_keeps_nobody_out(ledger: Ledger) -> None:
    paths = [f"/{number}" for number in range(100)]
    admit(ledger, admission(*paths, name="j", delay=0, max_pages=50), now=0)
    (batch,) = lease(ledger, 1, now=1)
    admit(ledger, admission(*paths, name="k", delay=0, connections=2), now=1)
    (other,) = lease(ledger, 5, now=3)
    assert (batch.job.name, other.job.name) == ("j", "k")
    record(ledger, [report(batch), report(other)], now=4)
    assert taken(lease(ledger, 5, now=5)) == {"k": 50}


def test_what_a_paused_job_has_due_takes_no_turns(ledger: Ledger) -> None:
    hosts_of(ledger, "paused", 50, 1, now=0, priority="high")
    hosts_of(ledger, "running", 50, 1, now=1)
    orders.set_state(ledger, "paused", "paused", now=2)
    assert taken(lease(ledger, 10, now=3)) == {"running": 10}


def test_another_job_waits_for_the_batch_that_is_under_way(ledger: Ledger) -> None:
    """Its host queue is new, and so is looked at, while the host is at a worker."""
    admit(ledger, admission("/a", "/b", delay=0), now=0)
    (batch,) = lease(ledger, 5, now=1)
    admit(ledger, admission("/c", name="k", delay=0), now=2)
    assert lease(ledger, 5, now=3) == []
    record(ledger, [report(batch)], now=4)
    assert taken(lease(ledger, 5, now=5)) == {"k": 1}


def test_a_link_to_a_blocked_host_is_never_leased(ledger: Ledger) -> None:
    orders.block(ledger, "b.test", now=0)
    admit(ledger, admission("/a", delay=0, scope={"kind": "any"}), now=1)
    (batch,) = lease(ledger, 5, now=2)
    found = [Link(url="http://b.test/", depth=1, found_on=f"{SITE}/a")]
    record(ledger, [replace(report(batch), links=found)], now=3)
    assert lease(ledger, 5, now=10) == []
    tidy.tidy(ledger, now=11)
    assert counts(ledger, 11) == {"done": 1, "excluded": 1}


def test_a_turn_on_a_host_breaks_no_limit_of_pages(ledger: Ledger) -> None:
    """A job may get a host that was looked at for another job, while nothing of its own is due."""
    paths = [f"/{number}" for number in range(300)]
    admit(ledger, admission(*paths, name="j", delay=0, connections=2), now=0)
    admit(ledger, admission(*paths, name="k", delay=0, max_pages=70), now=0)
    shares: Counter[str] = Counter()
    for now in range(2, 100, 2):
        with ledger.transaction() as tx:
            tx.execute(host_queues.update().where(host_queues.c.job_id == 2).values(next_due=1000.0))
        batches = lease(ledger, 5, now)
        shares += taken(batches)
        record(ledger, [report(batch) for batch in batches], now + 1)
    assert shares == {"j": 300, "k": 70}


def test_first_and_last_patterns_order_a_host(ledger: Ledger) -> None:
    paths = ("/old/1", "/tag/1", "/news/1", "/old/2", "/news/tag/2", "/tag/2")
    admit(ledger, admission(*paths, delay=40, first=["/news/"], last=["/tag/"]), now=0)
    order = []
    for now in range(0, 1000, 100):
        for batch in lease(ledger, 1, now):
            order += [target.url.removeprefix(SITE) for target in batch.targets]
            links = [Link(f"{SITE}/news/late", 1, batch.targets[0].url)] if now == 100 else []
            record(ledger, [replace(report(batch), links=links)], now)
    turns = [-1 if "news" in path else 1 if "tag" in path else 0 for path in order]
    assert len(order) == 7
    assert order.index("/news/late") < order.index("/tag/1")
    assert turns[:2] == [-1, -1]
    assert turns[-2:] == [1, 1]


def test_a_report_that_arrives_while_the_host_is_looked_at_makes_it_due(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scheduler reads that a batch is under way; the recorder ends it; the scheduler writes when to look again."""
    admit(ledger, admission(*(f"/{number}" for number in range(60)), delay=0), now=0)
    (batch,) = lease(ledger, 1, now=1)
    wanting = lease_module._wanting

    def and_then_a_report_arrives(*arguments: Any) -> Any:
        rows = wanting(*arguments)
        record(ledger, [report(batch)], now=2)
        return rows

    with ledger.transaction() as tx:
        tx.execute(host_queues.update().values(next_due=0.0))  # as if another job had just queued something
    with monkeypatch.context() as meanwhile:
        meanwhile.setattr(lease_module, "_wanting", and_then_a_report_arrives)
        assert lease(ledger, 1, now=2) == []
    assert len(lease(ledger, 1, now=4)) == 1


def test_hosts_that_only_wait_take_no_turns(ledger: Ledger) -> None:
    """Also where something else makes them due: they are left out of the search until their URLs wake."""
    hosts_of(ledger, "j", 30, 1)
    batches = lease(ledger, 20, now=1)
    assert len(batches) == 20
    retried = [
        report(batch, results=[], retries=[Retry(url=target.url, reason="HTTP 500") for target in batch.targets])
        for batch in batches
    ]
    record(ledger, retried, now=2)
    with ledger.transaction() as tx:
        tx.execute(host_queues.update().where(host_queues.c.waiting > 0).values(next_due=-1.0))
    assert lease(ledger, 5, now=3) == []
    assert sum(len(lease(ledger, 5, now=3)) for _ in range(6)) == 10
    assert lease(ledger, 30, now=4) == []
    assert len(lease(ledger, 30, now=4000)) == 20
