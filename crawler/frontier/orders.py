"""What a person orders: block a host, pause, resume, cancel, retry or delete a job.

Each order is in force when its first, short transaction is committed. What it does to the URLs is a sweep (sweeps.py),
which the caller works off at once, chunk by chunk, and `tidy` where the caller is killed. `shown` is given the number
of URLs moved, after each chunk.
"""

from __future__ import annotations

from collections.abc import Callable

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier import moves, sweeps, traps
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import host_queues, hosts, jobs, leases, urls
from crawler.frontier.status import UnknownError, host_named, job_id_of

Shown = Callable[[int], None]


def _silent(_: int) -> None:
    """For callers to whom no progress is shown."""


def block(ledger: Ledger, host: str, now: float, shown: Shown = _silent) -> int:
    """Never ask `host` again, in any job, until unblocked; returns how many URLs were dropped."""
    host = host_named(host)
    with ledger.transaction() as tx:
        ordered = _sweep_host(ledger, tx, host, "block", now)
        statement = ledger.insert(hosts).values(host=host, next_due=now, blocked_at=now)
        tx.execute(statement.on_conflict_do_update(index_elements=["host"], set_={"blocked_at": now}))
        tx.execute(host_queues.update().where(host_queues.c.host == host).values(give_up=True))
    return sweeps.work_off(ledger, ordered, now, shown)


def unblock(ledger: Ledger, host: str, now: float, shown: Shown = _silent) -> int:
    """Undo `block`; returns how many URLs are queued again."""
    host = host_named(host)
    with ledger.transaction() as tx:
        ordered = _sweep_host(ledger, tx, host, "unblock", now)
        if not tx.execute(hosts.update().where(hosts.c.host == host).values(blocked_at=None)).rowcount:
            raise UnknownError(f"{host}: unknown, so not blocked.")
        flagged = sa.and_(host_queues.c.host == host, host_queues.c.give_up)
        tx.execute(host_queues.update().where(flagged).values(give_up=False, next_due=now))
    return sweeps.work_off(ledger, ordered, now, shown)


def _sweep_host(ledger: Ledger, tx: Connection, host: str, kind: str, now: float) -> list[int]:
    """Order a sweep of a host's URLs in every job that knows it. Index host_queues_host."""
    sweeps.replace(tx, sweeps.of_host(host), kind, now)
    known = tx.execute(sa.select(host_queues.c.job_id).where(host_queues.c.host == host).order_by(host_queues.c.job_id))
    return [sweeps.order(ledger, tx, job_id, kind, now, host=host) for job_id in known.scalars().all()]


def set_state(ledger: Ledger, job: str, state: str, now: float, shown: Shown = _silent) -> int:
    """Let `job` be "paused", "running" or "cancelled"; returns how many URLs were dropped (cancelled), or are queued
    again because they had been dropped so (running)."""
    with ledger.transaction() as tx:
        job_id = job_id_of(tx, job)
        if state == "running":
            ordered = resume(ledger, tx, job_id, now)
        elif state == "cancelled":
            sweeps.replace(tx, sweeps.of_job(job_id), "cancel", now)
            tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state=state, finished_at=now))
            ordered = [sweeps.order(ledger, tx, job_id, "cancel", now)]
        else:
            tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state=state, finished_at=None))
            ordered = []
    return sweeps.work_off(ledger, ordered, now, shown)


def resume(ledger: Ledger, tx: Connection, job_id: int, now: float) -> list[int]:
    """Let a job run, whatever had stopped it; returns the sweep, if there is anything to sweep, that queues again what
    `cancel` had dropped. Locks the job's sweeps, then the job."""
    sweeps.replace(tx, sweeps.of_job(job_id), "resume", now)
    tx.execute(jobs.update().where(jobs.c.job_id == job_id).values(state="running", finished_at=None))
    if not moves.totals(tx, job_id)["excluded"] and not _has_depth(tx, job_id):
        return []
    return [sweeps.order(ledger, tx, job_id, "resume", now)]


def _has_depth(tx: Connection, job_id: int) -> bool:
    """Whether a job has, or may have, pages that went back to done before their links were followed."""
    try:
        return job_of(tx.execute(sa.select(jobs.c.spec).where(jobs.c.job_id == job_id)).scalar_one()).depth is not None
    except UnreadableJobError:
        return True


def retry(ledger: Ledger, job: str, reason: str | None, now: float, shown: Shown = _silent) -> int:
    """Queue the failed URLs of `job` again whose reason contains `reason`; where one is given, also those that no
    worker was allowed to connect to, and what was kept out of sections that are closed as traps for such a reason.
    Returns how many there were. If there are any, the job runs again and its hosts that were given up are tried
    again."""
    with ledger.transaction() as tx:
        job_id = job_id_of(tx, job)
        sweeps.replace(tx, sweeps.of_job(job_id), "retry", now)
        ordered = [sweeps.order(ledger, tx, job_id, "retry", now, text=reason)]
        if reason and traps.reopen(tx, job_id, reason):
            ordered.append(sweeps.order(ledger, tx, job_id, sweeps.JUDGE, now))
    return sweeps.work_off(ledger, ordered, now, shown)


class RefusedError(RuntimeError):
    """An order that cannot be given now; the message says why, and what to do first."""


def delete(ledger: Ledger, job: str, now: float, shown: Shown = _silent) -> int:
    """Forget all of a job that has ended, but for the requests made for it, which answer the owners of sites until
    their time is up (tidy.forget); returns how many URLs were deleted. Archives stay where they are. Raises
    RefusedError.

    From the first transaction on the job is not shown any more, and its name is free.
    """
    with ledger.transaction() as tx:
        job_id = job_id_of(tx, job)
        sweeps.replace(tx, sweeps.of_job(job_id), sweeps.DELETE, now)
        here = jobs.c.job_id == job_id
        state = tx.execute(sa.select(jobs.c.state).where(here).with_for_update()).scalar_one()
        if state not in ("done", "cancelled"):
            raise RefusedError(f"{job} is {state}: `crawler cancel {job}` first.")
        held = tx.execute(sa.select(sa.func.count()).where(leases.c.job_id == job_id)).scalar_one()
        if held:
            raise RefusedError(f"Workers hold {held} batches of {job}, and return them within seconds: try again then.")
        tx.execute(jobs.update().where(here).values(state="deleted", name=f"{job} (deleted, {job_id})"))
        ordered = [sweeps.order(ledger, tx, job_id, sweeps.DELETE, now)]
    return sweeps.work_off(ledger, ordered, now, shown)


def archives(ledger: Ledger, job: str) -> list[tuple[str, str, int]]:
    """Where a job's pages are archived: (worker, WARC file, pages). Reads all of the job's URLs; locks nothing."""
    with ledger.snapshot() as tx:
        chosen = (
            sa.select(urls.c.worker, urls.c.warc_file, sa.func.count())
            .where(urls.c.job_id == job_id_of(tx, job), urls.c.warc_file.is_not(None))
            .group_by(urls.c.worker, urls.c.warc_file)
            .order_by(urls.c.worker, urls.c.warc_file)
        )
        return [(worker, file, pages) for worker, file, pages in tx.execute(chosen)]
