"""When a host may be asked again, for every job: its rest after a batch, its back-off, and when it is given up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier.schema import host_queues, hosts
from crawler.messages import Report, RobotsFile

BACK_OFF_FIRST, BACK_OFF_MAX = 5.0, 3600.0
"""Seconds a failing host is left alone: the first time, and at most."""
MAX_HOST_FAILURES = 8
"""Failures in a row (some 20 minutes, with the back-off) after which a host is given up for this job."""
GIVEN_UP_SECONDS = 86400.0
"""How long other jobs take that for granted; then they try the host themselves."""


def back_off(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds to leave a host alone after its `failures`-th failure in a row: doubling, with up to 50 % on top, so that
    hosts behind one broken router do not all come back at once."""
    return float(min(BACK_OFF_FIRST * 2.0 ** (failures - 1), BACK_OFF_MAX) * (1 + jitter() / 2))


def reported(tx: Connection, report: Report, held: bool, now: float) -> None:
    """Set when the host is due again, for every job that wants it. `held`: the report's lease was still in force.

    Locks the host's row, after its rows of host_queues (which moves.apply has locked). A report seen twice can only
    make the rest longer.
    """
    host = tx.execute(sa.select(hosts).where(hosts.c.host == report.host).with_for_update()).one()
    robots = host.robots
    if report.robots:
        known = {**robots_of(host.robots), **report.robots}
        robots = json.dumps({origin: file.model_dump() for origin, file in known.items()})
    failures, failure, rest = 0, None, report.delay
    if report.back_off:
        # A host that gave pages before it asked for a rest is not dead.
        failures, failure = 1 if report.results else host.failures + 1, report.back_off.reason
        asked = report.back_off.seconds
        rest = max(back_off(failures) if asked is None else asked, report.delay)
    elif not report.results:
        # No page succeeded (unfetched or retries only): no evidence that the host works, so keep its failure count.
        failures, failure = host.failures, host.failure
    next_due = max(now + rest, host.next_due)
    tx.execute(
        hosts.update()
        .where(hosts.c.host == report.host)
        .values(next_due=next_due, failures=failures, failure=failure, robots=robots)
    )
    if held:
        tx.execute(host_queues.update().where(host_queues.c.host == report.host).values(next_due=next_due))


def given_up(now: float) -> sa.ColumnElement[bool]:
    """Whether a row of hosts is given up. Its next turn was set by its last failure."""
    return sa.and_(hosts.c.failures >= MAX_HOST_FAILURES, hosts.c.next_due > now - GIVEN_UP_SECONDS)


def try_again(tx: Connection, names: Iterable[str]) -> None:
    """Let hosts that were given up be asked again. Idempotent; by primary key."""
    tx.execute(hosts.update().where(hosts.c.host.in_(names), hosts.c.failures >= MAX_HOST_FAILURES).values(failures=0))


def robots_of(text: str | None) -> dict[str, RobotsFile]:
    """The robots.txt files in a `hosts.robots`, by origin."""
    return {origin: RobotsFile.model_validate(file) for origin, file in json.loads(text or "{}").items()}
