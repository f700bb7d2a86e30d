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

from collections.abc import Iterable, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import moves as counted
from crawler.frontier.ledger import NOW, Ledger
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


class Met(NamedTuple):
    """Links of one job, each once, that may change the ledger."""

    job_id: int
    job: Job
    rows: list[Row]
    """Rows of urls, in the order of their key."""


def meet(ledger: Ledger, tx: Connection, job_id: int, job: Job, links: Sequence[Link]) -> Met:
    """Those of `links` that are unknown, or may change what is known. By primary key; locks nothing."""
    return chosen(job_id, job, of_interest(ledger, tx, job_id, job, links))


def of_interest(ledger: Ledger, tx: Connection, job_id: int, job: Job, links: Sequence[Link]) -> list[Link]:
    """Those of `links` that are to URLs which are unknown, or of which any of them may change what is known. Most are
    neither: pages link to the same pages. By primary key; locks nothing."""
    looked_for = [
        {"job_id": job_id, "host": key[0], "url": key[1], "depth": None if link.excluded else link.depth}
        for key, link in sorted(_best(links).items(), key=itemgetter(0))
    ]
    if not looked_for:
        return []
    found = {row.url for row in ledger.run(tx, _of_interest, looked_for, job.depth is not None)}
    return [link for link in links if link.url in found]


def chosen(job_id: int, job: Job, links: Iterable[Link]) -> Met:
    """Of `links`, those that are of interest, the one that counts for each URL."""
    return Met(job_id, job, [_row(job, key, link) for key, link in sorted(_best(links).items(), key=itemgetter(0))])


def _best(links: Iterable[Link]) -> dict[tuple[str, str], Link]:
    """By host and URL, the link that counts: of several the allowed one, and of those the one on the shortest path."""
    best: dict[str, Link] = {}
    for link in links:
        other = best.get(link.url)
        if other is None or (bool(link.excluded), link.depth) < (bool(other.excluded), other.depth):
            best[link.url] = link
    try:
        return {(url_rules.host_of(url), url): link for url, link in best.items()}
    except IndexError:  # no URL at all
        return {(url_rules.host_of(url), url): link for url, link in best.items() if url.count("/") > 2}


def _row(job: Job, key: tuple[str, str], link: Link) -> Row:
    return {
        "host": key[0],
        "url": key[1],
        "state": "excluded" if link.excluded else "queued",
        "reason": link.excluded,
        "cause": link.cause,
        "turn": job.turn(link.url),
        **{name: getattr(link, name) for name in PATH},
    }


def _of_interest(ledger: Ledger, limited: bool) -> sa.Select[Any]:
    given = ledger.given(None, *(urls.c[name] for name in (*KEY, "depth")))
    nearer = urls.c.depth > given.c.depth
    if not limited:
        # What is leased may be back in the queue by the time it is looked at again.
        nearer = sa.and_(nearer, urls.c.state.in_(("queued", "leased")))
    wanted = sa.and_(given.c.depth.is_not(None), WAS_KEPT_OUT)
    same = sa.and_(*(urls.c[name] == given.c[name] for name in KEY))
    return (
        sa.select(given.c.host, given.c.url)
        .select_from(given.outerjoin(urls, same))
        .where(sa.or_(urls.c.url.is_(None), nearer, wanted))
    )


def insert(ledger: Ledger, tx: Connection, met: Met, moves: Moves, now: float) -> int:
    """Insert unknown links, noting them in `moves`. A known excluded URL reached by an allowed path becomes queued; a
    queued one takes the smaller depth; one that was fetched from further away, in a job with `depth`, becomes queued.
    Returns rows inserted plus rows queued again.

    Idempotent: a second time everything is known. Rows are inserted, and locked, in the order of their key.
    """
    if not met.rows:
        return 0
    inserted = ledger.run(tx, _insert, met.rows, job=met.job_id, now=now).all()
    for row in inserted:
        moves[met.job_id, row.host].update({row.state: 1, "discovered": 1})
    new = len(inserted)
    known = {(row["host"], row["url"]) for row in met.rows} - {(row.host, row.url) for row in inserted}
    wanted = [row for row in met.rows if row["state"] == "queued" and (row["host"], row["url"]) in known]
    return new + (bring_nearer(ledger, tx, met.job_id, met.job, wanted, moves) if wanted else 0)


def _insert(ledger: Ledger) -> Any:
    names = ("host", "url", "state", "reason", "cause", "turn", *PATH)
    job_id = sa.bindparam("job", type_=sa.Integer)
    return ledger.insert_unknown(urls, names, job_id=job_id, discovered_at=NOW).returning(
        urls.c.host, urls.c.url, urls.c.state
    )


def lock(ledger: Ledger, tx: Connection, named: Iterable[Row], met: Iterable[Met]) -> Sequence[Any]:
    """Lock, in the order of their key, the URLs that a transaction is about to write: those `named` (each with job_id,
    host, url and lease) whose last lease is still that one, which are returned; and those that `met` links may change.
    Without it two recorders whose pages link to each other's would wait for one another: PostgreSQL ends one of them
    after a second. By primary key."""
    rows = {(row["job_id"], row["host"], row["url"]): {**row, "met": False} for row in named}
    for of_job in met if ledger.postgresql else ():
        for row in of_job.rows:
            key = (of_job.job_id, row["host"], row["url"])
            rows.setdefault(key, {**dict(zip(KEY, key, strict=True)), "lease": None})["met"] = True
    if not rows:
        return []
    return [row for row in ledger.run(tx, _locked, [rows[key] for key in sorted(rows)]) if row.is_named]


def _locked(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, *(urls.c[name] for name in (*KEY, "lease")), sa.column("met", sa.Boolean))
    columns = ("job_id", "host", "url", "lease", "state", "attempts", "depth", "leased_depth", "was_done")
    still = urls.c.lease == given.c.lease
    return (
        sa.select(*(urls.c[name] for name in columns), still.label("is_named"))
        .select_from(urls.join(given, sa.and_(*(urls.c[name] == given.c[name] for name in KEY))))
        .where(sa.or_(still, given.c.met))
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


def _met(ledger: Ledger, tx: Connection, job_id: int, job: Job, wanted: list[Row]) -> Sequence[Any]:
    """Those of the `wanted` URLs that were kept out, or known on a longer path only. By primary key; locks them in its
    order. Without a limit to depth only what is queued can still profit from a shorter path."""
    rows = [{"job_id": job_id, **{name: row[name] for name in ("host", "url", "depth")}} for row in wanted]
    return ledger.run(tx, _known, rows, job.depth is not None).all()


def _known(ledger: Ledger, limited: bool) -> sa.Select[Any]:
    given = ledger.given(None, *(urls.c[name] for name in (*KEY, "depth")))
    nearer = urls.c.depth > given.c.depth
    if not limited:
        nearer = sa.and_(nearer, urls.c.state == "queued")
    return (
        sa.select(urls.c.host, urls.c.url, urls.c.state, urls.c.cause, nearer.label("nearer"))
        .join(given, sa.and_(*(urls.c[name] == given.c[name] for name in KEY)))
        .where(sa.or_(WAS_KEPT_OUT, nearer))
        .order_by(urls.c.host, urls.c.url)
        .with_for_update(of=urls)
    )


def _take_path(ledger: Ledger, tx: Connection, rows: list[dict[str, Any]], values: dict[str, Any]) -> None:
    """Write the path of `rows`, and `values`. By primary key; _met has locked them.

    Without the validators of its last visit (etag, last_modified) a URL is fetched unconditionally: "not modified"
    would bring no links.
    """
    given = ledger.given(rows, *(urls.c[name] for name in (*KEY, *PATH)))
    here = sa.and_(*(urls.c[name] == given.c[name] for name in KEY))
    tx.execute(urls.update().where(here).values({name: given.c[name] for name in PATH}).values(values))
