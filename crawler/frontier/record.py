"""Record: take a batch's report into the ledger."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import lease, links, moves, politeness
from crawler.frontier.ledger import Ledger, job_of
from crawler.frontier.schema import jobs, leases, requests, urls, workers
from crawler.job import Job
from crawler.messages import Report, UrlResult

RESULT = tuple(name for name in UrlResult.model_fields if name not in ("url", "state"))
"""The columns of a URL that say what its last fetch came to."""


def record(ledger: Ledger, report: Report, now: float) -> int:
    """Take in a batch's outcome; returns how many pages it finished. Results of a lease that ran out still count where
    the URL is not finished already."""
    with ledger.transaction() as tx:
        job_id, spec = tx.execute(sa.select(jobs.c.job_id, jobs.c.spec).where(jobs.c.name == report.job)).one()
        found = moves.none_yet()
        moved = found[job_id, report.host]
        done = _finish_urls(ledger, tx, job_id, report, job_of(spec), moved, now)
        if report.redelivered:
            lease.lose(tx, report.lease, "its worker was lost", moved, now)
        links.insert(ledger, tx, job_id, report.links, found, now)
        held = tx.execute(leases.delete().where(leases.c.lease == report.lease)).rowcount
        moves.apply(ledger, tx, found, now)
        politeness.reported(tx, report, bool(held), now)
        _log_requests(ledger, tx, job_id, report)
        if done:
            _credit(ledger, tx, job_id, report.worker, done, now)
        return done


def _finish_urls(
    ledger: Ledger, tx: Connection, job_id: int, report: Report, job: Job, moved: Counter[str], now: float
) -> int:
    """Give every URL of the report its new state; returns how many pages became done."""
    opened = _opened(tx, job_id, report)
    results: list[dict[str, Any]] = []
    retried: list[dict[str, Any]] = []
    returned: list[dict[str, Any]] = []

    def move(rows: list[dict[str, Any]], url: str, state: str, attempts: int, **columns: Any) -> None:
        moved[opened.pop(url).state] -= 1
        moved[state] += 1
        rows.append({"url": url, "state": state, "attempts": attempts, **columns})

    limited = job.max_pages is not None or job.max_pages_per_host is not None
    for page in report.results:
        # A late result of a URL that is back in the queue could be one page more than a limit allows.
        if page.url in opened and not (limited and opened[page.url].state == "queued"):
            result = page.model_dump(exclude={"url", "state"})
            if result["fields"] is not None:
                result["fields"] = json.dumps(result["fields"], ensure_ascii=False)
            move(results, page.url, page.state, opened[page.url].attempts + 1, **result)
    for retry in report.retries:
        if retry.url in opened and opened[retry.url].lease == report.lease:
            attempts = opened[retry.url].attempts + 1
            state = "failed" if attempts >= job.max_attempts else "queued"
            move(retried, retry.url, state, attempts, reason=retry.reason, fetched_at=now)
    for url in () if report.redelivered else report.unfetched:
        if url in opened and opened[url].lease == report.lease:
            move(returned, url, "queued", opened[url].attempts, reason=None)
    # A 304, and a page that failed, keep what an earlier visit found; only a new body replaces it.
    _update(ledger, tx, job_id, [row for row in results if row["digest"]], report, RESULT)
    _update(
        ledger, tx, job_id, [row for row in results if not row["digest"]], report, ("reason", "status", "fetched_at")
    )
    _update(ledger, tx, job_id, retried, report, ("reason", "fetched_at"))
    _update(ledger, tx, job_id, returned, report, ("reason",))
    return sum(row["state"] == "done" for row in results)


def _opened(tx: Connection, job_id: int, report: Report) -> dict[str, Any]:
    """The report's URLs that are not finished, by URL. By primary key; locks the rows in its order."""
    named = [page.url for page in report.results] + [retry.url for retry in report.retries] + report.unfetched
    rows = tx.execute(
        sa.select(urls.c.url, urls.c.state, urls.c.attempts, urls.c.lease)
        .where(
            urls.c.job_id == job_id,
            urls.c.host == report.host,
            urls.c.url.in_(named),
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
    names = ("state", "attempts", *names)
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
