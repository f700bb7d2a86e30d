"""Admit: take a piece of a seeding into the ledger."""

from __future__ import annotations

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier import links, moves, orders, politeness, sweeps
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of, spec_of
from crawler.frontier.schema import jobs, seedings
from crawler.job import Job
from crawler.messages import Admission, Link


def admit(ledger: Ledger, admission: Admission, now: float) -> int:
    """Take in a piece of a seeding; returns how many URLs were new. A job that was done runs again.

    Where the piece brings another description of its job, or lets one run that was cancelled, sweeps bring back what
    had stopped the job: a chunk of each here, which is all of a small job, and the rest in `tidy`.
    """
    with ledger.transaction() as tx:
        job_id, ordered = _job_id(ledger, tx, admission, now)
        if not _arrived(ledger, tx, job_id, admission, now):
            return 0
        found = moves.none_yet()
        seeds = [Link(url=url, depth=0, seed=True) for url in admission.urls]
        new = links.insert(ledger, tx, links.meet(ledger, tx, job_id, admission.job, seeds), found, now)
        moves.apply(ledger, tx, found, now)
        # Whoever hands over URLs of a host that was given up wants it to be tried again.
        politeness.try_again(tx, [host for _, host in found if found[job_id, host]["queued"]])
        politeness.flag_unwanted(ledger, tx, dict.fromkeys(found, admission.job.max_pages_per_host))
    for sweep_id in ordered:
        sweeps.work(ledger, now, sweep_id)
    return new


def _job_id(ledger: Ledger, tx: Connection, admission: Admission, now: float) -> tuple[int, list[int]]:
    """The admission's job, made or brought up to its description, and running again if it had ended; and the sweeps
    that this takes. Locks the job's sweeps, where there are to be others, then the job."""
    job = admission.job
    spec = spec_of(job)
    before = tx.execute(sa.select(jobs).where(jobs.c.name == job.name)).first()
    if before is None:
        return _describe(ledger, tx, job.name, spec, now), []
    kinds: list[str] = []
    if not _says(before.spec, job):
        # The latest description counts: with wider limits the job goes on from where the narrower ones stopped it.
        kinds = ["widen", sweeps.JUDGE] if job.depth is None else ["widen", "deepen", sweeps.JUDGE]
        if _has_other_budgets(before.spec, job):
            kinds.insert(0, sweeps.COUNT)
    for kind in kinds:
        sweeps.replace(tx, sweeps.of_job(before.job_id), kind, now)
    ordered = []
    if before.state == "cancelled" and not _began(tx, before.job_id, admission.seeding):  # so it is the later order
        ordered += orders.resume(ledger, tx, before.job_id, now)
    _describe(ledger, tx, job.name, spec, now)
    ordered += [sweeps.order(ledger, tx, before.job_id, kind, now) for kind in kinds]
    return before.job_id, ordered


def _says(spec: str, job: Job) -> bool:
    """Whether a `jobs.spec` describes this job, in whatever words."""
    try:
        return job_of(spec) == job
    except UnreadableJobError:
        return False


def _has_other_budgets(spec: str, job: Job) -> bool:
    """Whether a job has budgets that a `jobs.spec` has not, so that nobody has noted what is used of them."""
    try:
        before = job_of(spec)
    except UnreadableJobError:
        return True
    domain = job.max_pages_per_domain is not None and before.max_pages_per_domain is None
    return domain or not job.max_pages_per_prefix.keys() <= before.max_pages_per_prefix.keys()


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
