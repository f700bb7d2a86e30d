"""Lease: hand out batches of hosts that are due; and what becomes of a lease that does not come back."""

from __future__ import annotations

import functools
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import limits
from crawler import urls as url_rules
from crawler.frontier import moves, politeness
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import host_queues, hosts, jobs, leases, urls
from crawler.job import Job
from crawler.messages import Batch, Cause, Target

SUSPICIOUS, MAX_EXPIRIES = 2, 10
"""Leases of a URL that never came back after which it is leased alone, as it may be what kills its worker, and after
which it is given up."""
LOOK_AGAIN, UNREADABLE_LOOK_AGAIN = 1.0, 10.0
"""Seconds until a host is looked at again that was due and could not be leased; or whose job could not be read."""


def lease(ledger: Ledger, limit: int, now: float) -> list[Batch]:
    """Lease up to `limit` batches of hosts that are due, the longest-waiting first. A host has at most one batch under
    way over all jobs (or its job's `connections`). A job whose row cannot be read is left out; `tidy` says so."""
    if limit <= 0:
        return []
    batches: list[Batch] = []
    with ledger.transaction() as tx:
        blocked = functools.cache(lambda: politeness.blocked(tx))
        for job_id, host in _due(tx, limit, now):
            row = _host(tx, job_id, host)
            try:
                job = job_of(row.spec, row.prefixes)
            except UnreadableJobError:
                _look_again(tx, job_id, host, now + UNREADABLE_LOOK_AGAIN)
                continue
            if batch := _lease_host(ledger, tx, job_id, host, job, row, blocked, now):
                batches.append(batch)
    return batches


def _due(tx: Connection, limit: int, now: float) -> list[Any]:
    """(job_id, host) of the host queues that are due. Index host_queues_due_by_job; no locks: what a host may be given is
    decided host by host."""
    runs = sa.and_(jobs.c.state == "running", jobs.c.broken.is_(None))
    return list(
        tx.execute(
            sa.select(host_queues.c.job_id, host_queues.c.host)
            .join(jobs, jobs.c.job_id == host_queues.c.job_id)
            .where(host_queues.c.queued > 0, host_queues.c.next_due <= now, runs)
            .order_by(host_queues.c.next_due)
            .limit(limit)
        ).all()
    )


def _lease_host(
    ledger: Ledger,
    tx: Connection,
    job_id: int,
    host: str,
    job: Job,
    row: Any,
    blocked: Callable[[], frozenset[str]],
    now: float,
) -> Batch | None:
    """A batch of a host, if nothing stands against it. `row`: as _host gives it."""
    under_way = _under_way(tx, host)
    if under_way >= job.connections or row.next_due > now or row.blocked_at is not None:
        _look_again(tx, job_id, host, max(row.next_due, now + LOOK_AGAIN))
        return None
    here = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
    woken: dict[str, Any] = {}
    if row.next_wake is not None and row.next_wake <= now:
        woken = _wake(ledger, tx, job_id, host, row, now)
    chosen = _choose(tx, job_id, host, job, row.again)
    if not chosen:
        if woken:
            tx.execute(host_queues.update().where(here).values(woken))
        _nothing_ready(tx, job_id, host, now)
        return None
    name, deadline = secrets.token_hex(8), now + limits.LEASE
    _take(tx, job_id, host, job, [target.url for target in chosen], name, deadline)
    # With its only batch under way the host cannot be due before the lease ends; this keeps it out of the next search.
    busy = under_way + 1 >= job.connections
    tx.execute(
        host_queues.update()
        .where(here)
        .values(
            queued=host_queues.c.queued - len(chosen),
            leased=host_queues.c.leased + len(chosen),
            next_due=deadline if busy else now,
            **woken,
        )
    )
    moves.add_up(ledger, tx, [{"job_id": job_id, "queued": -len(chosen), "leased": len(chosen)}])
    robots = politeness.robots_of(row.robots)
    origins = {url_rules.origin_of(target.url) for target in chosen} if job.robots else set()
    return Batch(
        lease=name,
        job=job,
        host=host,
        targets=[Target.model_validate(target._asdict()) for target in chosen],
        expires_at=deadline - limits.LEASE_MARGIN,
        robots=robots,
        lost_before=any(target.expiries for target in chosen),
        blocked=blocked() if politeness.needs_robots(origins, robots, now) else frozenset(),
    )


def _host(tx: Connection, job_id: int, host: str) -> Any:
    """What decides whether a host may be leased to a job. By primary keys."""
    columns = (jobs.c.spec, jobs.c.prefixes, hosts.c.next_due, hosts.c.robots, hosts.c.blocked_at)
    return tx.execute(
        sa.select(*columns, host_queues.c.next_wake, host_queues.c.waiting, host_queues.c.again)
        .join(host_queues, host_queues.c.job_id == jobs.c.job_id)
        .join(hosts, hosts.c.host == host_queues.c.host)
        .where(jobs.c.job_id == job_id, host_queues.c.host == host)
    ).one()


def _look_again(tx: Connection, job_id: int, host: str, at: float) -> None:
    """Leave a host out of the search for due ones until `at`: another batch has it, or a limit holds it."""
    here = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
    tx.execute(host_queues.update().where(here).values(next_due=at))


def _nothing_ready(tx: Connection, job_id: int, host: str, now: float) -> None:
    """Leave a host out of the search from which nothing could be taken: until the first of its URLs wakes, where all
    that is queued waits; else for a moment, as a limit may hold it, or a recorder lock its URLs.

    Whoever queues more finds next_due equal to next_wake, and makes the host due (moves.apply); where that happened
    before this row was locked, the counts say so.
    """
    all_wait = sa.and_(host_queues.c.queued <= host_queues.c.waiting, host_queues.c.next_wake > now)
    until = sa.case((all_wait, host_queues.c.next_wake), else_=now + LOOK_AGAIN)
    here = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
    tx.execute(host_queues.update().where(here).values(next_due=until))


def _wake(ledger: Ledger, tx: Connection, job_id: int, host: str, row: Any, now: float) -> dict[str, Any]:
    """Make those of a host's waiting URLs ready whose time has come; what to write to host_queues about it. Index
    urls_in_turn, twice. `row`: as _host gives it.

    Where a recorder has made URLs wait since `row` was read, next_wake stays as it is, and the next lease looks again.
    """
    here = sa.and_(urls.c.job_id == job_id, urls.c.host == host, urls.c.state == "queued")
    woken = tx.execute(urls.update().where(here, urls.c.not_before <= now).values(not_before=None)).rowcount
    following = tx.execute(sa.select(sa.func.min(urls.c.not_before)).where(here, urls.c.not_before.is_not(None)))
    moves.add_up(ledger, tx, [{"job_id": job_id, "waiting": -woken}])
    same = host_queues.c.waiting == row.waiting
    return {
        "waiting": host_queues.c.waiting - woken,
        "next_wake": sa.case((same, following.scalar_one()), else_=host_queues.c.next_wake),
    }


def _under_way(tx: Connection, host: str) -> int:
    """How many batches of a host are leased, over all jobs. Index on leases.host. Only the scheduler leases, and one
    scheduler works at a time: so nobody else adds one meanwhile."""
    return int(tx.execute(sa.select(sa.func.count()).where(leases.c.host == host)).scalar_one())


def _take(tx: Connection, job_id: int, host: str, job: Job, chosen: list[str], name: str, deadline: float) -> None:
    """Bring URLs into the state "leased", under a new lease. By primary key; _choose has locked the rows."""
    depth = {"leased_depth": urls.c.depth} if job.depth is not None else {}
    tx.execute(
        urls.update()
        .where(urls.c.job_id == job_id, urls.c.host == host, urls.c.url.in_(chosen))
        .values(state="leased", lease=name, **depth)
    )
    tx.execute(leases.insert().values(lease=name, job_id=job_id, host=host, deadline=deadline, urls=len(chosen)))


def _choose(tx: Connection, job_id: int, host: str, job: Job, again: int) -> list[Any]:
    """The URLs of a host's next batch, the shallowest first: as many as time and the job's limits allow. `again`: how
    many of the host's have been pages before; these are in the limits already."""
    size = min(limits.BATCH_URLS, 1 + int(limits.BATCH / job.delay)) if job.delay else limits.BATCH_URLS
    room = _room(tx, job_id, host, job)
    if room <= 0 and not again:
        return []
    rows = _next_urls(tx, job_id, host, size, only_again=room <= 0)
    if room < size:
        new = [row.url for row in rows if not row.was_done]
        too_many = set(new[max(room, 0) :])
        rows = [row for row in rows if row.url not in too_many]
    if rows and job.depth is not None:
        # A level in a batch: a page of this level may be the shorter path to one of the next, which is then not fetched
        # twice. Other hosts, and other batches of this one, are not waited for (links.py).
        rows = [row for row in rows if row.depth == rows[0].depth]
    return [row for row in rows if row.expiries < SUSPICIOUS] or list(rows[:1])


def _room(tx: Connection, job_id: int, host: str, job: Job) -> int:
    """How many URLs that have not been pages before the job's limits allow to be leased of a host now."""
    room = limits.BATCH_URLS
    if job.max_pages is not None:
        room = min(room, job.max_pages - _spent(tx, host_queues.c.job_id == job_id))
    if job.max_pages_per_host is not None:
        of_host = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host == host)
        room = min(room, job.max_pages_per_host - _spent(tx, of_host))
    return room


def _spent(tx: Connection, where: sa.ColumnElement[bool]) -> int:
    """Pages that count against a limit: done, done before and in the queue again, and perhaps about to be. One that was
    done before and is leased counts twice, until it is back."""
    counts = sa.func.coalesce(sa.func.sum(host_queues.c.done + host_queues.c.again + host_queues.c.leased), 0)
    return int(tx.execute(sa.select(counts).where(where)).scalar_one())


def _next_urls(tx: Connection, job_id: int, host: str, size: int, only_again: bool) -> list[Any]:
    """A host's next URLs, breadth first. Index urls_in_turn gives them in this order. Locks them, and passes over
    those that a recorder has locked: their turn comes."""
    path = ("url", "depth", "hops", "nested", "sitemap", "seed", "expiries")
    last_visit = ("etag", "last_modified", "digest", "warc_file", "warc_offset", "warc_date")
    here = sa.and_(urls.c.job_id == job_id, urls.c.host == host)
    if only_again:
        here = sa.and_(here, urls.c.was_done)
    return list(
        tx.execute(
            sa.select(*(urls.c[name] for name in (*path, *last_visit)), urls.c.was_done)
            .where(here, urls.c.state == "queued", urls.c.not_before.is_(None))
            .order_by(urls.c.not_before, urls.c.depth, urls.c.attempts, urls.c.discovered_at)
            .limit(size)
            .with_for_update(skip_locked=True)
        ).all()
    )


def lose(tx: Connection, name: str, reason: str, moved: Counter[str], now: float) -> None:
    """Queue the URLs again of a lease that will not come back, noting that in `moved`; those lost too often have
    failed. Idempotent; index urls_leased. The URLs keep the name of the lease: should its report arrive before another
    lease begins, it still counts."""
    often = urls.c.expiries + 1 >= MAX_EXPIRIES
    lost = (
        urls.update()
        .where(urls.c.lease == name, urls.c.state == "leased")
        .values(
            state=sa.case((often, "failed"), else_="queued"),
            reason=sa.case((often, f"{reason}, {MAX_EXPIRIES} times"), else_=reason),
            cause=str(Cause.LEASE_LOST),
            fetched_at=sa.case((often, now), else_=urls.c.fetched_at),
            expiries=urls.c.expiries + 1,
        )
        .returning(urls.c.state, urls.c.was_done)
    )
    for state, was_done in tx.execute(lost):
        moved["leased"] -= 1
        moved[state] += 1
        if state == "failed":
            moved["again"] -= bool(was_done)
