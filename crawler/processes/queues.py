"""RabbitMQ's queues and exchanges as our processes name them, and the heartbeat queue of each process.

All but the heartbeat queues are declared by RabbitMQ's definitions (roles/rabbitmq) and not here, so no process needs
the right to configure them.
"""

from __future__ import annotations

from typing import Any

import msgspec
from kombu import Exchange, Producer, Queue, serialization
from kombu.utils.uuid import uuid

from crawler import messages

serialization.register("json", messages.encode, msgspec.json.decode, "application/json", "utf-8")
"""kombu's JSON from here on, in every process that imports this: it knows our messages, and takes no other types."""

ADMIT, FETCH, RECORD = "admit", "fetch", "record"
"""The queues of work: seeds for the recorders, batches for the workers, and their reports for the recorders. Each is
bound to an exchange of its own name, because RabbitMQ grants the right to publish by exchange."""
HOLD = "hold"
"""The queue in which the scheduler that leads hears what workers hold, bound to the exchange of RECORD. RabbitMQ gives
it to one consumer at a time (x-single-active-consumer)."""
ORDERS = Exchange("orders", type="fanout", durable=True, no_declare=True)
"""Copies each message (a recall) to all workers, into the queues of their pulses."""
STATUS = Exchange("status", type="fanout", durable=True, no_declare=True)
"""Copies each snapshot of the jobs to whoever watches."""


def work(name: str) -> Queue:
    """ADMIT, FETCH or RECORD."""
    # The type is repeated here, though nothing is declared: by it Celery knows to set the prefetch per consumer, the
    # only way quorum queues know (celery#9512).
    return Queue(
        name,
        Exchange(name, type="direct", no_declare=True),
        routing_key=name,
        no_declare=True,
        queue_arguments={"x-queue-type": "quorum"},
    )


def send(app: Any, task: str, message: messages.Message) -> None:
    """Send a task with one argument, by the route that the Celery application `app` has for it; returns when the broker
    has it."""
    with app.producer_pool.acquire(block=True) as producer:
        publish(producer, app, task, message, retry=True, retry_policy=app.conf.task_publish_retry_policy)


def publish(producer: Producer, app: Any, task: str, message: messages.Message, **options: Any) -> None:
    """As `send`, by a `producer`, which may not wait for the broker; `options` of its `publish`.

    By hand, as Celery's send_task takes as much time as all the rest: with twenty headers, each written and read in
    Python, one of which holds the repr of the arguments. A worker needs three of them, a recorder one.
    """
    headers = {"lang": "py", "task": task, "id": uuid()}
    route = app.conf.task_routes[task]
    producer.publish(
        ([message], {}, {}), serializer="json", headers=headers, delivery_mode="persistent", **route, **options
    )


def hold() -> Queue:
    """The queue HOLD."""
    return Queue(HOLD, Exchange(RECORD, type="direct", no_declare=True), routing_key=HOLD, no_declare=True)


def pulse(process: str) -> Queue:
    """The queue by which a process, such as worker-3@host1, sends itself its heartbeat (heartbeat.py, inbox.py)."""
    # Durable, since RabbitMQ 4.3 refuses transient queues; x-expires removes it ten minutes after its process is gone.
    # Not exclusive: a restarted process must not be locked out by its own dead connection.
    name = f"pulse.{process}"
    return Queue(name, Exchange(""), routing_key=name, durable=True, queue_arguments={"x-expires": 600_000})
