"""The ledger's promises once more, on PostgreSQL, and what only several processes at once can show."""

from __future__ import annotations

import random
import threading
import time

from conservation_promises import *  # noqa: F403
from depth_promises import *  # noqa: F403
from failure_promises import *  # noqa: F403
from ledger_promises import *  # noqa: F403
from ledger_promises import admission, counts, report
from order_promises import *  # noqa: F403
from reading_promises import *  # noqa: F403
from sharing_promises import *  # noqa: F403
from sqlalchemy.exc import DBAPIError

from crawler.frontier import status
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.messages import Report


def test_recorders_and_schedulers_at_once(ledger: Ledger) -> None:
    """Four recorders and two schedulers on one host, reports doubled, reordered and taken in several at a time: nothing
    lost, nothing twice."""
    admit(ledger, admission(*(f"/{n}" for n in range(40)), delay=0, connections=4), now=0)
    reports: list[Report] = []
    leased: list[str] = []
    lock, stop, errors = threading.Lock(), threading.Event(), []

    def schedule() -> None:
        while not stop.is_set():
            batches = again(lambda: lease(ledger, 2, time.time()))
            for batch in batches:
                links = tuple(f"/{random.randrange(600)}" for _ in range(100))  # noqa: S311
                with lock:
                    leased.extend(target.url for target in batch.targets)
                    reports.extend([report(batch, links=links)] * random.choice((1, 2)))  # noqa: S311
            time.sleep(0.01)

    def take_in() -> None:
        while not (stop.is_set() and not reports):
            with lock:
                random.shuffle(reports)
                number = random.randint(1, 5)  # noqa: S311
                gathered, reports[:number] = reports[:number], []
            if gathered:
                again(lambda gathered=gathered: record(ledger, gathered, time.time()))
            else:
                time.sleep(0.01)

    def again(work):  # type: ignore[no-untyped-def]  # as tasks.py does after a deadlock
        while True:
            try:
                return work()
            except DBAPIError as error:
                if getattr(error.orig, "sqlstate", None) != "40P01":
                    errors.append(error)
                    stop.set()
                    raise

    threads = [threading.Thread(target=work) for work in (schedule, schedule, *[take_in] * 4)]
    for thread in threads:
        thread.start()

    def open_urls() -> int:
        counted = status.snapshots(ledger, 0)[0]["counts"]
        return int(counted["queued"] + counted["leased"])

    deadline = time.monotonic() + 60
    while open_urls() and not errors and time.monotonic() < deadline:
        time.sleep(0.2)
    stop.set()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(leased) == len(set(leased)) > 40
    assert counts(ledger) == {"done": len(leased)}
