"""What a worker says it holds, at its broker."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import gevent
import pytest
from celery import Celery
from kombu import Exchange, Producer

from crawler import limits
from crawler.job import Job
from crawler.messages import Batch, Hold
from crawler.processes import hold_sender
from crawler.processes.broker import Broker
from crawler.processes.hold_sender import HoldSender
from crawler.worker.holding import Holding

BATCH = Batch(lease="l", job=Job(name="j"), host="a.test", targets=[], expires_at=9e9)


@pytest.fixture
def sender(app: Celery, as_user: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> HoldSender:
    assert app  # the queues
    monkeypatch.setattr(hold_sender, "GATHER_SECONDS", 0.0)
    monkeypatch.setattr(hold_sender, "PAUSE_SECONDS", 0.0)
    return HoldSender(as_user("worker@here"), "worker-1@here", Holding())


def test_the_scheduler_hears_holds_up_to_its_own_mark(app: Celery, sender: HoldSender) -> None:
    broker, other = Broker(), Broker()
    assert broker._app is app
    broker.hear()
    other.mark(1.0)
    sender.step()
    waiting = gevent.spawn(sender.step)
    with sender._holding.hold(BATCH, threading.Event()):
        waiting.join()
    broker.mark(2.0)
    broker.mark(3.0)
    holds, marked = broker.hear()
    assert holds == [Hold(worker="worker-1@here"), Hold(worker="worker-1@here", leases=["l"])]
    assert marked == 3.0
    assert broker.hear() == ([], None)


@pytest.mark.usefixtures("app")
def test_what_cannot_be_read_or_was_sent_by_another_is_left_out(
    as_user: Callable[[str], Any], caplog: pytest.LogCaptureFixture
) -> None:
    broker = Broker()
    broker.hear()
    good, mark = {"worker": "worker-2@here"}, {"mark": broker._name, "at": 1.0}
    unread = [{"worker": 1}, ["mark"], {**mark, "at": "soon"}, {"worker": "w"}]
    with as_user("worker@here").connection_for_write() as connection:
        producer = Producer(connection.channel(), Exchange("reports"), routing_key="hold", serializer="json")
        for body in [*unread, good, {"worker": "worker-2@there"}, mark]:
            producer.publish(body, user_id="worker@here")
        for user in ("worker@there", "seed", None):
            producer.publish({**good, "leases": ["l"]}, user_id=user)
        text = {"content_type": "application/json", "content_encoding": "utf-8", "serializer": None}
        for body in (b"{", b"\xff", b"[" * 100_000):
            producer.publish(body, user_id="worker@here", **text)
        producer.publish(b"", user_id="worker@here", headers={"compression": "bzip2"}, **text)
        producer.publish(b"x", user_id="worker@here", **{**text, "content_type": "application/x-python-serialize"})
    assert broker.hear() == ([Hold(worker="worker-2@here")], None)
    assert caplog.text.count("a hold that cannot be read") == 14
    assert "sent by 'worker@there', and not by 'worker@here'" in caplog.text


def test_a_hold_that_is_not_confirmed_is_sent_again_over_a_new_connection(
    sender: HoldSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = Broker()
    broker.hear()
    sender.step()
    before = sender._producer
    monkeypatch.setattr(limits, "SILENT", 0.05)
    monkeypatch.setattr(before, "publish", lambda *_, **__: gevent.sleep(5))
    sender.step()
    assert sender._producer is None
    sender._holding.reported("l")
    sender.step()
    assert sender._producer is not before
    assert broker.hear()[0] == [Hold(worker="worker-1@here"), Hold(worker="worker-1@here", reported=["l"])]


def test_a_hold_must_reach_a_queue(sender: HoldSender, monkeypatch: pytest.MonkeyPatch) -> None:
    """RabbitMQ confirms what it drops; tests/integration has it return such a message."""
    options: list[dict[str, Any]] = []
    sender.step()
    monkeypatch.setattr(sender._producer, "publish", lambda _, **given: options.append(given))
    sender.step()
    assert options[0]["mandatory"]
