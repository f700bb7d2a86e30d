"""The recorder: takes admissions and reports from the broker into the ledger, all reports that have arrived in one
transaction.

A transaction costs more than what one report of a one-page host writes. Reports are acknowledged after their
transaction has committed, and taking one in twice changes nothing: so whatever dies in between, nothing is lost.

Several may run, each with a name of its own.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import Any

from gevent.event import Event
from msgspec.structs import replace
from sqlalchemy.exc import DBAPIError, OperationalError

from crawler import limits
from crawler.frontier.admit import admit
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.known_links import KnownLinks
from crawler.messages import Admission, M, Message, MessageError, Report, decode_task
from crawler.processes import senders, systemd
from crawler.processes.inbox import BrokerLostError, Inbox
from crawler.processes.task_messages import task_of

log = logging.getLogger(__name__)

TASKS: dict[type[Message], str] = {Admission: "admit", Report: "record"}
"""The task whose argument is a message of that kind."""
MAX_PAUSE, MAX_DATABASE_PAUSE = 15.0, 10.0
"""Seconds between two attempts to reach the broker and the database, at most."""


class DatabaseAwayError(Exception):
    """The database did not answer for limits.DATABASE, or the recorder was told to stop while it waited."""


class Recorder:
    """One recorder; `run` returns when `stop` is set."""

    def __init__(self, ledger: Ledger, inbox: Inbox, stop: Event) -> None:
        self.ledger, self.inbox, self.stop = ledger, inbox, stop
        self._known_links = KnownLinks()
        """What this process has written."""
        # The ledger is used in a thread of its own, so that this one can answer the broker's heartbeats meanwhile.
        self._thread = futures.ThreadPoolExecutor(max_workers=1, thread_name_prefix="ledger")

    def run(self) -> None:
        pause = 1.0
        while not self.stop.is_set():
            try:
                self.inbox.open()
                log.info("consuming")
                while not self.stop.is_set():
                    self.step()
                    pause = 1.0
            except BrokerLostError as error:
                log.warning("broker: %s; trying again in %.0f s", error, pause)
                systemd.notify("WATCHDOG=1")  # it is for a recorder that hangs, not for one that waits
                self.inbox.close(lost=True)
                self.stop.wait(pause)
                pause = min(pause * 2, MAX_PAUSE)
            except DatabaseAwayError as error:
                log.error("the messages in hand go back to the broker: database: %s", error)
                self.inbox.close()
        self.inbox.close()
        self._thread.shutdown()

    def step(self) -> None:
        """Take in what has arrived. Raises BrokerLostError and DatabaseAwayError; then `inbox` is to be closed, and
        what was not acknowledged comes again."""
        arrived, seeds = self.inbox.gather()
        self._note_pulse()
        for message in seeds:
            if (admission := self._read(message, Admission)) is not None:
                self._admit(message, admission)
        reports: list[tuple[Any, Report]] = []
        returned: list[tuple[Any, Report]] = []
        for message in arrived:
            if (report := self._read(message, Report)) is not None:
                (returned if message.delivery_info.get("redelivered") else reports).append((message, report))
        if reports:
            self._take_in(reports)
        # A recorder may have died of one of these. If this one does as well, the others must not return with it as
        # often as makes dead letters (rabbitmq_delivery_limit): so each alone, and that one seldom first.
        random.shuffle(returned)
        self._take_in_one_by_one(returned)

    def _read(self, message: Any, kind: type[M]) -> M | None:
        """What a message of a queue holds; None, and it is a dead letter, if that is not what belongs there, or
        somebody else has sent it than it says."""
        try:
            if (task := task_of(message)) != TASKS[kind]:
                raise MessageError(f"no task of this queue: {task[:100]!r}")
            if kind is Admission:
                senders.require(message, senders.SEED)
            read = decode_task(kind, message.body)
            if isinstance(read, Report):
                senders.require(message, senders.of_worker(read.worker))
            return read
        except Exception as error:
            why = " ".join(f"{type(error).__name__}: {error}".split())
            log.critical("a message that cannot be read goes to the dead letters: %.300s", why)
            self.inbox.reject(message)
            return None

    def _admit(self, message: Any, admission: Admission) -> None:
        """Take in a piece of a seeding, in a transaction of its own."""
        try:
            new = self._in_ledger(lambda: admit(self.ledger, admission, time.time()))
        except (BrokerLostError, DatabaseAwayError):
            raise
        except Exception:
            log.exception("%s: a piece of a seeding goes to the dead letters", admission.job.name)
            self.inbox.reject(message)
        else:
            self.inbox.acknowledge(message)
            if admission.chunk == 0 and (told := self.ledger.ceilings.told(admission.job)):
                log.warning("%s goes beyond the inventory's ceilings: %s", admission.job.name, told)
            log.info("%s: piece %d, %d URLs, %d new", admission.job.name, admission.chunk, len(admission.urls), new)

    def _take_in(self, taken: Sequence[tuple[Any, Report]]) -> None:
        """Take in reports, in one transaction. Where that fails, each in one of its own, so that one which cannot be
        recorded becomes a dead letter alone."""
        reports = [self._without_known_links(report) for _, report in taken]
        refused: set[tuple[str, str]] = set()
        try:
            done = self._in_ledger(lambda: record(self.ledger, reports, time.time(), refused))
        except (BrokerLostError, DatabaseAwayError):
            raise
        except Exception as error:
            if len(taken) == 1:
                ((message, report),) = taken
                log.exception("%s: a report on %s goes to the dead letters", report.job, report.host)
                self.inbox.reject(message)
                return
            log.warning("%d reports cannot be recorded together: %s", len(taken), _first_line(error))
        else:
            for message, report in taken:
                self.inbox.acknowledge(message)
                self._known_links.add(report.job, (one for one in report.links if (report.job, one.url) not in refused))
            log.info(
                "%s: %d reports on %d hosts, %d done, %d links",
                ", ".join(sorted({report.job for report in reports})),
                len(reports),
                len({report.host for report in reports}),
                done,
                sum(len(report.links) for report in reports),
            )
            return
        self._take_in_one_by_one(taken)

    def _take_in_one_by_one(self, taken: Sequence[tuple[Any, Report]]) -> None:
        """Take in reports, each in a transaction of its own, until told to stop."""
        for one in taken:
            if not self.stop.is_set():
                self._take_in([one])

    def _without_known_links(self, report: Report) -> Report:
        covers = self._known_links.covers
        new = [one for one in report.links if not covers(report.job, one.url, one.depth, one.excluded is not None)]
        return replace(report, links=new)

    def _in_ledger(self, work: Callable[[], int]) -> int:
        """Do `work`, waiting for a database that is restarting and trying again after a deadlock. Raises what no other
        try could mend; DatabaseAwayError; and BrokerLostError, whether or not the work was done."""
        deadline = time.monotonic() + limits.DATABASE
        pause = 0.1
        while True:
            try:
                return self._attempt(work)
            except DBAPIError as error:
                if not (error.connection_invalidated or _may_pass(error)):
                    raise
                if self.stop.is_set() or time.monotonic() > deadline:
                    raise DatabaseAwayError(_first_line(error)) from error
                log.warning("database: %s; trying again in %.1f s", _first_line(error), pause)
                until = time.monotonic() + pause
                while (left := until - time.monotonic()) > 0 and not self.stop.is_set():
                    self.inbox.serve(min(left, 1.0))
                    self._note_pulse()
                pause = min(pause * 2, MAX_DATABASE_PAUSE)

    def _attempt(self, work: Callable[[], int]) -> int:
        """Do `work` once, serving the broker before and meanwhile. A pulse that comes back meanwhile does not count
        until the work has ended: a transaction that never ends is for the watchdog."""
        self.inbox.serve(0)
        self._note_pulse()
        future = self._thread.submit(work)
        lost: BrokerLostError | None = None
        while not futures.wait([future], limits.HEARTBEAT / 6).done:
            if lost is None:
                try:
                    self.inbox.serve(0)
                except BrokerLostError as error:
                    lost = error
        if lost is not None:
            raise lost  # only now, for there must be no second transaction beside the first
        return future.result()

    def _note_pulse(self) -> None:
        if self.inbox.pulse_heard():
            systemd.alive()


def _may_pass(error: DBAPIError) -> bool:
    """Connection trouble (class 08, 57P0x), deadlocks and serialisation failures (class 40), shortage (class 53)."""
    state = getattr(error.orig, "sqlstate", None)
    lost = state is None and isinstance(error, OperationalError)
    return lost or str(state)[:2] in ("08", "40", "53", "57")


def _first_line(error: Exception) -> str:
    text = str(getattr(error, "orig", error)).strip()
    return text.splitlines()[0] if text else type(error).__name__
