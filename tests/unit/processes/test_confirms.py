"""The broker's confirms, by a channel that confirms, refuses or says nothing on command, which a real one does not."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import pytest
from celery import Celery
from kombu.exceptions import OperationalError

from crawler.job import Job
from crawler.messages import Batch
from crawler.processes import broker as broker_module
from crawler.processes.broker import Broker
from crawler.processes.confirms import ConfirmedProducer

BATCH = Batch(lease="l", job=Job(name="j"), host="a.test", targets=[], expires_at=5.0)


class Channel:
    """Confirms what `says` tells it to, one thing each time that events are drained."""

    def __init__(self, says: list[tuple[str, Any]]) -> None:
        self.says = says
        self.events: dict[str, set[Any]] = defaultdict(set)
        self.asked_for_confirms = False

    def channel(self) -> Channel:
        return self

    def confirm_select(self) -> None:
        self.asked_for_confirms = True

    def drain_events(self, timeout: float) -> None:
        assert timeout > 0
        if not self.says:
            raise TimeoutError
        kind, what = self.says.pop(0)
        for callback in self.events[kind]:
            callback(*what)


def producer(monkeypatch: pytest.MonkeyPatch, *says: tuple[str, Any]) -> tuple[ConfirmedProducer, Channel]:
    monkeypatch.setattr("crawler.processes.confirms.Producer", lambda _: None)
    channel = Channel(list(says))
    return ConfirmedProducer(channel), channel  # type: ignore[arg-type]


def test_it_waits_until_all_are_confirmed(monkeypatch: pytest.MonkeyPatch) -> None:
    says = [("basic_ack", (2, False)), ("basic_ack", (1, False)), ("basic_ack", (4, True)), ("basic_ack", (5, False))]
    confirmed, channel = producer(monkeypatch, *says)
    assert channel.asked_for_confirms
    for _ in range(4):
        confirmed.published()
    confirmed.wait(1)
    assert channel.says == [("basic_ack", (5, False))]  # of 3 and 4 together, and no longer than needed
    confirmed.published()
    confirmed.wait(1)
    assert not channel.says


@pytest.mark.parametrize(
    ("says", "error"),
    [
        ([("basic_ack", (1, False))], TimeoutError),
        ([("basic_ack", (1, False)), ("basic_nack", (2, False))], OperationalError),
    ],
)
def test_a_message_that_is_not_confirmed_raises(
    monkeypatch: pytest.MonkeyPatch, says: list[tuple[str, Any]], error: type[Exception]
) -> None:
    confirmed, _ = producer(monkeypatch, *says)
    confirmed.published()
    confirmed.published()
    with pytest.raises(error):
        confirmed.wait(0.01)


def test_batches_are_sent_together_and_then_waited_for(app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[tuple[int, float]] = []
    monkeypatch.setattr(ConfirmedProducer, "wait", lambda self, seconds: waited.append((self._sent, seconds)))
    broker = Broker()
    broker.send([BATCH, BATCH])
    broker.send([BATCH])
    assert waited == [(2, broker_module.CONFIRM_SECONDS), (3, broker_module.CONFIRM_SECONDS)]
    with app.connection_for_read() as connection, connection.SimpleQueue("fetch", no_ack=True) as arrived:
        assert [arrived.get(timeout=5).headers["task"] for _ in range(3)] == ["fetch"] * 3
