"""A clock that goes on whatever happens to the process, and how long a request may take."""

from __future__ import annotations

import time

from crawler import limits
from crawler.worker.fetch_errors import TimedOutError


def since_boot() -> float:
    """Seconds of a clock that is never set, and goes on while the process is stopped or its machine suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Deadline:
    """One request's: `seconds` from now until its answer must be whole."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._ends = time.monotonic() + seconds
        self._began = since_boot()

    def check(self) -> None:
        """Raises TimedOutError when it is over."""
        if time.monotonic() > self._ends:
            raise self.missed()

    def check_sending(self) -> None:
        """Raises TimedOutError if the request may not be sent any more: the process may have been stopped, or its
        machine suspended, since the request was allowed."""
        if since_boot() - self._began > limits.FETCH:
            raise TimedOutError(f"took longer than {limits.FETCH:g} s")

    def missed(self) -> TimedOutError:
        return TimedOutError(f"took longer than {self.seconds:g} s")
