"""What the scheduler and seed.py say to RabbitMQ: batches, recalls and seeds as Celery tasks; besides these, how full
the fetch queue is, and progress for whoever watches."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator
from typing import Any

from kombu import Connection, Producer, Queue
from kombu.exceptions import OperationalError

from crawler.messages import Admission, Batch
from crawler.processes.queues import FETCH, STATUS


class Broker:
    """Sends batches and snapshots; asks how much of the window is taken. Reconnects by itself with its next use."""

    def __init__(self) -> None:
        from crawler.processes.app import app  # not before: the application needs the broker's address

        self._app = app
        self._connection: Connection = app.connection_for_write()

    @property
    def errors(self) -> tuple[type[BaseException], ...]:
        """What any method raises when the broker cannot be reached."""
        return (*self._connection.connection_errors, *self._connection.channel_errors, OperationalError, OSError)

    def room(self, per_consumer: int) -> int:
        """How many batches more the fetch queue should hold; none while no worker is there to take them."""
        _, ready, consumers = self._channel().queue_declare(FETCH, passive=True)
        return max(0, per_consumer * int(consumers) - int(ready))

    def send(self, batch: Batch) -> None:
        """Hand a batch to the workers; returns when the broker has it."""
        self._app.send_task("fetch", args=[batch.model_dump(exclude_defaults=True)])

    def recall(self, leases: list[str]) -> None:
        """Tell all workers to finish the batches of these leases at once."""
        self._app.send_task("recall", args=[leases])

    def admit(self, admission: Admission) -> None:
        """Hand a piece of a seeding to the frontier; returns when the broker has it."""
        self._app.send_task("admit", args=[admission.model_dump(exclude_defaults=True)])

    def publish_status(self, snapshot: list[dict[str, Any]]) -> None:
        """Tell all who watch how far the jobs are."""
        Producer(self._channel(), exchange=STATUS).publish({"jobs": snapshot}, serializer="json", delivery_mode=1)

    def check(self) -> None:
        """Raise one of `errors` unless the broker answers."""
        self._connection.ensure_connection(max_retries=1, timeout=10)

    def forget(self) -> None:
        """Drop a connection that failed."""
        with contextlib.suppress(Exception):
            self._connection.close()
        self._connection = self._app.connection_for_write()

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

    def _channel(self) -> Any:
        return self._connection.default_channel
