"""What a person orders: block a host, pause, resume, cancel or retry a job."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier import moves
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import host_queues, hosts, jobs, urls
from crawler.frontier.status import UnknownError, host_named, job_id_of


def block(ledger: Ledger, host: str, now: float) -> int:
    """Never ask `host` again, in any job, until unblocked; returns how many URLs were dropped."""
    host = host_named(host)
    with ledger.transaction() as tx:
        statement = ledger.insert(hosts).values(host=host, next_due=now, blocked_at=now)
        tx.execute(statement.on_conflict_do_update(index_elements=["host"], set_={"blocked_at": now}))
        return moves.drop_queued(ledger, tx, urls.c.host == host, "excluded", "host blocked", now)


def unblock(ledger: Ledger, host: str, now: float) -> int:
    """Undo `block`; returns how many URLs are queued again."""
    host = host_named(host)
    with ledger.transaction() as tx:
        if not tx.execute(hosts.update().where(hosts.c.host == host).values(blocked_at=None)).rowcount:
            raise UnknownError(f"{host}: unknown, so not blocked.")
        dropped = sa.and_(urls.c.host == host, urls.c.reason == "host blocked")
        return _queue_again(ledger, tx, dropped, "excluded", now)


def set_state(ledger: Ledger, job: str, state: str, now: float) -> int:
    """Let `job` be "paused", "running" or "cancelled"; returns how many URLs were dropped (cancelled), or are queued
    again because they had been dropped so (running)."""
    with ledger.transaction() as tx:
        job_id = job_id_of(tx, job)
        if state == "running":
            return resume(ledger, tx, job_id, now)
        finished = now if state == "cancelled" else None
        tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state=state, finished_at=finished))
        if state == "cancelled":
            return moves.drop_queued(ledger, tx, urls.c.job_id == job_id, "excluded", "job cancelled", now)
        return 0


def resume(ledger: Ledger, tx: Connection, job_id: int, now: float) -> int:
    """Let a job run, whatever had stopped it; returns how many URLs are queued again that `cancel` had dropped."""
    tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="running", finished_at=None))
    dropped = sa.and_(urls.c.job_id == job_id, urls.c.reason == "job cancelled")
    return moves.move(ledger, tx, dropped, "excluded", "queued", None, now)


def retry(ledger: Ledger, job: str, reason: str | None, now: float) -> int:
    """Queue the failed URLs of `job` again whose reason contains `reason`; returns how many there were."""
    with ledger.transaction() as tx:
        job_id = job_id_of(tx, job)
        which = [urls.c.job_id == job_id]
        if reason:
            which.append(urls.c.reason.contains(reason, autoescape=True))
        again = _queue_again(ledger, tx, sa.and_(*which), "failed", now)
        if again:
            dead = sa.select(host_queues.c.host).where(host_queues.c.job_id == job_id)
            tx.execute(hosts.update().where(hosts.c.host.in_(dead)).values(failures=0))
            ended = sa.and_(jobs.c.job_id == job_id, jobs.c.state.in_(("done", "cancelled")))
            tx.execute(jobs.update().where(ended).values(state="running", finished_at=None))
        return again


def _queue_again(ledger: Ledger, tx: Connection, which: sa.ColumnElement[bool], state: str, now: float) -> int:
    again = moves.move(ledger, tx, which, state, "queued", None, now, attempts=0, expiries=0)
    reopened = sa.select(host_queues.c.job_id).where(host_queues.c.queued > 0)
    done = sa.and_(jobs.c.state == "done", jobs.c.job_id.in_(reopened))
    tx.execute(jobs.update().where(done).values(state="running", finished_at=None))
    return again
