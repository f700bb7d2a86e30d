"""Tidy: what time and limits do to the ledger, and what the scheduler does besides leasing."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier import lease, moves, politeness, status
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import host_queues, hosts, jobs, leases, seedings, urls
from crawler.job import Job
from crawler.messages import TERMINAL, Cause

SEEDING_PATIENCE = 600.0
"""Seconds without news after which a seeding that was broken off no longer keeps its job open."""
AT_ONCE = 1000
"""Leases expired, or recalled, at once; the next second brings the next."""


def tidy(ledger: Ledger, now: float) -> None:
    """Take back expired leases, give up dead hosts, enforce limits, call pages for another visit, and close jobs that
    have reached their end. A transaction for the leases and one for each job; may be repeated at any time."""
    with ledger.transaction() as tx:
        _expire(ledger, tx, now)
    with ledger.transaction() as tx:
        _drop_cancelled(ledger, tx, now)
        chosen = tx.execute(sa.select(jobs).where(jobs.c.state.in_(("running", "done")))).all()
    for row in chosen:
        broken, job = None, None
        try:
            job = job_of(row.spec, row.prefixes)
        except UnreadableJobError as error:
            broken = str(error)
        if broken != row.broken:
            _note_broken(ledger, row.job_id, broken)
        if job is not None and (row.state == "running" or job.recrawl is not None):
            with ledger.transaction() as tx:
                _tidy_job(ledger, tx, row.job_id, job, row.state, now)


def _note_broken(ledger: Ledger, job_id: int, reason: str | None) -> None:
    """Note that a job's row cannot be read, or can be again: a newer release may have written it. Idempotent."""
    with ledger.transaction() as tx:
        tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(broken=reason))


def recalled(ledger: Ledger) -> list[str]:
    """The leases whose batches should come back at once, for their host was blocked or their job paused or cancelled;
    a thousand at most, those that come back make room for others. Reads leases, which are few, and joins by key."""
    with ledger.transaction() as tx:
        unwanted = sa.or_(hosts.c.blocked_at.is_not(None), jobs.c.state.in_(("paused", "cancelled")))
        chosen = (
            sa.select(leases.c.lease)
            .join(jobs, jobs.c.job_id == leases.c.job_id)
            .join(hosts, hosts.c.host == leases.c.host)
            .where(unwanted)
        )
        return list(tx.execute(chosen.order_by(leases.c.lease).limit(AT_ONCE)).scalars())


def take_back_leases(ledger: Ledger, now: float) -> None:
    """Queue again all that is leased, whatever its deadline: for an embedded run after one that was killed."""
    with ledger.transaction() as tx:
        tx.execute(leases.update().values(deadline=now))
        _expire(ledger, tx, now)


def _expire(ledger: Ledger, tx: Connection, now: float) -> None:
    """Queue the URLs again of leases that ran out. Index on leases.deadline; AT_ONCE leases at most. A report that
    arrives meanwhile waits for the locks of its URLs, and then finds them queued."""
    expired = tx.execute(
        sa.select(leases).where(leases.c.deadline <= now).order_by(leases.c.lease).limit(AT_ONCE)
    ).all()
    lost = moves.none_yet()
    if not expired:
        return
    names = [row.lease for row in expired]
    lease.lose(tx, names, "lease expired", lost, now)
    tx.execute(leases.delete().where(leases.c.lease.in_(names)))
    moves.apply(ledger, tx, lost, now)
    politeness.make_due(ledger, tx, {row.host: now for row in expired}, now)


def _drop_cancelled(ledger: Ledger, tx: Connection, now: float) -> None:
    """Drop what came back of cancelled jobs, from workers that had it at the time. Reads the host queues that have
    anything queued (index host_queues_due)."""
    with_more = (
        sa.select(host_queues.c.job_id)
        .join(jobs, jobs.c.job_id == host_queues.c.job_id)
        .where(host_queues.c.queued > 0, jobs.c.state == "cancelled")
        .distinct()
    )
    for job_id in tx.execute(with_more).scalars().all():
        moves.drop_queued(ledger, tx, urls.c.job_id == job_id, "excluded", Cause.CANCELLED, "job cancelled", now)


def _tidy_job(ledger: Ledger, tx: Connection, job_id: int, job: Job, state: str, now: float) -> None:
    if job.recrawl is not None:
        _revisit(ledger, tx, job_id, job.recrawl, now)
    counts = moves.totals(tx, job_id)
    if counts["queued"]:
        _give_up_hosts(ledger, tx, job_id, job, now)
        pages = counts["done"] + counts["again"]
        if job.max_pages is not None and pages >= job.max_pages and counts["queued"] > counts["again"]:
            new = sa.and_(urls.c.job_id == job_id, sa.not_(urls.c.was_done))
            moves.drop_queued(ledger, tx, new, "excluded", Cause.MAX_PAGES, "max_pages reached", now)
        counts = moves.totals(tx, job_id)
    if counts["queued"] and state == "done":
        tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="running", finished_at=None))
    elif state == "running" and not (counts["queued"] or counts["leased"]) and _all_seeds_in(tx, job_id, now):
        status.note_progress(ledger, tx, job_id, counts["done"], now)
        tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="done", finished_at=now))


def _revisit(ledger: Ledger, tx: Connection, job_id: int, interval: float, now: float) -> None:
    """Queue again what was last asked for `interval` seconds ago: pages, and what was none then. Reads all of the job's
    URLs by the job's part of the primary key."""
    for state in TERMINAL:
        due = sa.and_(urls.c.job_id == job_id, urls.c.fetched_at <= now - interval)
        moves.queue_again(ledger, tx, due, state, now)


def _give_up_hosts(ledger: Ledger, tx: Connection, job_id: int, job: Job, now: float) -> None:
    """Drop what is queued for hosts that are dead, blocked, or have given all the pages the job wants. Reads the job's
    host queues by its part of the primary key."""
    full: sa.ColumnElement[bool] = sa.false()
    if job.max_pages_per_host is not None:
        pages = host_queues.c.done + host_queues.c.again
        full = sa.and_(pages >= job.max_pages_per_host, host_queues.c.queued > host_queues.c.again)
    dead = politeness.given_up(now)
    given_up = tx.execute(
        sa.select(hosts.c.host, hosts.c.failure, hosts.c.blocked_at, sa.case((dead, 1), else_=0).label("dead"))
        .join(host_queues, sa.and_(host_queues.c.host == hosts.c.host, host_queues.c.job_id == job_id))
        .where(host_queues.c.queued > 0, sa.or_(dead, hosts.c.blocked_at.is_not(None), full))
        .order_by(hosts.c.host)
    ).all()
    for host in given_up:
        of_host = sa.and_(urls.c.job_id == job_id, urls.c.host == host.host)
        if host.blocked_at is not None:
            moves.drop_queued(ledger, tx, of_host, "excluded", Cause.BLOCKED, "host blocked", now)
        elif host.dead:
            reason = f"host given up: {host.failure}"
            moves.drop_queued(ledger, tx, of_host, "failed", Cause.HOST_GIVEN_UP, reason, now)
        else:
            new, reason = sa.and_(of_host, sa.not_(urls.c.was_done)), "max_pages_per_host reached"
            moves.drop_queued(ledger, tx, new, "excluded", Cause.MAX_PAGES_PER_HOST, reason, now)


def _all_seeds_in(tx: Connection, job_id: int, now: float) -> bool:
    """Whether every seeding of a job has arrived whole, or was broken off. By the job's part of the primary key."""
    pieces = tx.execute(
        sa.select(sa.func.count(), sa.func.max(seedings.c.chunks), sa.func.max(seedings.c.arrived_at))
        .where(seedings.c.job_id == job_id)
        .group_by(seedings.c.seeding)
    ).all()
    recent = now - SEEDING_PATIENCE
    return all(arrived == expected or (latest or 0) < recent for arrived, expected, latest in pieces)
