"""Record: take a batch's report into the ledger."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import lease, links, moves, politeness
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import host_queues, jobs, leases, requests, urls, workers
from crawler.job import Job
from crawler.messages import Report, UrlResult

RESULT = tuple(name for name in UrlResult.model_fields if name not in ("url", "state"))
"""The columns of a URL that say what its last fetch came to."""


def record(ledger: Ledger, report: Report, now: float) -> int:
    """Take in a batch's outcome; returns how many pages it finished. Results of a lease that ran out still count where
    the URL has not been leased again."""
    with ledger.transaction() as tx:
        job_id, job, widened = _job(tx, report)
        found = moves.none_yet()
        moved = found[job_id, report.host]
        done, next_wake = _finish_urls(ledger, tx, job_id, report, job, moved, now)
        if report.redelivered:
            lease.lose(tx, report.lease, "its worker was lost", moved, now)
        links.insert(ledger, tx, job_id, job, report.links, found, now)
        if widened:
            links.judge_again(ledger, tx, job_id, job, now)
        held = _end_lease(tx, report.lease, moved, now)
        moves.apply(ledger, tx, found, now)
        if next_wake is not None:
            _note_wake(tx, job_id, report.host, next_wake)
        politeness.reported(tx, report, held, now)
        _log_requests(ledger, tx, job_id, report)
        if done:
            _credit(ledger, tx, job_id, report.worker, done, now)
        return done


def _job(tx: Connection, report: Report) -> tuple[int, Job, bool]:
    """The report's job, and whether the report has widened its scope. A job whose row cannot be read takes its results
    by the default rules: they are fetched."""
    row = tx.execute(sa.select(jobs.c.job_id, jobs.c.spec, jobs.c.prefixes).where(jobs.c.name == report.job)).one()
    try:
        job = job_of(row.spec, row.prefixes)
    except UnreadableJobError:
        return row.job_id, Job(name=report.job), False
    if job.scope.kind == "prefix":
        widened = _widened(tx, row.job_id, job, report)
        return row.job_id, widened, widened is not job
    return row.job_id, job, False


def _widened(tx: Connection, job_id: int, job: Job, report: Report) -> Job:
    """The job with a scope that follows its seeds: where one redirects out of the prefixes, the folder it leads to is a
    prefix as well. Locks the job's row, before any URL; idempotent."""
    goals = [link.url for link in report.links if link.seed and link.hops]
    new = {_folder(url) for url in goals if not url.startswith(job.scope.prefixes)}
    if not new:
        return job
    row = tx.execute(sa.select(jobs.c.spec, jobs.c.prefixes).where(jobs.c.job_id == job_id).with_for_update()).one()
    prefixes = json.dumps(sorted({*json.loads(row.prefixes or "[]"), *new}))
    tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(prefixes=prefixes))
    return job_of(row.spec, prefixes)


def _folder(url: str) -> str:
    """A normalised URL up to its last slash, without the query."""
    return url.partition("?")[0].rpartition("/")[0] + "/"


def _finish_urls(
    ledger: Ledger, tx: Connection, job_id: int, report: Report, job: Job, moved: Counter[str], now: float
) -> tuple[int, float | None]:
    """Give every URL of the report its new state; returns how many pages were fetched, and when the first of those to
    be retried is due."""
    opened = _opened(tx, job_id, report)
    results: list[dict[str, Any]] = []
    retried: list[dict[str, Any]] = []
    returned: list[dict[str, Any]] = []
    pages, wakes = 0, []

    def move(rows: list[dict[str, Any]], url: str, state: str, was_done: bool, **columns: Any) -> None:
        row = opened.pop(url)
        in_queue = state == "queued"
        moved.update({row.state: -1, "again": (in_queue and was_done) - row.was_done})
        moved[state] += 1
        rows.append({"url": url, "state": state, "was_done": in_queue and was_done, **columns})

    limited = job.max_pages is not None or job.max_pages_per_host is not None
    for page in report.results:
        row = opened.get(page.url)
        # A late result of a URL that is back in the queue could be one page more than a limit allows.
        if row is None or (limited and row.state == "queued"):
            continue
        done = page.state == "done"
        pages += done
        result = page.model_dump(exclude={"url", "state"})
        if result["fields"] is not None:
            result["fields"] = json.dumps(result["fields"], ensure_ascii=False)
        followed = done or page.cause in links.FOLLOWED
        if followed and row.leased_depth is not None and row.depth < row.leased_depth:
            # Met on a shorter path meanwhile: its links have to be followed from there as well.
            result |= {"attempts": 0, "etag": None, "last_modified": None, "expanded": row.leased_depth}
            move(results, page.url, "queued", done, **result)
        else:
            expanded = row.leased_depth if followed else None
            move(results, page.url, page.state, done, attempts=row.attempts + 1, expanded=expanded, **result)
    for retry in report.retries:
        row = opened.get(retry.url)
        if row is not None and row.state == "leased":
            columns = {"attempts": row.attempts + 1, "reason": retry.reason, "cause": retry.cause, "fetched_at": now}
            if columns["attempts"] >= job.max_attempts:
                move(retried, retry.url, "failed", False, not_before=None, **columns)
            else:
                wakes.append(now + politeness.retry_wait(columns["attempts"], job.retry_wait))
                move(retried, retry.url, "queued", row.was_done, not_before=wakes[-1], **columns)
                moved["waiting"] += 1
    for url in () if report.redelivered else report.unfetched:
        row = opened.get(url)
        if row is not None and row.state == "leased":
            move(returned, url, "queued", row.was_done, attempts=row.attempts, reason=None, cause=None)
    outcome = ("reason", "cause")
    # A 304, and a page that failed, keep what an earlier visit found; only a new body replaces it.
    new_body = [row for row in results if row["digest"]]
    depth = ("expanded",) if job.depth is not None else ()
    _update(ledger, tx, job_id, new_body, report, (*RESULT, *depth))
    no_body = [row for row in results if not row["digest"]]
    _update(ledger, tx, job_id, no_body, report, (*outcome, "status", "fetched_at", *depth))
    _update(ledger, tx, job_id, retried, report, (*outcome, "not_before", "fetched_at"))
    _update(ledger, tx, job_id, returned, report, outcome)
    return pages, min(wakes, default=None)


def _opened(tx: Connection, job_id: int, report: Report) -> dict[str, Any]:
    """The report's URLs that are not finished, and of no other lease since, by URL. By primary key; locks the rows in
    its order. None of a report that was taken in before: that ended the lease in each row."""
    named = [page.url for page in report.results] + [retry.url for retry in report.retries] + report.unfetched
    rows = tx.execute(
        sa.select(urls.c.url, urls.c.state, urls.c.attempts, urls.c.depth, urls.c.leased_depth, urls.c.was_done)
        .where(
            urls.c.job_id == job_id,
            urls.c.host == report.host,
            urls.c.url.in_(named),
            urls.c.lease == report.lease,
            urls.c.state.in_(("queued", "leased")),
        )
        .order_by(urls.c.url)
        .with_for_update()
    )
    return {row.url: row for row in rows}


def _update(
    ledger: Ledger, tx: Connection, job_id: int, rows: list[dict[str, Any]], report: Report, names: tuple[str, ...]
) -> None:
    """Write the columns `names`, and those that always change, of `rows`. By primary key; _opened has locked them."""
    if not rows:
        return
    names = ("state", "attempts", "was_done", *names)
    here = {"job_id": job_id, "host": report.host}
    given = ledger.given(
        [{**row, **here} for row in rows], *(urls.c[name] for name in links.KEY), *(urls.c[name] for name in names)
    )
    tx.execute(
        urls.update()
        .where(*(urls.c[name] == given.c[name] for name in links.KEY))
        .values({name: given.c[name] for name in names})
        .values(lease=None, worker=report.worker, release=report.release)
    )


def _end_lease(tx: Connection, name: str, moved: Counter[str], now: float) -> bool:
    """End a lease; whether it was still in force. What its report forgot to name is queued again, or would stay leased
    for ever. By primary key; a second time there is none."""
    ended = tx.execute(leases.delete().where(leases.c.lease == name).returning(leases.c.urls)).first()
    if ended is not None and ended.urls != -moved["leased"]:
        lease.lose(tx, name, "its worker did not report it", moved, now)
    return ended is not None


def _note_wake(tx: Connection, job_id: int, host: str, at: float) -> None:
    """Let a host be looked at when the first of its waiting URLs is due. Idempotent; moves.apply has locked the row."""
    here = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
    first = sa.or_(host_queues.c.next_wake.is_(None), host_queues.c.next_wake > at)
    tx.execute(host_queues.update().where(here, first).values(next_wake=at))


def _log_requests(ledger: Ledger, tx: Connection, job_id: int, report: Report) -> None:
    """Keep every request made. Idempotent: the primary key is (host, at, url)."""
    if not report.requests:
        return
    # Mostly the report's own host; another's where its robots.txt redirects to one.
    rows = [{"host": url_rules.host_of(request.url), **request.model_dump()} for request in report.requests]
    common = {"job_id": job_id, "worker": report.worker, "release": report.release}
    tx.execute(ledger.insert_rows(requests, rows, **common).on_conflict_do_nothing())


def _credit(ledger: Ledger, tx: Connection, job_id: int, worker: str, pages: int, now: float) -> None:
    """Count pages for the worker that fetched them. Locks its row, last of all; a report seen twice finishes no page
    and so counts none."""
    statement = ledger.insert(workers).values(job_id=job_id, worker=worker, pages=pages, first_at=now, last_at=now)
    tx.execute(
        statement.on_conflict_do_update(
            index_elements=["job_id", "worker"],
            set_={"pages": workers.c.pages + statement.excluded.pages, "last_at": now},
        )
    )
