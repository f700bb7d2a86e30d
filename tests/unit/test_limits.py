"""The inequality of the time limits, and that units and broker are given what crawler/limits.py says."""

from __future__ import annotations

from itertools import pairwise

from crawler import limits
from crawler.worker import origin_rules, robots


def test_each_limit_leaves_time_for_what_it_waits_for() -> None:
    chain = (
        limits.CONNECT,
        limits.READ,
        limits.FETCH,
        limits.BATCH,
        limits.BATCH_WORST,
        limits.TASK,
        limits.LEASE - limits.LEASE_MARGIN,
        limits.LEASE,
        limits.CONSUMER,
    )
    assert all(shorter < longer for shorter, longer in pairwise(chain))
    assert 4 * limits.PULSE < limits.WATCHDOG
    assert 2 * limits.DATABASE < limits.CONSUMER  # what is delivered in advance waits as long again
    assert 2 * limits.HOLD < limits.SILENT
    # One hold may be lost after it was confirmed; and the timers of a busy process are late.
    assert limits.SILENT + limits.FETCH + 2 * limits.HOLD <= limits.KEEP
    assert limits.BEGIN + limits.CLOCKS <= limits.KEEP
    assert limits.KEEP + limits.IN_HAND + 3 * limits.HOLD < 60
    assert 3 * limits.WORKER_HEARTBEAT <= limits.KEEP
    assert 3 * limits.HEARTBEAT < limits.REPORTED
    assert limits.FETCH + 30 < limits.STOP < limits.WATCHDOG < limits.TASK


def test_the_worst_batch_is_what_its_parts_add_up_to() -> None:
    redirects = robots.MAX_REDIRECTS * (origin_rules.MAX_HOP_REST + limits.FETCH) + limits.FETCH
    assert redirects <= limits.BATCH_WORST
    assert limits.BATCH + robots.MAX_CRAWL_DELAY + limits.FETCH <= limits.BATCH_WORST
