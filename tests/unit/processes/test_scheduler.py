"""The scheduler's chores: each on a clock of its own, and none so slow that another waits for it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from gevent.event import Event

from crawler import limits
from crawler.frontier import orders, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.ledger import Ledger
from crawler.job import Job
from crawler.messages import Admission, Batch, Hold
from crawler.processes import scheduler, systemd
from crawler.processes.scheduler import Scheduler


class Clock:
    """Stands still unless it is moved."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class FakeBroker:
    """Notes what it is given, and when. Brings marks back at once; so all are heard."""

    errors = ()

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.batches: list[Batch] = []
        self.recalled: list[tuple[float, list[str]]] = []
        self.published: list[float] = []
        self.arrived: list[Hold] = []
        self.marked: float | None = None
        self.workers = 1
        self.reports = False

    def room(self, per_consumer: int) -> int:
        return per_consumer

    def consumers(self) -> int:
        return self.workers

    def reports_wait(self) -> bool:
        return self.reports

    def mark(self, at: float) -> None:
        self.marked = at

    def hear(self) -> tuple[list[Hold], float | None]:
        heard, self.arrived = self.arrived, []
        return heard, self.marked

    def send(self, batches: list[Batch]) -> None:
        self.batches += batches

    def recall(self, leases: list[str]) -> None:
        self.recalled.append((self.clock.now, leases))

    def publish_status(self, snapshots: list[dict[str, Any]]) -> None:
        assert snapshots
        self.published.append(self.clock.now)


class Fleet:
    def __init__(self, folder: Path) -> None:
        self.clock = Clock()
        self.broker = FakeBroker(self.clock)
        self.ledger = Ledger.open(f"sqlite:///{folder}/ledger.sqlite")
        self.ledger.create()
        self.scheduler = Scheduler(self.ledger, self.broker, Event(), self.clock, self.clock)  # type: ignore[arg-type]
        job = Job(name="j", delay=0)
        seeds = ["http://a.test/1", "http://b.test/1"]
        admit(self.ledger, Admission(job=job, seeding="s", chunk=0, chunks=1, urls=seeds), self.clock.now)

    def run(self, seconds: float) -> None:
        until = self.clock.now + seconds
        while self.clock.now < until:
            self.scheduler.step()
            self.clock.now += 0.2


@pytest.fixture
def fleet(tmp_path: Path) -> Fleet:
    return Fleet(tmp_path)


def slow(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, fleet: Fleet, seconds: float) -> list[float]:
    """Let a function take `seconds`; when it began."""
    began: list[float] = []
    real = getattr(module, name)

    def slowly(*arguments: Any, **more: Any) -> Any:
        began.append(fleet.clock.now)
        result = real(*arguments, **more)
        fleet.clock.now += seconds
        return result

    monkeypatch.setattr(module, name, slowly)
    return began


def gaps(times: list[float]) -> list[float]:
    assert len(times) > 2
    return [later - earlier for earlier, later in itertools.pairwise(times)]


def test_each_second_the_ledger_is_tidied_and_its_status_published(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    tidied = slow(monkeypatch, tidy, "tidy", fleet, 0)
    fleet.run(10)
    assert sorted(batch.host for batch in fleet.broker.batches) == ["a.test", "b.test"]
    for times in (tidied, fleet.broker.published):
        assert all(1 <= gap < 1.3 for gap in gaps(times))


@pytest.mark.parametrize(("module", "name"), [(tidy, "tidy"), (status, "snapshots"), (status, "sample")])
def test_however_slow_a_chore_is_others_are_not_blind(
    fleet: Fleet, monkeypatch: pytest.MonkeyPatch, module: Any, name: str
) -> None:
    """E13: a tidy of 18 s was followed by 342 s without tidy, recall and status."""
    began = slow(monkeypatch, module, name, fleet, 18)
    others = slow(monkeypatch, tidy, "recalled", fleet, 0)
    fleet.run(100)
    assert max(gaps(began)) <= 18 + scheduler.LONGEST + 0.5
    assert max(gaps(fleet.broker.published)) <= 18 + scheduler.LONGEST + 0.5
    assert max(gaps(others)) < 18 + 1.3  # while it runs; in between, each second
    assert sorted(gaps(others))[-len(began) - 1] < 1.3


def test_what_a_blocked_host_s_workers_hold_is_recalled_at_once(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    slow(monkeypatch, tidy, "tidy", fleet, 2)
    slow(monkeypatch, status, "snapshots", fleet, 2)
    fleet.run(5)
    orders.block(fleet.ledger, "a.test", fleet.clock.now)
    ordered = fleet.clock.now
    fleet.run(5)
    when, leases = fleet.broker.recalled[0]
    assert when - ordered <= 3
    assert leases == [batch.lease for batch in fleet.broker.batches if batch.host == "a.test"]


def test_the_watchdog_is_fed_after_each_chore(fleet: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    fed: list[float] = []
    monkeypatch.setattr(systemd, "notify", lambda _: fed.append(fleet.clock.now))
    for module, name in ((tidy, "tidy"), (status, "snapshots"), (status, "sample")):
        slow(monkeypatch, module, name, fleet, 20)
    fleet.scheduler.step()
    assert sorted(set(fed)) == [1000, 1020, 1040, 1060]


def test_what_a_lost_worker_held_is_leased_again_within_a_minute(fleet: Fleet) -> None:
    fleet.run(0.2)
    lost, kept = (batch.lease for batch in fleet.broker.batches)
    until = fleet.clock.now + 60
    while fleet.clock.now < until:
        if fleet.clock.now < 1003:
            fleet.broker.arrived.append(Hold(worker="lost", leases=[lost]))
        fleet.broker.arrived.append(Hold(worker="kept", leases=[kept]))
        fleet.run(1)
    assert [batch.host for batch in fleet.broker.batches] == ["a.test", "b.test", fleet.broker.batches[0].host]


def test_a_lease_that_never_reached_the_broker_is_leased_again_within_a_minute(fleet: Fleet) -> None:
    def dies(_: Batch) -> None:
        raise SystemExit

    fleet.broker.send = dies  # type: ignore[method-assign]
    with pytest.raises(SystemExit):
        fleet.scheduler.step()
    del fleet.broker.send
    fleet.scheduler = Scheduler(fleet.ledger, fleet.broker, Event(), fleet.clock, fleet.clock)  # type: ignore[arg-type]
    began = fleet.clock.now
    while not fleet.broker.batches:
        fleet.broker.arrived.append(Hold(worker="w"))
        fleet.run(1)
    assert limits.KEEP <= fleet.clock.now - began <= 60
    assert sorted(batch.host for batch in fleet.broker.batches) == ["a.test", "b.test"]


def test_while_reports_wait_that_could_be_a_dead_worker_s_nothing_is_leased(fleet: Fleet) -> None:
    fleet.run(0.2)
    lost, _ = (batch.lease for batch in fleet.broker.batches)
    fleet.broker.arrived.append(Hold(worker="w", leases=[lost]))
    fleet.run(1)
    fleet.broker.arrived.append(Hold(worker="w"))
    fleet.broker.reports = True
    fleet.run(limits.HOLD + 1)
    seeds = ["http://c.test/"]
    job = Job(name="j", delay=0)
    admit(fleet.ledger, Admission(job=job, seeding="t", chunk=0, chunks=1, urls=seeds), fleet.clock.now)
    fleet.run(10)
    assert len(fleet.broker.batches) == 2
    fleet.broker.reports = False
    fleet.run(2)
    assert [batch.host for batch in fleet.broker.batches[2:]] == ["c.test"]


def test_no_lease_is_taken_back_while_its_report_may_wait(fleet: Fleet) -> None:
    fleet.run(0.2)
    first, second = (batch.lease for batch in fleet.broker.batches)
    fleet.broker.arrived.append(Hold(worker="w", leases=[first, second]))
    fleet.run(1)
    fleet.broker.reports = True
    fleet.broker.arrived.append(Hold(worker="w", leases=[second], reported=[first]))
    fleet.run(limits.LEASE + 60)
    assert len(fleet.broker.batches) == 2
    fleet.broker.reports = False
    fleet.run(limits.IN_HAND + 3)
    assert len(fleet.broker.batches) == 3
    fleet.run(limits.REPORTED)
    assert len(fleet.broker.batches) == 4


def test_a_worker_that_goes_on_with_a_lease_that_was_taken_back_is_told(fleet: Fleet) -> None:
    fleet.run(0.2)
    lost = fleet.broker.batches[0].lease
    fleet.broker.arrived.append(Hold(worker="w", leases=[lost]))
    fleet.run(60)
    assert len(fleet.broker.batches) > 2
    assert not fleet.broker.recalled
    fleet.broker.arrived.append(Hold(worker="w", leases=[lost]))
    fleet.run(2)
    assert {tuple(leases) for _, leases in fleet.broker.recalled} == {(lost,)}
