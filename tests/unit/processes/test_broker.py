"""What is sent, where it arrives, and what whoever watches gets to see."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
from celery import Celery
from msgspec.structs import replace

from crawler.job import Job
from crawler.messages import Admission, Batch, Target, convert
from crawler.processes.broker import Broker

JOB = Job(name="j", delay=3)
BATCH = Batch(lease="l", job=JOB, host="a.test", targets=[Target(url="http://a.test/", depth=1)], expires_at=5.0)


@pytest.fixture
def broker(app: Celery) -> Broker:
    made = Broker()
    assert made._app is app
    return made


def received(app: Celery, queue: str) -> tuple[str, Any]:
    """The task's name and argument of the one message in `queue`."""
    with app.connection_for_read() as connection, connection.SimpleQueue(queue, no_ack=True) as messages:
        message = messages.get(timeout=5)
        assert messages.qsize() == 0
    ((argument,), _, _) = message.decode()
    return message.headers["task"], argument


def test_each_message_arrives_where_it_is_read(app: Celery, broker: Broker) -> None:
    admission = Admission(job=JOB, seeding="s", chunk=0, chunks=1, urls=["http://a.test/"])
    broker.send([BATCH])
    broker.admit(admission)
    broker.recall(["l", "m"])
    name, argument = received(app, "fetch")
    assert (name, convert(Batch, argument)) == ("fetch", BATCH)
    name, argument = received(app, "admit")
    assert (name, convert(Admission, argument)) == ("admit", admission)
    assert received(app, "orders-heard") == ("recall", ["l", "m"])


def test_a_batch_may_name_blocked_hosts(app: Celery, broker: Broker) -> None:
    batch = replace(BATCH, blocked=frozenset({"b.test", "c.test"}))
    broker.send([batch])
    _, argument = received(app, "fetch")
    assert convert(Batch, argument) == batch


@pytest.mark.parametrize(
    ("ready", "reports", "consumers", "room"),
    [
        *[(0, 0, 3, 30), (29, 0, 3, 1), (30, 0, 3, 0), (99, 0, 3, 0)],
        *[(0, 0, 0, 0), (5, 0, 0, 0)],  # no worker, no batch
        *[(0, 29, 3, 1), (10, 19, 3, 1), (10, 99, 3, 0)],  # nor one whose report would wait longer than others
    ],
)
def test_room_is_ten_batches_a_worker_less_those_and_the_reports_that_wait(
    broker: Broker, monkeypatch: pytest.MonkeyPatch, ready: int, reports: int, consumers: int, room: int
) -> None:
    """Of a channel we only ask this; kombu's in memory counts no consumers."""
    asked: list[tuple[str, bool]] = []
    answer = namedtuple("answer", "queue message_count consumer_count")

    class Channel:
        def queue_declare(self, queue: str, passive: bool) -> Any:
            asked.append((queue, passive))
            return answer(queue, *{"fetch": (ready, consumers), "record": (reports, 2)}[queue])

    monkeypatch.setattr(broker, "_channel", Channel)
    assert broker.room(10) == room
    assert all(passive for _, passive in asked)  # nobody here may declare a queue


def test_whoever_watches_sees_every_snapshot_from_then_on(broker: Broker) -> None:
    broker.publish_status([{"job": "before"}])
    with broker.watching() as snapshots, Broker().watching() as others:
        broker.publish_status([{"job": "one"}])
        broker.publish_status([{"job": "one"}, {"job": "two"}])
        for stream in (snapshots, others):
            assert next(stream) == [{"job": "one"}]
            assert next(stream) == [{"job": "one"}, {"job": "two"}]
            assert next(stream) == []  # a second without any: so a caller can look at the clock


def test_a_connection_that_failed_is_replaced(broker: Broker) -> None:
    broker.check()
    broker.publish_status([])
    before = broker._connection
    broker.forget()
    assert broker._connection is not before
    with broker.watching() as snapshots:
        broker.publish_status([{"job": "after"}])
        assert next(snapshots) == [{"job": "after"}]


def test_a_broker_that_is_down_raises_one_of_the_errors(broker: Broker, app: Celery) -> None:
    broker._connection = app.connection("amqp://127.0.0.1:1//")
    with pytest.raises(broker.errors):
        broker.check()
