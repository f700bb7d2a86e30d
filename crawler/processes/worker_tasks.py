"""The Celery tasks of a worker. They only pass messages on to the plain functions of crawler/worker."""

from __future__ import annotations

import contextlib
import functools
from typing import Any

from celery import Task
from celery.signals import worker_ready, worker_shutdown, worker_shutting_down
from celery.utils.log import get_task_logger
from msgspec.structs import replace

from crawler import ceilings, settings
from crawler.known_links import KnownLinks
from crawler.messages import Batch, convert
from crawler.processes import heartbeat, systemd
from crawler.processes.app import app
from crawler.processes.hold_sender import HoldSender
from crawler.processes.queues import FETCH, send
from crawler.worker import egress
from crawler.worker.active import ActiveBatches
from crawler.worker.archive import FLOOR_BYTES, Archive
from crawler.worker.batch import fetch_batch
from crawler.worker.fetch import Client
from crawler.worker.holding import Holding
from crawler.worker.memory import PLACES_OF_PROCESS, release_memory

log = get_task_logger(__name__)

_known_links = KnownLinks()
"""What this process has sent."""
_active = ActiveBatches()
_egress = egress.of_process()  # a setting that cannot be used ends the process as it begins, not each batch
_ceilings = ceilings.from_settings()
_holding = Holding()
LINKS_SIZE = 2_000_000
"""Characters of links in a message at most."""
NO_ROOM = f"less than {FLOOR_BYTES / 1024**3:g} GiB free on the archive's disk; collect.yml -e delete=yes makes room"


@app.task(name="pulse")
def pulse() -> None:
    """Prove that this worker executes tasks (heartbeat.py), give memory back, complete WARC files that are idle, and
    stop taking batches while the archive's disk is full."""
    systemd.alive()
    release_memory()
    _archive().tidy()
    heartbeat.take_work(FETCH, _archive().has_room(), NO_ROOM)


@app.task(name="recall")
def recall(leases: list[str]) -> None:
    """Finish the URL in hand of these leases' batches and return the rest. The scheduler repeats the order to all
    workers until the leases are back, so it does not matter which worker has them, or whether they were redelivered."""
    _active.recall(leases)


@worker_ready.connect
def _say_what_is_held(sender: Any, **_: Any) -> None:
    HoldSender(sender.app, sender.hostname, _holding).start()


@worker_shutting_down.connect
def _stop_fetching(**_: Any) -> None:
    _active.stop()


@app.task(name="fetch", bind=True)
def fetch(self: Task, message: dict[str, Any]) -> None:
    """Fetch a batch and send its report. The batch is acknowledged after the broker has confirmed the report."""
    batch = convert(Batch, message)
    batch = replace(batch, job=_ceilings.under(batch.job, batch.host))
    redelivered = bool((self.request.delivery_info or {}).get("redelivered"))
    with PLACES_OF_PROCESS.share() as share, _active.batch(batch.lease) as told, contextlib.ExitStack() as stack:
        stop = told if redelivered else stack.enter_context(_holding.hold(batch, told))
        with Client(settings.user_agent(), kind=batch.job.client, egress=_egress) as client:
            report = fetch_batch(
                batch,
                client,
                stop,
                worker=self.request.hostname,
                redelivered=redelivered,
                known_links=_known_links,
                archive=_archive(),
                share=share,
            )
        for part in report.parts(LINKS_SIZE):
            send(app, "record", part)
        if not redelivered:
            _holding.reported(batch.lease)
    _known_links.add(report.job, report.links)
    log.info(
        "%s: %d fetched, %d to retry, %d returned%s",
        batch.host,
        len(report.results),
        len(report.retries),
        len(report.unfetched),
        f" ({report.back_off.reason})" if report.back_off else "",
    )


@functools.lru_cache(maxsize=1)
def _archive() -> Archive:
    """This process's archive; opening it takes over what a killed one left."""
    return Archive(
        settings.state_dir() / "archive", host=settings.host_name(), worker=heartbeat.node_name().partition("@")[0]
    )


@worker_shutdown.connect
def _complete_archive(**_: Any) -> None:
    if _archive.cache_info().currsize:
        _archive().close()
