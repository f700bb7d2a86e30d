"""Tidy: what time and limits do to the ledger, and what the scheduler does besides leasing.

What a call does is bounded by time, not by what there is to do; the next call goes on from there. What it costs where
nothing is to be done depends on the number of jobs, not on that of their hosts and URLs.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import budgets, lease, machines, moves, politeness, request_log, status, sweeps
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.links import KEY
from crawler.frontier.schema import (
    ASKED_FOR,
    COUNTS,
    VISITED_AGAIN,
    host_queues,
    hosts,
    job_counts,
    jobs,
    leases,
    progress,
    seedings,
    urls,
    workers,
)
from crawler.frontier.schema import sweeps as sweeps_table
from crawler.job import Job
from crawler.messages import TERMINAL

SEEDING_PATIENCE = 600.0
"""Seconds without news after which a seeding that was broken off no longer keeps its job open."""
AT_ONCE = 1000
"""Leases recalled at once; the next second brings the next."""
LEASES, HOSTS, URLS = 100, 500, 2000
"""Leases expired, host queues looked at, and URLs moved in one transaction."""
SLICE = 0.2
"""Seconds after which a call of `tidy` begins nothing that can wait for the next call."""


class Slice:
    """The time that one call may take."""

    def __init__(self, seconds: float, clock: Callable[[], float]) -> None:
        self._clock, self._until = clock, clock() + seconds

    def repeat(self, work: Callable[[], int | bool]) -> bool:
        """Do `work`, and again for as long as it finds something to do and there is time; whether it found anything."""
        if not work():
            return False
        while self._clock() < self._until and work():
            pass
        return True


def tidy(
    ledger: Ledger,
    now: float,
    seconds: float = SLICE,
    clock: Callable[[], float] = time.monotonic,
    expire: bool = True,
) -> None:
    """Take back expired leases (`expire`), give up dead hosts, enforce limits, call pages for another visit, go on with
    orders that nobody works on, and close jobs that have reached their end. May be repeated at any time.

    Many short transactions. Each kind of work is done once; what is more than one transaction of it takes is done
    while there is time (`seconds`, of a monotonic `clock`).
    """
    time_left = Slice(seconds, clock)
    if expire:
        time_left.repeat(lambda: _expire_some(ledger, now))
    time_left.repeat(lambda: sweeps.work(ledger, now, size=URLS))
    for row in _jobs(ledger):
        if row.state == "cancelled":
            time_left.repeat(functools.partial(_drop_some, ledger, row.job_id, now))
            continue
        broken, job = None, None
        try:
            job = job_of(row.spec, row.prefixes)
        except UnreadableJobError as error:
            broken = str(error)
        if broken != row.broken:
            _note_broken(ledger, row.job_id, broken)
        if job is not None and (row.state == "running" or job.recrawl is not None or row.queued):
            _tidy_job(ledger, row, job, time_left, now)


def _jobs(ledger: Ledger) -> list[Any]:
    """Jobs that run, may run again, or were cancelled and have URLs in the queue (which came back from workers), with
    their counts. Indexes jobs_finished, jobs_visited_again and those of _with_queue: what has ended is not read."""
    running = sa.select(jobs.c.job_id).where(jobs.c.finished_at.is_(None), jobs.c.state == "running")
    again = sa.select(jobs.c.job_id).where(VISITED_AGAIN)
    queues = [_with_queue("queues", sa.not_(host_queues.c.give_up)), _with_queue("to_drop", host_queues.c.give_up)]
    ended = [
        sa.select(jobs.c.job_id)
        .join(queue, queue.c.job_id == jobs.c.job_id)
        .where(jobs.c.state.in_(("done", "cancelled")))
        for queue in queues
    ]
    sums = [sa.func.coalesce(sa.func.sum(job_counts.c[name]), 0).label(name) for name in COUNTS]
    with ledger.transaction() as tx:
        ids = list(tx.execute(sa.union(running, again, *ended)).scalars())
        here = job_counts.c.job_id.in_(ids)
        counted = sa.select(job_counts.c.job_id, *sums).where(here).group_by(job_counts.c.job_id).subquery()
        chosen = (
            sa.select(jobs, *(sa.func.coalesce(counted.c[name], 0).label(name) for name in COUNTS))
            .outerjoin(counted, counted.c.job_id == jobs.c.job_id)
            .where(jobs.c.job_id.in_(ids))
            .order_by(jobs.c.job_id)
        )
        return list(tx.execute(chosen).all()) if ids else []


def _with_queue(name: str, flag: sa.ColumnElement[bool]) -> sa.CTE:
    """The jobs, by job_id, with anything queued on a host whose flag is as given, and at last a null. One entry for
    each of index host_queues_due_by_job or host_queues_to_drop."""
    first = sa.select(sa.func.min(host_queues.c.job_id)).where(host_queues.c.queued > 0, flag)
    found = sa.select(first.scalar_subquery().label("job_id")).cte(name, recursive=True)
    after = first.where(host_queues.c.job_id > found.c.job_id).correlate(found).scalar_subquery()
    return found.union_all(sa.select(after).where(found.c.job_id.is_not(None)))


def forget(
    ledger: Ledger, now: float, days: float, seconds: float = SLICE, clock: Callable[[], float] = time.monotonic
) -> None:
    """Delete what is older than `days`: requests, hosts that no job has, seedings that arrived whole or were broken
    off, and workers, of jobs that do not run; and, of jobs that ended an hour ago, samples that no rate is read from,
    and orders worked off. Make the next days' partitions of the requests. Bounded as `tidy` is; may be repeated at any
    time."""
    time_left = Slice(seconds, clock)
    before = now - days * 86400
    request_log.make_days(ledger.engine, now)
    time_left.repeat(lambda: request_log.forget_some(ledger.engine, before))
    time_left.repeat(lambda: _forget_hosts(ledger, before, now))
    with ledger.transaction() as tx:
        machines.forget(tx, now)
        _forget_small(tx, before, now - FORGET_ENDED)


FORGET_ENDED = 3600.0
"""Seconds for which samples and orders are kept of a job that has ended."""


def _forget_hosts(ledger: Ledger, before: float, now: float) -> int:
    """Forget hosts that a deleted job left before a time, no job has, and nothing is to be remembered of: blocks, rests
    and hosts given up are. Returns how many were looked at and are not left any more. Index hosts_left.

    A recorder that counts a host as known, and has not committed its queue yet, holds a lock on the table that this
    waits for; and those who come wait for this.
    """
    matters = sa.or_(hosts.c.blocked_at.is_not(None), hosts.c.next_due > now, politeness.given_up(now))
    quiet = sa.and_(hosts.c.left_at < before, sa.not_(sa.func.coalesce(matters, sa.false())))
    left = sa.select(hosts.c.host).where(quiet).order_by(hosts.c.left_at).limit(HOSTS)
    with ledger.transaction() as tx:
        if not tx.execute(sa.select(left.exists())).scalar_one():
            return 0

    def forget_these(tx: Connection) -> int:
        if ledger.postgresql:
            tx.execute(sa.text("LOCK TABLE hosts IN SHARE ROW EXCLUSIVE MODE"))
        names = tx.execute(left).scalars().all()
        wanted = sa.exists().where(host_queues.c.host == hosts.c.host)
        tx.execute(hosts.delete().where(hosts.c.host.in_(names), sa.not_(wanted)))
        tx.execute(hosts.update().where(hosts.c.host.in_(names)).values(left_at=None))
        return len(names)

    return request_log.attempt(ledger.engine, forget_these) or 0


def _forget_small(tx: Connection, before: float, ended_before: float) -> None:
    """Forget rows of small tables; reads them."""
    ended = sa.select(jobs.c.job_id).where(jobs.c.state != "running", jobs.c.finished_at < before)
    newest = sa.func.coalesce(sa.func.max(seedings.c.arrived_at), 0)
    key = sa.tuple_(seedings.c.job_id, seedings.c.seeding)
    old = sa.select(seedings.c.job_id, seedings.c.seeding).where(seedings.c.job_id.in_(ended))
    old = old.group_by(seedings.c.job_id, seedings.c.seeding).having(newest < before)
    tx.execute(seedings.delete().where(key.in_(old)))
    tx.execute(workers.delete().where(workers.c.last_at < before, workers.c.job_id.in_(ended)))
    tx.execute(sweeps_table.delete().where(sweeps_table.c.finished_at < ended_before))
    last_minute = sa.select(jobs.c.finished_at - status.RATE_SECONDS).where(jobs.c.job_id == progress.c.job_id)
    over = sa.select(jobs.c.job_id).where(jobs.c.finished_at < ended_before)
    unread = sa.and_(progress.c.job_id.in_(over), progress.c.at < last_minute.scalar_subquery())
    tx.execute(progress.delete().where(unread))
    # A deleted job's row keeps its number from others while requests bear it.
    tx.execute(jobs.delete().where(jobs.c.state == "deleted", jobs.c.finished_at < before))


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
        machines.free_all(tx, now)
    while _expire_some(ledger, now):
        pass


def all_leases(ledger: Ledger) -> list[str]:
    """The leases that are in force, the oldest first. Reads leases, which are few."""
    with ledger.transaction() as tx:
        return list(tx.execute(sa.select(leases.c.lease).order_by(leases.c.deadline)).scalars())


def expired(ledger: Ledger, now: float) -> list[str]:
    """The leases that ran out, a thousand at most. Index on leases.deadline."""
    with ledger.transaction() as tx:
        chosen = sa.select(leases.c.lease).where(leases.c.deadline <= now).order_by(leases.c.deadline)
        return list(tx.execute(chosen.limit(AT_ONCE)).scalars())


def take_back(ledger: Ledger, names: Sequence[str], now: float, begun: bool) -> list[str]:
    """Queue the URLs again of those of the leases that are still in force; returns these. `begun`: a worker had them,
    which may have been lost for what is in them, and asked their hosts just now, which rest for the jobs' delay. LEASES
    in a transaction; by primary key; idempotent."""
    taken: list[str] = []
    for at in range(0, len(names), LEASES):
        some = leases.c.lease.in_(names[at : at + LEASES])
        with ledger.transaction() as tx:
            rows = tx.execute(sa.select(leases).where(some).order_by(leases.c.lease)).all()
            if begun:
                delays = _delays(ledger, tx, {row.job_id for row in rows})
                _end(ledger, tx, rows, "its worker was lost", now, delays=delays)
            else:
                _end(ledger, tx, rows, "no worker took it", now, begun=False)
        taken += [row.lease for row in rows]
    return taken


def _delays(ledger: Ledger, tx: Connection, job_ids: Collection[int]) -> dict[int, float]:
    """The delays of jobs; one that cannot be read has that of any job. By primary key."""
    delays = {}
    for row in tx.execute(sa.select(jobs.c.job_id, jobs.c.name, jobs.c.spec).where(jobs.c.job_id.in_(job_ids))):
        try:
            job = job_of(row.spec)
        except UnreadableJobError:
            job = Job(name=row.name)
        delays[row.job_id] = ledger.ceilings.under(job).delay
    return delays


def _expire_some(ledger: Ledger, now: float) -> int:
    """Queue the URLs again of leases that ran out; returns how many leases that were. Index on leases.deadline; LEASES
    at most."""
    chosen = sa.select(leases).where(leases.c.deadline <= now).order_by(leases.c.lease).limit(LEASES)
    with ledger.transaction() as tx:
        rows = tx.execute(chosen).all()
        _end(ledger, tx, rows, "lease expired", now)
    return len(rows)


def _end(
    ledger: Ledger,
    tx: Connection,
    rows: Sequence[Any],
    reason: str,
    now: float,
    begun: bool = True,
    delays: Mapping[int, float] = MappingProxyType({}),
) -> None:
    """End leases (`rows`, by key) without a report; their hosts rest as long as `delays` says, by job_id. A report that
    arrives meanwhile waits for the locks of its URLs, and then finds them queued."""
    if not rows:
        return
    lost = moves.none_yet()
    names = [row.lease for row in rows]
    gone: list[tuple[int, str]] = []
    lease.lose(tx, names, reason, lost, now, gone, begun)
    tx.execute(leases.delete().where(leases.c.lease.in_(names)))
    machines.end(ledger, tx, names, now)
    due = {row.host: now for row in rows}
    for row in rows:
        due[row.host] = max(due[row.host], now + delays.get(row.job_id, 0.0))
    if delays:
        politeness.rest(ledger, tx, due)
    moves.apply(ledger, tx, lost, now)
    politeness.make_due(ledger, tx, due, now)
    budgets.note_gone(ledger, tx, gone)


def _tidy_job(ledger: Ledger, row: Any, job: Job, time_left: Slice, now: float) -> None:
    """Tidy a job. `row`: as _jobs gives it."""
    moved = False
    if job.recrawl is not None:
        before = now - job.recrawl
        moved = time_left.repeat(lambda: _revisit(ledger, row.job_id, before, now))
    if row.queued:
        moved |= time_left.repeat(lambda: _drop_some(ledger, row.job_id, now))
    as_it_was = row.state == ("running" if row.queued or row.leased else "done")
    if moved or not as_it_was:
        _begin_or_end(ledger, row.job_id, now)


def _begin_or_end(ledger: Ledger, job_id: int, now: float) -> None:
    """Let a job that was done run again if anything is queued; and end one of which nothing is to be done any more, by
    seeds or by orders either."""
    here = jobs.c.job_id == job_id
    with ledger.transaction() as tx:
        counts = moves.totals(tx, job_id)
        if counts["queued"]:
            again = sa.and_(here, jobs.c.state == "done")
            tx.execute(jobs.update().where(again).values(state="running", finished_at=None))
        elif not counts["leased"] and _all_seeds_in(tx, job_id, now):
            ended = sa.and_(here, jobs.c.state == "running", sa.not_(sweeps.unfinished(job_id)))
            if tx.execute(jobs.update().where(ended).values(state="done", finished_at=now)).rowcount:
                status.note_progress(ledger, tx, job_id, counts["done"], now)


def _revisit(ledger: Ledger, job_id: int, before: float, now: float) -> int:
    """Queue again what was last asked for before a time: pages, and what was none then; returns how many URLs that
    were. Index urls_fetched, the oldest first; locks them, and passes over those that a recorder has locked."""
    with ledger.transaction() as tx:
        due = (
            sa.select(urls.c.job_id, urls.c.host, urls.c.url)
            .where(urls.c.job_id == job_id, ASKED_FOR, urls.c.fetched_at <= before)
            .order_by(urls.c.fetched_at)
            .limit(URLS)
            .with_for_update(skip_locked=True)
        )
        rows = [row._asdict() for row in tx.execute(due)]
        if not rows:
            return 0
        given = ledger.given(rows, *(urls.c[name] for name in KEY))
        here = sa.and_(*(urls.c[name] == given.c[name] for name in KEY))
        return sum(moves.queue_again(ledger, tx, here, state, now) for state in TERMINAL)


def _full(pages: int) -> sa.ColumnElement[bool]:
    """Whether a host has given all the pages a job wants, and others are queued."""
    enough = host_queues.c.done + host_queues.c.again >= pages
    return sa.and_(enough, host_queues.c.queued > host_queues.c.again)


def _drop_some(ledger: Ledger, job_id: int, now: float) -> int:
    """Drop some of what a job has queued and does not want any more; returns how many URLs, and host queues that are
    wanted after all, that were.

    A share lock on the job's row keeps its state and limits as they are until the end of the transaction; locks on
    the host queues, the flags of their hosts. Those that others have locked are passed over, and so are URLs.
    """
    to_drop = sa.exists().where(host_queues.c.job_id == job_id, host_queues.c.queued > 0, host_queues.c.give_up)
    with ledger.transaction() as tx:
        row = tx.execute(sa.select(jobs, to_drop.label("to_drop")).where(jobs.c.job_id == job_id)).one()
        counts = moves.totals(tx, job_id)
        limit = None if row.state == "cancelled" else job_of(row.spec, row.prefixes).max_pages
        over = limit is not None and counts["done"] + counts["again"] >= limit and counts["queued"] > counts["again"]
        if not (row.to_drop or over or row.state == "cancelled"):
            return 0
        row = tx.execute(sa.select(jobs).where(jobs.c.job_id == job_id).with_for_update(read=True)).one()
        if row.state == "cancelled":
            return _drop_all(ledger, tx, job_id, "cancel", counts["queued"], now)
        job = job_of(row.spec, row.prefixes)
        new = counts["queued"] - counts["again"]
        if job.max_pages is not None and counts["done"] + counts["again"] >= job.max_pages and new > 0:
            return _drop_all(ledger, tx, job_id, "limit", new, now)
        return _drop_flagged(ledger, tx, job_id, job, now)


def _drop_all(ledger: Ledger, tx: Connection, job_id: int, kind: str, number: int, now: float) -> int:
    """Drop what a job has queued: all, or what was no page before. Many URLs are left to a sweep; few are found by
    their hosts (indexes host_queues_due_by_job and host_queues_to_drop)."""
    if tx.execute(sa.select(sweeps.unfinished(job_id, kind))).scalar_one():
        return 0
    if number > sweeps.CHUNK:
        sweeps.order(ledger, tx, job_id, kind, now)
        return 0
    more = host_queues.c.queued > (host_queues.c.again if sweeps.DROPS[kind].only_new else 0)
    rows: list[Any] = []
    for flagged in (sa.not_(host_queues.c.give_up), host_queues.c.give_up):
        chosen = sa.select(host_queues.c.host, host_queues.c.discovered).where(
            host_queues.c.job_id == job_id, host_queues.c.queued > 0, flagged, more
        )
        rows += tx.execute(chosen.limit(HOSTS).with_for_update(skip_locked=True)).all()
    return _drop_of(ledger, tx, job_id, ((row, kind, None) for row in rows), now)


def _drop_flagged(ledger: Ledger, tx: Connection, job_id: int, job: Job, now: float) -> int:
    """Drop what is queued for hosts that are given up, blocked or full, as their flags say and still is true; where it
    is not, clear the flag. Index host_queues_to_drop."""
    full = sa.false() if job.max_pages_per_host is None else _full(job.max_pages_per_host)
    flagged = tx.execute(
        sa.select(
            host_queues.c.host,
            host_queues.c.discovered,
            (host_queues.c.queued - host_queues.c.again).label("new"),
            sa.case((full, 1), else_=0).label("full"),
        )
        .where(
            host_queues.c.job_id == job_id, host_queues.c.queued > 0, host_queues.c.give_up, sa.not_(sweeps.of_queue())
        )
        .limit(HOSTS)
        .with_for_update(of=host_queues, skip_locked=True)
    ).all()
    if not flagged:
        return 0
    dead = sa.case((politeness.given_up(now), 1), else_=0).label("dead")
    asked = sa.select(hosts.c.host, hosts.c.failure, hosts.c.blocked_at, dead)
    known = {host.host: host for host in tx.execute(asked.where(hosts.c.host.in_([row.host for row in flagged])))}
    part = budgets.Part(job, False, {row.host for row in flagged})
    budgets.read(ledger, tx, {job_id: part})
    unwanted: list[tuple[Any, str, str | None]] = []
    wanted = []
    for row in flagged:
        host = known[row.host]
        if host.blocked_at is not None:
            unwanted.append((row, "block", None))
        elif host.dead:
            unwanted.append((row, "give_up", f"host given up: {host.failure}"))
        elif row.full:
            unwanted.append((row, "full", None))
        elif row.new > 0 and url_rules.domain_of(row.host) in part.full_domains:
            unwanted.append((row, "full domain", None))
        else:
            wanted.append(row.host)
    number = _drop_of(ledger, tx, job_id, unwanted, now)
    here = sa.and_(host_queues.c.job_id == job_id, host_queues.c.host.in_(wanted))
    tx.execute(host_queues.update().where(here).values(give_up=False, next_due=now))
    return number + len(wanted)


def _drop_of(
    ledger: Ledger, tx: Connection, job_id: int, chosen: Iterable[tuple[Any, str, str | None]], now: float
) -> int:
    """Drop what is queued for hosts: (host queue, kind of sweep, text). Of small ones, at once, by index urls_in_turn,
    passing over what a recorder has locked; large ones are left to sweeps, which look at no URL twice."""
    given: list[dict[str, Any]] = []
    for row, kind, text in chosen:
        drop = sweeps.DROPS[kind]
        if row.discovered > sweeps.CHUNK:
            sweeps.order(ledger, tx, job_id, kind, now, host=row.host, text=text)
            continue
        came_to = {"state": drop.state, "cause": str(drop.cause), "reason": drop.reason or text}
        given.append({"job_id": job_id, "host": row.host, **came_to, "was_done": drop.only_new})
    if not given:
        return 0
    why = ledger.given(given, *(urls.c[name] for name in ("job_id", "host", "state", "cause", "reason", "was_done")))
    queued = (
        sa.select(urls.c.job_id, urls.c.host, urls.c.url, why.c.state, why.c.cause, why.c.reason)
        .join(why, sa.and_(urls.c.job_id == why.c.job_id, urls.c.host == why.c.host))
        .where(urls.c.state == "queued", sa.not_(sa.and_(why.c.was_done, urls.c.was_done)))
        .limit(URLS)
        .with_for_update(of=urls, skip_locked=True)
    )
    rows = [row._asdict() for row in tx.execute(queued)]
    if not rows:
        return 0
    these = ledger.given(rows, *(urls.c[name] for name in (*KEY, "state", "cause", "reason")))
    here = sa.and_(*(urls.c[name] == these.c[name] for name in KEY))
    return moves.drop_queued(ledger, tx, here, these.c.state, these.c.cause, these.c.reason, now)


def _all_seeds_in(tx: Connection, job_id: int, now: float) -> bool:
    """Whether every seeding of a job has arrived whole, or was broken off. By the job's part of the primary key."""
    pieces = tx.execute(
        sa.select(sa.func.count(), sa.func.max(seedings.c.chunks), sa.func.max(seedings.c.arrived_at))
        .where(seedings.c.job_id == job_id)
        .group_by(seedings.c.seeding)
    ).all()
    recent = now - SEEDING_PATIENCE
    return all(arrived == expected or (latest or 0) < recent for arrived, expected, latest in pieces)
