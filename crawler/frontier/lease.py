"""Lease: hand out batches of hosts that are due; and what becomes of a lease that does not come back.

`lease` works on sets: a fixed number of statements, however many batches it hands out. Jobs share by their `priority`,
and where several want one host, they share that host likewise. Both by start-time fair queueing: a batch begins, in
virtual time, where its job's last batch ended, or where the queue stands if that is later; it ends after as many units
as it has URLs, divided by the priority. Who would begin first has the turn; of two, the newer job. A job that had
nothing due saves up no turns, and one that arrives late is served at once. Source: Goyal, Vin, Cheng, "Start-time fair
queuing", 1996.
"""

from __future__ import annotations

import functools
import math
import secrets
import zlib
from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler import limits
from crawler import urls as url_rules
from crawler.frontier import addresses, budgets, machines, moves, politeness, sweeps, traps
from crawler.frontier.caps import literal
from crawler.frontier.ledger import NOW, Ledger, UnreadableJobError, job_of
from crawler.frontier.moves import KEY, Key
from crawler.frontier.schema import host_queues, hosts, jobs, leases, slots, urls
from crawler.job import Job
from crawler.messages import Batch, Cause, Target

SUSPICIOUS, MAX_EXPIRIES = 2, 10
"""Leases of a URL that never came back after which it is leased alone, as it may be what kills its worker, and after
which it is given up."""
LOOK_AGAIN = 1.0
"""Seconds until a host is looked at again that was due and could not be leased."""
CALLS = 3
"""How often one lease looks for hosts, while those that it finds have no slot free."""

UNLIMITED = 10**9
"""URLs: more than any call leases."""

_WANTED = (host_queues.c.queued > 0, sa.not_(host_queues.c.give_up))
"""What a host queue has to be to be in index host_queues_due_by_job."""
_OF_TARGET = Target.__struct_fields__
_READ = (*_OF_TARGET, *KEY, "turn", "attempts", "discovered_at", "was_done", "expiries")
"""The columns that are read of a URL which may be leased: those that its batch says, and those that decide."""


@dataclass
class _Sharer:
    """A running job."""

    job_id: int
    job: Job
    ended: float
    """Where its last batch ended in virtual time."""
    room: int
    """URLs that have not been pages before which `max_pages` still allows to be leased."""
    due: list[Any]
    """Its host queues that are due, the longest-waiting last."""
    trapped: bool
    """Whether it may have closed sections."""
    began: float
    """Where the last batch that it was picked for began in virtual time."""
    moved: bool = False
    """Whether this call changes where it stands."""
    domains: dict[str, budgets.Use] = field(default_factory=dict)
    """What is used of the budgets of domains, in a job that has max_pages_per_domain."""


@dataclass
class _Chosen:
    """A host queue that gets a batch."""

    row: Any
    """As _wanting gives it."""
    sharer: _Sharer
    lease: str
    size: int
    next_due: float
    """When the search for due ones looks at the host queue again."""
    targets: list[Any]
    others: dict[Key, tuple[float, float]]
    """Host queues of other jobs that want the host as well: as `_look_again` takes them, if the host is leased."""
    machines: tuple[str, ...]
    """The host's domain and address, where they are capped."""
    delay: float
    """Least seconds between two requests, for their sake."""


def lease(ledger: Ledger, limit: int, now: float) -> list[Batch]:
    """Lease up to `limit` batches of hosts that are due, the longest-waiting of each job first. A host has at most one
    batch under way over all jobs (or its job's `connections`), its domain and address what their caps allow. A job
    whose row cannot be read is left out; `tidy` says so."""
    if limit <= 0:
        return []
    if ledger.wake_at <= now:
        machines.wake(ledger, now)
    given: list[tuple[_Chosen, Batch]] = []
    full: set[int] = set()
    for call in range(CALLS):
        # Hosts without a slot are out of the search by now. At last others get what their jobs could not use.
        more, refused = _lease(ledger, limit - len(given), now, without=full if call == CALLS - 1 else ())
        given += more
        full |= refused
        if not refused or len(given) == limit:
            break
    if ledger.wake_at <= now and len(given) < limit and machines.wake(ledger, now):
        given += _lease(ledger, limit - len(given), now)[0]
    addresses.look_up_again(ledger, [one.row for one, _ in given], now)
    return [batch for _, batch in given]


def _lease(
    ledger: Ledger, limit: int, now: float, without: Container[int] = ()
) -> tuple[list[tuple[_Chosen, Batch]], set[int]]:
    """What `lease` hands out, with what was known of it; and the jobs (job_id) that had turns on hosts whose domain or
    address has no slot free. `without`: jobs that get nothing. One transaction."""
    with ledger.transaction() as tx:
        sharers = _sharers(ledger, tx, limit, now)
        picked = _pick([sharer for sharer in sharers.values() if sharer.job_id not in without], limit)
        if not picked:
            return [], set()
        chosen, full = _hosts_to_lease(ledger, tx, sharers, picked, now)
        _choose_urls(ledger, tx, chosen, now)
        given = [one for one in chosen if one.targets]
        _nothing_ready(ledger, tx, [(one.row.job_id, one.row.host) for one in chosen if not one.targets], now)
        _look_again(ledger, tx, {key: times for one in given for key, times in one.others.items()})
        if not given:
            return [], full
        deadline = now + limits.LEASE
        _take(ledger, tx, given, deadline)
        blocked = functools.cache(lambda: politeness.blocked(tx))
        batches: list[tuple[_Chosen, Batch]] = []
        for one in given:
            job = ledger.ceilings.under(one.sharer.job, one.row.host)
            robots = politeness.robots_of(one.row.robots)
            origins = {url_rules.origin_of(row.url) for row in one.targets} if job.robots else set()
            batch = Batch(
                lease=one.lease,
                job=job,
                host=one.row.host,
                targets=[Target(*row[: len(_OF_TARGET)]) for row in one.targets],
                expires_at=deadline - limits.LEASE_MARGIN,
                begin_by=now + limits.BEGIN,
                robots=robots,
                delay=one.delay,
                lost_before=any(row.expiries for row in one.targets),
                blocked=blocked() if politeness.needs_robots(origins, robots, now) else frozenset(),
            )
            batches.append((one, batch))
        return batches, full


# --- whose turn it is -------------------------------------------------------------------------------------------------


def _sharers(ledger: Ledger, tx: Connection, limit: int, now: float) -> dict[int, _Sharer]:
    """The running jobs by job_id, with what of them is due, up to `limit` host queues each. Indexes jobs_finished
    and jobs_began, and for each that runs one entry of host_queues_due_by_job: what a paused job has due costs
    nothing, and neither do jobs that have ended."""
    sharers = {}
    ledger.wake_at = math.inf
    for row in ledger.run(tx, _running, None, ledger.caps.on).all():
        if ledger.caps.on and row.wake_at is not None:
            ledger.wake_at = row.wake_at
        try:
            job = ledger.ceilings.under(job_of(row.spec, row.prefixes))
        except UnreadableJobError:
            continue
        if (job.max_pages_per_domain or job.max_pages_per_prefix) and _is_being_counted(tx, row.job_id):
            continue
        room, has_due = UNLIMITED, row.first_due is not None and row.first_due <= now
        if job.max_pages is not None:
            room = job.max_pages - _spent(moves.totals(tx, row.job_id))
        due = list(reversed(_due(ledger, tx, row.job_id, limit, now))) if has_due else []
        ended = max(row.ended, row.stands_at or 0.0)
        sharers[row.job_id] = _Sharer(row.job_id, job, ended, room, due, bool(row.trapped), row.began)
    return sharers


def _running(_: Ledger, capped: bool) -> sa.Select[Any]:
    # As a minimum, for which both databases read one entry; of EXISTS, PostgreSQL thinks that any row will do.
    first_due = sa.select(sa.func.min(host_queues.c.next_due)).where(host_queues.c.job_id == jobs.c.job_id, *_WANTED)
    stands_at = sa.select(sa.func.max(jobs.c.began)).scalar_subquery()
    return (
        sa.select(
            *(jobs.c[name] for name in ("job_id", "spec", "prefixes", "began", "ended", "trapped")),
            stands_at.label("stands_at"),
            first_due.scalar_subquery().label("first_due"),
            *([machines.first_due().label("wake_at")] if capped else ()),
        )
        .where(jobs.c.finished_at.is_(None), jobs.c.state == "running", jobs.c.broken.is_(None))
        .order_by(jobs.c.job_id)
    )


def _is_being_counted(tx: Connection, job_id: int) -> bool:
    """Whether it is not known yet what is used of a job's budgets. Index sweeps_unfinished."""
    return bool(tx.execute(sa.select(sweeps.unfinished(job_id, sweeps.COUNT))).scalar_one())


def _spent(counts: Any) -> int:
    """Pages that count against a limit: done, done before and in the queue again, and perhaps about to be. One that was
    done before and is leased counts twice, until it is back."""
    return int(counts["done"] + counts["again"] + counts["leased"])


def _pick(sharers: list[_Sharer], limit: int) -> dict[Key, float]:
    """Up to `limit` host queues that are due, in turns by the jobs' priority; by how much that brings each job on in
    virtual time."""
    picked: dict[Key, float] = {}
    while len(picked) < limit:
        waiting = [sharer for sharer in sharers if sharer.due]
        if not waiting:
            break
        next_one = min(waiting, key=lambda sharer: (sharer.ended, -sharer.job_id))
        row = next_one.due.pop()
        next_one.began, next_one.moved = next_one.ended, True
        picked[next_one.job_id, row.host] = step = min(row.queued, _size(next_one.job)) / next_one.job.priority
        next_one.ended += step
    return picked


def _charge(sharers: dict[int, _Sharer], picked: dict[Key, float], chosen: list[_Chosen]) -> None:
    """Let a turn count for the job that has it on the host, and not for those that had the host looked at. Where the
    queue stands is not moved by it: others would be brought up to a job that is ahead, and its turn be forgiven."""
    for one in chosen:
        host = one.row.host
        for job_id in [job_id for job_id in sharers if (job_id, host) in picked and job_id != one.row.job_id]:
            sharers[job_id].ended -= picked[job_id, host]
        if (one.row.job_id, host) not in picked:
            one.sharer.moved = True
            one.sharer.ended += min(one.row.queued, one.size) / one.sharer.job.priority


def _note_turns(ledger: Ledger, tx: Connection, sharers: dict[int, _Sharer]) -> None:
    """Write where the turns leave the jobs. Locks rows of jobs, by key, before anything else."""
    if len(sharers) > 1:
        turns = [
            {"job_id": sharer.job_id, "began": min(sharer.began, sharer.ended), "ended": sharer.ended}
            for _, sharer in sorted(sharers.items())
            if sharer.moved
        ]
        ledger.run(tx, _set_turns, turns)


def _set_turns(ledger: Ledger) -> sa.Update:
    given = ledger.given(None, *(jobs.c[name] for name in ("job_id", "began", "ended")))
    values = {name: given.c[name] for name in ("began", "ended")}
    return jobs.update().where(jobs.c.job_id == given.c.job_id).values(values)


def _due(ledger: Ledger, tx: Connection, job_id: int, limit: int, now: float) -> Sequence[Any]:
    """Host queues of a job that are due, the longest-waiting first. Index host_queues_due_by_job; no locks: what a host
    may be given is decided in _hosts_to_lease."""
    return ledger.run(tx, _longest_due, job=job_id, now=now, limit=limit).all()


def _longest_due(_: Ledger) -> sa.Select[Any]:
    return (
        sa.select(host_queues.c.host, host_queues.c.queued)
        .where(host_queues.c.job_id == sa.bindparam("job"), *_WANTED, host_queues.c.next_due <= NOW)
        .order_by(host_queues.c.next_due)
        .limit(sa.bindparam("limit", type_=sa.Integer))
    )


def _hosts_to_lease(
    ledger: Ledger, tx: Connection, sharers: dict[int, _Sharer], picked: dict[Key, float], now: float
) -> tuple[list[_Chosen], set[int]]:
    """The host queues that get a batch: for each host of `picked` that may be asked, the one that has the turn there.
    The others are left out of the search for a while: where their domain or address has no slot free, until one is; and
    for good where the host is to be given up. Besides these, the jobs whose turns no slot was free for."""
    of_host: dict[str, list[Any]] = defaultdict(list)
    for row in _wanting(ledger, tx, {host for _, host in picked}, now):
        if row.job_id in sharers:
            of_host[row.host].append(row)
    on = ledger.caps.on
    capped = {host: ledger.caps.machines_of(host, rows[0].address) if on else () for host, rows in of_host.items()}
    number: Counter[str] = Counter()
    for host, names in capped.items():
        row = of_host[host][0]
        for name in names:
            number[name] = row.of_domain if name == row.domain else row.of_address
    parked: dict[str, tuple[str, float]] = {}
    _note_domains(ledger, tx, sharers, of_host)
    chosen: list[_Chosen] = []
    later: dict[Key, tuple[float, float]] = {}
    give_up: list[Key] = []
    for host in dict.fromkeys(host for _, host in picked):
        wanting = []
        for row in of_host[host]:
            sharer = sharers[row.job_id]
            full = _is_full(sharer, row) and row.queued > row.again
            if full or row.dead or row.blocked_at is not None:
                give_up.append((row.job_id, host))
            elif _room(sharer, row) <= 0 and not row.again:
                later[row.job_id, host] = row.next_due, now + LOOK_AGAIN
            else:
                wanting.append(row)
        if not wanting:
            continue
        turn = min(wanting, key=lambda row: (max(row.ended, row.stands_at or 0.0), -row.job_id))
        sharer = sharers[turn.job_id]
        may = turn.host_due <= now and turn.under_way < sharer.job.connections
        if may and (full := [name for name in capped[host] if not _is_free(ledger, name, number, sharer.job)]):
            parked[host] = full[0], min(row.next_due for row in wanting)
            later |= {(row.job_id, host): (row.next_due, now + machines.PARKED) for row in wanting}
            continue
        times = {}
        for row in wanting:
            # With all its batches under way the host cannot be due before a lease ends or is reported, which says so.
            busy = turn.under_way + may >= sharers[row.job_id].job.connections
            again = now if may and row is turn else max(row.host_due, now + LOOK_AGAIN)
            times[row.job_id, host] = row.next_due, now + limits.LEASE if busy else again
        if may:
            _, next_due = times.pop((turn.job_id, host))
            number.update(capped[host])
            delay = ledger.caps.delay_of(capped[host]) if capped[host] else 0.0
            size, lease_name = _size(sharer.job, delay), secrets.token_hex(8)
            chosen.append(_Chosen(turn, sharer, lease_name, size, next_due, [], times, capped[host], delay))
        else:
            later |= times
    full_for: set[int] = set()
    for (job_id, host), step in picked.items():
        if host in parked:  # a turn that brought nothing is none
            sharers[job_id].ended -= step
            full_for.add(job_id)
    _charge(sharers, picked, chosen)
    _note_turns(ledger, tx, sharers)
    machines.park(ledger, tx, parked, now)
    _look_again(ledger, tx, later)
    _flag(ledger, tx, give_up)
    ready = {(row.job_id, host) for host, rows in of_host.items() for row in rows}
    _nothing_ready(ledger, tx, [key for key in picked if key not in ready], now)
    return chosen, full_for


def _wanting(ledger: Ledger, tx: Connection, names: set[str], now: float) -> Sequence[Any]:
    """The host queues, of any running job, that have something ready for these hosts, with what decides about it. Index
    host_queues_host, and leases.host to count the batches under way. Only the scheduler leases, and one scheduler works
    at a time: so nobody else adds one meanwhile."""
    rows: list[dict[str, Any]] = [{"host": host} for host in sorted(names)]
    if ledger.caps.on:
        rows = [{**row, "domain": url_rules.domain_of(row["host"]), "literal": literal(row["host"])} for row in rows]
    return ledger.run(tx, _of_hosts, rows, ledger.caps.on, now=now).all()


def _of_hosts(ledger: Ledger, capped: bool) -> sa.Select[Any]:
    keys: tuple[sa.ColumnClause[Any], ...] = (hosts.c.host,)
    if capped:
        keys += sa.column("domain", sa.Text), sa.column("literal", sa.Text)
    given = ledger.given(None, *keys)
    of_host = host_queues.alias("of_host")
    stands_at = sa.select(sa.func.max(of_host.c.began)).where(of_host.c.host == given.c.host).scalar_subquery()
    under_way = sa.select(sa.func.count()).where(leases.c.host == given.c.host).scalar_subquery()
    of_caps: list[sa.ColumnElement[Any]] = []
    if capped:
        of_caps = [hosts.c[name] for name in ("address", "looked_up_at", "look_up_at")]
        address = sa.func.coalesce(given.c.literal, hosts.c.address)
        of_caps.append(given.c.domain.label("domain"))
        of_caps.append(machines.taken_of(slots.c.domain, given.c.domain, NOW).label("of_domain"))
        of_caps.append(machines.taken_of(slots.c.address, address, NOW).label("of_address"))
    columns = ("job_id", "host", "queued", "leased", "done", "again", "waiting", "next_due", "next_wake", "ended")
    ready = sa.or_(host_queues.c.queued > host_queues.c.waiting, host_queues.c.next_wake <= NOW)
    return (
        sa.select(
            *(host_queues.c[name] for name in columns),
            hosts.c.next_due.label("host_due"),
            hosts.c.robots,
            hosts.c.blocked_at,
            *of_caps,
            sa.case((politeness.given_up(NOW), True), else_=False).label("dead"),
            stands_at.label("stands_at"),
            under_way.label("under_way"),
        )
        .select_from(given)
        .join(host_queues, host_queues.c.host == given.c.host)
        .join(hosts, hosts.c.host == given.c.host)
        .join(jobs, jobs.c.job_id == host_queues.c.job_id)
        .where(*_WANTED, jobs.c.state == "running", ready)
    )


def _is_free(ledger: Ledger, name: str, number: Counter[str], job: Job) -> bool:
    """Whether a machine has a slot for a batch of a job. `number`: how many are taken, by machine."""
    return number[name] < max(ledger.caps.of(name).batches, job.connections)


def _size(job: Job, delay: float = 0.0) -> int:
    """URLs in a batch of a job at most. `delay`: the least that its host's domain and address want."""
    delay = max(job.delay, delay)
    return min(limits.BATCH_URLS, 1 + int(limits.BATCH / delay)) if delay else limits.BATCH_URLS


def _room(sharer: _Sharer, row: Any) -> int:
    """How many URLs that have not been pages before the job's limits allow to be leased of a host now."""
    room = sharer.room
    if sharer.job.max_pages_per_host is not None:
        room = min(room, sharer.job.max_pages_per_host - _spent(row._mapping))
    if sharer.job.max_pages_per_domain is not None:
        use = sharer.domains.get(url_rules.domain_of(row.host), budgets.Use(0, 0))
        room = min(room, sharer.job.max_pages_per_domain - use.pages - use.leased)
    return room


def _is_full(sharer: _Sharer, row: Any) -> bool:
    """Whether a host, or its domain, has given all the pages that the job wants of it."""
    job = sharer.job
    if job.max_pages_per_host is not None and row.done + row.again >= job.max_pages_per_host:
        return True
    if job.max_pages_per_domain is None:
        return False
    return sharer.domains.get(url_rules.domain_of(row.host), budgets.Use(0, 0)).pages >= job.max_pages_per_domain


def _note_domains(ledger: Ledger, tx: Connection, sharers: dict[int, _Sharer], of_host: dict[str, list[Any]]) -> None:
    """Read what is used of the budgets of the hosts' domains. One statement, if a job has such budgets; only the
    scheduler leases, and what recorders finish meanwhile stays within what is used."""
    wanted = {
        (row.job_id, url_rules.domain_of(host))
        for host, rows in of_host.items()
        for row in rows
        if sharers[row.job_id].job.max_pages_per_domain is not None
    }
    for (job_id, domain), use in budgets.used(ledger, tx, wanted).items():
        sharers[job_id].domains[domain] = use


def _look_again(ledger: Ledger, tx: Connection, later: dict[Key, tuple[float, float]]) -> None:
    """Leave host queues out of the search for due ones: `later` holds the next_due that was read, and the new one. By
    primary key; idempotent. Where a recorder has written another next_due meanwhile, the lease that stood in the way
    has ended, and the host is due."""
    if later:
        rows = [
            {"job_id": job_id, "host": host, "seen": seen, "next_due": at}
            for (job_id, host), (seen, at) in sorted(later.items())
        ]
        ledger.run(tx, _set_due, rows)


def _set_due(ledger: Ledger) -> sa.Update:
    given = ledger.given(None, *(host_queues.c[name] for name in (*KEY, "next_due")), sa.column("seen", sa.Float(53)))
    unchanged = host_queues.c.next_due == given.c.seen
    return host_queues.update().where(_same(given), unchanged).values(next_due=given.c.next_due)


def _flag(ledger: Ledger, tx: Connection, keys: list[Key]) -> None:
    """Leave host queues to `tidy`, which drops what is queued. By primary key; idempotent."""
    if keys:
        ledger.run(tx, _set_give_up, _rows(keys))


def _set_give_up(ledger: Ledger) -> sa.Update:
    given = ledger.given(None, *(host_queues.c[name] for name in KEY))
    return host_queues.update().where(_same(given)).values(give_up=True)


def _rows(keys: Iterable[Key]) -> list[dict[str, Any]]:
    return [dict(zip(KEY, key, strict=True)) for key in sorted(keys)]


def _same(given: sa.FromClause) -> sa.ColumnElement[bool]:
    return sa.and_(*(host_queues.c[name] == given.c[name] for name in KEY))


# --- which URLs -------------------------------------------------------------------------------------------------------


def _choose_urls(ledger: Ledger, tx: Connection, chosen: list[_Chosen], now: float) -> None:
    """Give each of `chosen` its targets, the shallowest first: as many as time and the job's limits allow."""
    _wake(ledger, tx, [one.row for one in chosen if one.row.next_wake is not None and one.row.next_wake <= now], now)
    of_each: dict[Key, list[Any]] = defaultdict(list)
    for row in _next_urls(ledger, tx, chosen):
        of_each[row.job_id, row.host].append(row)
    rooms = _keep_out(ledger, tx, chosen, of_each, now)
    for one in chosen:
        rows = of_each[one.row.job_id, one.row.host]
        rows.sort(key=lambda row: (row.turn, row.depth, row.attempts, row.discovered_at))
        room = max(_room(one.sharer, one.row), 0)
        if one.sharer.job.max_pages_per_prefix:
            rows = [row for row in rows if row.was_done or rooms.take(row.job_id, row.url)]
        rows = rows[: one.size]
        if room < one.size:
            new = [row.url for row in rows if not row.was_done]
            too_many = set(new[room:])
            rows = [row for row in rows if row.url not in too_many]
        if rows and one.sharer.job.depth is not None:
            # A level in a batch: a page of this level may be the shorter path to one of the next, which is then not
            # fetched twice. Other hosts, and other batches of this one, are not waited for (links.py).
            rows = [row for row in rows if row.depth == rows[0].depth]
        one.targets = [row for row in rows if row.expiries < SUSPICIOUS] or list(rows[:1])
        one.sharer.room -= len(one.targets)
        if one.sharer.job.max_pages_per_domain is not None:
            domain = url_rules.domain_of(one.row.host)
            use = one.sharer.domains.get(domain, budgets.Use(0, 0))
            one.sharer.domains[domain] = use._replace(leased=use.leased + len(one.targets))


def _keep_out(
    ledger: Ledger, tx: Connection, chosen: list[_Chosen], of_each: dict[Key, list[Any]], now: float
) -> budgets.Rooms:
    """Exclude those of the hosts' next URLs that a full budget or a closed section keeps out, and leave what else is
    queued of these to a sweep; returns the room below prefixes. No statement where no job has such budgets or sections.
    """
    sharers = {one.row.job_id: one.sharer for one in chosen}
    parts = {job_id: budgets.Part(sharer.job, sharer.trapped) for job_id, sharer in sharers.items()}
    parts = {job_id: part for job_id, part in parts.items() if part.is_bounded}
    if not parts:
        return budgets.Rooms({}, Counter())
    for one in chosen:
        if one.row.job_id in parts:
            parts[one.row.job_id].hosts.add(one.row.host)
    described = {job_id: part.job for job_id, part in parts.items() if part.job.max_pages_per_prefix}
    busy = [(one.row.job_id, one.row.host) for one in chosen if one.row.under_way and one.row.job_id in described]
    leased = budgets.leased_below(ledger, tx, busy, described)
    budgets.read(ledger, tx, parts)
    refused: list[dict[str, Any]] = []
    rest: set[tuple[int, str, str, str]] = set()
    for one in chosen:
        if one.row.job_id not in parts:
            continue
        part, key = parts[one.row.job_id], (one.row.job_id, one.row.host)
        left = []
        for row in of_each[key]:
            refusal = None if row.was_done else part.refusal(row.url, row.seed)
            if refusal is None:
                left.append(row)
                continue
            why = {"state": "excluded", "cause": str(refusal.cause), "reason": refusal.reason}
            refused.append({"job_id": key[0], "host": key[1], "url": row.url, **why})
            if refusal.within is not None and one.row.queued > len(of_each[key]):
                kind = sweeps.CLOSE if refusal.cause == Cause.TRAP else sweeps.OVER
                rest.add((*key, kind, refusal.within))
        of_each[key] = left
    if refused:
        these = ledger.given(refused, *(urls.c[name] for name in (*KEY, "url", "state", "cause", "reason")))
        here = sa.and_(*(urls.c[name] == these.c[name] for name in (*KEY, "url")))
        moves.drop_queued(ledger, tx, here, these.c.state, these.c.cause, these.c.reason, now)
    for job_id, host, kind, within in sorted(rest):
        sweeps.order_once(ledger, tx, job_id, kind, now, host, within)
    return budgets.Rooms(parts, leased)


def _next_urls(ledger: Ledger, tx: Connection, chosen: list[_Chosen]) -> Sequence[Any]:
    """The next URLs of each host, in turn. Index urls_in_turn gives them in this order. Locks them, and passes over
    those that a recorder has locked: their turn comes."""
    if not chosen:
        return []
    rows = [
        {"job_id": one.row.job_id, "host": one.row.host, "only_again": _room(one.sharer, one.row) <= 0}
        for one in chosen
    ]
    return ledger.run(tx, _in_turn, rows, limit=max(one.size for one in chosen)).all()


def _in_turn(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, *(urls.c[name] for name in KEY), sa.column("only_again", sa.Boolean))

    def rule(table: sa.FromClause) -> tuple[sa.ColumnElement[bool], list[sa.ColumnElement[Any]]]:
        ready = sa.and_(
            table.c.job_id == given.c.job_id,
            table.c.host == given.c.host,
            table.c.state == "queued",
            table.c.not_before.is_(None),
            sa.or_(table.c.was_done, sa.not_(given.c.only_again)),
        )
        return ready, [table.c[name] for name in ("not_before", "turn", "depth", "attempts", "discovered_at")]

    return ledger.first_of_each(given, urls, _READ, rule, sa.bindparam("limit", type_=sa.Integer))


def _wake(ledger: Ledger, tx: Connection, rows: list[Any], now: float) -> None:
    """Make those of the hosts' waiting URLs ready whose time has come. Index urls_in_turn, twice. `rows`: as _wanting
    gives them.

    Where a recorder has made URLs wait since they were read, next_wake stays as it is, and the next lease looks again.
    """
    if not rows:
        return
    given = ledger.given(_rows((row.job_id, row.host) for row in rows), *(urls.c[name] for name in KEY))
    here = sa.and_(*(urls.c[name] == given.c[name] for name in KEY), urls.c.state == "queued")
    awake = urls.update().where(here, urls.c.not_before <= now).values(not_before=None)
    woken = Counter((job_id, host) for job_id, host in tx.execute(awake.returning(urls.c.job_id, urls.c.host)))
    first = sa.select(sa.func.min(urls.c.not_before)).where(here, urls.c.not_before.is_not(None))
    following = {
        (row.job_id, row.host): row.first
        for row in tx.execute(sa.select(given.c.job_id, given.c.host, first.scalar_subquery().label("first")))
    }
    changes = [
        {"job_id": key[0], "host": key[1], "woken": woken[key], "waiting": row.waiting, "next_wake": following[key]}
        for key, row in sorted(((row.job_id, row.host), row) for row in rows)
    ]
    columns = (host_queues.c[name] for name in (*KEY, "waiting", "next_wake"))
    new = ledger.given(changes, *columns, sa.column("woken", sa.BigInteger))
    same = host_queues.c.waiting == new.c.waiting
    values = {
        "waiting": host_queues.c.waiting - new.c.woken,
        "next_wake": sa.case((same, new.c.next_wake), else_=host_queues.c.next_wake),
    }
    tx.execute(host_queues.update().where(_same(new)).values(values))
    moves.add_up(ledger, tx, [{"job_id": key[0], "waiting": -number} for key, number in woken.items()])


def _take(ledger: Ledger, tx: Connection, given: list[_Chosen], deadline: float) -> None:
    """Bring the targets into the state "leased", each batch under a lease of its own. By primary key; _next_urls has
    locked the URLs. Writes where that leaves the hosts' turns."""
    taken = [
        {
            "job_id": one.row.job_id,
            "host": one.row.host,
            "url": row.url,
            "lease": one.lease,
            "leased_depth": row.depth if one.sharer.job.depth is not None else None,
        }
        for one in given
        for row in one.targets
    ]
    ledger.run(tx, _set_leased, taken)
    rows = [
        {
            "lease": one.lease,
            "job_id": one.row.job_id,
            "host": one.row.host,
            "urls": len(one.targets),
        }
        for one in given
    ]
    watched = [one.sharer.job.traps and one.row.done >= traps.WATCH_FROM for one in given]
    if any(watched):
        rows = [{**row, "watched": is_watched} for row, is_watched in zip(rows, watched, strict=True)]
    ledger.run(tx, _insert_leases, rows, tuple(rows[0]), until=deadline)
    machines.take(ledger, tx, ((one.lease, one.machines, one.delay) for one in given if one.machines), deadline)
    turns = []
    for one in sorted(given, key=lambda one: (one.row.job_id, one.row.host)):
        began, number = max(one.row.ended, one.row.stands_at or 0.0), len(one.targets)
        length = number if one.row.ended else _phase(one.row) * one.size
        ended = began + length / one.sharer.job.priority
        key = {"job_id": one.row.job_id, "host": one.row.host}
        turns.append({**key, "leased": number, "next_due": one.next_due, "began": began, "ended": ended})
    ledger.run(tx, _set_taken, turns)
    _write_domains(ledger, tx, [one for one in given if one.sharer.job.max_pages_per_domain is not None])
    moves.add_up(ledger, tx, [{"job_id": t["job_id"], "queued": -t["leased"], "leased": t["leased"]} for t in turns])


def _phase(row: Any) -> float:
    """Where in its round a job begins on a host, from 0 to 1, as good as by chance: jobs that began together on many
    hosts would else have their turns on all of them at the same time, and for so long more than their shares."""
    return zlib.crc32(f"{row.job_id} {row.host}".encode()) / 2**32


def _set_leased(ledger: Ledger) -> sa.Update:
    given = ledger.given(None, *(urls.c[name] for name in (*KEY, "url", "lease", "leased_depth")))
    return (
        urls.update()
        .where(*(urls.c[name] == given.c[name] for name in (*KEY, "url")))
        .values(state="leased", lease=given.c.lease, leased_depth=given.c.leased_depth)
    )


def _insert_leases(ledger: Ledger, names: tuple[str, ...]) -> Any:
    return ledger.insert_given(leases, names, deadline=sa.bindparam("until", type_=sa.Float(53)))


def _set_taken(ledger: Ledger) -> sa.Update:
    new = ledger.given(None, *(host_queues.c[name] for name in (*KEY, "leased", "next_due", "began", "ended")))
    values = {
        "queued": host_queues.c.queued - new.c.leased,
        "leased": host_queues.c.leased + new.c.leased,
        "next_due": new.c.next_due,
        "began": new.c.began,
        "ended": new.c.ended,
    }
    return host_queues.update().where(_same(new)).values(values)


def _write_domains(ledger: Ledger, tx: Connection, given: list[_Chosen]) -> None:
    """Let hosts count against the budgets of their domains (index host_queues_counted). By primary key; idempotent;
    _take has locked the rows."""
    if given:
        keys = sorted((one.row.job_id, one.row.host) for one in given)
        rows = [{"job_id": job_id, "host": host, "domain": url_rules.domain_of(host)} for job_id, host in keys]
        new = ledger.given(rows, *(host_queues.c[name] for name in (*KEY, "domain")))
        tx.execute(host_queues.update().where(_same(new)).values(domain=new.c.domain))


def _nothing_ready(ledger: Ledger, tx: Connection, keys: list[Key], now: float) -> None:
    """Leave hosts out of the search from which nothing could be taken: until the first of their URLs wakes, where all
    that is queued waits; else for a moment, as a limit may hold them, or a recorder lock their URLs.

    Whoever queues more finds next_due equal to next_wake, and makes the host due (moves.apply); where that happened
    before this row was locked, the counts say so.
    """
    if keys:
        ledger.run(tx, _set_idle, _rows(keys), now=now)


def _set_idle(ledger: Ledger) -> sa.Update:
    all_wait = sa.and_(host_queues.c.queued <= host_queues.c.waiting, host_queues.c.next_wake > NOW)
    until = sa.case((all_wait, host_queues.c.next_wake), else_=NOW + LOOK_AGAIN)
    given = ledger.given(None, *(host_queues.c[name] for name in KEY))
    return host_queues.update().where(_same(given)).values(next_due=until)


# --- leases that do not come back -------------------------------------------------------------------------------------


def lose(
    tx: Connection,
    names: Sequence[str],
    reason: str,
    moved: moves.Moves,
    now: float,
    gone: list[tuple[int, str]],
    begun: bool = True,
) -> Counter[str]:
    """Queue the URLs again of leases that will not come back, noting that in `moved`; those lost too often have failed,
    of which only leases that were `begun` count, and are added to `gone` (job_id, URL) if they were pages before.
    Returns how many URLs each lease had. Idempotent; index urls_leased. The URLs keep the name of the lease: should its
    report arrive before another lease begins, it still counts."""
    expiries = urls.c.expiries + int(begun)
    often = expiries >= MAX_EXPIRIES
    lost = (
        urls.update()
        .where(urls.c.lease.in_(names), urls.c.state == "leased")
        .values(
            state=sa.case((often, "failed"), else_="queued"),
            reason=sa.case((often, f"{reason}, {MAX_EXPIRIES} times"), else_=reason),
            cause=str(Cause.LEASE_LOST),
            fetched_at=sa.case((often, now), else_=urls.c.fetched_at),
            expiries=expiries,
        )
        .returning(urls.c.job_id, urls.c.host, urls.c.url, urls.c.lease, urls.c.state, urls.c.was_done)
    )
    number: Counter[str] = Counter()
    for job_id, host, url, name, state, was_done in tx.execute(lost):
        counts = moved[job_id, host]
        counts["leased"] -= 1
        counts[state] += 1
        number[name] += 1
        if state == "failed":
            counts["again"] -= bool(was_done)
            gone += [(job_id, url)] if was_done else []
    return number
