"""The scheduler: keeps a small window of leased batches in the broker, and the ledger tidy.

Several may run; the one that holds PostgreSQL's advisory lock works, the others stand by.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import sqlalchemy as sa
from gevent.event import Event
from sqlalchemy.exc import DBAPIError

from crawler import settings
from crawler.frontier import addresses, status, tidy
from crawler.frontier.holds import Holds
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.processes import systemd
from crawler.processes.broker import Broker
from crawler.resolver import Resolver

log = logging.getLogger(__name__)

PER_CONSUMER = 10
"""Batches for each worker that wait in the broker, and reports that wait there in their place: enough that no worker
idles, few enough that no lease grows old, and no new job waits behind many others."""
LEASE_AT_ONCE = 200
IDLE_SECONDS, FEW, FEW_SECONDS = 0.1, 20, 0.05
"""How long to wait after leasing nothing; and after leasing few batches: a call costs as much as FEW of them."""
LOOK_UP_SECONDS = 0.1
RECALL_SECONDS = TIDY_SECONDS = STATUS_SECONDS = HOLDS_SECONDS = 1.0
SAMPLE_SECONDS = 5.0
FORGET_SECONDS = 10.0
SHARE, LONGEST = 5.0, 10.0
"""A chore that takes long rests for SHARE times as long, so that leasing goes on, but for LONGEST seconds at most."""
SHOW_FINISHED_SECONDS = 60.0
MAX_PAUSE = 5.0
"""Seconds between two attempts to reach broker and database, at most: leases that were lost with the broker are dead
limits.KEEP after the one that succeeds."""
LOCK = 0x63726177  # "craw"


class Chore:
    """What is done every `seconds`, on a clock of its own."""

    def __init__(self, work: Callable[[float], object], seconds: float, longest: float = LONGEST) -> None:
        self._work, self._seconds, self._longest = work, seconds, longest
        self._due = 0.0

    def turn(self, clock: Callable[[], float]) -> None:
        """Do it, if it is due. `clock`: seconds since the epoch."""
        began = clock()
        if began < self._due:
            return
        self._work(began)
        ended = clock()
        self._due = max(began + self._seconds, ended + min(SHARE * (ended - began), self._longest))


class Scheduler:
    """One scheduler; `run` returns when `stop` is set. `clock`: seconds since the epoch; `seconds`: of a clock that is
    never set."""

    def __init__(
        self,
        ledger: Ledger,
        broker: Broker,
        stop: Event,
        clock: Callable[[], float] = time.time,
        seconds: Callable[[], float] = time.monotonic,
        resolver: addresses.Resolver | None = None,
    ) -> None:
        resolver = resolver or Resolver()
        self.ledger, self.broker, self.stop, self._clock, self._seconds = ledger, broker, stop, clock, seconds
        self._lock: sa.Connection | None = None
        self._holds: Holds | None = None
        self._passing: tuple[type[BaseException], ...] = (DBAPIError, *broker.errors)
        # A blocked host is asked until its leases are recalled: that never rests, and has its turn after each chore.
        self._recall = Chore(self._recall_leases, RECALL_SECONDS, longest=0.0)
        self._chores = [
            Chore(self._take_back_leases, HOLDS_SECONDS),
            Chore(lambda now: status.sample(ledger, now), SAMPLE_SECONDS),
            Chore(lambda now: tidy.tidy(ledger, now, expire=False), TIDY_SECONDS),
            Chore(self._publish_status, STATUS_SECONDS),
            Chore(lambda now: tidy.forget(ledger, now, settings.requests_days()), FORGET_SECONDS),
            Chore(lambda now: addresses.look_up(ledger, resolver, now), LOOK_UP_SECONDS),
        ]

    def run(self) -> None:
        pause = 1.0
        while not self.stop.is_set():
            try:
                leased = self.step() if self._leads() else 0
                systemd.alive()
                pause = 1.0
                if leased < FEW:
                    self.stop.wait(FEW_SECONDS if leased else IDLE_SECONDS)
            except self._passing as error:
                # Away services come back; the watchdog is for a scheduler that hangs, not for one that waits.
                log.warning("%s; trying again in %.0f s", str(error).splitlines()[0], pause)
                self._give_up_lead()
                self.broker.forget()
                self._holds = None
                systemd.notify("WATCHDOG=1")
                self.stop.wait(pause)
                pause = min(pause * 2, MAX_PAUSE)
        self._give_up_lead()

    def step(self) -> int:
        """Fill the window once and do what is due; returns how many batches were leased."""
        holds = self._hear()
        self._recall.turn(self._clock)
        # Committed first, published second: a crash between the two costs limits.KEEP; the other order, a double fetch.
        room = 0 if holds.wait_for_reports(self._seconds()) else self.broker.room(PER_CONSUMER)
        batches = lease(self.ledger, min(room, LEASE_AT_ONCE), self._clock())
        holds.leased((batch.lease for batch in batches), self._seconds())
        if batches:
            self.broker.send(batches)
        for chore in self._chores:
            chore.turn(self._clock)
            self._recall.turn(self._clock)
            systemd.notify("WATCHDOG=1")
        return len(batches)

    def _hear(self) -> Holds:
        """Take in what workers hold. One that begins again has heard nothing while it did not listen."""
        heard, marked = self.broker.hear()
        if self._holds is None:
            self._holds = Holds(tidy.all_leases(self.ledger), self._seconds())
        for hold in heard:
            self._holds.heard(hold, self._seconds())
        if marked is not None:
            self._holds.mark(marked)
        return self._holds

    def _take_back_leases(self, now: float) -> None:
        """Give dead leases to other workers."""
        holds = self._hear()
        holds.expired(tidy.expired(self.ledger, now), self._seconds())
        holds.look(self.broker.consumers(), self.broker.reports_wait(), self._seconds())
        for leases, begun in zip(holds.give_back(self._seconds()), (True, False), strict=True):
            if taken := tidy.take_back(self.ledger, leases, now, begun):
                log.warning("%d leases are taken back that %s", len(taken), "were lost" if begun else "nobody took")
                holds.given_back(taken)
        self.broker.mark(self._seconds())

    def _recall_leases(self, _: float) -> None:
        recalled = tidy.recalled(self.ledger)
        if self._holds is not None:
            recalled += self._holds.to_recall()
        if recalled:
            self.broker.recall(recalled)

    def _publish_status(self, now: float) -> None:
        self.broker.publish_status(status.snapshots(self.ledger, now, finished_since=now - SHOW_FINISHED_SECONDS))

    def _leads(self) -> bool:
        """Whether we hold the lock, taking it if it is free."""
        if self.ledger.engine.dialect.name != "postgresql":
            return True
        if self._lock is not None:
            self._lock.execute(sa.text("SELECT 1"))  # raises if the connection, and the lock with it, is gone
            return True
        connection = self.ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT")
        if connection.execute(sa.select(sa.func.pg_try_advisory_lock(LOCK))).scalar_one():
            log.info("leading")
            self._lock = connection
            return True
        connection.close()
        self.stop.wait(1.0)
        return False

    def _give_up_lead(self) -> None:
        if self._lock is not None:
            self._lock.invalidate()  # closes the session for good: that is what frees the lock
            self._lock.close()
            self._lock = None
