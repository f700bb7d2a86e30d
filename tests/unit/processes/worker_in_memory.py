"""Run the real Celery worker of crawler.processes.worker_tasks with a broker inside its own process (kombu's memory
transport), obeying standard input, a line each:

    send TASK JSON     send a task with this argument, as the scheduler would
    publish JSON       publish to the queue `fetch`: the options of kombu's `publish`, and its `body`
    junk               send a message that is no task
    disk full|free     what the archive's check of its disk is to find

Reports that the worker sends are printed, as JSON. Usage: worker_in_memory.py NODE_NAME
"""

# ruff: noqa: E402

from __future__ import annotations

from gevent import monkey

monkey.patch_all()

import json
import sys
import threading
from contextlib import suppress
from typing import Any

from gevent.fileobject import FileObjectThread
from kombu import Connection, Exchange, Queue

from crawler import limits
from crawler.processes.queues import ORDERS, publish, work
from crawler.worker.archive import Archive

limits.PULSE = 0.2
disk = "free"
Archive.has_room = lambda _: disk == "free"  # type: ignore[method-assign]  # a disk cannot be full on command

from crawler.processes.worker_tasks import app


def declare() -> None:
    """The queues and exchanges that RabbitMQ's definitions declare in a fleet."""
    channel = app.connection_for_write().default_channel
    for queue in app.conf.task_queues:
        exchange = Exchange(work(queue.name).exchange.name, type="direct")
        Queue(queue.name, exchange, routing_key=queue.name)(channel).declare()
    Queue("hold", Exchange("reports", type="direct"), routing_key="hold")(channel).declare()
    Exchange(ORDERS.name, type="fanout")(channel).declare()
    Exchange("pulses.worker@here", type="direct")(channel).declare()


def obey() -> None:
    global disk
    scheduler = Connection("memory://ledger@localhost/").Producer()
    for line in FileObjectThread(sys.stdin):
        command, _, rest = line.strip().partition(" ")
        if command == "send":
            task, _, argument = rest.partition(" ")
            publish(scheduler, app, task, json.loads(argument))
        elif command == "publish":
            scheduler.publish(exchange="batches", routing_key="fetch", **json.loads(rest))
        elif command == "junk":
            scheduler.publish("no task at all", exchange="batches", routing_key="fetch")
        elif command == "disk":
            disk = rest


def print_reports() -> None:
    def show(body: Any, message: Any) -> None:
        arguments, _, _ = body
        print(json.dumps(arguments[0]), flush=True)
        message.ack()

    record = Queue("record", no_declare=True)
    with app.connection_for_read() as connection, connection.Consumer(record, callbacks=[show], accept=["json"]):
        while True:
            with suppress(TimeoutError):
                connection.drain_events(timeout=0.2)


app.conf.worker_prefetch_multiplier = 100  # in memory it counts for all queues together, not for each consumer
declare()
for function in (obey, print_reports):
    threading.Thread(target=function, daemon=True).start()
options = ["--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO"]
app.worker_main(["worker", "-Q", "fetch", "-P", "gevent", "-c", "2", "-n", sys.argv[1], *options])
