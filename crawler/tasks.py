"""The Celery tasks: thin, for the plain functions do the work (and the embedded mode calls them directly)."""

from __future__ import annotations

import functools
import time
from typing import Any

from celery import Task
from celery.exceptions import Reject
from celery.signals import worker_shutdown, worker_shutting_down
from celery.utils.log import get_task_logger
from sqlalchemy.exc import DBAPIError, OperationalError

from crawler import service, settings
from crawler.app import FETCH, app
from crawler.archive import FLOOR_BYTES, Archive
from crawler.batch import Seen, UnderWay, fetch_batch, release_memory
from crawler.fetch import Client
from crawler.ledger import Ledger
from crawler.messages import Admission, Batch, Report

log = get_task_logger(__name__)

_seen = Seen()
"""What this process has sent, if a worker, or written, if a recorder."""
_under_way = UnderWay()
LINKS_SIZE = 2_000_000
"""Characters of links in a message at most."""
DATABASE_PATIENCE = 120.0
"""Seconds a recorder waits for a database that is away before it hands its message back to the broker."""
NO_ROOM = f"less than {FLOOR_BYTES / 1024**3:g} GiB free on the archive's disk; collect.yml -e delete=yes makes room"


@app.task(name="pulse")
def pulse() -> None:
    """See service.py."""
    service.alive()
    if service.node_name().startswith("worker-"):  # not a recorder
        release_memory()
        _archive().tidy()
        service.take_work(FETCH, _archive().has_room(), NO_ROOM)


@app.task(name="recall")
def recall(leases: list[str]) -> None:
    """Let the batches of these leases come back at once. The scheduler says so to all workers, again and again until
    they are back: so it does not matter who has them, and whether they were redelivered meanwhile."""
    _under_way.recall(leases)


@worker_shutting_down.connect
def _stop_fetching(**_: Any) -> None:
    _under_way.stop()


@app.task(name="fetch", bind=True)
def fetch(self: Task, message: dict[str, Any]) -> None:
    """Fetch a batch and send its report. The batch is acknowledged after the broker has confirmed the report."""
    batch = Batch.model_validate(message)
    redelivered = bool((self.request.delivery_info or {}).get("redelivered"))
    with Client(settings.user_agent()) as client, _under_way.batch(batch.lease) as stop:
        report = fetch_batch(
            batch,
            client,
            stop,
            worker=self.request.hostname,
            redelivered=redelivered,
            seen=_seen,
            archive=_archive(),
        )
    for part in report.parts(LINKS_SIZE):
        app.send_task("record", args=[part.model_dump(exclude_defaults=True)])
    _seen.add(report.job, report.links)
    log.info(
        "%s: %d fetched, %d to retry, %d returned%s",
        batch.host,
        len(report.pages),
        len(report.retries),
        len(report.unfetched),
        f" ({report.back_off.reason})" if report.back_off else "",
    )


@functools.lru_cache(maxsize=1)
def _archive() -> Archive:
    """This process's archive; opening it takes over what a killed one left."""
    return Archive(
        settings.state_dir() / "archive", host=settings.host_name(), worker=service.node_name().partition("@")[0]
    )


@worker_shutdown.connect
def _complete_archive(**_: Any) -> None:
    if _archive.cache_info().currsize:
        _archive().close()


@app.task(name="admit")
def admit(message: dict[str, Any]) -> None:
    """Take a piece of a seeding into the ledger."""
    admission = Admission.model_validate(message)
    new = _with_database(lambda ledger: ledger.admit(admission, time.time()))
    log.info("%s: piece %d, %d URLs, %d new", admission.job.name, admission.chunk, len(admission.urls), new)


@app.task(name="record")
def record(message: dict[str, Any]) -> None:
    """Take a batch's outcome into the ledger."""
    report = Report.model_validate(message)
    links, report.links = report.links, [link for link in report.links if not _seen.covers(report.job, link)]
    done = _with_database(lambda ledger: ledger.record(report, time.time()))
    log.info("%s: %s, %d done, %d links", report.job, report.host, done, len(report.links))
    _seen.add(report.job, links)


@functools.lru_cache(maxsize=1)
def _ledger() -> Ledger:
    """This process's ledger; opened at first use, so after the pool has forked."""
    return Ledger.open(settings.database_url())


def _with_database(work: Any) -> int:
    """Do `work`, waiting for a database that is restarting and trying again after a deadlock. Only what no other try
    could mend is raised, and so ends among the dead letters."""
    deadline = time.monotonic() + DATABASE_PATIENCE
    pause = 0.1
    while True:
        try:
            return int(work(_ledger()))
        except DBAPIError as error:
            if not (error.connection_invalidated or _may_pass(error)):
                raise
            if time.monotonic() > deadline:
                raise Reject(f"database away for {DATABASE_PATIENCE:g} s: {error.orig}", requeue=True) from error
            log.warning("database: %s; trying again in %.1f s", str(error.orig).strip(), pause)
            time.sleep(pause)
            pause = min(pause * 2, 10.0)


def _may_pass(error: DBAPIError) -> bool:
    """Connection trouble (class 08, 57P0x), deadlocks and serialisation failures (class 40), shortage (class 53)."""
    state = getattr(error.orig, "sqlstate", None)
    lost = state is None and isinstance(error, OperationalError)
    return lost or str(state)[:2] in ("08", "40", "53", "57")
