"""What systemd is told, and when a worker stops and begins to take work. test_worker.py has the whole process."""

from __future__ import annotations

import logging
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from gevent.event import Event

from crawler import limits
from crawler.processes import systemd


@pytest.fixture(params=["path", "abstract"])
def told(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the notify socket, of both kinds that sd_notify(3) names."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@crawler-test-{id(request)}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        end.settimeout(5)
        yield end


def test_systemd_is_told_that_we_are_alive(told: socket.socket) -> None:
    systemd.alive()
    assert told.recv(100) == b"READY=1\nWATCHDOG=1"


def test_without_systemd_nobody_is_told(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    with caplog.at_level(logging.WARNING):
        systemd.alive()
    assert caplog.messages == []


def test_a_systemd_that_does_not_listen_stops_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "gone"))
    systemd.alive()
    assert "systemd cannot be told" in caplog.text


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
    monkeypatch.setattr(systemd, "_this_worker", systemd.CeleryWorker(consumer=made))
    monkeypatch.setattr(systemd, "STOP", Event())
    return made


@pytest.mark.parametrize("told", ["path"], indirect=True)
def test_work_is_taken_and_not_taken(told: socket.socket, consumer: Consumer) -> None:
    systemd.take_work("fetch", False, "no room")
    assert consumer.queues == {"pulse"}
    assert told.recv(100) == b"STATUS=taking no work: no room"
    systemd.take_work("fetch", True, "no room")
    assert consumer.queues == {"fetch", "pulse"}
    assert told.recv(100) == b"STATUS="
    systemd.take_work("fetch", True, "no room")  # nothing changes, so nothing is said
    told.settimeout(0.1)
    with pytest.raises(TimeoutError):
        told.recv(100)


def test_a_worker_that_stops_takes_no_work_again(consumer: Consumer) -> None:
    """Celery has cancelled its consumers by then; a pulse that was under way must not bring them back."""
    consumer.queues.clear()
    systemd.STOP.set()
    systemd.take_work("fetch", True, "")
    assert consumer.queues == set()


def test_a_worker_without_a_connection_or_no_worker_at_all_takes_none(
    consumer: Consumer, monkeypatch: pytest.MonkeyPatch
) -> None:
    consumer.task_consumer = None
    systemd.take_work("fetch", False, "")
    assert consumer.queues == {"fetch", "pulse"}
    monkeypatch.setattr(systemd, "_this_worker", systemd.CeleryWorker())
    systemd.take_work("fetch", False, "")
    assert systemd.node_name() == socket.gethostname()


@pytest.fixture
def pulse(monkeypatch: pytest.MonkeyPatch) -> Iterator[systemd.Pulse]:
    monkeypatch.setattr(systemd, "STOP", Event())
    monkeypatch.setattr(systemd, "_this_worker", systemd.CeleryWorker(pulse_queue="pulse.w"))
    monkeypatch.setattr(limits, "PULSE", 0.05)
    step = systemd.Pulse(SimpleNamespace())
    yield step
    systemd.STOP.set()
    if step.thread:
        step.thread.join(5)


class Parent:
    """Celery's consumer to a step; counts the pulses that are sent."""

    def __init__(self, green: bool = False, sending_fails: bool = False) -> None:
        self.sent, self.grown, self._fails = threading.Event(), 0, sending_fails
        self.pool = SimpleNamespace(is_green=green, grow=self._grow)
        self.app = SimpleNamespace(send_task=self._send)

    def _grow(self, number: int) -> None:
        self.grown += number

    def _send(self, name: str, queue: str) -> None:
        assert (name, queue) == ("pulse", "pulse.w")
        self.sent.set()
        if self._fails:
            raise ConnectionError("gone")


@pytest.mark.parametrize("told", ["path"], indirect=True)
def test_while_the_broker_is_down_waiting_for_it_is_no_failure(told: socket.socket, pulse: systemd.Pulse) -> None:
    parent = Parent()
    pulse.start(parent)
    assert parent.sent.wait(5)
    told.settimeout(0.3)
    with pytest.raises(TimeoutError):  # connected: only an executed pulse feeds the watchdog
        told.recv(100)
    pulse.stop(parent)
    told.settimeout(5)
    assert told.recv(100) == b"WATCHDOG=1"  # and not READY: it does no work


def test_the_pulse_begins_once_and_outlives_connections(pulse: systemd.Pulse) -> None:
    for parent in (Parent(green=True), Parent(green=True, sending_fails=True), Parent(green=True)):
        pulse.start(parent)
        pulse.stop(parent)
    first = pulse.thread
    parent = Parent(green=True)
    pulse.start(parent)
    assert pulse.thread is first
    assert first
    assert first.is_alive()
    assert parent.grown == 0  # the pool has grown at the first connection, and is the same


def test_a_pulse_that_cannot_be_sent_does_not_end_the_pulse(pulse: systemd.Pulse) -> None:
    parent = Parent(sending_fails=True)
    pulse.start(parent)
    for _ in range(3):
        assert parent.sent.wait(5)
        parent.sent.clear()
    assert parent.grown == 0  # a prefork pool is left as it is
