"""Changes of state and of the counts that follow them: the one place where `host_queues` counts.

Whoever changes the state of URLs notes it in a `Moves` and hands that to `apply` in the same transaction.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import STATES, host_queues, hosts, urls

Moves = dict[tuple[int, str], Counter[str]]
"""Changes of the counts: by (job_id, host), by state."""


def none_yet() -> Moves:
    return defaultdict(Counter)


def apply(ledger: Ledger, tx: Connection, moves: Moves, now: float) -> None:
    """Add the changes of state in `moves` to the counts, and make hosts known that have something to crawl.

    Locks rows of host_queues, then of hosts, by key. Not idempotent: the transaction that changed the states calls it
    once for each change.
    """
    rows: list[dict[str, Any]] = [
        {"job_id": job_id, "host": host, **{state: counts[state] for state in STATES}}
        for (job_id, host), counts in sorted(moves.items())
        if any(counts.values())
    ]
    if not rows:
        return
    statement = ledger.insert_rows(host_queues, rows, next_due=now)
    added = {state: host_queues.c[state] + statement.excluded[state] for state in STATES}
    tx.execute(statement.on_conflict_do_update(index_elements=["job_id", "host"], set_=added))
    to_crawl = [{"host": host} for host in sorted({row["host"] for row in rows if row["queued"] > 0})]
    if to_crawl:
        tx.execute(ledger.insert_rows(hosts, to_crawl, next_due=now).on_conflict_do_nothing())


def move(
    ledger: Ledger,
    tx: Connection,
    which: sa.ColumnElement[bool],
    old: str,
    new: str,
    reason: str | None,
    now: float,
    **columns: Any,
) -> int:
    """Bring the URLs among `which` from the state `old` into `new`, counts included; returns how many that were.

    Idempotent, as those in `new` are left alone. Locks the URLs as it finds them; `which` should name the job or the
    host, by which the primary key finds them.
    """
    moved = (
        urls.update()
        .where(which, urls.c.state == old)
        .values(state=new, reason=reason, **columns)
        .returning(urls.c.job_id, urls.c.host)
    )
    moves = none_yet()
    number = 0
    for job_id, host in tx.execute(moved):
        moves[job_id, host].update({old: -1, new: 1})
        number += 1
    apply(ledger, tx, moves, now)
    return number


def drop_queued(
    ledger: Ledger, tx: Connection, which: sa.ColumnElement[bool], state: str, reason: str, now: float
) -> int:
    """Finish what is queued among `which` unfetched; returns how many URLs that were. As `move`."""
    # A page that was due for another visit has had it: the next one is as far away as ever.
    looked_at = sa.case((urls.c.fetched_at.is_not(None), now))
    return move(ledger, tx, which, "queued", state, reason, now, fetched_at=looked_at)


def counts(tx: Connection, job_id: int) -> dict[str, int]:
    """How many URLs of a job are in each state, and in all ("discovered"). Reads host_queues by the job's key."""
    sums = [sa.func.coalesce(sa.func.sum(host_queues.c[state]), 0).label(state) for state in STATES]
    row = tx.execute(sa.select(*sums).where(host_queues.c.job_id == job_id)).one()
    counted = {state: int(getattr(row, state)) for state in STATES}
    return {"discovered": sum(counted.values()), **counted}
