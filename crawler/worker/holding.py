"""The leases that a worker process holds, and the rule by which it stops in time when nobody can hear that.

The frontier gives a lease to another worker when no hold has named it for limits.KEEP. So this process asks for nothing
before a hold that names the lease was confirmed, begins nothing of a batch that waited for too long, and begins no
request after limits.SILENT without a confirmed hold: then the batches it has are lost, whatever is confirmed later.
Source: Gray, Cheriton, "Leases: an efficient fault-tolerant mechanism", 1989.
"""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Callable, Iterator

import gevent
from gevent.event import Event

from crawler import limits
from crawler.messages import Batch, Hold
from crawler.worker.clock import since_boot
from crawler.worker.paced_client import Stop

log = logging.getLogger(__name__)

LATE_REST = 1.0
"""Seconds for which a batch that came too late is kept: a worker whose clock is wrong must not return thousands."""


class Held:
    """A batch's order to stop: by its worker's, or because its lease may be another's by now."""

    def __init__(self, stop: Stop, is_lost: Callable[[], bool]) -> None:
        self._stop, self._is_lost = stop, is_lost
        self.confirmed = Event()
        """Set when a hold that names the lease was confirmed."""
        self._lost = Event()

    def is_set(self) -> bool:
        """Asked right before each request."""
        if self._is_lost():
            self._lost.set()
        return self._lost.is_set() or self._stop.is_set()

    def wait(self, timeout: float) -> bool:
        self._stop.wait(timeout)
        return self.is_set()

    def lose(self) -> None:
        """Begin nothing more, for good."""
        self._lost.set()


class Holding:
    """What this process holds. `turn` is called again and again by one who can send."""

    def __init__(self, clock: Callable[[], float] = since_boot, now: Callable[[], float] = time.time) -> None:
        self._clock, self._now = clock, now
        self._held: dict[str, Held] = {}
        self._reported: list[str] = []
        self._confirmed_at = float("-inf")
        """When the last hold was sent that was confirmed."""
        self._behind = 0.0
        """Seconds that our clock is behind the frontier's at least."""
        self.wanted = Event()
        """Set when a batch waits for a hold."""

    @contextlib.contextmanager
    def hold(self, batch: Batch, stop: Stop) -> Iterator[Held]:
        """Hold a batch's lease, until its report is sent. Yields when it may be begun; what it yields is set when
        nothing more may be."""
        held = Held(stop, self._is_silent)
        self._held[batch.lease] = held
        self.wanted.set()
        try:
            if not held.confirmed.wait(limits.SILENT):
                log.warning("%s: not begun: the broker confirms nothing", batch.host)
                held.lose()
            elif self._is_late(batch):
                log.warning(
                    "%s: not begun: it came %g s after it was leased; or this host's clock is ahead of the frontier's",
                    batch.host,
                    limits.BEGIN,
                )
                gevent.sleep(LATE_REST)
                held.lose()
            yield held
        finally:
            if self._held.get(batch.lease) is held:
                del self._held[batch.lease]

    def reported(self, lease: str) -> None:
        """The broker has confirmed the report of a lease."""
        self._reported.append(lease)

    def turn(self, worker: str, send: Callable[[Hold], None]) -> None:
        """Send what is held. `send` returns when the broker has confirmed it, and raises when it may not have it."""
        if self._is_silent():
            for held in self._held.values():
                if held.confirmed.is_set():
                    held.lose()
        named = dict(self._held)
        hold = Hold(worker=worker, leases=sorted(named), reported=list(self._reported))
        sent_at = self._clock()
        send(hold)
        self._confirmed_at = sent_at
        del self._reported[: len(hold.reported)]
        for held in named.values():
            held.confirmed.set()

    def _is_silent(self) -> bool:
        return self._clock() - self._confirmed_at > limits.SILENT

    def _is_late(self, batch: Batch) -> bool:
        """Whether a batch must not be begun any more. A batch that seems to be leased in the future shows how far our
        clock is behind."""
        if batch.begin_by is None:
            return False
        self._behind = max(self._behind, batch.begin_by - limits.BEGIN - self._now())
        return self._now() + self._behind > batch.begin_by
