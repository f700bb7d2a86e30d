"""What keeps a worker process within its memory: free memory given back, and few places for what is large.

Fifty hosts share a process. What each may hold by itself (a body, the links of a page) would be too much fifty times;
so what is larger than ordinary needs one of a few places, and keeps it until it is out of memory again.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc

from gevent.lock import BoundedSemaphore

LARGE_BODY = 1024 * 1024
"""Bytes of a body, decompressed, above which it needs a place."""
LARGE_LINKS = 2_000_000
"""FoundLinks.size above which a batch ends; while one page, or sitemap, takes it beyond, it needs a place, until its
report is sent. Some 10,000 links; they take some four bytes of memory for each of this size."""
PLACES = 4
"""How many batches of a process may be large at the same time."""
PATIENCE = 10.0
"""Seconds that a batch waits for a place, with its connection open. Then its URL goes back unfetched."""


class NoPlaceError(Exception):
    """All places are taken by other batches, and were for PATIENCE seconds."""


class Places:
    """The places of a process."""

    def __init__(self, number: int = PLACES) -> None:
        self.free = BoundedSemaphore(number)

    def share(self) -> Share:
        """What one batch takes of them: at most one place."""
        return Share(self)


class Share:
    """One batch's place, if it needs one. Leave it, or use it in `with`, once the batch's report is sent."""

    def __init__(self, places: Places) -> None:
        self._places = places
        self.held = False

    def __enter__(self) -> Share:
        return self

    def __exit__(self, *_: object) -> None:
        self.leave()

    def take(self) -> None:
        """Raises NoPlaceError if none becomes free in time."""
        if not self.held:
            if not self._places.free.acquire(timeout=PATIENCE):
                raise NoPlaceError
            self.held = True

    def leave(self) -> None:
        if self.held:
            self.held = False
            self._places.free.release()

    def body_grows(self, size: int) -> None:
        """A body has `size` bytes by now. Raises NoPlaceError."""
        if size > LARGE_BODY:
            self.take()

    def links_grow(self, size: int) -> None:
        """As body_grows, for FoundLinks.size."""
        if size > LARGE_LINKS:
            self.take()


PLACES_OF_PROCESS = Places()


def release_memory() -> None:
    """Give back what is free, cycles included: the collector counts objects and not bytes, and one failed request may
    hold megabytes. glibc keeps what is free where something above is still in use, so a process that reads pages of all
    sizes would grow for hours: malloc_trim(3)."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
