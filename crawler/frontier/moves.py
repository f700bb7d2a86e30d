"""Changes of state and of the counts that follow them: the one place where `host_queues` and `job_counts` count.

Whoever changes the state of URLs notes it in a `Moves` and hands that to `apply` in the same transaction. `discovered`
is counted where rows are inserted and nowhere else, so that it can be compared with the sum of the states.
"""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from collections.abc import Set
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import COUNTS, host_queues, hosts, job_counts, urls
from crawler.messages import Cause

Moves = dict[tuple[int, str], Counter[str]]
"""Changes of the counts: by (job_id, host), by what is counted (schema.COUNTS)."""

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
    by_text = sa.and_(urls.c.cause.is_(None), sa.or_(*texts))
    return sa.and_(urls.c.state == "excluded", sa.or_(urls.c.cause.in_(causes), by_text))


UNEXPANDED = sa.and_(urls.c.state == "done", urls.c.depth < urls.c.expanded)
"""Pages that were met on a shorter path and dropped from the queue before their links were followed from there."""


def none_yet() -> Moves:
    return defaultdict(Counter)


def apply(ledger: Ledger, tx: Connection, moves: Moves, now: float) -> None:
    """Add the changes in `moves` to the counts, and make hosts known that have something to crawl.

    Locks rows of hosts, then of host_queues, then of job_counts, by key. Not idempotent: the transaction that changed
    the states calls it once for each change.
    """
    rows: list[dict[str, Any]] = [
        {"job_id": job_id, "host": host, **{name: counts[name] for name in COUNTS}}
        for (job_id, host), counts in sorted(moves.items())
        if any(counts.values())
    ]
    if not rows:
        return
    to_crawl = [{"host": host} for host in sorted({row["host"] for row in rows if row["queued"] > 0})]
    if to_crawl:
        tx.execute(ledger.insert_unknown(hosts, to_crawl, next_due=now))
    statement = ledger.insert_rows(host_queues, rows, next_due=now)
    changes: dict[str, Any] = {name: host_queues.c[name] + statement.excluded[name] for name in COUNTS}
    # Where only URLs that wait for their time were left (see lease.py), there is something to do at once.
    idle = sa.and_(host_queues.c.next_due == host_queues.c.next_wake, statement.excluded.queued > 0)
    changes["next_due"] = sa.case((idle, statement.excluded.next_due), else_=host_queues.c.next_due)
    tx.execute(statement.on_conflict_do_update(index_elements=["job_id", "host"], set_=changes))
    add_up(ledger, tx, rows)


def lock(ledger: Ledger, tx: Connection, moves: Moves, of_hosts: Set[str]) -> None:
    """Lock, in the order of their key, the rows of host_queues that `apply` will change, and all of `of_hosts`, in any
    job: for a transaction that writes both. By primary key, and index host_queues_host."""
    if not ledger.postgresql:
        return
    keys = sorted(key for key, counts in moves.items() if any(counts.values()))
    rows: list[dict[str, Any]] = [{"job_id": job_id, "host": host} for job_id, host in keys]
    rows += [{"job_id": None, "host": host} for host in sorted(of_hosts)]
    if not rows:
        return
    given = ledger.given(rows, host_queues.c.job_id, host_queues.c.host)
    either = sa.or_(given.c.job_id.is_(None), given.c.job_id == host_queues.c.job_id)
    here = sa.exists().where(given.c.host == host_queues.c.host, either)
    names = sorted({row["host"] for row in rows})
    tx.execute(
        sa.select(sa.literal(1))
        .select_from(host_queues)
        .where(host_queues.c.host.in_(names), here)
        .order_by(host_queues.c.job_id, host_queues.c.host)
        .with_for_update()
    )


SLOTS = 16
"""Rows of job_counts for each job at most."""


def add_up(ledger: Ledger, tx: Connection, rows: list[dict[str, Any]]) -> None:
    """Add changes of host_queues (job_id, and any of COUNTS) to the jobs' counts, in this process's slot."""
    if not rows:
        return
    by_job: dict[int, Counter[str]] = defaultdict(Counter)
    for row in rows:
        by_job[row["job_id"]].update({name: row.get(name, 0) for name in COUNTS})
    sums = [{"job_id": job_id, **{name: counts[name] for name in COUNTS}} for job_id, counts in sorted(by_job.items())]
    statement = ledger.insert_rows(job_counts, sums, slot=os.getpid() % SLOTS)
    changes = {name: job_counts.c[name] + statement.excluded[name] for name in COUNTS}
    tx.execute(statement.on_conflict_do_update(index_elements=["job_id", "slot"], set_=changes))


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
    sums = [sa.func.coalesce(sa.func.sum(job_counts.c[name]), 0).label(name) for name in COUNTS]
    row = tx.execute(sa.select(*sums).where(job_counts.c.job_id == job_id)).one()
    return {name: int(getattr(row, name)) for name in COUNTS}
