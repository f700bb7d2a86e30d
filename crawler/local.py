"""Embedded mode: the same circle in one process, without any server. SQLite keeps the ledger, gevent does the work."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any

from gevent.event import Event
from gevent.pool import Pool
from gevent.queue import Channel, Empty

from crawler import settings
from crawler.frontier import addresses, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.known_links import KnownLinks
from crawler.messages import Admission, Batch, Report
from crawler.resolver import Resolver
from crawler.worker.active import ActiveBatches
from crawler.worker.archive import Archive
from crawler.worker.batch import fetch_batch
from crawler.worker.egress import Egress, of_process
from crawler.worker.fetch import Client
from crawler.worker.memory import PLACES_OF_PROCESS, release_memory

CONCURRENCY = 50
"""Hosts crawled at once, unless another number is given."""
WORKER = "local"
RELEASE_SECONDS = 15.0


def crawl(
    ledger: Ledger,
    admissions: Iterable[Admission],
    stop: Event,
    show: Callable[[dict[str, Any]], None],
    archive: Archive | None = None,
    workers: int = CONCURRENCY,
    egress: Egress | None = None,
) -> dict[str, Any]:
    """Crawl until the admitted job is done or `stop` is set; returns the last snapshot.

    `workers`: hosts crawled at once. `egress`: where it may connect to; None: what the process was told. `show` is
    given a snapshot about once a second. Told to stop, it finishes the URLs in hand, records them, and returns the rest
    to the ledger: the next run goes on from there.
    """
    ledger.create()
    tidy.take_back_leases(ledger, time.time())  # of a run that was killed
    name = ""
    for admission in admissions:
        name = admission.job.name
        admit(ledger, admission, time.time())
    pool, reports, known, active = Pool(workers), Channel(), KnownLinks(), ActiveBatches()
    resolver = Resolver()
    allowed = egress or of_process()

    def run(batch: Batch) -> None:
        with PLACES_OF_PROCESS.share() as share:
            client = Client(settings.user_agent(), kind=batch.job.client, egress=allowed)
            with client, active.batch(batch.lease) as told:
                report = fetch_batch(
                    batch, client, told, worker=WORKER, known_links=known, archive=archive, share=share
                )
            reports.put(report)  # waits until it is taken to be recorded

    shown = released = 0.0
    worked = True
    while True:
        now = time.time()
        if stop.is_set():
            active.stop()
        addresses.look_up(ledger, resolver, now)
        room = pool.free_count()
        if room and not stop.is_set() and (archive is None or archive.has_room()):
            for batch in lease(ledger, room, now):
                pool.spawn(run, batch)
        if arrived := list(_arrived(reports)):
            worked = True
            record(ledger, arrived, time.time())
            for report in arrived:
                known.add(report.job, report.links)
        finished = stop.is_set() and not pool and reports.empty()
        if now - shown >= 1.0 or (worked and not pool) or finished:
            worked = bool(pool)
            status.sample(ledger, now)
            tidy.tidy(ledger, now)
            active.recall(tidy.recalled(ledger))
            if now - released >= RELEASE_SECONDS:
                release_memory()
                tidy.forget(ledger, now, settings.requests_days())
                released = now
            snapshot = next(s for s in status.snapshots(ledger, now, finished_since=now - 60) if s["job"] == name)
            show(snapshot)
            shown = now
            if finished or snapshot["state"] != "running":
                return snapshot


def _arrived(reports: Channel, patience: float = 0.1) -> Iterable[Report]:
    """The reports that are there; waits for the first."""
    try:
        yield reports.get(timeout=patience)
        while True:
            yield reports.get_nowait()
    except Empty:
        return
