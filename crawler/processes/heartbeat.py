"""The heartbeat (the pulse) by which a Celery worker proves that it consumes.

A Celery worker can be connected and yet no longer consume (celery#9191, #9512 and many more). So each worker sends
itself a task, the pulse, through the broker, its own consumer and its own pool, and only the pulse's execution feeds
systemd's watchdog. The first pulse also makes the unit ready: `systemctl start` returns when tasks are executed.
A recorder does the same without Celery (inbox.py).
"""

from __future__ import annotations

import logging
import socket
import threading
from dataclasses import dataclass
from typing import Any

from celery import bootsteps
from celery.signals import after_setup_logger, after_setup_task_logger, celeryd_after_setup, worker_shutting_down
from kombu import binding

from crawler import limits
from crawler.printable import log_printably
from crawler.processes import queues, systemd

log = logging.getLogger(__name__)

SPARE = 4
"""Places in a worker's pool beyond those that batches can take, so that pulses and recalls run while every batch waits
for a slow host."""


@dataclass
class CeleryWorker:
    """What is known of the Celery worker that this process is; nothing in a process that is none."""

    name: str = ""
    """In the fleet, such as worker-3@host1."""
    pulse_queue: Any = None
    """Its queue for pulses; set with the name."""
    consumer: Any = None
    """Celery's consumer, since its first connection to the broker."""


_this_worker = CeleryWorker()


def node_name() -> str:
    """This worker's name in the fleet, such as worker-3@host1; the machine's name where no worker runs."""
    return _this_worker.name or socket.gethostname()


def take_work(queue: str, wanted: bool, why_not: str) -> None:
    """Consume from `queue`, or stop doing so and say why, in the journal and in `systemctl status`."""
    consumer = _this_worker.consumer
    if systemd.STOP.is_set() or consumer is None or consumer.task_consumer is None:
        return  # a worker that stops, or has lost its connection, consumes from no queue: it must not begin again
    if consumer.task_consumer.consuming_from(queue) == wanted:
        return
    if wanted:
        log.info("taking work from %s again", queue)
        consumer.call_soon(consumer.add_task_queue, queue)
    else:
        log.warning("taking no more work from %s: %s", queue, why_not)
        consumer.call_soon(consumer.cancel_task_queue, queue)
    systemd.notify(f"STATUS={'' if wanted else f'taking no work: {why_not}'}")


@celeryd_after_setup.connect
def _consume_own_pulse(sender: str, instance: Any, **_: Any) -> None:
    queue = queues.pulse(sender, instance.app.connection_for_read().userid)
    instance.app.amqp.queues.select_add(queue)
    # kombu forgets the exchange of a queue that has bindings: so that is one of them.
    queue.bindings = {binding(queue.exchange, routing_key=queue.routing_key), binding(queues.ORDERS)}
    _this_worker.name, _this_worker.pulse_queue = sender, queue


@after_setup_task_logger.connect
@after_setup_logger.connect
def _log_printably(logger: logging.Logger, **_: Any) -> None:
    log_printably(logger)


@after_setup_logger.connect
def _log_our_own_words(**_: Any) -> None:
    for logger in ("celery.app.trace", "celery.worker.strategy"):  # two lines a task, the pulse included
        logging.getLogger(logger).setLevel(logging.WARNING)


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    systemd.STOP.set()


class Pulse(bootsteps.StartStopStep):
    """Sends the pulse while the consumer is connected. While it is not, the watchdog is fed directly: waiting for a
    broker is what a worker should do then."""

    requires = ("celery.worker.consumer.tasks:Tasks",)

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, **kwargs)
        self.connected = False
        self.beat = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self, parent: Any) -> None:
        _this_worker.consumer = parent
        self.connected = True
        self.beat.set()
        if self.thread is None:
            parent.pool.grow(SPARE)
            self.thread = threading.Thread(target=self._run, args=(parent.app,), daemon=True, name="pulse")
            self.thread.start()

    def stop(self, _: Any) -> None:
        self.connected = False

    def _run(self, app: Any) -> None:
        while not systemd.STOP.is_set():
            self.beat.wait(limits.PULSE)
            self.beat.clear()
            if not self.connected:
                systemd.notify("WATCHDOG=1")
                continue
            try:
                queue = _this_worker.pulse_queue
                queues.send(app, "pulse", exchange=queue.exchange.name, routing_key=queue.routing_key)
            except Exception as error:  # whatever it is: without a pulse, the watchdog restarts the worker
                log.warning("pulse not sent: %s", error)
