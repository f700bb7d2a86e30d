"""Which address a host has, for the caps by address: who is to be looked up, and what was found.

A new host is looked up before it is leased: its queue is due after limits.LOOK_UP, and at once when its address is
known, or known not to be found. It then waits in line with others of its domain and address, if any do. So a look-up
that hangs delays its own host by that time, and nobody else. An address that is old is looked up again while the host
is leased with the old one.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import sqlalchemy as sa

from crawler import limits
from crawler.frontier import machines
from crawler.frontier.caps import literal
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import host_queues, hosts

AT_ONCE = 200
"""Hosts taken from the ledger in one call."""
FRESH, FRESH_UNKNOWN = 6 * 3600.0, 60.0
"""Seconds for which an address that was found is taken for granted, and that none was."""


def to_look_up(ledger: Ledger, limit: int) -> list[str]:
    """The next hosts to be looked up; again and again, until `looked_up` is told. Index hosts_to_look_up; no locks."""
    with ledger.transaction() as tx:
        first = sa.select(hosts.c.host).where(hosts.c.look_up_at.is_not(None)).order_by(hosts.c.look_up_at)
        return list(tx.execute(first.limit(limit)).scalars())


def looked_up(ledger: Ledger, found: Mapping[str, str | None], now: float) -> None:
    """Note hosts' addresses (None: none was found), and let those be leased that waited for it: at once, or in their
    turn where others wait for their domain or address. Locks machines and waiting_hosts, then hosts, then host_queues,
    by key; idempotent."""
    if not found:
        return
    capped = {host: ledger.caps.machines_of(host, address) for host, address in found.items()}
    with ledger.transaction() as tx:
        queue = machines.waited_for(ledger, tx, {name for names in capped.values() for name in names})
        new = _new(ledger, tx, found)
        first = {host: [name for name in capped[host] if name in queue] for host in new}
        parked = {host: (names[0], now) for host, names in first.items() if names}
        machines.park(ledger, tx, parked, now)
        rows = [{"host": host, "address": address} for host, address in sorted(found.items())]
        given = ledger.given(rows, hosts.c.host, hosts.c.address)
        locked = sa.select(hosts.c.host).join(given, given.c.host == hosts.c.host).order_by(hosts.c.host)
        tx.execute(locked.with_for_update(of=hosts)).all()
        noted = {"address": given.c.address, "looked_up_at": now, "look_up_at": None}
        tx.execute(hosts.update().where(hosts.c.host == given.c.host).values(noted))
        if new:
            due = [{"host": host, "next_due": now + machines.PARKED if host in parked else now} for host in sorted(new)]
            then = ledger.given(due, hosts.c.host, hosts.c.next_due)
            # Due earlier, or later, than a new host is: somebody else has said when.
            untouched = sa.and_(host_queues.c.next_due > now, host_queues.c.next_due <= now + limits.LOOK_UP)
            here = sa.and_(host_queues.c.host == then.c.host, untouched)
            tx.execute(host_queues.update().where(here).values(next_due=then.c.next_due))


def _new(ledger: Ledger, tx: sa.Connection, found: Mapping[str, str | None]) -> set[str]:
    """Those of some hosts that were never looked up before. By primary key."""
    given = ledger.given([{"host": host} for host in sorted(found)], hosts.c.host)
    never = sa.select(hosts.c.host).join(given, given.c.host == hosts.c.host).where(hosts.c.looked_up_at.is_(None))
    return set(tx.execute(never).scalars())


def look_up_again(ledger: Ledger, rows: Sequence[Any], now: float) -> None:
    """Let the addresses be looked up that are old, of hosts that were leased. `rows`: columns of hosts, as lease.py
    reads them. Locks hosts, by key; idempotent."""
    if not ledger.caps.by_address:
        return
    old = sorted({row.host for row in rows if _is_old(row, now)})
    if not old:
        return
    with ledger.transaction() as tx:
        given = ledger.given([{"host": host} for host in old], hosts.c.host)
        locked = sa.select(hosts.c.host).join(given, given.c.host == hosts.c.host).order_by(hosts.c.host)
        tx.execute(locked.with_for_update(of=hosts)).all()
        tx.execute(hosts.update().where(hosts.c.host == given.c.host).values(look_up_at=now))


class Resolver(Protocol):
    """resolver.Resolver, or what stands in for it."""

    @property
    def room(self) -> int: ...

    @property
    def under_way(self) -> int: ...

    def ask(self, hosts: Iterable[str]) -> None: ...

    def answers(self) -> dict[str, str | None]: ...


def look_up(ledger: Ledger, resolver: Resolver, now: float) -> None:
    """Note what has been found since the last call, and begin to look up who is next. Waits for no answer. Where no
    cap needs an address, and for hosts that are written as one, none is asked for."""
    if not ledger.caps.on:
        return
    found = resolver.answers()
    looked_up(ledger, found, now)
    if not ledger.caps.by_address:
        looked_up(ledger, dict.fromkeys(to_look_up(ledger, AT_ONCE)), now)
    elif resolver.room > 0:
        names = to_look_up(ledger, resolver.under_way + AT_ONCE)
        written = {host: address for host in names if (address := literal(host))}
        looked_up(ledger, written, now)
        resolver.ask(host for host in names if host not in written)


def _is_old(row: Any, now: float) -> bool:
    if row.look_up_at is not None or literal(row.host) is not None:
        return False
    return row.looked_up_at is None or row.looked_up_at < now - (FRESH if row.address else FRESH_UNKNOWN)
