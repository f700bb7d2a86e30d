"""Publisher confirms, awaited for many messages together: RabbitMQ confirms what a quorum queue has written to disk,
and one write serves many messages.

Source: https://www.rabbitmq.com/docs/confirms#publisher-confirms
"""

from __future__ import annotations

import time
from typing import Any

from kombu import Connection, Producer
from kombu.exceptions import OperationalError


class ConfirmedProducer:
    """Publishes on a channel of its own; `wait` returns when the broker has confirmed all of it. An error leaves it
    without use."""

    def __init__(self, connection: Connection) -> None:
        """`connection` must not wait for each confirm itself (confirm_publish)."""
        self._connection = connection
        channel = connection.channel()
        self.producer = Producer(channel)
        self._sent = 0
        self._awaited: set[int] = set()
        self._confirms = hasattr(channel, "confirm_select")  # kombu's transport in memory, as in unit tests, has none
        if self._confirms:
            channel.confirm_select()
            channel.events["basic_ack"].add(self._acked)
            channel.events["basic_nack"].add(self._refused)

    def published(self) -> None:
        """Count a message that was given to `producer`: the broker numbers them from 1 on."""
        self._sent += 1
        if self._confirms:
            self._awaited.add(self._sent)

    def wait(self, seconds: float) -> None:
        """Wait for all confirms. Raises TimeoutError when they do not come in time, OperationalError when the broker
        refuses a message, and what the connection raises when it is lost: each message may or may not have arrived."""
        until = time.monotonic() + seconds
        while self._awaited:
            self._connection.drain_events(timeout=max(0.001, until - time.monotonic()))

    def _acked(self, number: int, multiple: bool) -> None:
        if multiple:
            self._awaited = {awaited for awaited in self._awaited if awaited > number}
        else:
            self._awaited.discard(number)

    def _refused(self, *_: Any) -> None:
        raise OperationalError("the broker refused a message")
