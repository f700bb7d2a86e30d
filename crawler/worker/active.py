"""The batches that a process is fetching right now, so that one, or all, can be told to finish early."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

from gevent.event import Event


class ActiveBatches:
    """The batches that this process is fetching, and how each is told to finish early."""

    def __init__(self) -> None:
        self._batches: set[tuple[str, Event]] = set()
        self._recalled: frozenset[str] = frozenset()
        self._stopped = False

    @contextlib.contextmanager
    def batch(self, lease: str) -> Iterator[Event]:
        """For the time of one batch: what is set when it shall finish. A redelivered batch may be here twice."""
        entry = (lease, Event())
        self._batches.add(entry)
        if self._stopped or lease in self._recalled:
            entry[1].set()
        try:
            yield entry[1]
        finally:
            self._batches.remove(entry)

    def recall(self, leases: Iterable[str]) -> None:
        """Let the batches of `leases` finish: those that are here, and those that are still on their way."""
        self._recalled = frozenset(leases)
        for lease, event in tuple(self._batches):
            if lease in self._recalled:
                event.set()

    def stop(self) -> None:
        """Let all finish, whenever they come."""
        self._stopped = True
        for _, event in tuple(self._batches):
            event.set()
