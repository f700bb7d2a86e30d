"""Lease: hand out batches of hosts that are due; and what becomes of a lease that does not come back."""

from __future__ import annotations

import secrets
from collections import Counter
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import limits
from crawler.frontier import politeness
from crawler.frontier.ledger import Ledger, job_of
from crawler.frontier.schema import host_queues, hosts, jobs, leases, urls
from crawler.job import Job
from crawler.messages import Batch, Target

SUSPICIOUS, MAX_EXPIRIES = 2, 10
"""Leases of a URL that never came back after which it is leased alone, as it may be what kills its worker, and after
which it is given up."""
LOOK_AGAIN = 1.0
"""Seconds until a host is looked at again that was due and could not be leased."""


def lease(ledger: Ledger, limit: int, now: float) -> list[Batch]:
    """Lease up to `limit` batches of hosts that are due, the longest-waiting first. A host has at most one batch under
    way over all jobs (or its job's `connections`)."""
    if limit <= 0:
        return []
    with ledger.transaction() as tx:
        return [batch for job_id, host in _due(tx, limit, now) if (batch := _lease_host(tx, job_id, host, now))]


def _due(tx: Connection, limit: int, now: float) -> list[Any]:
    """(job_id, host) of the host queues that are due. Index host_queues_due; no locks: what a host may be given is
    decided host by host."""
    return list(
        tx.execute(
            sa.select(host_queues.c.job_id, host_queues.c.host)
            .join(jobs, jobs.c.job_id == host_queues.c.job_id)
            .where(host_queues.c.queued > 0, host_queues.c.next_due <= now, jobs.c.state == "running")
            .order_by(host_queues.c.next_due)
            .limit(limit)
        ).all()
    )


def _lease_host(tx: Connection, job_id: int, host: str, now: float) -> Batch | None:
    row = _host(tx, job_id, host)
    job = job_of(row.spec)
    under_way = _under_way(tx, host)
    here = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
    chosen: list[Any] = []
    if under_way < job.connections and row.next_due <= now and row.blocked_at is None:
        chosen = _choose(tx, job_id, host, job, under_way)
    if not chosen:
        # Another batch has the host, or a limit holds it: look again in a while.
        tx.execute(host_queues.update().where(here).values(next_due=max(row.next_due, now + LOOK_AGAIN)))
        return None
    name, deadline = secrets.token_hex(8), now + limits.LEASE
    _take(tx, job_id, host, [target.url for target in chosen], name, deadline)
    # With its only batch under way the host cannot be due before the lease ends; this keeps it out of the next search.
    busy = under_way + 1 >= job.connections
    tx.execute(
        host_queues.update()
        .where(here)
        .values(
            queued=host_queues.c.queued - len(chosen),
            leased=host_queues.c.leased + len(chosen),
            next_due=deadline if busy else now,
        )
    )
    return Batch(
        lease=name,
        job=job,
        host=host,
        targets=[Target.model_validate(target._asdict()) for target in chosen],
        expires_at=deadline - limits.LEASE_MARGIN,
        robots=politeness.robots_of(row.robots),
        lost_before=any(target.expiries for target in chosen),
    )


def _host(tx: Connection, job_id: int, host: str) -> Any:
    """What decides whether a host may be leased to a job. By primary keys."""
    return tx.execute(
        sa.select(jobs.c.spec, hosts.c.next_due, hosts.c.robots, hosts.c.blocked_at, host_queues.c.done)
        .join(host_queues, host_queues.c.job_id == jobs.c.job_id)
        .join(hosts, hosts.c.host == host_queues.c.host)
        .where(jobs.c.job_id == job_id, host_queues.c.host == host)
    ).one()


def _under_way(tx: Connection, host: str) -> int:
    """How many batches of a host are leased, over all jobs. Index on leases.host. Only the scheduler leases, and one
    scheduler works at a time: so nobody else adds one meanwhile."""
    return int(tx.execute(sa.select(sa.func.count()).where(leases.c.host == host)).scalar_one())


def _take(tx: Connection, job_id: int, host: str, chosen: list[str], name: str, deadline: float) -> None:
    """Bring URLs into the state "leased", under a new lease. By primary key; _choose has locked the rows."""
    tx.execute(
        urls.update()
        .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.url.in_(chosen))
        .values(state="leased", lease=name)
    )
    tx.execute(leases.insert().values(lease=name, job_id=job_id, host=host, deadline=deadline))


def _choose(tx: Connection, job_id: int, host: str, job: Job, under_way: int) -> list[Any]:
    """The URLs of a host's next batch: the shallowest first, as many as time and the job's limits allow."""
    size = min(limits.BATCH_URLS, 1 + int(limits.BATCH / job.delay)) if job.delay else limits.BATCH_URLS
    if job.max_pages is not None:
        size = min(size, job.max_pages - _spent(tx, host_queues.c.job_id == job_id))
    if job.max_pages_per_host is not None:
        of_host = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
        size = min(size, job.max_pages_per_host - _spent(tx, of_host))
    if size <= 0:
        return []
    rows = _next_urls(tx, job_id, host, size)
    if rows and job.depth is not None:
        # An exact depth needs each level whole before the next: a page must not be met first on a longer way.
        level = rows[0].depth
        if _shallower_open(tx, job_id, host, job, under_way, level):
            return []
        rows = [row for row in rows if row.depth == level]
    return [row for row in rows if row.expiries < SUSPICIOUS] or list(rows[:1])


def _next_urls(tx: Connection, job_id: int, host: str, size: int) -> list[Any]:
    """A host's next URLs, breadth first. Index urls_queued gives them in this order. Locks them, and passes over those
    that a recorder has locked: their turn comes."""
    columns = ("url", "depth", "hops", "nested", "sitemap", "seed", "etag", "last_modified", "digest", "expiries")
    return list(
        tx.execute(
            sa.select(*(urls.c[name] for name in columns))
            .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.state == "queued")
            .order_by(urls.c.depth, urls.c.attempts, urls.c.discovered_at)
            .limit(size)
            .with_for_update(skip_locked=True)
        ).all()
    )


def _spent(tx: Connection, where: sa.ColumnElement[bool]) -> int:
    """Pages done and perhaps about to be: what counts against a limit."""
    counts = sa.func.coalesce(sa.func.sum(host_queues.c.done + host_queues.c.leased), 0)
    return int(tx.execute(sa.select(counts).where(where)).scalar_one())


def _shallower_open(tx: Connection, job_id: int, host: str, job: Job, under_way: int, level: int) -> bool:
    """Whether a URL above `level` could still lead to one on it: on this host where links stay on it, else anywhere in
    the job."""
    stays = job.scope.kind == "host"
    if stays and not under_way:
        return False
    where = [urls.c.job_id == job_id, urls.c.depth < level, urls.c.state.in_(("queued", "leased"))]
    if stays:
        where.append(urls.c.host == host)
    return tx.execute(sa.select(sa.literal(1)).where(*where).limit(1)).first() is not None


def lose(tx: Connection, name: str, reason: str, moved: Counter[str], now: float) -> None:
    """Queue the URLs again of a lease that will not come back, noting that in `moved`; those lost too often have
    failed. Idempotent; index urls_leased."""
    often = urls.c.expiries + 1 >= MAX_EXPIRIES
    lost = (
        urls.update()
        .where(urls.c.lease == name, urls.c.state == "leased")
        .values(
            state=sa.case((often, "failed"), else_="queued"),
            reason=sa.case((often, f"{reason}, {MAX_EXPIRIES} times"), else_=reason),
            fetched_at=sa.case((often, now), else_=urls.c.fetched_at),
            expiries=urls.c.expiries + 1,
            lease=None,
        )
        .returning(urls.c.state)
    )
    for (state,) in tx.execute(lost):
        moved["leased"] -= 1
        moved[state] += 1
