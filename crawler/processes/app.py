"""The Celery application: where tasks are sent, and the settings that keep work safe. worker_tasks.py adds the tasks of
a worker; the scheduler and seed.py send theirs with it.

The failure that a setting prevents is named beside it, with Celery's issue.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from celery import Celery
from celery.worker import consumer as celery_consumer

from crawler import limits, settings
from crawler.messages import MessageError
from crawler.processes import heartbeat, task_messages
from crawler.processes.queues import ADMIT, BATCHES, FETCH, ORDERS, RECORD, REPORTS, SEEDS, work

log = logging.getLogger(__name__)


class Consumer(celery_consumer.Consumer):
    """Celery's consumer with three changes: no native delayed delivery, which would declare 28 exchanges and queues
    (time lives in the ledger: no task has an ETA); what is no task of ours is refused before Celery obeys it
    (task_messages.py); and a message that cannot be read is rejected to the dead letters, where Celery would
    acknowledge and so drop it."""

    class Blueprint(celery_consumer.Consumer.Blueprint):
        default_steps = [  # noqa: RUF012 - Celery's own name and shape
            step for step in celery_consumer.Consumer.Blueprint.default_steps if not step.endswith(":DelayedDelivery")
        ]

    def create_task_handler(self, *arguments: Any, **options: Any) -> Callable[[Any], None]:
        handle = super().create_task_handler(*arguments, **options)

        def receive(message: Any) -> None:
            try:
                task_messages.check_for_worker(message, self.connection.userid)
            except MessageError as error:
                self.on_decode_error(message, error)
            else:
                handle(message)

        return receive

    def on_decode_error(self, message: Any, exc: Exception) -> None:
        log.critical("a message that cannot be read goes to the dead letters: %s", exc)
        message.reject_log_error(log, self.connection_errors)


app = Celery("crawler", broker=settings.broker_url())
app.conf.update(
    task_queues=[work(ADMIT), work(FETCH), work(RECORD)],
    task_create_missing_queues=False,
    task_default_queue=RECORD,
    # By exchange: given only a queue, Celery would publish through the default exchange, which nobody may use.
    task_routes={
        "fetch": {"exchange": BATCHES, "routing_key": FETCH},
        "recall": {"exchange": ORDERS.name, "routing_key": "all"},
        "admit": {"exchange": SEEDS, "routing_key": ADMIT},
        "record": {"exchange": REPORTS, "routing_key": RECORD},
    },
    # Acknowledged when the work is done, not when it begins: the broker redelivers what a dead worker had.
    task_acks_late=True,
    task_reject_on_worker_lost=True,
    # A task that raises is a bug or a poisoned message: to the dead letters, from where it can be replayed.
    task_acks_on_failure=False,
    task_acks_on_timeout=False,
    worker_prefetch_multiplier=1,
    # After a lost connection the broker redelivers: the first copy must not go on beside the second.
    worker_cancel_long_running_tasks_on_connection_loss=True,
    # A quorum queue takes the prefetch once, when the consumer begins: Celery could reduce it, but not restore it.
    worker_enable_prefetch_count_reduction=False,
    # A message published on a channel that then dies may be lost; with confirms, publishing raises (celery#9149).
    broker_transport_options={"confirm_publish": True},
    broker_heartbeat=limits.WORKER_HEARTBEAT,
    # Connections that wait for confirms beside one another: a report takes milliseconds, and RabbitMQ grants a host so
    # many for each worker (rabbitmq_connections_per_worker).
    broker_pool_limit=3,
    broker_connection_retry_on_startup=True,
    broker_connection_max_retries=None,
    task_ignore_result=True,
    task_serializer="json",
    accept_content=["json"],
    # No remote control and no events: systemd and the ledger tell the same, and their messages overload large fleets
    # (celery#5079, #5243).
    worker_enable_remote_control=False,
    worker_send_task_events=False,
    worker_hijack_root_logger=True,
    worker_redirect_stdouts=False,
    worker_log_format="%(levelname)s %(message)s",  # the journal adds time and unit
    worker_task_log_format="%(levelname)s %(task_id).8s %(message)s",
    task_time_limit=limits.TASK,
    worker_consumer="crawler.processes.app:Consumer",
)
app.steps["consumer"].add(heartbeat.Pulse)
