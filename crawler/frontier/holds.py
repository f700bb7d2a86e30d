"""Holds: which leases are dead, known long before they expire. What one scheduler knows of them, in memory.

Every worker says every few seconds which leases it holds, and asks nobody for a lease before the broker has confirmed a
hold that names it. A lease is dead that

    no hold has named for limits.KEEP: not one since the worker's last hold, or since the lease was made;
    its worker's next hold does not name any more, without a report: its process was killed or gave the batch up.

The argument in limits.py why nobody fetches for it then needs no clock but the scheduler's own: between two moments a
worker and the scheduler count seconds, each by itself. All holds that were confirmed before a moment must have been
heard: the scheduler sends a mark to itself through the same queue, and counts time up to the last that came back.

A dead lease may have been reported, and the report wait in the queue `record`: so it is given back only after that
queue was seen empty, and then after limits.IN_HAND, in which a recorder takes in what it has in hand. Where recorders
are what limits the crawl that queue may never be empty: so nothing is leased while a dead lease waits for it, after a
HOLD. A lease whose report the broker has confirmed waits for limits.REPORTED: its report is lost only if the queue
itself was.

A scheduler that begins, or begins again after trouble with broker or database, knows nothing: so every lease that is in
the ledger counts as named in that moment. Workers of an earlier release send no holds: while there are more consumers
than workers that do, and for some time after that, a lease that no hold has ever named is left to its deadline.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import islice

from crawler import limits
from crawler.messages import Hold

REMEMBERED = 10_000
"""Leases given back of which is known that a worker must not go on with them."""
MOST_REPORTED = 200_000
"""Reported leases that are watched. While recorders are far behind, there could be any number: then others are left to
their deadlines."""


@dataclass
class _Worker:
    leases: frozenset[str]
    heard_at: float


class Holds:
    """The holds that a scheduler has heard. All times are seconds of a monotonic clock."""

    def __init__(self, leases: Iterable[str], now: float) -> None:
        """`leases`: those in the ledger."""
        self._workers: dict[str, _Worker] = {}
        self._unnamed = dict.fromkeys(leases, now)
        """Leases that no hold has named yet, since when, the oldest first; so are the next two."""
        self._dead: dict[str, tuple[float, bool]] = {}
        """Dead leases: since when, and whether a worker had them."""
        self._reported: dict[str, float] = {}
        self._last_heard: dict[str, float] = {}
        """When each worker was heard, also of those that are silent."""
        self._balanced_at = now
        """When there were last no more consumers than workers that send holds."""
        self._others_until = now
        """Until when a consumer that sends no holds may have a batch."""
        self._until = now
        """All holds sent before were heard."""
        self._empty_at: deque[float] = deque()
        """When the queue of reports was seen empty."""
        self._given_back: dict[str, None] = {}

    def leased(self, leases: Iterable[str], now: float) -> None:
        """New leases, before their batches are sent."""
        self._unnamed.update(dict.fromkeys(leases, now))

    def heard(self, hold: Hold, now: float) -> None:
        """A worker's hold, which takes the place of its last one."""
        held = frozenset(hold.leases)
        before = self._workers[hold.worker].leases if hold.worker in self._workers else frozenset()
        for lease in hold.reported:
            self._unnamed.pop(lease, None)
            self._dead.pop(lease, None)
            self._reported.setdefault(lease, now)
        for lease in list(islice(self._reported, max(0, len(self._reported) - MOST_REPORTED))):
            del self._reported[lease]
        for lease in sorted(before - held):
            if lease not in self._reported:
                self._dead.setdefault(lease, (now, True))
        for lease in held:
            self._unnamed.pop(lease, None)
            self._dead.pop(lease, None)
        self._workers[hold.worker] = _Worker(held, now)
        self._last_heard[hold.worker] = now

    def mark(self, sent_at: float) -> None:
        """A mark has come back: all holds that were confirmed before it was sent have been heard."""
        self._until = max(self._until, sent_at)

    def expired(self, leases: Iterable[str], now: float) -> None:
        """Leases whose deadline in the ledger has passed: dead as well, unless a worker holds them."""
        for lease in leases:
            if lease not in self._reported and not any(lease in worker.leases for worker in self._workers.values()):
                self._unnamed.pop(lease, None)
                self._dead.setdefault(lease, (now, True))

    def look(self, consumers: int, reports_wait: bool, now: float) -> None:
        """Find out what is dead. `consumers`: of the queue `fetch`; `reports_wait`: in the queue `record`."""
        for name, worker in list(self._workers.items()):
            if self._until - worker.heard_at >= limits.KEEP:
                del self._workers[name]
                self._dead.update((lease, (now, True)) for lease in worker.leases if lease not in self._dead)
        self._count(consumers, now)
        for lease, since in list(self._unnamed.items()):
            if self._until - max(since, self._others_until) < limits.KEEP:
                break
            del self._unnamed[lease]
            self._dead[lease] = (now, False)
        if not reports_wait:
            self._empty_at.append(now)
        while self._empty_at and self._empty_at[0] < now - 2 * limits.REPORTED:
            self._empty_at.popleft()

    def _count(self, consumers: int, now: float) -> None:
        """Compare consumers with workers that send holds. A consumer outlives its host for 3 HEARTBEAT, and a worker
        sends its first hold within SILENT."""
        self._last_heard = {name: at for name, at in self._last_heard.items() if now - at <= limits.REPORTED}
        if consumers <= len(self._last_heard):
            self._balanced_at = now
        elif now - self._balanced_at > limits.SILENT:
            self._others_until = now + limits.REPORTED

    def give_back(self, now: float) -> tuple[list[str], list[str]]:
        """The dead leases whose reports do not come any more, each named once: those that a worker had, and those that
        none had."""
        had: list[str] = []
        not_had: list[str] = []
        emptied = self._emptied(now - limits.IN_HAND)
        for lease, (since, begun) in list(self._dead.items()):
            if since > emptied:
                break
            del self._dead[lease]
            (had if begun else not_had).append(lease)
        emptied = self._emptied(now - limits.REPORTED)
        for lease, since in list(self._reported.items()):
            if since > emptied:
                break
            del self._reported[lease]
            not_had.append(lease)
        return had, not_had

    def wait_for_reports(self, now: float) -> bool:
        """Whether dead leases have waited for more than a HOLD for the queue of reports to be empty."""
        since = next((since for since, _ in self._dead.values()), now)
        return self._emptied(now) < since < now - limits.HOLD

    def given_back(self, leases: Iterable[str]) -> None:
        """Leases that the ledger has taken back: no worker must go on with them."""
        self._given_back.update(dict.fromkeys(leases))
        for lease in list(islice(self._given_back, max(0, len(self._given_back) - REMEMBERED))):
            del self._given_back[lease]

    def to_recall(self) -> list[str]:
        """Leases that were given back and that a worker names all the same: one whose clock is wrong, or whose machine
        stood still without its clock."""
        return sorted(lease for worker in self._workers.values() for lease in worker.leases & self._given_back.keys())

    def _emptied(self, before: float) -> float:
        """The last time before a moment when the queue of reports was seen empty."""
        return max((at for at in self._empty_at if at <= before), default=float("-inf"))
