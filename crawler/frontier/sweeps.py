"""Sweeps: orders that move many URLs of a job, worked off in chunks.

An order writes a row of `sweeps` in a short transaction, which is its intent. Then `work_off` walks the job's URLs (or
those of one host of it) by primary key, a transaction for each chunk: so nobody waits for longer than one chunk takes,
and the counts are true after each of them. What a process that was killed leaves unfinished, `tidy` goes on with.

A sweep may be repeated from any URL on: what it moves is no longer what it looks for. Two processes may work on the
same one, as each chunk locks the sweep's row: first of all locks, before those that ledger.py lists.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import budgets, links, moves, politeness, traps
from crawler.frontier.ledger import Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import (
    UNFINISHED,
    host_queues,
    hosts,
    job_counts,
    jobs,
    leases,
    progress,
    seedings,
    sweeps,
    urls,
    workers,
)
from crawler.frontier.schema import budgets as budgets_table
from crawler.frontier.schema import traps as traps_table
from crawler.job import Job
from crawler.messages import TERMINAL, Cause

CHUNK = 10_000
"""URLs that a chunk looks at."""
BREATH = 0.2
"""Seconds between two chunks on SQLite, which has one lock for all: who waits for it looks every tenth of a second."""


@dataclass(frozen=True)
class Drop:
    """A kind of sweep that finishes what is queued."""

    state: str
    cause: Cause
    reason: str | None
    """None: the sweep's text."""
    only_new: bool = False
    """Leave those queued that have been pages before."""

    @property
    def wanted(self) -> sa.ColumnElement[bool]:
        queued = urls.c.state == "queued"
        return sa.and_(queued, sa.not_(urls.c.was_done)) if self.only_new else queued


DROPS = {
    "cancel": Drop("excluded", Cause.CANCELLED, "job cancelled"),
    "block": Drop("excluded", Cause.BLOCKED, "host blocked"),
    "give_up": Drop("failed", Cause.HOST_GIVEN_UP, None),
    "full": Drop("excluded", Cause.MAX_PAGES_PER_HOST, "max_pages_per_host reached", only_new=True),
    "full domain": Drop("excluded", Cause.MAX_PAGES_PER_DOMAIN, "max_pages_per_domain reached", only_new=True),
    "limit": Drop("excluded", Cause.MAX_PAGES, "max_pages reached", only_new=True),
}


def _queued_again(cause: Cause) -> sa.ColumnElement[bool]:
    """What a sweep of DROPS with this cause had dropped: URLs that became excluded, and pages that went back to done
    before their links were followed from a shorter path."""
    return sa.or_(moves.caused(cause), moves.UNEXPANDED)


def _to_retry(text: str | None) -> sa.ColumnElement[bool]:
    """What failed; where a person names a reason, also what no worker was allowed to connect to: the inventory may
    allow it by now."""
    failed = urls.c.state == "failed"
    if not text:
        return failed
    refused = moves.caused(Cause.ADDRESS, Cause.PORT)
    return sa.and_(sa.or_(failed, refused), urls.c.reason.contains(text, autoescape=True))


BUDGETS = (Cause.MAX_PAGES, Cause.MAX_PAGES_PER_HOST, Cause.MAX_PAGES_PER_DOMAIN, Cause.MAX_PAGES_PER_PREFIX)
"""Causes of what more pages than the job wants would be."""

QUEUES: dict[str, Callable[[str | None], sa.ColumnElement[bool]]] = {
    "resume": lambda _: _queued_again(Cause.CANCELLED),
    "unblock": lambda _: _queued_again(Cause.BLOCKED),
    "retry": _to_retry,
    "widen": lambda _: moves.caused(*BUDGETS),
    "deepen": lambda _: moves.UNEXPANDED,
}
"""Kinds of sweeps that queue URLs again: which, by the sweep's text."""
JUDGE, DELETE = "judge", "delete"
"""Kinds of sweeps: queue what another description of the job kept out, and this one does not; delete the job."""
OVER, CLOSE = "over", "close"
"""Kinds of sweeps: exclude what is queued below a prefix that has given its pages (the sweep's text), or in a section
that is a trap (likewise), as long as that is so."""
COUNT = "count"
"""Kind of sweep: count what is used of budgets that are new to the job, which waits for that."""

REPLACED = {
    "cancel": ("cancel", "resume", "retry"),
    "resume": ("resume", "cancel"),
    "retry": ("give_up",),
    "block": ("block", "unblock"),
    "unblock": ("unblock", "block"),
    "widen": ("widen", "full", "full domain", "limit", OVER),
    "deepen": ("deepen",),
    JUDGE: (JUDGE,),
    COUNT: (COUNT,),
    DELETE: (*DROPS, *QUEUES, JUDGE, OVER, CLOSE, COUNT),
}
"""Kinds whose unfinished sweeps, of the same job and host, end where a later one of this kind is ordered."""


def order(
    ledger: Ledger, tx: Connection, job_id: int, kind: str, now: float, host: str | None = None, text: str | None = None
) -> int:
    """Write a sweep down; returns its id. Locks nothing."""
    row = {"job_id": job_id, "kind": kind, "host": host, "text": text, "ordered_at": now, "worked_at": now}
    return int(tx.execute(ledger.insert(sweeps).values(row).returning(sweeps.c.sweep_id)).scalar_one())


def order_once(ledger: Ledger, tx: Connection, job_id: int, kind: str, now: float, host: str, text: str) -> list[int]:
    """As `order`, unless the same sweep is unfinished; returns its id, if there is one. Index sweeps_unfinished."""
    same = sa.and_(sweeps.c.job_id == job_id, sweeps.c.kind == kind, sweeps.c.host == host, sweeps.c.text == text)
    if tx.execute(sa.select(sweeps.c.sweep_id).where(same, UNFINISHED)).first() is not None:
        return []
    return [order(ledger, tx, job_id, kind, now, host, text)]


def of_job(job_id: int) -> sa.ColumnElement[bool]:
    """Sweeps of a job, of whichever host."""
    return sweeps.c.job_id == job_id


def of_host(host: str) -> sa.ColumnElement[bool]:
    """Sweeps of one host's URLs, of whichever job."""
    return sweeps.c.host == host


def replace(tx: Connection, which: sa.ColumnElement[bool], kind: str, now: float) -> None:
    """End those unfinished sweeps among `which` that one of this kind makes void. Waits for their chunks, so that none
    moves anything afterwards; locks their rows, first of all locks."""
    ended = sa.and_(which, UNFINISHED, sweeps.c.kind.in_(REPLACED[kind]))
    tx.execute(sweeps.update().where(ended).values(finished_at=now))


def unfinished(job_id: sa.Column[int] | int, *kinds: str) -> sa.Exists:
    """Whether a job has sweeps of these kinds (none: any) that are not finished. Index sweeps_unfinished."""
    here = sa.and_(sweeps.c.job_id == job_id, UNFINISHED)
    return sa.exists().where(here, sweeps.c.kind.in_(kinds) if kinds else sa.true())


def of_queue() -> sa.Exists:
    """Whether the host of a row of host_queues is being swept for that row's job. Index sweeps_unfinished."""
    return sa.exists().where(sweeps.c.job_id == host_queues.c.job_id, sweeps.c.host == host_queues.c.host, UNFINISHED)


def work_off(ledger: Ledger, ordered: Iterable[int], now: float, shown: Callable[[int], None] = lambda _: None) -> int:
    """Work sweeps off, whoever else works on them as well; returns how many URLs they have moved. `shown` is given that
    number before the first chunk and after each."""
    ordered = list(ordered)
    shown(0)
    for sweep_id in ordered:
        more = True
        while more:
            more = work(ledger, now, sweep_id)
            shown(moved(ledger, ordered))
            if more and not ledger.postgresql:
                time.sleep(BREATH)
    return moved(ledger, ordered)


def moved(ledger: Ledger, ordered: list[int]) -> int:
    """How many URLs sweeps have moved up to now."""
    with ledger.transaction() as tx:
        here = sweeps.c.sweep_id.in_(ordered)
        return int(tx.execute(sa.select(sa.func.coalesce(sa.func.sum(sweeps.c.moved), 0)).where(here)).scalar_one())


def work(ledger: Ledger, now: float, sweep_id: int | None = None, size: int | None = None) -> bool:
    """A chunk (`size` URLs, or CHUNK) of a sweep, or of the one that has waited longest. False if there is nothing left
    to do for it, or none that nobody else works on. One transaction."""
    size = size or CHUNK
    with ledger.transaction() as tx:
        sweep = _claimed(tx, sweep_id, now)
        if sweep is None or (sweep.kind == JUDGE and _described(tx, sweep.job_id) is None):
            return False
        if sweep.kind == DELETE:
            return _delete(ledger, tx, sweep, size, now) or sweep_id is None
        if sweep.kind == COUNT:
            return _count(ledger, tx, sweep, size, now)
        if sweep.kind == CLOSE and not sweep.last_host:
            tx.execute(jobs.update().where(jobs.c.job_id == sweep.job_id).values(trapped=True))
        keys, last = ([], None) if _is_void(tx, sweep, now) else _window(tx, sweep, size)
        number = _move(ledger, tx, sweep, keys, now) if keys else 0
        _note(tx, sweep, number, last, finished_at=None if last else now)
        return sweep_id is None or last is not None


def _claimed(tx: Connection, sweep_id: int | None, now: float) -> Any:
    """The sweep, locked, if it is unfinished. Without an id: the one that was worked on least recently, unless another
    process works on it now."""
    if sweep_id is None:
        waiting = sa.select(sweeps.c.sweep_id).where(UNFINISHED).order_by(sweeps.c.worked_at, sweeps.c.sweep_id)
        here = sweeps.c.sweep_id == waiting.limit(1).with_for_update(skip_locked=True).scalar_subquery()
    else:
        here = sweeps.c.sweep_id == sweep_id
    return tx.execute(sweeps.update().where(here, UNFINISHED).values(worked_at=now).returning(sweeps)).first()


def _note(tx: Connection, sweep: Any, number: int, last: tuple[str, str] | None, **columns: Any) -> None:
    """Note how far a sweep is: URLs moved, and the last that was looked at."""
    at = dict(zip(("last_host", "last_url"), last or ("", ""), strict=True))
    here = sweeps.c.sweep_id == sweep.sweep_id
    tx.execute(sweeps.update().where(here).values(moved=sweeps.c.moved + number, **at, **columns))


def _delete(ledger: Ledger, tx: Connection, sweep: Any, size: int, now: float) -> bool:
    """Delete some of a job: its URLs, then its host queues, at last all else of it but its row, which keeps its number
    from another job while requests bear it; False after that. By primary keys, each row once.
    Locks the hosts, by key."""
    if sweep.text != "hosts":
        keys, last = _window(tx, sweep, size)
        if keys:
            key = [urls.c[name] for name in links.KEY]
            given = _given(ledger, sweep.job_id, keys)
            tx.execute(urls.delete().where(sa.tuple_(*key).in_(sa.select(*(given.c[name] for name in links.KEY)))))
        _note(tx, sweep, len(keys), last, text=None if last else "hosts")
        return True
    queue = host_queues.c
    here = sa.and_(queue.job_id == sweep.job_id, queue.host > sweep.last_host)
    names = tx.execute(sa.select(queue.host).where(here).order_by(queue.host).limit(size)).scalars().all()
    if names:
        to_leave = sa.select(hosts.c.host).where(hosts.c.host.in_(names)).order_by(hosts.c.host).with_for_update()
        left = hosts.c.host.in_(tx.execute(to_leave).scalars().all())
        tx.execute(hosts.update().where(left).values(left_at=now))
        tx.execute(host_queues.delete().where(here, queue.host <= names[-1]))
    if len(names) == size:
        _note(tx, sweep, 0, (names[-1], ""))
        return True
    for table in (seedings, leases, progress, workers, job_counts, budgets_table, traps_table):
        tx.execute(table.delete().where(table.c.job_id == sweep.job_id))
    _note(tx, sweep, 0, None, finished_at=now)
    return False


def _count(ledger: Ledger, tx: Connection, sweep: Any, size: int, now: float) -> bool:
    """Count some of what is used of a job's budgets: note the domains of its hosts, then count the pages below each
    prefix. Not before the last batch that was leased is reported: its pages may be noted by the description before.
    False while there is one, and when all is counted."""
    job = _described(tx, sweep.job_id)
    under_way = sa.exists().where(leases.c.job_id == sweep.job_id)
    if job is None or tx.execute(sa.select(under_way)).scalar_one():
        return False
    queue = host_queues.c
    if sweep.text is None and job.max_pages_per_domain is not None:
        here = sa.and_(queue.job_id == sweep.job_id, queue.host > sweep.last_host)
        names = list(tx.execute(sa.select(queue.host).where(here).order_by(queue.host).limit(size)).scalars())
        if names:
            rows = [{"job_id": sweep.job_id, "host": name, "domain": url_rules.domain_of(name)} for name in names]
            given = ledger.given(rows, queue.job_id, queue.host, queue.domain)
            same = sa.and_(queue.job_id == given.c.job_id, queue.host == given.c.host)
            tx.execute(host_queues.update().where(same).values(domain=given.c.domain))
        if len(names) == size:
            _note(tx, sweep, 0, (names[-1], ""))
            return True
    left = sorted(prefix for prefix in job.max_pages_per_prefix if prefix > sweep.last_url)
    if left:
        budgets.count(tx, sweep.job_id, left[0])
    _note(tx, sweep, 0, ("", left[0]) if left else None, text="prefixes", finished_at=None if left else now)
    return bool(left)


def _is_void(tx: Connection, sweep: Any, now: float) -> bool:
    """Whether there is nothing queued that a sweep could drop, or its host is to be tried again. By primary keys."""
    if sweep.kind not in (*DROPS, OVER, CLOSE):
        return False
    if sweep.host is None:
        return not moves.totals(tx, sweep.job_id)["queued"]
    here = sa.and_(host_queues.c.job_id == sweep.job_id, host_queues.c.host == sweep.host)
    if not tx.execute(sa.select(host_queues.c.queued).where(here)).scalar():
        return True
    dead = sa.select(hosts.c.host).where(hosts.c.host == sweep.host, politeness.given_up(now))
    return sweep.kind == "give_up" and tx.execute(dead).first() is None


def _window(tx: Connection, sweep: Any, size: int) -> tuple[list[tuple[str, str]], tuple[str, str] | None]:
    """The next `size` URLs of a sweep, by primary key: (host, url) of those that it moves, and the last of them all;
    None instead where these were the sweep's last. Locks nothing."""
    key = (urls.c.host, urls.c.url)
    here = sa.and_(urls.c.job_id == sweep.job_id, sa.tuple_(*key) > sa.tuple_(sweep.last_host, sweep.last_url))
    if sweep.host is not None:
        here = sa.and_(urls.c.job_id == sweep.job_id, urls.c.host == sweep.host, urls.c.url > sweep.last_url)
    wanted = sa.func.coalesce(_wanted(sweep), sa.false()).label("wanted")
    nth = sa.func.row_number().over(order_by=key).label("nth")
    window = sa.select(*key, wanted, nth).where(here).order_by(*key).limit(size).subquery()
    rows = tx.execute(sa.select(window).where(sa.or_(window.c.wanted, window.c.nth == size)).order_by(window.c.nth))
    keys, last = [], None
    for row in rows:
        if row.wanted:
            keys.append((row.host, row.url))
        if row.nth == size:
            last = (row.host, row.url)
    return keys, last


def _wanted(sweep: Any) -> sa.ColumnElement[bool]:
    """Which URLs a sweep moves."""
    if sweep.kind in DROPS:
        return DROPS[sweep.kind].wanted
    if sweep.kind in QUEUES:
        return QUEUES[sweep.kind](sweep.text)
    new = sa.and_(urls.c.state == "queued", sa.not_(urls.c.was_done))
    if sweep.kind == OVER:
        return sa.and_(new, traps.begins(urls.c.url, sweep.text))
    if sweep.kind == CLOSE:
        return sa.and_(new, sa.not_(urls.c.seed), traps.below(urls.c.url, sweep.host, sweep.text))
    return links.WAS_KEPT_OUT if sweep.kind == JUDGE else sa.true()


def _move(ledger: Ledger, tx: Connection, sweep: Any, keys: list[tuple[str, str]], now: float) -> int:
    """Move the URLs `keys`, in the order of their key, as the sweep's kind says; returns how many that were."""
    given = _given(ledger, sweep.job_id, keys)
    here = sa.and_(*(urls.c[name] == given.c[name] for name in links.KEY))
    if sweep.kind in (OVER, CLOSE):
        return _keep_out(ledger, tx, sweep, here, now)
    drop = DROPS.get(sweep.kind)
    if drop is None:
        _run_again(tx, sweep)
    _lock(tx, here)
    if drop is not None:
        which, reason = sa.and_(here, drop.wanted), drop.reason or sweep.text
        return moves.drop_queued(ledger, tx, which, drop.state, str(drop.cause), reason, now)
    if sweep.kind == JUDGE:
        return _judge(ledger, tx, sweep, here, now)
    if sweep.kind == "retry" and not sweep.moved:
        politeness.try_again(tx, _given_up(tx, sweep.job_id))
    which = sa.and_(here, QUEUES[sweep.kind](sweep.text))
    return sum(moves.queue_again(ledger, tx, which, state, now) for state in TERMINAL)


def _keep_out(ledger: Ledger, tx: Connection, sweep: Any, here: sa.ColumnElement[bool], now: float) -> int:
    """Exclude those of a chunk's URLs that a budget or a closed section keeps out, as of now; returns how many."""
    part = _part(ledger, tx, sweep.job_id, {sweep.host})
    if part is None:
        return 0
    _lock(tx, here)
    refused = part.full_prefix(sweep.text) if sweep.kind == OVER else part.closed_section(sweep.host, sweep.text)
    if refused is None:
        return 0
    which = sa.and_(here, _wanted(sweep))
    return moves.drop_queued(ledger, tx, which, "excluded", str(refused.cause), refused.reason, now)


def _part(ledger: Ledger, tx: Connection, job_id: int, names: set[str]) -> budgets.Part | None:
    """What a job takes no more of on some hosts; None if this release cannot read the job."""
    job = _described(tx, job_id)
    if job is None:
        return None
    trapped = tx.execute(sa.select(jobs.c.trapped).where(jobs.c.job_id == job_id)).scalar_one()
    part = budgets.Part(job, bool(trapped), names)
    budgets.read(ledger, tx, {job_id: part})
    return part


def _given_up(tx: Connection, job_id: int) -> list[str]:
    """A job's hosts that were given up. Index hosts_given_up, and the primary key of host_queues."""
    here = sa.and_(host_queues.c.host == hosts.c.host, host_queues.c.job_id == job_id)
    given_up = sa.select(hosts.c.host).join(host_queues, here).where(hosts.c.given_up_at.is_not(None))
    return list(tx.execute(given_up.order_by(hosts.c.host)).scalars())


def _given(ledger: Ledger, job_id: int, keys: list[tuple[str, str]]) -> sa.FromClause:
    """URLs of a job (host, url) as a table expression. Named one by one: PostgreSQL takes a range of keys for a third
    of the job, and reads all of it."""
    rows = [{"job_id": job_id, "host": host, "url": url} for host, url in keys]
    return ledger.given(rows, *(urls.c[name] for name in links.KEY))


def _run_again(tx: Connection, sweep: Any) -> None:
    """Let a job run that had ended, for there are URLs to queue. Locks its row; idempotent. A job that was cancelled
    stays so, unless its URLs are to be retried: a later `cancel` ends that sweep."""
    ended = ("done", "cancelled") if sweep.kind == "retry" else ("done",)
    here = sa.and_(jobs.c.job_id == sweep.job_id, jobs.c.state.in_(ended))
    tx.execute(jobs.update().where(here).values(state="running", finished_at=None))


def _lock(tx: Connection, here: sa.ColumnElement[bool]) -> None:
    """Lock URLs in the order of their key, as recorders do."""
    locked = sa.select(sa.literal(1)).select_from(urls).where(here).order_by(urls.c.host, urls.c.url)
    tx.execute(sa.select(sa.func.count()).select_from(locked.with_for_update(of=urls).subquery()))


def _judge(ledger: Ledger, tx: Connection, sweep: Any, here: sa.ColumnElement[bool], now: float) -> int:
    """Queue those of a chunk that the job's description no longer keeps out; returns how many these are."""
    rows = tx.execute(sa.select(*(urls.c[name] for name in ("host", "url", *links.PATH))).where(here)).all()
    part = _part(ledger, tx, sweep.job_id, {row.host for row in rows})
    if part is None:
        return 0
    job = part.job
    in_scope = [row for row in rows if not job.refuses(row.url, row.found_on or row.url, row.depth)]
    wanted = [row._asdict() for row in in_scope if part.refusal(row.url, row.seed) is None]
    found = moves.none_yet()
    number = links.bring_nearer(ledger, tx, sweep.job_id, job, wanted, found) if wanted else 0
    moves.apply(ledger, tx, found, now)
    return number


def _described(tx: Connection, job_id: int) -> Job | None:
    """A job as last described; None if this release cannot read that."""
    row = tx.execute(sa.select(jobs.c.spec, jobs.c.prefixes).where(jobs.c.job_id == job_id)).one()
    try:
        return job_of(row.spec, row.prefixes)
    except UnreadableJobError:
        return None
