"""What keeps a worker process within its memory."""

from __future__ import annotations

import contextlib
import ctypes


def release_memory() -> None:
    """Give back what is free. glibc keeps it where something above is still in use, so a process that reads pages of
    all sizes would grow for hours: malloc_trim(3)."""
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)
