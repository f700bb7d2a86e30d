"""Hosts wait for their domain and their server: what is taken of the caps (caps.py), and whose turn is next.

Each lease of a capped host takes a *slot* of its domain and its address, until its report is recorded and its rest is
over; a lease that expires frees its slot by itself. A host that finds none waits in `waiting_hosts`, out of the search
for due ones, however many there are; as many are woken as slots become free, the longest-waiting first.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from crawler.frontier.ledger import NOW, Ledger
from crawler.frontier.schema import host_queues, hosts, jobs, machines, slots, waiting_hosts

PARKED = 3600.0
"""Seconds after which a host that waits is looked at even if nobody wakes it, as after a rollback to a release that
knows nothing of waiting hosts."""
LOOK_AGAIN = 1.0
"""Seconds until a machine is looked at again whose woken hosts may not have been leased."""
MACHINES = 100
"""Looked at in one call."""
UNWANTED = 20
"""Hosts looked at for each machine at least, so that those that nobody wants any more do not keep others waiting."""


def taken_of(column: sa.Column[str], name: Any, now: sa.BindParameter[float]) -> sa.ScalarSelect[int]:
    """How many slots are taken of the machine `name`, an expression, as a subquery. `column`: that of slots for such
    machines. Index slots_domain or slots_address."""
    return sa.select(sa.func.count()).where(column == name, slots.c.until > now).scalar_subquery()


def first_due() -> sa.ScalarSelect[float]:
    """When `wake` next has something to do, as a subquery; null: nobody waits. Index on machines.next_due."""
    return sa.select(sa.func.min(machines.c.next_due)).scalar_subquery()


def taken(ledger: Ledger, tx: Connection, names: Collection[str], now: float) -> dict[str, tuple[int, float]]:
    """How many slots of each machine are taken, and when the first of those is free at the latest; machines of which
    none is taken are left out. Indexes slots_domain and slots_address."""
    if not names:
        return {}
    given = ledger.given([{"machine": name} for name in sorted(names)], machines.c.machine)
    columns = (slots.c.domain, slots.c.address)
    parts = (
        sa.select(given.c.machine, slots.c.until).join(slots, column == given.c.machine).where(slots.c.until > now)
        for column in columns
    )
    both = sa.union_all(*parts).subquery()
    counted = sa.select(both.c.machine, sa.func.count(), sa.func.min(both.c.until)).group_by(both.c.machine)
    return {name: (number, first) for name, number, first in tx.execute(counted)}


def take(ledger: Ledger, tx: Connection, leased: Iterable[tuple[str, tuple[str, ...], float]], deadline: float) -> None:
    """Take a slot for each lease, of each of its machines: `leased`, with the rest after it. Rows of one's own: waits
    for nobody."""
    rows = []
    for lease, names, rest in leased:
        row: dict[str, Any] = {"lease": lease, "domain": None, "address": None, "rest": rest}
        for name in names:
            row[ledger.caps.kind_of(name)] = name
        rows.append(row)
    if rows:
        ledger.run(tx, _insert_slots, rows, at=deadline)


def _insert_slots(ledger: Ledger) -> Any:
    return ledger.insert_given(
        slots, ("lease", "domain", "address", "rest"), until=sa.bindparam("at", type_=sa.Float(53))
    )


def end(ledger: Ledger, tx: Connection, leases: Collection[str], now: float) -> None:
    """Let the slots of leases that have ended become free after their rest, and the hosts that wait for them be woken
    then. By primary keys; idempotent. The caller has ended the leases, so that the slots are its own; locks machines,
    by key."""
    if not leases or not ledger.caps.on:
        return
    free: dict[str, float] = {}
    for row in ledger.run(tx, _end, [{"lease": lease} for lease in sorted(leases)], now=now):
        for name in (row.of_domain, row.of_address):
            if name is not None:
                free[name] = min(row.until, free.get(name, row.until))
    if free:
        locked = sa.select(machines.c.machine).where(machines.c.machine.in_(sorted(free))).order_by(machines.c.machine)
        tx.execute(locked.with_for_update()).all()
        rows = [{"machine": name, "next_due": at} for name, at in sorted(free.items())]
        given = ledger.given(rows, *machines.c)
        sooner = sa.and_(machines.c.machine == given.c.machine, machines.c.next_due > given.c.next_due)
        tx.execute(machines.update().where(sooner).values(next_due=given.c.next_due))


def _end(ledger: Ledger) -> Any:
    given = ledger.given(None, slots.c.lease)
    waits = [
        sa.select(machines.c.machine).where(machines.c.machine == slots.c[kind]).scalar_subquery().label(f"of_{kind}")
        for kind in ("domain", "address")
    ]
    ended = slots.update().where(slots.c.lease.in_(sa.select(given.c.lease))).values(until=NOW + slots.c.rest)
    return ended.returning(slots.c.until, *waits)


def free_all(tx: Connection, now: float) -> None:
    """Free every slot, for no lease is in force."""
    tx.execute(slots.delete())
    tx.execute(machines.update().values(next_due=now))


def forget(tx: Connection, now: float) -> None:
    """Delete slots that are free. Reads all of them, which are as many as leases, and ended ones of a second."""
    tx.execute(slots.delete().where(slots.c.until <= now))


# --- waiting ----------------------------------------------------------------------------------------------------------


def park(ledger: Ledger, tx: Connection, parked: dict[str, tuple[str, float]], now: float) -> None:
    """Let hosts wait for a machine each, in turn by a time: `parked`, by host. The caller leaves their queues out of
    the search for due ones until now + PARKED. Idempotent; a host that waits already keeps its turn."""
    if not parked:
        return
    names = sorted({machine for machine, _ in parked.values()})
    # Until the row is there, no recorder that frees a slot can say so: hence soon.
    ledger.run(tx, _insert_machines, [{"machine": name} for name in names], at=now + LOOK_AGAIN)
    rows = [{"host": host, "machine": name, "since": since} for host, (name, since) in sorted(parked.items())]
    ledger.run(tx, _insert_waiting, rows)


def _insert_machines(ledger: Ledger) -> Any:
    at = sa.bindparam("at", type_=sa.Float(53))
    return ledger.insert_given(machines, ["machine"], next_due=at).on_conflict_do_nothing()


def _insert_waiting(ledger: Ledger) -> Any:
    return ledger.insert_given(waiting_hosts, ["host", "machine", "since"]).on_conflict_do_nothing()


def waited_for(ledger: Ledger, tx: Connection, names: Collection[str]) -> frozenset[str]:
    """Those of some machines at which hosts wait. By primary key."""
    if not names:
        return frozenset()
    given = ledger.given([{"machine": name} for name in sorted(names)], machines.c.machine)
    found = sa.select(machines.c.machine).join(given, given.c.machine == machines.c.machine)
    return frozenset(tx.execute(found).scalars())


def wake(ledger: Ledger, now: float) -> int:
    """Let as many hosts be due as slots are free at the machines they wait for, the longest-waiting first; returns how
    many machines were looked at. One transaction; index on machines.next_due, MACHINES at most: what it costs does not
    depend on how many hosts wait.

    Locks machines, then waiting_hosts, then host_queues. A machine that a recorder has locked is passed over: the next
    call finds it due.
    """
    with ledger.transaction() as tx:
        due = sa.select(machines.c.machine).where(machines.c.next_due <= now).order_by(machines.c.next_due)
        names = tx.execute(due.limit(MACHINES).with_for_update(skip_locked=True)).scalars().all()
        if not names:
            return 0
        counts = taken(ledger, tx, names, now)  # after the lock: what was freed before it is seen
        room = {name: _room(ledger, name, counts) for name in names}
        waiting = _first(ledger, tx, {name: free for name, free in room.items() if free > 0})
        wanted = _wanted(ledger, tx, [row.host for rows in waiting.values() for row in rows])
        woken: list[Any] = []
        looks: list[dict[str, Any]] = []
        over: list[str] = []
        for name in names:
            if room[name] <= 0:
                looks.append({"machine": name, "next_due": counts[name][1]})
                continue
            some = _chosen(waiting[name], wanted, room[name])
            woken += some
            if len(waiting[name]) < _size(room) and len(some) == len(waiting[name]):
                over.append(name)
            else:
                full = sum(row.host in wanted for row in some) == room[name]
                looks.append({"machine": name, "next_due": now + LOOK_AGAIN if full else now})
        _let_go(ledger, tx, woken)
        if looks:
            given = ledger.given(looks, *machines.c)
            here = machines.c.machine == given.c.machine
            tx.execute(machines.update().where(here).values(next_due=given.c.next_due))
        if over:
            tx.execute(machines.delete().where(machines.c.machine.in_(over)))
        return len(names)


def _room(ledger: Ledger, name: str, counts: dict[str, tuple[int, float]]) -> int:
    """Slots of a machine that are free; one whose cap was taken back has no end of them."""
    batches = ledger.caps.of(name).batches
    return batches - counts.get(name, (0, 0.0))[0] if batches else UNWANTED


def _size(room: dict[str, int]) -> int:
    return max(UNWANTED, *room.values())


def _first(ledger: Ledger, tx: Connection, room: dict[str, int]) -> dict[str, Sequence[Any]]:
    """The hosts that have waited longest for each of some machines. Index waiting_hosts_in_turn."""
    found: dict[str, list[Any]] = defaultdict(list)
    if room:
        names = [{"machine": name} for name in sorted(room)]
        for row in ledger.run(tx, _in_turn, names, limit=_size(room)):
            found[row.machine].append(row)
    for rows in found.values():
        rows.sort(key=lambda row: (row.since, row.host))
    return defaultdict(list, found)


def _in_turn(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, machines.c.machine)

    def rule(table: sa.FromClause) -> tuple[sa.ColumnElement[bool], list[sa.ColumnElement[Any]]]:
        return table.c.machine == given.c.machine, [table.c.since]

    names = ("host", "machine", "since")
    return ledger.first_of_each(given, waiting_hosts, names, rule, sa.bindparam("limit", type_=sa.Integer))


def _wanted(ledger: Ledger, tx: Connection, names: list[str]) -> frozenset[str]:
    """Those of some hosts of which a running job has something queued. Index host_queues_host."""
    if not names:
        return frozenset()
    given = ledger.given([{"host": name} for name in sorted(names)], hosts.c.host)
    wanting = (
        sa.select(host_queues.c.host)
        .join(given, given.c.host == host_queues.c.host)
        .join(jobs, jobs.c.job_id == host_queues.c.job_id)
        .where(jobs.c.state == "running", host_queues.c.queued > 0, sa.not_(host_queues.c.give_up))
    )
    return frozenset(tx.execute(wanting).scalars())


def _chosen(rows: Sequence[Any], wanted: frozenset[str], room: int) -> list[Any]:
    """The first `room` hosts that are wanted, and all others before the next of those."""
    chosen = []
    for row in rows:
        if row.host in wanted:
            if not room:
                break
            room -= 1
        chosen.append(row)
    return chosen


def _let_go(ledger: Ledger, tx: Connection, rows: list[Any]) -> None:
    """Let hosts that have waited be due since they began to wait. By primary key, and index host_queues_host."""
    if not rows:
        return
    ordered = sorted(({"host": row.host, "since": row.since} for row in rows), key=lambda row: str(row["host"]))
    given = ledger.given(ordered, waiting_hosts.c.host, waiting_hosts.c.since)
    tx.execute(waiting_hosts.delete().where(waiting_hosts.c.host.in_([row["host"] for row in ordered])))
    here = sa.and_(host_queues.c.host == given.c.host, host_queues.c.next_due > given.c.since)
    tx.execute(host_queues.update().where(here).values(next_due=given.c.since))
