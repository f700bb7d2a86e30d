"""When a worker proves that it is alive, and when it stops and begins to take work. test_worker.py has the whole
process."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from gevent.event import Event

from crawler import limits
from crawler.processes import heartbeat, queues, systemd


class Consumer:
    """Celery's consumer, as far as take_work uses it (test_celery.py shows that Celery's has these)."""

    def __init__(self, *queues: str) -> None:
        self.queues = set(queues)
        self.task_consumer: Any = SimpleNamespace(consuming_from=self.queues.__contains__)
        self.add_task_queue, self.cancel_task_queue = self.queues.add, self.queues.discard

    def call_soon(self, function: Any, queue: str) -> None:
        function(queue)


@pytest.fixture
def consumer(monkeypatch: pytest.MonkeyPatch) -> Consumer:
    made = Consumer("fetch", "pulse")
    monkeypatch.setattr(heartbeat, "_this_worker", heartbeat.CeleryWorker(consumer=made))
    monkeypatch.setattr(systemd, "STOP", Event())
    return made


@pytest.mark.parametrize("told", ["path"], indirect=True)
def test_work_is_taken_and_not_taken(told: socket.socket, consumer: Consumer) -> None:
    heartbeat.take_work("fetch", False, "no room")
    assert consumer.queues == {"pulse"}
    assert told.recv(100) == b"STATUS=taking no work: no room"
    heartbeat.take_work("fetch", True, "no room")
    assert consumer.queues == {"fetch", "pulse"}
    assert told.recv(100) == b"STATUS="
    heartbeat.take_work("fetch", True, "no room")  # nothing changes, so nothing is said
    told.settimeout(0.1)
    with pytest.raises(TimeoutError):
        told.recv(100)


def test_a_worker_that_stops_takes_no_work_again(consumer: Consumer) -> None:
    """Celery has cancelled its consumers by then; a pulse that was under way must not bring them back."""
    consumer.queues.clear()
    systemd.STOP.set()
    heartbeat.take_work("fetch", True, "")
    assert consumer.queues == set()


def test_a_worker_without_a_connection_or_no_worker_at_all_takes_none(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer.task_consumer = None
    heartbeat.take_work("fetch", False, "")
    assert consumer.queues == {"fetch", "pulse"}
    monkeypatch.setattr(heartbeat, "_this_worker", heartbeat.CeleryWorker())
    heartbeat.take_work("fetch", False, "")
    assert heartbeat.node_name() == socket.gethostname()


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Iterator[heartbeat.Pulse]:
    monkeypatch.setattr(systemd, "STOP", Event())
    queue = queues.pulse("worker-1@here", "worker@here")
    monkeypatch.setattr(heartbeat, "_this_worker", heartbeat.CeleryWorker(pulse_queue=queue))
    monkeypatch.setattr(limits, "PULSE", 0.05)
    step = heartbeat.Pulse(SimpleNamespace())
    yield step
    systemd.STOP.set()
    if step.thread:
        step.thread.join(5)


class Parent:
    """Celery's consumer to a step; counts the pulses that are sent."""

    def __init__(self, sending_fails: bool = False) -> None:
        self.sent, self.grown, self._fails = threading.Event(), 0, sending_fails
        self.pool = SimpleNamespace(grow=self._grow)
        retrying = SimpleNamespace(task_publish_retry_policy={}, task_routes={})
        self.app = SimpleNamespace(producer_pool=self, conf=retrying)
        self.connection = SimpleNamespace(userid="worker@here")

    def _grow(self, number: int) -> None:
        self.grown += number

    @contextlib.contextmanager
    def acquire(self, block: bool) -> Iterator[Parent]:
        """The application's pool, and its one producer."""
        assert block
        yield self

    def publish(self, body: Any, **options: Any) -> None:
        assert (body, options["headers"]["task"]) == (((), {}, {}), "pulse")
        assert (options["exchange"], options["routing_key"]) == ("pulses.worker@here", "pulse.worker-1@here")
        assert options["user_id"] == "worker@here"
        self.sent.set()
        if self._fails:
            raise ConnectionError("gone")


@pytest.mark.parametrize("told", ["path"], indirect=True)
def test_while_the_broker_is_down_waiting_for_it_is_no_failure(told: socket.socket, pulse: heartbeat.Pulse) -> None:
    parent = Parent()
    pulse.start(parent)
    assert parent.sent.wait(5)
    told.settimeout(0.3)
    with pytest.raises(TimeoutError):  # connected: only an executed pulse feeds the watchdog
        told.recv(100)
    pulse.stop(parent)
    told.settimeout(5)
    assert told.recv(100) == b"WATCHDOG=1"  # and not READY: it does no work


def test_the_pulse_begins_once_and_outlives_connections(pulse: heartbeat.Pulse) -> None:
    for parent in (Parent(), Parent(sending_fails=True), Parent()):
        pulse.start(parent)
        pulse.stop(parent)
    first = pulse.thread
    parent = Parent()
    pulse.start(parent)
    assert pulse.thread is first
    assert first
    assert first.is_alive()
    assert parent.grown == 0  # the pool has grown at the first connection, and is the same


def test_a_pulse_that_cannot_be_sent_does_not_end_the_pulse(pulse: heartbeat.Pulse) -> None:
    parent = Parent(sending_fails=True)
    pulse.start(parent)
    for _ in range(3):
        assert parent.sent.wait(5)
        parent.sent.clear()
