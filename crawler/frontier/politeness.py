"""When a host may be asked again, for every job: its rest after a batch, its back-off, and when it is given up."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier.schema import host_queues, hosts
from crawler.messages import Cause, Report, RobotsFile

BACK_OFF_FIRST, BACK_OFF_MAX = 5.0, 3600.0
"""Seconds a host is left alone that could not be reached, or asked for a rest without saying how long: the first time,
and at most."""
MAX_HOST_FAILURES, GIVE_UP_SECONDS = 8, 3600.0
"""Failures in a row, and the seconds that must lie between the first and the last of them, for a host to be given up: a
site that is down for some minutes loses nothing."""
GIVEN_UP_SECONDS = 86400.0
"""How long other jobs take that for granted; then they try the host themselves."""
UNREACHABLE = frozenset((Cause.DNS, Cause.CONNECT, Cause.TLS, Cause.ROBOTS_UNREACHABLE, Cause.TIMEOUT, Cause.HUNG_UP))
"""Causes of back-offs that count towards giving a host up. Any other is a rest that a living host asked for."""
RETRY_FIRST, RETRY_FACTOR = 30.0, 6.0
"""Seconds between the first attempt at a URL and the second, and how much longer each wait is than the last."""


def back_off(failures: int, jitter: Callable[[], float] = random.random) -> float:
    """Seconds to leave a host alone after its `failures`-th failure in a row: doubling, with up to 50 % on top, so that
    hosts behind one broken router do not all come back at once."""
    return float(min(BACK_OFF_FIRST * 2.0 ** min(failures - 1, 60), BACK_OFF_MAX) * (1 + jitter() / 2))


def retry_wait(attempts: int, longest: float, jitter: Callable[[], float] = random.random) -> float:
    """Seconds until a URL is asked for again after its `attempts`-th attempt failed: 30 s, 3 min, 18 min, with up to
    50 % on top; `longest` at most."""
    return float(min(RETRY_FIRST * RETRY_FACTOR ** (attempts - 1) * (1 + jitter() / 2), longest))


_WELL: dict[str, Any] = {"failures": 0, "failure": None, "failing_since": None, "given_up_at": None, "rests": 0}
"""Columns of hosts as of one that answers."""


def reported(tx: Connection, report: Report, held: bool, now: float) -> None:
    """Set when the host is due again, for every job that wants it. `held`: the report's lease was still in force.

    Locks the host's row, after its rows of host_queues (which moves.apply has locked). Idempotent but for the rest,
    which a report seen twice can make longer: failures are counted for a lease that is held, and so once.
    """
    columns = [hosts.c.next_due, hosts.c.failures, hosts.c.failing_since, hosts.c.rests]
    if report.robots:
        columns.append(hosts.c.robots)
    host = tx.execute(sa.select(*columns).where(hosts.c.host == report.host).with_for_update()).one()
    rest, judged = _judged(report, host, now)
    changes = judged if held else {}
    if report.robots:
        known = {**robots_of(host.robots), **report.robots}
        changes["robots"] = json.dumps({origin: file.model_dump() for origin, file in known.items()})
    next_due = max(now + max(rest, report.delay), host.next_due)
    tx.execute(hosts.update().where(hosts.c.host == report.host).values(next_due=next_due, **changes))
    if held:
        tx.execute(host_queues.update().where(host_queues.c.host == report.host).values(next_due=next_due))


def _judged(report: Report, host: Any, now: float) -> tuple[float, dict[str, Any]]:
    """What a report says about its host: seconds of rest, and columns of hosts to write."""
    pages = any(page.status is not None for page in report.results)
    alive = pages or any(retry.cause == Cause.SERVER_ERROR for retry in report.retries)
    if report.back_off is None:
        # No answer, and nothing wrong (all unfetched): no evidence that the host works, so keep its failure count.
        return 0.0, dict(_WELL) if alive else {}
    asked, failure = report.back_off.seconds, report.back_off.reason
    cause = report.back_off.cause
    if cause is not None and cause not in UNREACHABLE:  # none: from a worker of a release that knew no causes
        rests = 1 if pages else host.rests + 1  # a host that gives pages between two rests is not pressed harder
        rest = back_off(rests) if asked is None else max(asked, back_off(rests - 1) if rests > 1 else 0.0)
        return rest, {**_WELL, "rests": rests, "failure": failure}
    # A host that was not asked for long since its last rest begins anew: nobody knows how it was meanwhile.
    anew = alive or not host.failures or now - host.next_due > GIVE_UP_SECONDS
    failures, since = (1, now) if anew else (host.failures + 1, host.failing_since or now)
    dead = failures >= MAX_HOST_FAILURES and now - since >= GIVE_UP_SECONDS
    return max(back_off(failures), asked or 0.0), {
        "failures": failures,
        "failure": failure,
        "failing_since": since,
        "given_up_at": now if dead else None,
    }


def given_up(now: float) -> sa.ColumnElement[bool]:
    """Whether a row of hosts is given up."""
    return hosts.c.given_up_at > now - GIVEN_UP_SECONDS


def try_again(tx: Connection, names: Any) -> None:
    """Let hosts that were given up be asked again. Idempotent; by primary key."""
    tx.execute(hosts.update().where(hosts.c.host.in_(names), hosts.c.given_up_at.is_not(None)).values(_WELL))


def robots_of(text: str | None) -> dict[str, RobotsFile]:
    """The robots.txt files in a `hosts.robots`, by origin. What cannot be read is as if it were not there: a worker
    then fetches it."""
    try:
        return {origin: RobotsFile.model_validate(file) for origin, file in json.loads(text or "{}").items()}
    except (ValueError, AttributeError):
        return {}


ROBOTS_FRESH = 12 * 3600.0
"""Seconds for which no worker fetches a robots.txt again that was answered; RFC 9309, section 2.4, allows 24 hours."""


def needs_robots(origins: Iterable[str], known: dict[str, RobotsFile], now: float) -> bool:
    """Whether a worker may fetch the robots.txt of one of `origins`, for `known` has no fresh answer."""
    for origin in origins:
        file = known.get(origin)
        if file is None or file.status == 0 or file.status >= 500 or now - file.fetched_at > ROBOTS_FRESH:
            return True
    return False


def blocked(tx: Connection) -> frozenset[str]:
    """All hosts that must not be asked. Index hosts_blocked."""
    return frozenset(tx.execute(sa.select(hosts.c.host).where(hosts.c.blocked_at.is_not(None))).scalars())
