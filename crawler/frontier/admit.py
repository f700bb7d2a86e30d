"""Admit: take a piece of a seeding into the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier import links, moves, orders, politeness
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of, spec_of
from crawler.frontier.schema import jobs, seedings, urls
from crawler.job import Job
from crawler.messages import Admission, Cause, Link


def admit(ledger: Ledger, admission: Admission, now: float) -> int:
    """Take in a piece of a seeding; returns how many URLs were new. A job that was done runs again."""
    with ledger.transaction() as tx:
        job_id = _job_id(ledger, tx, admission, now)
        if not _arrived(ledger, tx, job_id, admission, now):
            return 0
        found = moves.none_yet()
        new = links.insert(
            ledger,
            tx,
            job_id,
            admission.job,
            [Link(url=url, depth=0, seed=True) for url in admission.urls],
            found,
            now,
        )
        moves.apply(ledger, tx, found, now)
        # Whoever hands over URLs of a host that was given up wants it to be tried again.
        politeness.try_again(tx, [host for _, host in found if found[job_id, host]["queued"]])
        return new


def _job_id(ledger: Ledger, tx: Connection, admission: Admission, now: float) -> int:
    """The admission's job, made or brought up to its description, and running again if it had ended."""
    job = admission.job
    spec = spec_of(job)
    before = tx.execute(sa.select(jobs).where(jobs.c.name == job.name)).first()
    job_id = _describe(ledger, tx, job.name, spec, now)
    if before is None:
        return job_id
    if before.state == "cancelled" and not _began(tx, job_id, admission.seeding):  # so this seeding is the later order
        orders.resume(ledger, tx, job_id, now)
    if not _says(before.spec, job):
        # The latest description counts: with wider limits the job goes on from where the narrower ones stopped it.
        here = urls.c.job_id == job_id
        held = sa.and_(here, moves.caused(Cause.MAX_PAGES, Cause.MAX_PAGES_PER_HOST))
        moves.queue_again(ledger, tx, held, "excluded", now)
        if job.depth is not None:
            moves.queue_again(ledger, tx, sa.and_(here, moves.UNEXPANDED), "done", now)
        links.judge_again(ledger, tx, job_id, job_of(spec, before.prefixes), now)
    return job_id


def _says(spec: str, job: Job) -> bool:
    """Whether a `jobs.spec` describes this job, in whatever words."""
    try:
        return job_of(spec) == job
    except UnreadableJobError:
        return False


def _describe(ledger: Ledger, tx: Connection, name: str, spec: str, now: float) -> int:
    """Write the job's description, if it is another one; a job that was done runs. Returns the job's id.

    Idempotent. Locks the job's row only where it changes: pieces of one seeding arrive at many recorders at once.
    """
    statement = ledger.insert(jobs).values(name=name, spec=spec, state="running", created_at=now)
    tx.execute(
        statement.on_conflict_do_update(
            index_elements=["name"],
            set_={
                "spec": spec,
                "broken": None,
                "state": sa.case((jobs.c.state == "done", "running"), else_=jobs.c.state),
                "finished_at": sa.case((jobs.c.state == "cancelled", jobs.c.finished_at)),
            },
            where=sa.or_(jobs.c.spec != spec, jobs.c.state == "done"),
        )
    )
    return int(tx.execute(sa.select(jobs.c.job_id).where(jobs.c.name == name)).scalar_one())


def _began(tx: Connection, job_id: int, seeding: str) -> bool:
    """Whether a piece of this seeding has arrived already. By primary key."""
    piece = sa.and_(seedings.c.job_id == job_id, seedings.c.seeding == seeding)
    return tx.execute(sa.select(sa.literal(1)).where(piece).limit(1)).first() is not None


def _arrived(ledger: Ledger, tx: Connection, job_id: int, admission: Admission, now: float) -> bool:
    """Note that a piece has arrived. False: it had before; the primary key makes a redelivered piece harmless."""
    piece = {"chunk": admission.chunk, "chunks": admission.chunks, "arrived_at": now}
    statement = ledger.insert(seedings).values(job_id=job_id, seeding=admission.seeding, **piece)
    return bool(tx.execute(statement.on_conflict_do_nothing()).rowcount)
