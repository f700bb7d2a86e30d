"""What app.py and heartbeat.py rely on in Celery and kombu without any promise of theirs: an upgrade that moves one of
these fails here, with its name. test_worker.py shows that the whole works."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import kombu
import pytest
from celery import Celery, signals
from celery.app.amqp import Queues
from celery.concurrency.gevent import TaskPool
from celery.worker import consumer as celery_consumer
from celery.worker.consumer import Consumer
from kombu import Connection, Exchange, Queue


def parameters(function: Any) -> list[str]:
    return list(inspect.signature(function).parameters)


def test_celery_has_the_step_that_is_left_out_and_the_one_the_pulse_needs() -> None:
    steps = Consumer.Blueprint.default_steps
    assert [step for step in steps if step.endswith(":DelayedDelivery")] == [
        "celery.worker.consumer.delayed_delivery:DelayedDelivery"
    ]
    assert "celery.worker.consumer.tasks:Tasks" in steps


def test_our_consumer_has_all_other_steps_and_the_pulse(app: Celery) -> None:
    from crawler.processes import app as module
    from crawler.processes.heartbeat import Pulse

    ours = module.Consumer.Blueprint.default_steps
    left_out = set(celery_consumer.Consumer.Blueprint.default_steps) - set(ours)
    assert left_out == {"celery.worker.consumer.delayed_delivery:DelayedDelivery"}
    assert issubclass(module.Consumer, celery_consumer.Consumer)
    assert app.conf.worker_consumer == "crawler.processes.app:Consumer"
    assert Pulse in app.steps["consumer"]


def test_a_consumer_can_stop_and_begin_to_read_a_queue() -> None:
    assert parameters(Consumer.add_task_queue)[:2] == ["self", "queue"]
    assert parameters(Consumer.cancel_task_queue) == ["self", "queue"]
    assert parameters(Consumer.call_soon)[:2] == ["self", "p"]
    assert parameters(kombu.Consumer.consuming_from) == ["self", "queue"]


@pytest.mark.usefixtures("app")
def test_a_message_that_cannot_be_read_is_rejected() -> None:
    from crawler.processes import app as module

    assert parameters(celery_consumer.Consumer.on_decode_error) == ["self", "message", "exc"]
    assert parameters(kombu.Message.reject_log_error)[:3] == ["self", "logger", "errors"]
    done: list[str] = []
    message = SimpleNamespace(reject_log_error=lambda *_: done.append("rejected"), ack=lambda: done.append("lost"))
    consumer: Any = SimpleNamespace(connection_errors=(OSError,))
    module.Consumer.on_decode_error(consumer, message, ValueError("no JSON"))
    assert done == ["rejected"]  # RabbitMQ's policy makes a dead letter of it


def test_a_gevent_pool_grows() -> None:
    pool = TaskPool(limit=1)
    pool.on_start()
    assert pool.is_green
    pool.grow(4)
    assert pool._pool.size == pool.limit == 5


def test_a_queue_is_added_to_those_chosen_with_q() -> None:
    queues = Queues({}, default_exchange=Exchange("default"))
    queues.add(Queue("fetch", Exchange("fetch")))
    queues.select(["fetch"])
    pulse = Queue("pulse", routing_key="pulse")
    queues.select_add(pulse)
    assert list(queues.consume_from) == ["fetch", "pulse"]
    assert pulse.exchange.name == "default"
    ours = Queue("ours", Exchange("pulses.worker@here"), routing_key="ours")
    queues.select_add(ours)
    assert ours.exchange.name == "pulses.worker@here"  # where one is named, Celery leaves it


def test_workers_hear_orders_in_the_queue_of_their_pulse(app: Celery, as_user: Callable[[str], Any]) -> None:
    from crawler.processes import heartbeat

    consumed = Queues({}, default_exchange=Exchange("default"))
    application = as_user("worker@here")
    application.amqp = SimpleNamespace(queues=consumed)
    instance = SimpleNamespace(app=application)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heartbeat, "_this_worker", heartbeat.CeleryWorker())
        signals.celeryd_after_setup.send(sender="worker-1@here", instance=instance, conf=app.conf)
        assert heartbeat.node_name() == "worker-1@here"
    pulse = consumed["pulse.worker-1@here"]
    assert (pulse.exchange.name, pulse.routing_key) == ("pulses.worker@here", "pulse.worker-1@here")
    assert pulse.exchange.no_declare
    assert pulse.queue_arguments == {"x-expires": 600_000}
    assert pulse.durable
    bound = {(bound.exchange.name, bound.routing_key) for bound in pulse(Connection("memory://").channel()).bindings}
    assert bound == {("orders", ""), ("pulses.worker@here", "pulse.worker-1@here")}


def test_every_setting_is_one_that_celery_knows(app: Celery) -> None:
    """A setting that Celery renamed would be ignored in silence."""
    from celery.app.defaults import NAMESPACES, flatten

    known = {key.lower() for key, _ in flatten(NAMESPACES)}
    ours = {key.lower() for key in app.conf.changes} - {"deprecated_settings"}  # Celery's own note
    assert len(ours) > 20
    assert sorted(ours - known) == []


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("task_acks_late", True),
        ("task_reject_on_worker_lost", True),
        ("task_acks_on_failure", False),
        ("task_acks_on_timeout", False),
        ("worker_prefetch_multiplier", 1),
        ("worker_cancel_long_running_tasks_on_connection_loss", True),
        ("task_create_missing_queues", False),
        ("broker_transport_options", {"confirm_publish": True}),
        ("accept_content", ["json"]),
        ("task_ignore_result", True),
        ("worker_enable_remote_control", False),
    ],
)
def test_what_keeps_work_safe_is_set(app: Celery, setting: str, value: object) -> None:
    """Each of these is noticed by a fault test only now and then (tests/integration); docs: the comments in app.py."""
    assert app.conf[setting] == value


def test_queues_are_quorum_queues_and_never_declared(app: Celery) -> None:
    queues = app.conf.task_queues
    assert {queue.name for queue in queues} == {"admit", "record", "fetch"}
    for queue in queues:
        assert queue.queue_arguments == {"x-queue-type": "quorum"}
        assert queue.no_declare
        assert queue.exchange.no_declare
    routes = {queue.name: (queue.exchange.name, queue.routing_key) for queue in queues}
    assert routes == {"admit": ("seeds", "admit"), "fetch": ("batches", "fetch"), "record": ("reports", "record")}
    sent = {task: (route["exchange"], route["routing_key"]) for task, route in app.conf.task_routes.items()}
    assert sent == {**routes, "recall": ("orders", "all")}


def test_no_text_in_a_worker_s_log_steers_a_terminal_or_passes_for_a_record() -> None:
    """In a process of its own, since Celery sets up the logging of all."""
    code = r"""
import logging
from crawler.processes.worker_tasks import app, log
app.log.setup(loglevel="INFO", redirect_stdouts=False)
log.warning("%s", "one\x1b[2J\nCRITICAL two")
logging.getLogger("crawler.worker.batch").error("%s", "three\x9b")
"""
    environment = os.environ | {"CRAWLER_BROKER_URL": "memory://"}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    lines = run.stderr.splitlines()
    assert lines[-1] == r"ERROR three\x9b"
    assert lines[-3].endswith(r"one\x1b[2J")
    assert lines[-2] == "  CRITICAL two"
