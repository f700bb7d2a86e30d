"""What was found: new URLs are inserted, known ones may be wanted after all, or be nearer to a seed than was known."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import moves as counted
from crawler.frontier.ledger import Ledger
from crawler.frontier.moves import Moves
from crawler.frontier.schema import urls
from crawler.job import Job
from crawler.messages import Link

KEY = ("job_id", "host", "url")
PATH = ("depth", "hops", "nested", "sitemap", "seed", "found_on")
"""The columns that say on which path a URL was found."""
_KEPT_OUT = sa.and_(
    urls.c.state == "excluded",
    sa.or_(urls.c.reason == "depth", urls.c.reason.startswith("scope:"), urls.c.reason.startswith("trap:")),
)
"""What was never asked for, because the path on which it was found led out of the job's limits."""


def insert(ledger: Ledger, tx: Connection, job_id: int, links: Iterable[Link], moves: Moves, now: float) -> int:
    """Insert unknown links, noting them in `moves`. A known excluded URL reached by an allowed path becomes queued; a
    queued one takes the smaller depth. Returns rows inserted plus rows queued again.

    Idempotent: a second time everything is known. Rows are inserted, and locked, in the order of their key.
    """
    rows = {
        link.url: {
            "host": url_rules.host_of(link.url),
            "url": link.url,
            "state": "excluded" if link.excluded else "queued",
            "reason": link.excluded,
            **{name: getattr(link, name) for name in PATH},
        }
        for link in links
    }
    if not rows:
        return 0
    ordered = sorted(rows.values(), key=lambda row: (row["host"], row["url"]))
    inserted = (
        ledger.insert_rows(urls, ordered, job_id=job_id, discovered_at=now)
        .on_conflict_do_nothing()
        .returning(urls.c.host, urls.c.state)
    )
    new = 0
    for host, state in tx.execute(inserted):
        moves[job_id, host][state] += 1
        new += 1
    if new < len(ordered) and (wanted := [row for row in ordered if row["state"] == "queued"]):
        new += _bring_nearer(ledger, tx, job_id, wanted, moves)
    return new


def _bring_nearer(ledger: Ledger, tx: Connection, job_id: int, wanted: list[dict[str, Any]], moves: Moves) -> int:
    """Queue those of the `wanted` that had been kept out, and let those queued have the shorter path; returns how many
    were kept out. Finds rows by primary key, and locks them in its order before it changes them."""

    def given_of(rows: list[dict[str, Any]]) -> tuple[Any, sa.ColumnElement[bool]]:
        given = ledger.given([{**row, "job_id": job_id} for row in rows], *(urls.c[name] for name in (*KEY, *PATH)))
        return given, sa.and_(*(urls.c[name] == given.c[name] for name in KEY))

    given, here = given_of(wanted)
    nearer = sa.and_(urls.c.state == "queued", urls.c.depth > given.c.depth)
    known = tx.execute(
        sa.select(urls.c.host, urls.c.url, urls.c.state)
        .join(given, here)
        .where(sa.or_(_KEPT_OUT, nearer))
        .order_by(urls.c.host, urls.c.url)
        .with_for_update(of=urls)
    ).all()
    if not known:
        return 0
    changed = {(row.host, row.url) for row in known}
    given, here = given_of([row for row in wanted if (row["host"], row["url"]) in changed])
    tx.execute(
        urls.update().where(here).values({name: given.c[name] for name in PATH}).values(state="queued", reason=None)
    )
    kept_out = [row for row in known if row.state == "excluded"]
    for row in kept_out:
        moves[job_id, row.host].update(excluded=-1, queued=1)
    return len(kept_out)


def judge_again(ledger: Ledger, tx: Connection, job_id: int, job: Job, now: float) -> None:
    """Queue what another description of the job had kept out, and this one does not. Reads what was kept out in pages
    of 10,000 by primary key, all in the caller's transaction."""
    last = ("", "")
    while rows := tx.execute(_kept_out_after(job_id, last)).all():
        last = (rows[-1].host, rows[-1].url)
        wanted = [row._asdict() for row in rows if not job.refuses(row.url, row.found_on or row.url, row.depth)]
        moves = counted.none_yet()
        if wanted:
            _bring_nearer(ledger, tx, job_id, wanted, moves)
        counted.apply(ledger, tx, moves, now)


def _kept_out_after(job_id: int, last: tuple[str, str]) -> sa.Select[Any]:
    """The next URLs of a job that were kept out, after `last` (host, url) in the order of the primary key."""
    return (
        sa.select(*(urls.c[name] for name in ("host", "url", *PATH)))
        .where(urls.c.job_id == job_id, _KEPT_OUT, sa.tuple_(urls.c.host, urls.c.url) > sa.tuple_(*last))
        .order_by(urls.c.host, urls.c.url)
        .limit(10_000)
    )
