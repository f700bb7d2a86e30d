"""The Celery tasks of a recorder: thin, for the plain functions of crawler/frontier do the work."""

from __future__ import annotations

import functools
import time
from typing import Any

from celery.exceptions import Reject
from celery.utils.log import get_task_logger
from sqlalchemy.exc import DBAPIError, OperationalError

from crawler import settings
from crawler.frontier.admit import admit as admit_urls
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record as record_report
from crawler.known_links import KnownLinks
from crawler.messages import Admission, Report
from crawler.processes import systemd
from crawler.processes.app import app

log = get_task_logger(__name__)

_known_links = KnownLinks()
"""What this process has written."""
DATABASE_PATIENCE = 120.0
"""Seconds a recorder waits for a database that is away before it hands its message back to the broker."""


@app.task(name="pulse")
def pulse() -> None:
    """See systemd.py."""
    systemd.alive()


@app.task(name="admit")
def admit(message: dict[str, Any]) -> None:
    """Take a piece of a seeding into the ledger."""
    admission = Admission.model_validate(message)
    new = _with_database(lambda ledger: admit_urls(ledger, admission, time.time()))
    log.info("%s: piece %d, %d URLs, %d new", admission.job.name, admission.chunk, len(admission.urls), new)


@app.task(name="record")
def record(message: dict[str, Any]) -> None:
    """Take a batch's outcome into the ledger."""
    report = Report.model_validate(message)
    links, report.links = report.links, [link for link in report.links if not _known_links.covers(report.job, link)]
    done = _with_database(lambda ledger: record_report(ledger, [report], time.time()))
    log.info("%s: %s, %d done, %d links", report.job, report.host, done, len(report.links))
    _known_links.add(report.job, links)


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
