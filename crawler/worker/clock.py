"""A clock that goes on whatever happens to the process."""

from __future__ import annotations

import time


def since_boot() -> float:
    """Seconds of a clock that is never set, and goes on while the process is stopped or its machine suspended."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)
