"""When a host may be asked again, for every job: its rest after a batch, its back-off, and when it is given up."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence, Set
from typing import Any, NamedTuple

import msgspec
import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier.ledger import Ledger
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
_READ = ("host", "next_due", "robots", *_WELL)


class Due(NamedTuple):
    """What becomes of a host's queues, of every job."""

    next_due: float
    dead: bool
    """Given up: `tidy` drops what is queued."""


def reported(ledger: Ledger, tx: Connection, reports: Sequence[Report], held: Set[str], now: float) -> dict[str, Due]:
    """Take in what reports say about their hosts; when each host is due again, for every job that wants it. `held`: the
    leases that were still in force.

    Locks the rows of hosts, by key. Idempotent but for the rest, which a report seen twice can make longer: failures
    are counted for a lease that is held, and so once.
    """
    names = sorted({report.host for report in reports})
    rows = ledger.run(tx, _locked, [{"host": name} for name in names])
    known: dict[str, dict[str, Any]] = {row.host: dict(zip(_READ, row, strict=True)) for row in rows}
    to_judge = set(held)
    for report in reports:
        host = known[report.host]
        rest, judged = _judged(report, host, now)
        if report.lease in to_judge:
            to_judge.discard(report.lease)
            host.update(judged)
        if report.robots:
            files = {**robots_of(host["robots"]), **report.robots}
            host["robots"] = msgspec.json.encode(files).decode()
        host["next_due"] = max(now + max(rest, report.delay), host["next_due"])
    _write(ledger, tx, {report.host for report in reports if report.robots}, known)
    return {name: Due(known[name]["next_due"], _is_given_up(known[name], now)) for name in names}


def _locked(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, hosts.c.host)
    of_names = (
        sa.select(*(hosts.c[name] for name in _READ)).join(given, given.c.host == hosts.c.host).order_by(hosts.c.host)
    )
    return of_names.with_for_update(of=hosts)


def _write(ledger: Ledger, tx: Connection, with_robots: Set[str], known: dict[str, dict[str, Any]]) -> None:
    """Write rows of hosts back; robots.txt files, which are large, only where they are new. By primary key."""
    for names, columns in ((known.keys() - with_robots, ()), (with_robots, ("robots",))):
        if names:
            written = ("next_due", *_WELL, *columns)
            rows = [{"host": name, **{column: known[name][column] for column in written}} for name in sorted(names)]
            ledger.run(tx, _set, rows, written)


def _set(ledger: Ledger, names: tuple[str, ...]) -> sa.Update:
    given = ledger.given(None, *(hosts.c[column] for column in ("host", *names)))
    return hosts.update().where(hosts.c.host == given.c.host).values({name: given.c[name] for name in names})


def rest(ledger: Ledger, tx: Connection, until: dict[str, float]) -> None:
    """Leave hosts alone until a time each, or as long as they rest anyway. Locks them, by key; idempotent."""
    rows = [{"host": host, "next_due": at} for host, at in sorted(until.items())]
    given = ledger.given(rows, hosts.c.host, hosts.c.next_due)
    locked = sa.select(hosts.c.host).where(hosts.c.host.in_(sorted(until))).order_by(hosts.c.host).with_for_update()
    tx.execute(locked)
    later = sa.and_(hosts.c.host == given.c.host, hosts.c.next_due < given.c.next_due)
    tx.execute(hosts.update().where(later).values(next_due=given.c.next_due))


def make_due(ledger: Ledger, tx: Connection, due: dict[str, float], now: float) -> None:
    """Let the hosts' queues, of every job, be looked at from a time each; those of hosts given up, by `tidy`. Index
    host_queues_host; moves.apply has locked those of the reports' own jobs."""
    if not due:
        return
    rows = [{"host": host, "next_due": at} for host, at in sorted(due.items())]
    given = ledger.given(rows, hosts.c.host, hosts.c.next_due)
    dead = sa.exists().where(hosts.c.host == given.c.host, given_up(now))
    give_up = sa.or_(host_queues.c.give_up, dead)
    new = {"next_due": given.c.next_due, "give_up": give_up}
    tx.execute(host_queues.update().where(host_queues.c.host == given.c.host).values(new))


def flag_unwanted(ledger: Ledger, tx: Connection, most: dict[tuple[int, str], int | None]) -> None:
    """Leave host queues to `tidy` that are blocked, or have given all the pages their job wants of a host and have
    others queued. `most`: that number, by job_id and host; None: no limit. By primary key; idempotent; moves.apply has
    locked the rows."""
    if not most:
        return
    rows = [{"job_id": job_id, "host": host, "most": pages} for (job_id, host), pages in sorted(most.items())]
    given = ledger.given(rows, host_queues.c.job_id, host_queues.c.host, sa.column("most", sa.BigInteger))
    here = sa.and_(host_queues.c.job_id == given.c.job_id, host_queues.c.host == given.c.host)
    full = host_queues.c.done + host_queues.c.again >= given.c.most
    new = host_queues.c.queued > host_queues.c.again
    is_blocked = sa.exists().where(hosts.c.host == given.c.host, hosts.c.blocked_at.is_not(None))
    tx.execute(host_queues.update().where(here, sa.or_(sa.and_(full, new), is_blocked)).values(give_up=True))


def _judged(report: Report, host: dict[str, Any], now: float) -> tuple[float, dict[str, Any]]:
    """What a report says about its host, a row of hosts: seconds of rest, and columns to write."""
    pages = any(page.status is not None for page in report.results)
    alive = pages or any(retry.cause == Cause.SERVER_ERROR for retry in report.retries)
    if report.back_off is None:
        # No answer, and nothing wrong (all unfetched): no evidence that the host works, so keep its failure count.
        return 0.0, dict(_WELL) if alive else {}
    asked, failure = report.back_off.seconds, report.back_off.reason
    cause = report.back_off.cause
    if cause is not None and cause not in UNREACHABLE:  # none: from a worker of a release that knew no causes
        rests = 1 if pages else host["rests"] + 1  # a host that gives pages between two rests is not pressed harder
        rest = back_off(rests) if asked is None else max(asked, back_off(rests - 1) if rests > 1 else 0.0)
        return rest, {**_WELL, "rests": rests, "failure": failure}
    # A host that was not asked for long since its last rest begins anew: nobody knows how it was meanwhile.
    anew = alive or not host["failures"] or now - host["next_due"] > BACK_OFF_MAX
    failures, since = (1, now) if anew else (host["failures"] + 1, host["failing_since"] or now)
    dead = failures >= MAX_HOST_FAILURES and now - since >= GIVE_UP_SECONDS
    return max(back_off(failures), asked or 0.0), {
        "failures": failures,
        "failure": failure,
        "failing_since": since,
        "given_up_at": now if dead else None,
    }


def given_up(now: float | sa.BindParameter[float]) -> sa.ColumnElement[bool]:
    """Whether a row of hosts is given up."""
    return hosts.c.given_up_at > now - GIVEN_UP_SECONDS


def _is_given_up(host: dict[str, Any], now: float) -> bool:
    """As given_up, of a row that has been read."""
    return host["given_up_at"] is not None and host["given_up_at"] > now - GIVEN_UP_SECONDS


def try_again(tx: Connection, names: Any) -> None:
    """Let hosts that were given up be asked again. Idempotent; by primary key, and index host_queues_host."""
    tx.execute(hosts.update().where(hosts.c.host.in_(names), hosts.c.given_up_at.is_not(None)).values(_WELL))
    tx.execute(host_queues.update().where(host_queues.c.host.in_(names), host_queues.c.give_up).values(give_up=False))


def robots_of(text: str | None) -> dict[str, RobotsFile]:
    """The robots.txt files in a `hosts.robots`, by origin. What cannot be read is as if it were not there: a worker
    then fetches it."""
    try:
        return _ROBOTS.decode(text or "{}")
    except (msgspec.MsgspecError, ValueError):
        return {}


_ROBOTS = msgspec.json.Decoder(dict[str, RobotsFile])

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
