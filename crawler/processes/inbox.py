"""The queues `record` and `admit` as a recorder consumes them: what has arrived, in handfuls; acknowledged by hand; and
the pulse by which the recorder proves that it still consumes.

Two queues, so that no report waits behind a seeding of millions of URLs.

No Celery: its worker hands out one message at a time, and the frontier takes in many as cheaply as one.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import Iterator
from typing import Any

from kombu import Connection, Consumer, Producer
from kombu.exceptions import OperationalError

from crawler import limits
from crawler.processes import queues


class BrokerLostError(ConnectionError):
    """The broker cannot be reached. What was not acknowledged is delivered again, to this recorder or another."""


class Inbox:
    """One consumer of the two queues. Every method but `close` raises BrokerLostError; then close and open it.

    Not for use by several threads.
    """

    IDLE_SECONDS = 1.0
    """How long `gather` waits for a first message."""
    MORE_SECONDS, ENOUGH_BYTES = 0.1, 30_000
    """How long `gather` waits for more, while it has less than that: a transaction costs as much as thirty pages, so
    the reports of hosts with few pages wait for one another, and those of full batches for nothing."""

    def __init__(self, url: str, process: str) -> None:
        """`url` is the broker's address; `process` the recorder's name in the fleet, such as recorder-1@host1."""
        self._url = url
        unconnected = Connection(url)
        self._pulse = queues.pulse(process, unconnected.userid)
        self._errors = (*unconnected.connection_errors, *unconnected.channel_errors, OperationalError, OSError)
        self._reports: deque[Any] = deque()
        self._seeds: deque[Any] = deque()
        self._pulsed = False
        self._pulse_due = 0.0
        self._consuming: Any = None
        self._sending: Any = None
        self._producer: Any = None

    def open(self) -> None:
        """Connect and consume. RabbitMQ delivers so many messages in advance, to each consumer its own."""
        with self._broker():
            self._consuming, self._sending = self._connection(), self._connection()
            self._consume(queues.RECORD, self._reports, limits.GATHER_MESSAGES)
            self._consume(queues.ADMIT, self._seeds, limits.GATHER_SEEDS)
            pulses = Consumer(self._consuming.channel(), [self._pulse], on_message=self._note_pulse, no_ack=True)
            pulses.consume()
            # On a connection of its own: a broker short of memory or disk stops reading from those that publish, and
            # acknowledgements, which make room again, must still reach it.
            self._producer = Producer(self._sending.channel(), serializer="json")
            self._pulse_due = 0.0

    def gather(self) -> tuple[list[Any], list[Any]]:
        """The messages that have arrived: reports, at most GATHER_MESSAGES, for the broker delivers no more, and (but
        for the last) GATHER_BYTES; and seeds, at most GATHER_SEEDS. Waits for a first one, then for reports that are on
        their way; none if none comes."""
        with self._broker():
            self._keep_alive()
            if not self._reports and not self._seeds:
                self._read(self.IDLE_SECONDS)
            reports: list[Any] = []
            size, until = 0, time.monotonic() + self.MORE_SECONDS
            while size < limits.GATHER_BYTES:
                if self._reports:
                    reports.append(self._reports.popleft())
                    size += len(reports[-1].body or b"")
                elif not reports or not self._read(self._patience(size, until)):
                    break
            seeds = list(self._seeds)
            self._seeds.clear()
            return reports, seeds

    def _patience(self, size: int, until: float) -> float:
        return 0.0 if size >= self.ENOUGH_BYTES else max(0.0, until - time.monotonic())

    def serve(self, seconds: float) -> None:
        """Keep the connection for so long while nothing is gathered: answer heartbeats and read what arrives, which
        is no more than is delivered in advance."""
        with self._broker():
            until = time.monotonic() + seconds
            self._keep_alive()
            while self._read(max(0.0, until - time.monotonic())):
                pass

    def pulse_heard(self) -> bool:
        """Whether a pulse has come back since this was asked last: so what others send would come as well."""
        heard, self._pulsed = self._pulsed, False
        return heard

    def acknowledge(self, message: Any) -> None:
        """Tell the broker that a message is done with."""
        with self._broker():
            message.ack()

    def reject(self, message: Any) -> None:
        """Make a dead letter of a message."""
        with self._broker():
            message.reject()

    def close(self, lost: bool = False) -> None:
        """Disconnect; what is not acknowledged goes back to the queue. `lost`: without a word to the broker."""
        for connection in (self._consuming, self._sending):
            with contextlib.suppress(Exception):
                if connection is not None:
                    connection.collect() if lost else connection.release()
        self._consuming = self._sending = self._producer = None
        self._reports.clear()
        self._seeds.clear()
        self._pulsed = False

    @contextlib.contextmanager
    def _broker(self) -> Iterator[None]:
        """Whatever goes wrong with the broker within becomes a BrokerLostError."""
        try:
            yield
        except self._errors as error:
            raise BrokerLostError(str(error).strip() or type(error).__name__) from error

    def _consume(self, queue: str, arrived: deque[Any], most: int) -> None:
        """Keep in `arrived` what comes from a queue, of which the broker delivers `most` in advance."""
        Consumer(
            self._consuming.channel(),
            [queues.work(queue)],
            on_message=arrived.append,
            on_decode_error=lambda message, _: arrived.append(message),
            accept=["json"],
            prefetch_count=most,
        ).consume()

    def _note_pulse(self, _: Any) -> None:
        self._pulsed = True

    def _connection(self) -> Any:
        connection = Connection(self._url, heartbeat=limits.HEARTBEAT, connect_timeout=limits.CONNECT)
        connection.connect()
        return connection

    def _read(self, seconds: float) -> bool:
        """Read one event within that time; False: there was none."""
        try:
            self._consuming.drain_events(timeout=seconds)
        except TimeoutError:
            return False
        return True

    def _keep_alive(self) -> None:
        """Send the heartbeat and the pulse, if they are due."""
        self._consuming.heartbeat_check()
        if time.monotonic() >= self._pulse_due:
            route = {"exchange": self._pulse.exchange.name, "routing_key": self._pulse.routing_key}
            self._producer.publish({}, delivery_mode=1, **route)
            self._pulse_due = time.monotonic() + limits.PULSE
            with contextlib.suppress(TimeoutError):
                while True:  # the broker's heartbeats
                    self._sending.drain_events(timeout=0)
