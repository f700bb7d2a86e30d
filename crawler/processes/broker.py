"""What the scheduler and seed.py say to RabbitMQ: batches, recalls and seeds as Celery tasks; besides these, how full
the queues are, what workers hold, and progress for whoever watches."""

from __future__ import annotations

import contextlib
import logging
import uuid
from collections.abc import Iterable, Iterator
from typing import Any

from kombu import Connection, Consumer, Producer, Queue
from kombu.exceptions import OperationalError

from crawler import limits
from crawler.messages import Admission, Batch, Hold, convert
from crawler.processes import queues, senders
from crawler.processes.confirms import ConfirmedProducer
from crawler.processes.queues import FETCH, HOLD, RECORD, STATUS

log = logging.getLogger(__name__)

CONFIRM_SECONDS = 30.0
"""How long `send` waits for the broker to confirm."""


class Broker:
    """Sends batches and snapshots; asks how much of the window is taken. Reconnects by itself with its next use."""

    def __init__(self) -> None:
        from crawler.processes.app import app  # not before: the application needs the broker's address

        self._app = app
        self._connection: Connection = app.connection_for_write()
        self._sending: Connection | None = None
        self._confirmed: ConfirmedProducer | None = None
        self._hearing: Connection | None = None
        self._heard: list[Hold] = []
        self._marked: float | None = None
        self._name = uuid.uuid4().hex

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """What any method raises when the broker cannot be reached."""
        return (*self._connection.connection_errors, *self._connection.channel_errors, OperationalError, OSError)

    def room(self, per_consumer: int) -> int:
        """How many batches more may be on their way: the window less those that wait for a worker, and less the reports
        that wait for a recorder. None while no worker is there to take them."""
        _, ready, consumers = self._channel().queue_declare(FETCH, passive=True)
        return max(0, per_consumer * int(consumers) - int(ready) - self._waiting(RECORD)) if consumers else 0

    def consumers(self) -> int:
        """How many workers take batches."""
        return int(self._channel().queue_declare(FETCH, passive=True).consumer_count)

    def reports_wait(self) -> bool:
        """Whether anything is in the queue of reports that no recorder has in hand."""
        return self._waiting(RECORD) > 0

    def mark(self, at: float) -> None:
        """Send a mark through the queue of holds, to be heard after all that was sent before."""
        producer = Producer(self._channel(), exchange=queues.exchange(HOLD))
        options = {"routing_key": HOLD, "delivery_mode": 1, "user_id": self._connection.userid}
        producer.publish({"mark": self._name, "at": at}, serializer="json", **options)

    def hear(self) -> tuple[list[Hold], float | None]:
        """The holds that have arrived since this was asked last, and the last of our own marks among them."""
        if self._hearing is None:
            self._hearing = self._app.connection_for_read(heartbeat=limits.HEARTBEAT)
            # Without on_decode_error, one message that is no JSON would end the scheduler.
            options = {"callbacks": [self._keep], "on_decode_error": self._leave_out, "accept": ["json"]}
            Consumer(self._hearing, [queues.hold()], no_ack=True, **options).consume()
        self._hearing.heartbeat_check()
        with contextlib.suppress(TimeoutError):
            while True:
                self._hearing.drain_events(timeout=0)
        heard, marked = self._heard, self._marked
        self._heard, self._marked = [], None
        return heard, marked

    def _keep(self, body: Any, message: Any) -> None:
        try:
            if "mark" not in body:
                hold = convert(Hold, body)
                senders.require(message, senders.of_worker(hold.worker))
                self._heard.append(hold)
            elif body["mark"] == self._name:
                senders.require(message, self._connection.userid)
                self._marked = float(body["at"])
        except (TypeError, ValueError, LookupError, ArithmeticError) as error:
            self._leave_out(message, error)

    def _leave_out(self, _: Any, error: Exception) -> None:
        log.critical("a hold that cannot be read is left out: %.300s", " ".join(f"{error!r}".split()))

    def send(self, batches: Iterable[Batch]) -> None:
        """Hand batches to the workers; returns when the broker has them all."""
        if self._confirmed is None:
            self._sending = self._app.connection_for_write(transport_options={"confirm_publish": False})
            self._confirmed = ConfirmedProducer(self._sending)
        for batch in batches:
            queues.publish(self._confirmed.producer, self._app, "fetch", batch)
            self._confirmed.published()
        self._confirmed.wait(CONFIRM_SECONDS)

    def recall(self, leases: list[str]) -> None:
        """Tell all workers to finish the batches of these leases at once."""
        queues.send(self._app, "recall", leases)

    def admit(self, admission: Admission) -> None:
        """Hand a piece of a seeding to the frontier; returns when the broker has it."""
        queues.send(self._app, "admit", admission)

    def publish_status(self, snapshot: list[dict[str, Any]]) -> None:
        """Tell all who watch how far the jobs are."""
        Producer(self._channel(), exchange=STATUS).publish({"jobs": snapshot}, serializer="json", delivery_mode=1)

    def check(self) -> None:
        """Raise one of `errors` unless the broker answers."""
        self._connection.ensure_connection(max_retries=1, timeout=10)

    def forget(self) -> None:
        """Drop a connection that failed."""
        for connection in (self._connection, self._sending, self._hearing):
            with contextlib.suppress(Exception):
                if connection is not None:
                    connection.close()
        self._connection = self._app.connection_for_write()
        self._sending = self._confirmed = None
        self._hearing, self._heard, self._marked = None, [], None

    @contextlib.contextmanager
    def watching(self) -> Iterator[Iterator[list[dict[str, Any]]]]:
        """An endless stream of what is published as status from now on: each time a list with a snapshot of every job.
        Yields an empty list when a second passes without any."""
        connection = self._app.connection_for_read()
        queue = Queue(f"watch.{uuid.uuid4().hex}", STATUS, exclusive=True, auto_delete=True, durable=False)
        received: list[list[dict[str, Any]]] = []

        def keep(body: dict[str, Any], message: Any) -> None:
            received.append(body["jobs"])
            message.ack()

        def stream() -> Iterator[list[dict[str, Any]]]:
            while True:
                try:
                    connection.drain_events(timeout=1.0)
                except TimeoutError:
                    yield []
                while received:
                    yield received.pop(0)

        try:
            with connection.Consumer(queue, callbacks=[keep], accept=["json"]):
                yield stream()
        finally:
            connection.close()

    def _waiting(self, queue: str) -> int:
        """How many messages of a queue no consumer has in hand."""
        return int(self._channel().queue_declare(queue, passive=True).message_count)

    def _channel(self) -> Any:
        return self._connection.default_channel
