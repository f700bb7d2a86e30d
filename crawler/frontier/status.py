"""Status: what a person asks of the ledger. Snapshots of the jobs, explain a URL, audit a host, a job's URLs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import moves, request_log, traps
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import (
    SHOWN,
    STATES,
    WAITING,
    budgets,
    host_queues,
    hosts,
    jobs,
    leases,
    progress,
    requests,
    seedings,
    urls,
    workers,
)
from crawler.job import Job


class UnknownError(LookupError):
    """No such job, host or URL in the ledger; the message says which and what there is."""


SEEDINGS = 20
"""Seedings of a job that a snapshot names: the newest."""
CLOSED = 20
"""Hosts whose closed sections a snapshot names."""

RATE_SECONDS = 60.0
"""Seconds of running over which a rate is taken."""


def snapshots(
    ledger: Ledger, now: float, *, finished_since: float = 0.0, sites: int = 50, recount: bool = False
) -> list[dict[str, Any]]:
    """A snapshot of each job that is not finished, or finished after `finished_since`: its counts, pages/s over the
    last minute, its `sites` largest hosts, its workers and its newest seedings. All of them of one moment.

    "counts" are those of the job, and hold "discovered", which is counted where URLs are inserted, beside the states,
    which must be its sum. `recount` adds what must be equal to them: "by_host", the sums of the counts of its hosts,
    and "recounted", the same counted from the URLs one by one. "seedings" says of each whether all of it has arrived;
    "waiting", how many queued URLs wait for another attempt; "closed", which sections are traps (on CLOSED hosts at
    most); "budgets", how many pages each prefix of max_pages_per_prefix has given, and may give; "broken", why the
    job's row cannot be read.
    """
    with ledger.snapshot() as tx:
        chosen = tx.execute(
            sa.select(jobs)
            .where(jobs.c.state != "deleted")
            .where(sa.or_(jobs.c.finished_at.is_(None), jobs.c.finished_at >= finished_since))
            .order_by(jobs.c.job_id)
        ).all()
        made = [_snapshot(tx, row, now, sites) for row in chosen]
        if recount:
            for row, snapshot in zip(chosen, made, strict=True):
                snapshot["by_host"] = _by_host(tx, row.job_id)
                snapshot["recounted"] = _recounted(tx, row.job_id)
        return made


def _snapshot(tx: Connection, row: Any, now: float, sites: int) -> dict[str, Any]:
    totals = moves.totals(tx, row.job_id)
    counts = {name: totals[name] for name in ("discovered", *STATES)}
    waiting = totals["waiting"]
    return {
        "job": row.name,
        "state": "broken" if row.broken else row.state,
        "broken": row.broken,
        "at": now,
        "created_at": row.created_at,
        "finished_at": row.finished_at,
        "counts": counts,
        "waiting": waiting,
        "next_attempt_at": _first_wake(tx, row.job_id) if waiting else None,
        "rate": _rate(tx, row.job_id, row.finished_at or now, counts["done"]),
        "seedings": _seedings(tx, row.job_id),
        "closed": [
            {"host": host, "section": section, "reason": reason}
            for host, section, reason in (traps.of_job(tx, row.job_id, CLOSED) if row.trapped else ())
        ],
        "budgets": _budgets(tx, row),
        "sites": [
            {"host": site.host, **{name: getattr(site, name) for name in ("discovered", *STATES)}}
            for site in _largest(tx, row.job_id, sites)
        ],
        "workers": [
            {
                "worker": member.worker,
                "pages": member.pages,
                "rate": round(member.pages / max(member.last_at - row.created_at, 1e-3), 1),
            }
            for member in tx.execute(
                sa.select(workers).where(workers.c.job_id == row.job_id).order_by(workers.c.worker)
            )
        ],
    }


def _budgets(tx: Connection, row: Any) -> list[dict[str, Any]]:
    """What is used of a job's budgets of prefixes. By the job's part of the primary key, if it has such budgets."""
    try:
        most = job_of(row.spec, row.prefixes).max_pages_per_prefix
    except UnreadableJobError:
        return []
    if not most:
        return []
    chosen = sa.select(budgets.c.prefix, budgets.c.pages).where(budgets.c.job_id == row.job_id)
    pages = {found.prefix: found.pages for found in tx.execute(chosen)}
    return [{"prefix": prefix, "pages": pages.get(prefix, 0), "most": number} for prefix, number in most.items()]


def _largest(tx: Connection, job_id: int, number: int) -> list[Any]:
    """A job's host queues with the most pages. Index host_queues_largest, from which it reads no more than it shows."""
    return list(
        tx.execute(
            sa.select(host_queues)
            .where(host_queues.c.job_id == job_id, SHOWN)
            .order_by(host_queues.c.done.desc(), host_queues.c.host)
            .limit(number)
        ).all()
    )


def _first_wake(tx: Connection, job_id: int) -> float | None:
    """A time before which none of a job's waiting URLs is due. The first entry of index host_queues_waiting."""
    here = sa.and_(host_queues.c.job_id == job_id, WAITING)
    first: float | None = tx.execute(sa.select(sa.func.min(host_queues.c.next_wake)).where(here)).scalar_one()
    return first


def _seedings(tx: Connection, job_id: int) -> dict[str, bool]:
    """The newest seedings of a job, by id, the newest first: whether all pieces have arrived."""
    rows = tx.execute(
        sa.select(seedings.c.seeding, sa.func.count(), sa.func.max(seedings.c.chunks))
        .where(seedings.c.job_id == job_id)
        .group_by(seedings.c.seeding)
        .order_by(sa.func.max(seedings.c.arrived_at).desc(), seedings.c.seeding)
        .limit(SEEDINGS)
    )
    return {seeding: arrived == pieces for seeding, arrived, pieces in rows}


def sample(ledger: Ledger, now: float) -> None:
    """Note how far each running job is, for the rates; forget what is older than an hour."""
    with ledger.transaction() as tx:
        running = sa.and_(jobs.c.state == "running", jobs.c.finished_at.is_(None))
        for (job_id,) in tx.execute(sa.select(jobs.c.job_id).where(running)).all():
            note_progress(ledger, tx, job_id, moves.totals(tx, job_id)["done"], now)
            tx.execute(progress.delete().where(progress.c.job_id == job_id, progress.c.at < now - 3600))


def note_progress(ledger: Ledger, tx: Connection, job_id: int, done: int, now: float) -> None:
    """Keep how many pages a job had at this moment. Idempotent by primary key."""
    tx.execute(ledger.insert(progress).values(job_id=job_id, at=now, done=done).on_conflict_do_nothing())


def _rate(tx: Connection, job_id: int, now: float, done: int) -> float:
    """Pages per second over the last minute of running."""
    first = tx.execute(
        sa.select(progress.c.at, progress.c.done)
        .where(progress.c.job_id == job_id, progress.c.at > now - RATE_SECONDS)
        .order_by(progress.c.at)
        .limit(1)
    ).first()
    return round((done - first.done) / (now - first.at), 1) if first and now > first.at else 0.0


def _by_host(tx: Connection, job_id: int) -> dict[str, int]:
    """Sums of the counts of a job's hosts. Reads all of them, by the job's part of the primary key."""
    names = ("discovered", *STATES)
    sums = (sa.func.coalesce(sa.func.sum(host_queues.c[name]), 0) for name in names)
    row = tx.execute(sa.select(*sums).where(host_queues.c.job_id == job_id)).one()
    return {name: int(number) for name, number in zip(names, row, strict=True)}


def _recounted(tx: Connection, job_id: int) -> dict[str, int]:
    """Counts every row of the job: those in a state that does not exist are in "discovered" alone. A URL that is leased
    under no lease, and so would never come back, is in none of the states."""
    held = sa.exists().where(leases.c.lease == urls.c.lease)
    astray = sa.and_(urls.c.state == "leased", sa.not_(held))
    rows = tx.execute(
        sa.select(sa.case((astray, "astray"), else_=urls.c.state).label("counted_as"), sa.func.count())
        .where(urls.c.job_id == job_id)
        .group_by("counted_as")
    )
    found: dict[str, int] = {row[0]: row[1] for row in rows}
    return {"discovered": sum(found.values()), **{state: found.get(state, 0) for state in STATES}}


def explain(ledger: Ledger, url: str) -> list[dict[str, Any]]:
    """All that is known of `url` (normalised), once for each job that saw it: its row, every request made for it, and
    when its host is due."""
    host = url_rules.host_of(url)
    with ledger.transaction() as tx:
        rows = tx.execute(
            sa.select(urls, jobs.c.name.label("job"), jobs.c.state.label("job_state"), host_queues.c.next_due)
            .join(jobs, jobs.c.job_id == urls.c.job_id)
            .join(host_queues, sa.and_(host_queues.c.job_id == urls.c.job_id, host_queues.c.host == urls.c.host))
            .where(urls.c.host == host, urls.c.url == url)
            .order_by(jobs.c.job_id)
        ).mappings()
        found = [dict(row) for row in rows]
        if not found:
            raise UnknownError(f"{url}: no job has seen this URL. Is it spelled as on the page that links to it?")
        for row in found:
            same = request_log.same_url(ledger.engine, url)
            asked = sa.and_(requests.c.host == host, same, requests.c.job_id == row["job_id"])
            row["requests"] = [
                dict(request)
                for request in tx.execute(sa.select(requests).where(asked).order_by(requests.c.at)).mappings()
            ]
        return found


def audit(ledger: Ledger, host: str) -> dict[str, Any]:
    """Every request made to `host`, oldest first, streamed as "requests", after what is known of the host."""
    host = host_named(host)
    with ledger.transaction() as tx:
        known = tx.execute(sa.select(hosts).where(hosts.c.host == host)).mappings().first()
        if known is None:
            raise UnknownError(f"{host}: never asked anything. A host is written as in its URLs: name, or name:port.")
    return {**known, "requests": _requests(ledger, host)}


def _requests(ledger: Ledger, host: str) -> Iterator[dict[str, Any]]:
    """Each with "gap": the seconds of rest that the host had before it."""
    rested_from: float | None = None
    with ledger.engine.connect().execution_options(yield_per=1000) as connection:
        asked = sa.select(requests).where(requests.c.host == host).order_by(requests.c.at)
        for row in connection.execute(asked).mappings():
            gap = None if rested_from is None else row["at"] - rested_from
            rested_from = row["at"] + row["seconds"]
            yield {**row, "gap": gap}


_INTERNAL = ("job_id", "lease", "was_done", "leased_depth", "expanded")


def pages(ledger: Ledger, job: str, where: Sequence[sa.ColumnElement[bool]] = ()) -> Iterator[dict[str, Any]]:
    """Every URL of `job` that meets all of `where`, with all that is known of it, streamed in no special order."""
    with ledger.engine.connect().execution_options(yield_per=1000) as connection:
        chosen = sa.select(urls).where(urls.c.job_id == job_id_of(connection, job), *where)
        for row in connection.execute(chosen).mappings():
            yield {key: value for key, value in row.items() if key not in _INTERNAL}


def job_named(ledger: Ledger, name: str) -> Job:
    """The job as last described. Raises UnknownError, UnreadableJobError."""
    with ledger.transaction() as tx:
        here = jobs.c.job_id == job_id_of(tx, name)
        spec, prefixes = tx.execute(sa.select(jobs.c.spec, jobs.c.prefixes).where(here)).one()
    return job_of(spec, prefixes)


def host_named(given: str) -> str:
    """A host as URLs have it, of what a person wrote: a host or a URL. Raises urls.InvalidURLError."""
    return url_rules.host_of(url_rules.normalise(given if "://" in given else f"http://{given}/"))


def job_id_of(tx: Connection, name: str) -> int:
    job_id = tx.execute(sa.select(jobs.c.job_id).where(jobs.c.name == name)).scalar()
    if job_id is None:
        names = sa.select(jobs.c.name).where(jobs.c.state != "deleted").order_by(jobs.c.job_id.desc()).limit(10)
        known = tx.execute(names).scalars().all()
        raise UnknownError(f"No job {name!r}. {'Known: ' + ', '.join(known) if known else 'There is none yet'}.")
    return int(job_id)
