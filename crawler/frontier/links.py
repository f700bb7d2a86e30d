"""What was found: unknown URLs are inserted; known ones may be wanted after all, or be nearer to a seed than was known.

Depth is exact without waiting for levels: a page that was fetched, and is met later on a shorter path, is queued once
more and fetched again, unconditionally, so that its links are followed from there.

Keeping every page's links instead would save that request, and cost storage for every page of every job. Measured: on
16 random graphs of 12 hosts (one dead, the others of four speeds; tests/unit/frontier/depth_promises.py) 0 to 5 % of
the pages were fetched twice on 14 of them, 14 and 39 % on two of 20 links a page at depth 6. A page of 51,099 in five
documentation packages has 27 distinct links (mean of 1,500 chosen at random; median 10): 2,957 bytes of URLs, five
times what the ledger keeps of a page otherwise. Without `depth` nothing is fetched twice, so most jobs would pay for
nothing.
"""

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
from crawler.messages import Cause, Link

Row = dict[str, Any]
KEY = ("job_id", "host", "url")
PATH = ("depth", "hops", "nested", "sitemap", "seed", "found_on")
"""The columns that say on which path a URL was found."""
FOLLOWED = (Cause.REDIRECT, Cause.SITEMAP)
"""Causes of URLs that are excluded as no pages, and whose links were followed all the same."""
KEPT_OUT = (Cause.DEPTH, Cause.SCOPE, Cause.TRAP)
"""Causes of URLs that were never asked for, because the path on which they were found led out of the job's limits."""
WAS_KEPT_OUT = counted.caused(*KEPT_OUT)


def insert(
    ledger: Ledger, tx: Connection, job_id: int, job: Job, links: Iterable[Link], moves: Moves, now: float
) -> int:
    """Insert unknown links, noting them in `moves`. A known excluded URL reached by an allowed path becomes queued; a
    queued one takes the smaller depth; one that was fetched from further away, in a job with `depth`, becomes queued.
    Returns rows inserted plus rows queued again.

    Idempotent: a second time everything is known. Rows are inserted, and locked, in the order of their key.
    """
    best: dict[str, Link] = {}
    for link in links:
        other = best.get(link.url)
        # Of several that lead to one URL the allowed one counts, and of those the shortest path.
        if other is None or (bool(link.excluded), link.depth) < (bool(other.excluded), other.depth):
            best[link.url] = link
    if not best:
        return 0
    rows = [
        {
            "host": url_rules.host_of(link.url),
            "url": link.url,
            "state": "excluded" if link.excluded else "queued",
            "reason": link.excluded,
            "cause": link.cause,
            "turn": job.turn(link.url),
            **{name: getattr(link, name) for name in PATH},
        }
        for link in best.values()
    ]
    ordered = sorted(rows, key=lambda row: (row["host"], row["url"]))
    inserted = ledger.insert_unknown(urls, ordered, job_id=job_id, discovered_at=now).returning(
        urls.c.host, urls.c.state
    )
    new = 0
    for host, state in tx.execute(inserted):
        moves[job_id, host].update({state: 1, "discovered": 1})
        new += 1
    if new < len(ordered) and (wanted := [row for row in ordered if row["state"] == "queued"]):
        new += bring_nearer(ledger, tx, job_id, job, wanted, moves)
    return new


def lock(ledger: Ledger, tx: Connection, named: Iterable[Row], met: Iterable[tuple[int, Job, Link]]) -> None:
    """Lock, in the order of their key, the URLs that a transaction is about to write: those `named` (each with job_id,
    host, url and lease, where the lease is still theirs), and those that `met` links may bring nearer. Without it two
    recorders whose pages link to each other's would wait for one another: PostgreSQL ends one of them after a second.
    By primary key."""
    if not ledger.postgresql:
        return
    rows = {(row["job_id"], row["host"], row["url"]): {**row, "depth": None, "limited": False} for row in named}
    for job_id, job, link in met:
        key = (job_id, url_rules.host_of(link.url), link.url)
        row = rows.setdefault(key, {**dict(zip(KEY, key, strict=True)), "lease": None, "depth": None})
        row["limited"] = job.depth is not None
        if not link.excluded and (row["depth"] is None or link.depth < row["depth"]):
            row["depth"] = link.depth
    if not rows:
        return
    columns = (urls.c[name] for name in (*KEY, "lease", "depth"))
    given = ledger.given([row for _, row in sorted(rows.items())], *columns, sa.column("limited", sa.Boolean))
    nearer = sa.and_(urls.c.depth > given.c.depth, sa.or_(given.c.limited, urls.c.state == "queued"))
    wanted = sa.and_(given.c.depth.is_not(None), WAS_KEPT_OUT)
    tx.execute(
        sa.select(sa.literal(1))
        .select_from(urls.join(given, sa.and_(*(urls.c[name] == given.c[name] for name in KEY))))
        .where(sa.or_(urls.c.lease == given.c.lease, nearer, wanted))
        .order_by(*(urls.c[name] for name in KEY))
        .with_for_update(of=urls)
    )


def bring_nearer(
    ledger: Ledger, tx: Connection, job_id: int, job: Job, wanted: list[dict[str, Any]], moves: Moves
) -> int:
    """Give known URLs the shorter path of `wanted`, and queue those that must be fetched; returns how many that are."""
    again, moved = [], []
    for row in _met(ledger, tx, job_id, job, wanted):
        counts = moves[job_id, row.host]
        # What is excluded and not nearer was kept out; what is both may have been, and is then wanted as well.
        excluded = row.state == "excluded"
        kept_out = excluded and (not row.nearer or row.cause is None or row.cause in KEPT_OUT)
        if kept_out or row.state == "done" or (excluded and row.cause in FOLLOWED):
            again.append((row.host, row.url))
            counts.update({row.state: -1, "queued": 1, "again": int(row.state == "done")})
        else:
            moved.append((row.host, row.url))
    by_key = {(row["host"], row["url"]): {**row, "job_id": job_id} for row in wanted}
    afresh: dict[str, Any] = {"etag": None, "last_modified": None} if job.depth is not None else {}
    if again:
        queued = {"state": "queued", "reason": None, "cause": None, "attempts": 0, "not_before": None, "lease": None}
        was_done = {"was_done": urls.c.state == "done"}
        _take_path(ledger, tx, [by_key[key] for key in again], {**queued, **was_done, **afresh})
    if moved:
        _take_path(ledger, tx, [by_key[key] for key in moved], afresh)
    return len(again)


def _met(ledger: Ledger, tx: Connection, job_id: int, job: Job, wanted: list[dict[str, Any]]) -> list[Any]:
    """Those of the `wanted` URLs that were kept out, or known on a longer path only. By primary key; locks them in its
    order. Without a limit to depth only what is queued can still profit from a shorter path."""
    given = ledger.given(
        [{"job_id": job_id, **{name: row[name] for name in ("host", "url", "depth")}} for row in wanted],
        *(urls.c[name] for name in (*KEY, "depth")),
    )
    nearer = urls.c.depth > given.c.depth
    if job.depth is None:
        nearer = sa.and_(nearer, urls.c.state == "queued")
    return list(
        tx.execute(
            sa.select(urls.c.host, urls.c.url, urls.c.state, urls.c.cause, nearer.label("nearer"))
            .join(given, sa.and_(*(urls.c[name] == given.c[name] for name in KEY)))
            .where(sa.or_(WAS_KEPT_OUT, nearer))
            .order_by(urls.c.host, urls.c.url)
            .with_for_update(of=urls)
        ).all()
    )


def _take_path(ledger: Ledger, tx: Connection, rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    """Write the path of `rows`, and `values`. By primary key; _met has locked them.

    Without the validators of its last visit (etag, last_modified) a URL is fetched unconditionally: "not modified"
    would bring no links.
    """
    given = ledger.given(rows, *(urls.c[name] for name in (*KEY, *PATH)))
    here = sa.and_(*(urls.c[name] == given.c[name] for name in KEY))
    tx.execute(urls.update().where(here).values({name: given.c[name] for name in PATH}).values(values))
