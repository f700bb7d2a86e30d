"""RabbitMQ's queues and exchanges as our processes name them, how a task is sent, and the heartbeat queue of each
process.

All but the heartbeat queues are declared by RabbitMQ's definitions (roles/rabbitmq) and not here, so no process needs
the right to configure them. RabbitMQ has one list of names for the rights on exchanges and on queues, so no exchange is
called as a queue: the right to publish is then no right to bind a queue to whatever exchange one may read.
"""

from __future__ import annotations

from typing import Any, NoReturn

import msgspec
from kombu import Exchange, Producer, Queue, compression, serialization
from kombu.utils.uuid import uuid

from crawler import messages

serialization.register("json", messages.encode, msgspec.json.decode, "application/json", "utf-8")
"""kombu's JSON from here on, in every process that imports this: it knows our messages, and takes no other types."""


def _refuse(_: object) -> NoReturn:
    raise ValueError("compressed, as no message of ours is")


for _kind in compression.encoders():
    # kombu decompresses what a header names while it makes the message, before anybody can look at it: 495 bytes of
    # bzip2 become 1.3 GB.
    compression.register(_refuse, _refuse, _kind)

ADMIT, FETCH, RECORD = "admit", "fetch", "record"
"""The queues of work: seeds for the recorders, batches for the workers, and their reports for the recorders."""
HOLD = "hold"
"""The queue in which the scheduler that leads hears what workers hold. RabbitMQ gives it to one consumer at a time
(x-single-active-consumer)."""
SEEDS, BATCHES, REPORTS = "seeds", "batches", "reports"
"""The exchanges before them, which route by the name of the queue: REPORTS to RECORD and HOLD."""
_EXCHANGES = {ADMIT: SEEDS, FETCH: BATCHES, RECORD: REPORTS, HOLD: REPORTS}
ORDERS = Exchange("orders", type="fanout", durable=True, no_declare=True)
"""Copies each message (a recall) to all workers, into the queues of their pulses."""
STATUS = Exchange("status", type="fanout", durable=True, no_declare=True)
"""Copies each snapshot of the jobs to whoever watches."""


def exchange(queue: str) -> Exchange:
    """The exchange before one of the queues of work, or HOLD."""
    return Exchange(_EXCHANGES[queue], type="direct", durable=True, no_declare=True)


def work(name: str) -> Queue:
    """ADMIT, FETCH or RECORD."""
    # The type is repeated here, though nothing is declared: by it Celery knows to set the prefetch per consumer, the
    # only way quorum queues know (celery#9512).
    arguments = {"x-queue-type": "quorum"}
    return Queue(name, exchange(name), routing_key=name, no_declare=True, queue_arguments=arguments)


def hold() -> Queue:
    """The queue HOLD."""
    return Queue(HOLD, exchange(HOLD), routing_key=HOLD, no_declare=True)


def pulse(process: str, user: str | None) -> Queue:
    """The queue by which a process, such as worker-3@host1, sends itself its heartbeat (heartbeat.py, inbox.py).

    `user`: who it is at the broker. Each user has an exchange of its own for pulses. One topic exchange with rights by
    routing key would not do: RabbitMQ 3.10 delivers by the headers CC and BCC as well, and does not check those.
    """
    # Durable, since RabbitMQ 4.3 refuses transient queues; x-expires removes it ten minutes after its process is gone.
    # Not exclusive: a restarted process must not be locked out by its own dead connection.
    name = f"pulse.{process}"
    own = Exchange(f"pulses.{user}", type="direct", durable=True, no_declare=True)
    return Queue(name, own, routing_key=name, durable=True, queue_arguments={"x-expires": 600_000})


def send(app: Any, task: str, *arguments: object, **options: Any) -> None:
    """Send a task, by the route that the Celery application `app` has for it, or that `options` name; returns when the
    broker has it."""
    with app.producer_pool.acquire(block=True) as producer:
        retry = {"retry": True, "retry_policy": app.conf.task_publish_retry_policy}
        publish(producer, app, task, *arguments, **retry, **options)


def publish(producer: Producer, app: Any, task: str, *arguments: object, **options: Any) -> None:
    """As `send`, by a `producer`, which may not wait for the broker; `options` of its `publish`.

    By hand, as Celery's send_task takes as much time as all the rest: with twenty headers, each written and read in
    Python, one of which holds the repr of the arguments. task_messages.py takes no others than these three.
    """
    headers = {"lang": "py", "task": task, "id": uuid()}
    options = {
        "delivery_mode": "persistent",
        "user_id": user_of(producer),
        **app.conf.task_routes.get(task, {}),
    } | options
    producer.publish((arguments, {}, {}), serializer="json", headers=headers, **options)


def user_of(producer: Producer) -> str | None:
    """Who the broker knows a producer as: the property `user_id` of what it sends (senders.py)."""
    user: str | None = producer.connection.userid
    return user
