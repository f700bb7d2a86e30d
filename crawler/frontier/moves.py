"""Changes of state and of the counts that follow them: the one place where `host_queues` and `job_counts` count.

Whoever changes the state of URLs notes it in a `Moves` and hands that to `apply` in the same transaction. `discovered`
is counted where rows are inserted and nowhere else, so that it can be compared with the sum of the states.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Mapping, Set
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import limits
from crawler.frontier import politeness
from crawler.frontier.ledger import NOW, Ledger
from crawler.frontier.schema import COUNTS, host_queues, hosts, job_counts, urls
from crawler.messages import Cause

Key = tuple[int, str]
"""A job_id and a host."""
KEY = ("job_id", "host")
Moves = dict[Key, Counter[str]]
"""Changes of the counts: by host queue, by what is counted (schema.COUNTS)."""

_BEFORE_CAUSES: dict[Cause, sa.ColumnElement[bool]] = {
    Cause.DEPTH: urls.c.reason == "depth",
    Cause.SCOPE: urls.c.reason.startswith("scope:"),
    Cause.TRAP: urls.c.reason.startswith("trap:"),
    Cause.MAX_PAGES: urls.c.reason == "max_pages reached",
    Cause.MAX_PAGES_PER_HOST: urls.c.reason == "max_pages_per_host reached",
    Cause.BLOCKED: urls.c.reason == "host blocked",
    Cause.CANCELLED: urls.c.reason == "job cancelled",
}
"""How a release that knew no causes wrote them."""


def caused(*causes: Cause) -> sa.ColumnElement[bool]:
    """Whether a URL is excluded by one of `causes`."""
    texts = (_BEFORE_CAUSES[cause] for cause in causes if cause in _BEFORE_CAUSES)
    by_text = sa.and_(urls.c.cause.is_(None), sa.or_(sa.false(), *texts))
    return sa.and_(urls.c.state == "excluded", sa.or_(urls.c.cause.in_(causes), by_text))


UNEXPANDED = sa.and_(urls.c.state == "done", urls.c.depth < urls.c.expanded)
"""Pages that were met on a shorter path and dropped from the queue before their links were followed from there."""


def none_yet() -> Moves:
    return defaultdict(Counter)


def apply(
    ledger: Ledger, tx: Connection, moves: Moves, now: float, due: Mapping[Key, politeness.Due] = MappingProxyType({})
) -> None:
    """Add the changes in `moves` to the counts, and make hosts known that have something to crawl. `due`: rows of
    host_queues that `lock` has locked, and when they are to be looked at.

    Locks rows of hosts, then of host_queues, then of job_counts, by key. Not idempotent: the transaction that changed
    the states calls it once for each change.
    """
    rows = [_row(key, counts) for key, counts in sorted(moves.items()) if any(counts.values())]
    unknown: frozenset[str] = frozenset()
    if to_crawl := [{"host": host} for host in sorted({row["host"] for row in rows if row["queued"] > 0})]:
        unknown = frozenset(ledger.run(tx, _make_known, to_crawl, ledger.caps.on, now=now).scalars())
    if due:
        settled = [{**_row(key, moves.get(key, Counter())), **due[key]._asdict()} for key in sorted(due)]
        ledger.run(tx, _settle, settled)
    if others := [row for row in rows if (row["job_id"], row["host"]) not in due]:
        patience = limits.LOOK_UP if ledger.caps.on else 0.0  # first it is looked up where they are (addresses.py)
        ledger.run(tx, _add, [{**row, "next_due": now + patience * (row["host"] in unknown)} for row in others])
    add_up(ledger, tx, rows)


def _row(key: Key, counts: Counter[str]) -> dict[str, Any]:
    return {"job_id": key[0], "host": key[1], **{name: counts[name] for name in COUNTS}}


def _make_known(ledger: Ledger, looked_up: bool) -> Any:
    more = {"look_up_at": NOW} if looked_up else {}
    return ledger.insert_unknown(hosts, ["host"], next_due=NOW, **more).returning(hosts.c.host)


def _settle(ledger: Ledger) -> sa.Update:
    of_due = (sa.column("next_due", sa.Float(53)), sa.column("dead", sa.Boolean))
    given = ledger.given(None, *(host_queues.c[name] for name in (*KEY, *COUNTS)), *of_due)
    return (
        host_queues.update()
        .where(*(host_queues.c[name] == given.c[name] for name in KEY))
        .values({name: host_queues.c[name] + given.c[name] for name in COUNTS})
        .values(next_due=given.c.next_due, give_up=sa.or_(host_queues.c.give_up, given.c.dead))
    )


def _add(ledger: Ledger) -> Any:
    statement = ledger.insert_given(host_queues, [*KEY, *COUNTS, "next_due"])
    changes: dict[str, Any] = {name: host_queues.c[name] + statement.excluded[name] for name in COUNTS}
    # Where only URLs that wait for their time were left (see lease.py), there is something to do at once.
    idle = sa.and_(host_queues.c.next_due == host_queues.c.next_wake, statement.excluded.queued > 0)
    changes["next_due"] = sa.case((idle, statement.excluded.next_due), else_=host_queues.c.next_due)
    return statement.on_conflict_do_update(index_elements=KEY, set_=changes)


def lock(ledger: Ledger, tx: Connection, moves: Moves, of_hosts: Set[str]) -> list[Key]:
    """Lock, in the order of their key, the rows of host_queues that `apply` will change, and all of `of_hosts`, in any
    job, which are returned: for a transaction that writes both. By primary key, and index host_queues_host."""
    keys = sorted(key for key, counts in moves.items() if any(counts.values()))
    rows: list[dict[str, Any]] = [{"job_id": job_id, "host": host} for job_id, host in keys if host not in of_hosts]
    rows += [{"job_id": None, "host": host} for host in sorted(of_hosts)]
    if not rows:
        return []
    locked = ledger.run(tx, _of_keys_and_hosts, rows).all()
    return [(row.job_id, row.host) for row in locked if row.host in of_hosts]


def _of_keys_and_hosts(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, *(host_queues.c[name] for name in KEY))
    either = sa.or_(given.c.job_id.is_(None), given.c.job_id == host_queues.c.job_id)
    key = [host_queues.c[name] for name in KEY]
    return (
        sa.select(*key)
        .select_from(given.join(host_queues, sa.and_(host_queues.c.host == given.c.host, either)))
        .order_by(*key)
        .with_for_update(of=host_queues)
    )


SLOTS = 16
"""Rows of job_counts for each job at most."""


def add_up(ledger: Ledger, tx: Connection, rows: list[dict[str, Any]]) -> None:
    """Add changes of host_queues (job_id, and any of COUNTS) to the jobs' counts, in this process's slot."""
    by_job: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        counts = by_job[row["job_id"]]
        for name in COUNTS:
            counts[name] += row.get(name, 0)
    if by_job:
        sums = [{"job_id": job_id, **by_job[job_id]} for job_id in sorted(by_job)]
        ledger.run(tx, _add_to_job, sums, of_process=os.getpid() % SLOTS)


def _add_to_job(ledger: Ledger) -> Any:
    statement = ledger.insert_given(job_counts, ["job_id", *COUNTS], slot=sa.bindparam("of_process", type_=sa.Integer))
    changes = {name: job_counts.c[name] + statement.excluded[name] for name in COUNTS}
    return statement.on_conflict_do_update(index_elements=["job_id", "slot"], set_=changes)


def queue_again(ledger: Ledger, tx: Connection, which: sa.ColumnElement[bool], state: str, now: float) -> int:
    """Queue what is in `state` among `which`, with all attempts before it; returns how many URLs that were.

    Idempotent, as what is queued is left alone. `which` names the URLs by primary key: a chunk of them, which the
    caller has locked in its order.
    """
    again = state == "done"
    queued = (
        urls.update()
        .where(which, urls.c.state == state)
        .values(
            state="queued", reason=None, cause=None, attempts=0, expiries=0, not_before=None, lease=None, was_done=again
        )
        .returning(urls.c.job_id, urls.c.host)
    )
    moves = none_yet()
    number = 0
    for job_id, host in tx.execute(queued):
        moves[job_id, host].update({state: -1, "queued": 1, "again": int(again)})
        number += 1
    apply(ledger, tx, moves, now)
    return number


def drop_queued(
    ledger: Ledger, tx: Connection, which: sa.ColumnElement[bool], state: Any, cause: Any, reason: Any, now: float
) -> int:
    """Finish what is queued among `which` unfetched; returns how many URLs that were. `state`, `cause` and `reason` are
    strings, or columns of what `which` joins. What has been a page before is a page again.

    Idempotent, and by primary key, as `queue_again`. `not_before` and `was_done` stay in the row, which tells the
    counts what it was.
    """
    dropped = (
        urls.update()
        .where(which, urls.c.state == "queued")
        .values(
            state=sa.case((urls.c.was_done, "done"), else_=state),
            reason=sa.case((urls.c.was_done, sa.null()), else_=reason),
            cause=sa.case((urls.c.was_done, sa.null()), else_=cause),
            # A page that was due for another visit has had it: the next one is as far away as ever.
            fetched_at=sa.case((urls.c.fetched_at.is_not(None), now)),
            lease=None,
        )
        .returning(urls.c.job_id, urls.c.host, urls.c.state, urls.c.was_done, urls.c.not_before)
    )
    moves = none_yet()
    number = 0
    for job_id, host, became, was_done, not_before in tx.execute(dropped):
        counts = moves[job_id, host]
        counts["queued"] -= 1
        counts[became] += 1
        counts["again"] -= bool(was_done)
        counts["waiting"] -= not_before is not None
        number += 1
    apply(ledger, tx, moves, now)
    return number


def totals(tx: Connection, job_id: int) -> dict[str, int]:
    """The sums of schema.COUNTS over a job's hosts. One statement, so one moment; reads the job's SLOTS rows."""
    row = tx.execute(_TOTALS, {"job": job_id}).one()
    return {name: int(getattr(row, name)) for name in COUNTS}


_TOTALS = sa.select(*(sa.func.coalesce(sa.func.sum(job_counts.c[name]), 0).label(name) for name in COUNTS)).where(
    job_counts.c.job_id == sa.bindparam("job")
)
