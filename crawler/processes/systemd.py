"""How a process lives under systemd: it says when it is ready, that it still works, and stops when told.

A Celery worker can be connected and yet no longer consume (celery#9191, #9512 and many more). So each worker sends
itself a task, the pulse, through the broker, its own consumer and its own pool, and only the pulse's execution feeds
systemd's watchdog. The first pulse is also what makes the unit ready: `systemctl start` returns when work really flows.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
from typing import Any

from celery import bootsteps
from celery.signals import after_setup_logger, celeryd_after_setup, worker_shutting_down
from gevent.event import Event
from kombu import Exchange, Queue, binding

from crawler import limits

log = logging.getLogger(__name__)

SPARE = 4
"""Places in a worker's pool beyond those that batches can take: while all hosts are slow, the pulse still gets through,
and orders do."""
ORDERS = Exchange("orders", type="fanout", durable=True, no_declare=True)
"""From here every worker gets what is said to all of them, in the queue of its pulse."""
STOP = Event()
"""Set when this process was told to stop: batches under way finish the URL in hand and return the rest."""

_pulse_queue: Queue | None = None
_consumer: Any = None


def notify(state: str) -> None:
    """Tell systemd, if it started us. Source: sd_notify(3)."""
    if address := os.environ.get("NOTIFY_SOCKET"):
        if address.startswith("@"):
            address = "\0" + address[1:]
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
            try:
                channel.sendto(state.encode(), address)
            except OSError as error:
                log.warning("systemd cannot be told %r: %s", state, error)


def node_name() -> str:
    """This worker's name in the fleet, such as worker-3@host1."""
    return _pulse_queue.name.removeprefix("pulse.") if _pulse_queue else socket.gethostname()


def alive() -> None:
    """The work flows. READY=1 counts the first time only."""
    notify("READY=1\nWATCHDOG=1")


def take_work(queue: str, wanted: bool, why_not: str) -> None:
    """Consume from `queue`, or stop doing so and say why, in the journal and in `systemctl status`."""
    if _consumer is None or _consumer.task_consumer.consuming_from(queue) == wanted:
        return
    if wanted:
        log.info("taking work from %s again", queue)
        _consumer.call_soon(_consumer.add_task_queue, queue)
    else:
        log.warning("taking no more work from %s: %s", queue, why_not)
        _consumer.call_soon(_consumer.cancel_task_queue, queue)
    notify(f"STATUS={'' if wanted else f'taking no work: {why_not}'}")


@celeryd_after_setup.connect
def _consume_own_pulse(sender: str, instance: Any, **_: Any) -> None:
    global _pulse_queue
    name = f"pulse.{sender}"
    # Durable, since RabbitMQ 4.3 refuses transient queues; x-expires removes it ten minutes after its worker is gone.
    # Not exclusive: a restarted worker must not be locked out by its own dead connection.
    queue = Queue(name, routing_key=name, durable=True, queue_arguments={"x-expires": 600_000})
    _pulse_queue = instance.app.amqp.queues.select_add(queue)
    queue.exchange = Exchange("")  # Celery put its default there, which we may not bind to
    if "fetch" in instance.app.amqp.queues.consume_from:
        queue.bindings = {binding(ORDERS)}


@after_setup_logger.connect
def _log_our_own_words(**_: Any) -> None:
    for logger in ("celery.app.trace", "celery.worker.strategy"):  # two lines a task, the pulse included
        logging.getLogger(logger).setLevel(logging.WARNING)


@worker_shutting_down.connect
def _stop(**_: Any) -> None:
    STOP.set()


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
        global _consumer
        _consumer = parent
        self.connected = True
        self.beat.set()
        if self.thread is None:
            if parent.pool.is_green:
                parent.pool.grow(SPARE)
            self.thread = threading.Thread(target=self._run, args=(parent.app,), daemon=True, name="pulse")
            self.thread.start()

    def stop(self, _: Any) -> None:
        self.connected = False

    def _run(self, app: Any) -> None:
        while not STOP.is_set():
            self.beat.wait(limits.PULSE)
            self.beat.clear()
            if not self.connected:
                notify("WATCHDOG=1")
                continue
            try:
                app.send_task("pulse", queue=_pulse_queue)
            except Exception as error:  # whatever it is, the missing pulse will tell
                log.warning("pulse not sent: %s", error)
