"""When a batch may be begun, and when it must stop, on a clock of the test's."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack

import gevent
import pytest

from crawler import limits
from crawler.job import Job
from crawler.messages import Batch, Hold
from crawler.worker import holding as module
from crawler.worker.holding import Held, Holding


class Process:
    """A worker, and what the broker has heard of it."""

    def __init__(self) -> None:
        self.seconds, self.wall = 50.0, 5000.0
        self.holding = Holding(lambda: self.seconds, lambda: self.wall)
        self.sent: list[Hold] = []
        self.away = False
        self.takes = 0.0
        self.stack = ExitStack()

    def turn(self) -> None:
        self.holding.turn("w", self._send)

    def _send(self, hold: Hold) -> None:
        if self.away:
            raise OSError("no broker")
        self.sent.append(hold)
        self.seconds += self.takes

    def take(self, lease: str = "l", leased_at: float | None = 5000.0) -> Held:
        """A batch, when it may be begun: while it waits, one hold is sent."""
        begin_by = None if leased_at is None else leased_at + limits.BEGIN
        batch = Batch(lease=lease, job=Job(name="j"), host="a.test", targets=[], expires_at=9e9, begin_by=begin_by)
        sender = gevent.spawn(self.turn)
        held = self.stack.enter_context(self.holding.hold(batch, threading.Event()))
        sender.join()
        return held


@pytest.fixture
def process(monkeypatch: pytest.MonkeyPatch) -> Iterator[Process]:
    monkeypatch.setattr(module, "LATE_REST", 0.0)
    made = Process()
    with made.stack:
        yield made


def test_a_batch_is_begun_when_a_hold_that_names_it_was_confirmed(process: Process) -> None:
    held = process.take()
    assert process.sent == [Hold(worker="w", leases=["l"])]
    assert not held.is_set()
    assert not process.take("m").is_set()
    assert process.sent[1].leases == ["l", "m"]


def test_a_batch_of_which_no_hold_is_confirmed_is_not_begun(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SILENT", 0.05)
    process.away = True
    assert process.take().is_set()


def test_without_a_confirmed_hold_nothing_more_is_begun(process: Process) -> None:
    held = process.take()
    process.seconds += limits.SILENT
    assert not held.is_set()
    process.seconds += 0.1
    assert held.is_set()


def test_what_was_lost_stays_lost(process: Process) -> None:
    """A process that was stopped for longer: whichever runs first, its batch or its holds."""
    batch_first, hold_first = process.take(), process.take("m")
    process.seconds += 100
    assert batch_first.is_set()
    process.turn()
    assert batch_first.is_set()
    assert hold_first.is_set()
    assert not process.take("n").is_set()


def test_a_hold_counts_from_when_it_was_sent(process: Process) -> None:
    """Stopped between sending and the confirmation, which waited."""
    process.takes = limits.SILENT + 1
    assert process.take().is_set()


def test_holds_go_on_while_they_are_confirmed(process: Process) -> None:
    held = process.take()
    for _ in range(20):
        process.seconds += limits.HOLD
        process.turn()
        assert not held.is_set()


@pytest.mark.parametrize(("waited", "begun"), [(limits.BEGIN, True), (limits.BEGIN + 1, False)])
def test_a_batch_that_waited_for_too_long_is_not_begun(process: Process, waited: float, begun: bool) -> None:
    assert process.take(leased_at=process.wall - waited).is_set() != begun


def test_a_batch_of_a_frontier_that_asks_for_no_holds_is_begun(process: Process) -> None:
    assert not process.take(leased_at=None).is_set()


def test_a_clock_that_is_behind_is_noticed(process: Process) -> None:
    """The frontier's clock is at 5300 when the first comes, which was leased just then."""
    assert not process.take(leased_at=5300).is_set()
    process.wall += 100
    assert process.take("m", leased_at=5300 + 100 - limits.BEGIN - 1).is_set()


def test_a_report_is_named_until_a_hold_was_confirmed(process: Process) -> None:
    process.take()
    process.holding.reported("l")
    process.stack.close()
    process.away = True
    with pytest.raises(OSError, match="no broker"):
        process.turn()
    process.away = False
    process.turn()
    process.turn()
    assert process.sent[1:] == [Hold(worker="w", reported=["l"]), Hold(worker="w")]
