"""What a person orders: block a host, pause, resume, cancel or retry a job."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier import moves, politeness
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import host_queues, hosts, jobs, urls
from crawler.frontier.status import UnknownError, host_named, job_id_of
from crawler.messages import Cause


def block(ledger: Ledger, host: str, now: float) -> int:
    """Never ask `host` again, in any job, until unblocked; returns how many URLs were dropped."""
    host = host_named(host)
    with ledger.transaction() as tx:
        statement = ledger.insert(hosts).values(host=host, next_due=now, blocked_at=now)
        tx.execute(statement.on_conflict_do_update(index_elements=["host"], set_={"blocked_at": now}))
        return moves.drop_queued(ledger, tx, urls.c.host == host, "excluded", Cause.BLOCKED, "host blocked", now)


def unblock(ledger: Ledger, host: str, now: float) -> int:
    """Undo `block`; returns how many URLs are queued again."""
    host = host_named(host)
    with ledger.transaction() as tx:
        if not tx.execute(hosts.update().where(hosts.c.host == host).values(blocked_at=None)).rowcount:
            raise UnknownError(f"{host}: unknown, so not blocked.")
        return _queue_again(ledger, tx, urls.c.host == host, Cause.BLOCKED, now)


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
            return moves.drop_queued(
                ledger, tx, urls.c.job_id == job_id, "excluded", Cause.CANCELLED, "job cancelled", now
            )
        return 0


def resume(ledger: Ledger, tx: Connection, job_id: int, now: float) -> int:
    """Let a job run, whatever had stopped it; returns how many URLs are queued again that `cancel` had dropped."""
    tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="running", finished_at=None))
    return _queue_again(ledger, tx, urls.c.job_id == job_id, Cause.CANCELLED, now)


def retry(ledger: Ledger, job: str, reason: str | None, now: float) -> int:
    """Queue the failed URLs of `job` again whose reason contains `reason`; returns how many there were."""
    with ledger.transaction() as tx:
        job_id = job_id_of(tx, job)
        which = [urls.c.job_id == job_id]
        if reason:
            which.append(urls.c.reason.contains(reason, autoescape=True))
        again = moves.queue_again(ledger, tx, sa.and_(*which), "failed", now)
        if again:
            politeness.try_again(tx, sa.select(host_queues.c.host).where(host_queues.c.job_id == job_id))
            ended = sa.and_(jobs.c.job_id == job_id, jobs.c.state.in_(("done", "cancelled")))
            _run_again(tx, ended)
        return again


def _queue_again(ledger: Ledger, tx: Connection, here: sa.ColumnElement[bool], cause: Cause, now: float) -> int:
    """Queue what an order with this `cause` had dropped: URLs that became excluded, and pages that went back to done
    before their links were followed from a shorter path. Returns how many URLs these are."""
    again = moves.queue_again(ledger, tx, sa.and_(here, moves.caused(cause)), "excluded", now)
    again += moves.queue_again(ledger, tx, sa.and_(here, moves.UNEXPANDED), "done", now)
    if again:
        reopened = sa.select(host_queues.c.job_id).where(host_queues.c.queued > 0)
        _run_again(tx, sa.and_(jobs.c.state == "done", jobs.c.job_id.in_(reopened)))
    return again


def _run_again(tx: Connection, which: sa.ColumnElement[bool]) -> None:
    """Let jobs run that had ended. Idempotent."""
    tx.execute(jobs.update().where(which).values(state="running", finished_at=None))
