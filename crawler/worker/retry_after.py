"""Retry-After: how long a host asks to be left alone (RFC 9110, section 10.2.3)."""

from __future__ import annotations

import email.utils

from crawler.worker.fetch import Response

MAX_SECONDS = 24 * 3600.0
"""A host that asks for more is asked again after this."""


def seconds(response: Response, now: float) -> float | None:
    """From a number or a date; None where there is neither."""
    value = (response.retry_after or "").strip()
    if value.isascii() and value.isdigit():
        return min(float(value), MAX_SECONDS)
    try:
        then = email.utils.parsedate_to_datetime(value).timestamp()
    except (ValueError, OverflowError):
        return None
    return min(max(then - now, 0.0), MAX_SECONDS)
