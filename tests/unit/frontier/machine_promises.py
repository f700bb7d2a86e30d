"""Caps of domains and servers: how many batches of them are under way, however many hosts they have, and who waits."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from ledger_promises import report

from crawler import limits
from crawler.frontier import addresses, orders, tidy
from crawler.frontier.admit import admit
from crawler.frontier.caps import NO_CAP, Cap, Caps
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import record
from crawler.frontier.schema import host_queues, hosts, metadata, slots, waiting_hosts
from crawler.frontier.schema import machines as machines_table
from crawler.job import Job
from crawler.messages import Admission, Batch

ADDRESS, ANOTHER = "192.0.2.1", "198.51.100.7"
TWO = Caps(address=Cap(2, 5.0))


def admit_hosts(ledger: Ledger, names: list[str], now: float, pages: int = 1, name: str = "j", **job: Any) -> None:
    urls = [f"http://{host}/{page}" for host in names for page in range(pages)]
    for chunk, first in enumerate(range(0, len(urls), 1000)):
        piece = Admission(
            job=Job(name=name, **{"delay": 0, **job}),
            seeding=f"{name} {names[0]}",
            chunk=chunk,
            urls=urls[first : first + 1000],
        )
        admit(ledger, piece, now)


def look_up(ledger: Ledger, now: float, known: Mapping[str, str | None]) -> None:
    """As the scheduler does with what its resolver has found; hosts that are not `known` stay without an answer."""
    found = {host: known[host] for host in addresses.to_look_up(ledger, 100_000) if host in known}
    addresses.looked_up(ledger, found, now)


def at_one_server(ledger: Ledger, number: int, now: float, **job: Any) -> list[str]:
    """Hosts of as many domains, all at ADDRESS, and looked up."""
    names = [f"www.site{n}.test" for n in range(number)]
    admit_hosts(ledger, names, now, **job)
    look_up(ledger, now, dict.fromkeys(names, ADDRESS))
    return names


def test_a_server_has_two_batches_at_once_and_rests_after_each(ledger: Ledger) -> None:
    ledger.caps = TWO
    at_one_server(ledger, 50, now=0)
    first, second = lease(ledger, 50, now=1)
    assert first.delay == second.delay == 5.0
    assert lease(ledger, 50, now=9) == []
    record(ledger, [report(first)], now=10)
    assert lease(ledger, 50, now=14.9) == []
    (third,) = lease(ledger, 50, now=15.1)
    record(ledger, [report(second), report(third)], now=20)
    assert lease(ledger, 50, now=24.9) == []
    assert len(lease(ledger, 50, now=25.1)) == 2


def test_all_hosts_of_a_server_are_crawled_the_longest_waiting_first(ledger: Ledger) -> None:
    ledger.caps = TWO
    names = at_one_server(ledger, 20, now=0)
    late = ["late.test"]
    admit_hosts(ledger, late, 3)
    look_up(ledger, 3, {"late.test": ADDRESS})
    order: list[str] = []
    for second in range(300):
        batches = lease(ledger, 50, now=4 + second / 2)
        order += [batch.host for batch in batches]
        record(ledger, [report(batch) for batch in batches], now=4.2 + second / 2)
    assert sorted(order) == sorted(names + late)
    assert order.index("late.test") >= 18
    with ledger.engine.connect() as connection:
        for table in (waiting_hosts, machines_table):
            assert connection.execute(sa.select(sa.func.count()).select_from(table)).scalar_one() == 0


def test_a_domain_has_its_cap_whatever_its_addresses(ledger: Ledger) -> None:
    ledger.caps = Caps(domain=Cap(3, 1.0))
    names = [f"s{n}.shop.example.org" for n in range(30)]
    admit_hosts(ledger, [*names, "www.example.com"], 0)
    look_up(ledger, 0, {host: f"192.0.2.{n}" for n, host in enumerate([*names, "www.example.com"])})
    batches = lease(ledger, 50, now=1)
    assert sum("example.org" in batch.host for batch in batches) == 3
    assert [batch.delay for batch in batches if batch.host == "www.example.com"] == [1.0]
    assert lease(ledger, 50, now=9) == []


def test_the_stricter_of_both_caps_counts(ledger: Ledger) -> None:
    ledger.caps = Caps(domain=Cap(3, 1.0), address=Cap(2, 4.0))
    names = [f"s{n}.example.org" for n in range(6)]
    admit_hosts(ledger, names, 0)
    look_up(ledger, 0, {host: ADDRESS if n < 4 else ANOTHER for n, host in enumerate(names)})
    batches = lease(ledger, 10, now=1)
    assert sorted(batch.host for batch in batches) == ["s0.example.org", "s1.example.org", "s4.example.org"]
    assert {batch.delay for batch in batches} == {4.0}
    record(ledger, [report(batch) for batch in batches], now=2)
    assert lease(ledger, 10, now=5.9) == []
    seen = [batch.host for now in (6.1, 7.2, 8.3) for batch in lease(ledger, 10, now)]
    assert sorted(seen) == ["s2.example.org", "s3.example.org", "s5.example.org"]


def test_hosts_in_a_network_that_is_exempt_have_no_caps(ledger: Ledger) -> None:
    network = ipaddress.ip_network("192.0.2.0/24")
    ledger.caps = Caps(Cap(1, 1.0), Cap(1, 1.0), (network,))
    names = [f"s{n}.example.org" for n in range(30)]
    admit_hosts(ledger, names, 0)
    look_up(ledger, 0, {host: ADDRESS if n else ANOTHER for n, host in enumerate(names)})
    batches = lease(ledger, 50, now=1)
    assert len(batches) == 30
    assert {batch.host: batch.delay for batch in batches if batch.delay} == {"s0.example.org": 1.0}


def test_what_a_site_s_owner_allows_is_not_undercut(ledger: Ledger) -> None:
    ledger.caps = Caps(Cap(2, 1.0), Cap(2, 1.0))
    admit_hosts(ledger, ["a.test"], 0, pages=400, connections=4)
    look_up(ledger, 0, {"a.test": ADDRESS})
    assert len([batch for now in range(1, 9) for batch in lease(ledger, 9, now)]) == 4


def test_a_batch_is_cut_for_the_least_delay(ledger: Ledger) -> None:
    ledger.caps = Caps(address=Cap(2, 15.0))
    admit_hosts(ledger, ["a.test"], 0, pages=50)
    look_up(ledger, 0, {"a.test": ADDRESS})
    (batch,) = lease(ledger, 1, now=1)
    assert len(batch.targets) == 1 + limits.BATCH / 15


def test_a_lease_that_expires_frees_its_slot(ledger: Ledger) -> None:
    ledger.caps = TWO
    at_one_server(ledger, 4, now=0)
    lost = lease(ledger, 9, now=1)
    assert lease(ledger, 9, now=limits.LEASE) == []
    tidy.tidy(ledger, now=limits.LEASE + 2)
    assert lease(ledger, 9, now=limits.LEASE + 6) == []  # it rests as after any other
    found = lease(ledger, 9, now=limits.LEASE + 8) + lease(ledger, 9, now=limits.LEASE + 10)
    assert len(found) == 2
    late = [report(batch) for batch in lost]
    record(ledger, late, now=limits.LEASE + 11)  # of leases that are no more: it frees nothing
    assert lease(ledger, 9, now=limits.LEASE + 20) == []


def test_a_killed_embedded_run_leaves_no_slot_taken(ledger: Ledger) -> None:
    ledger.caps = TWO
    at_one_server(ledger, 4, now=0)
    lease(ledger, 9, now=1)
    tidy.take_back_leases(ledger, now=2)
    assert len(lease(ledger, 9, now=2)) == 2


def test_a_report_seen_twice_frees_no_second_slot(ledger: Ledger) -> None:
    ledger.caps = TWO
    at_one_server(ledger, 10, now=0)
    first, _ = lease(ledger, 9, now=1)
    record(ledger, [report(first), report(first)], now=2)
    record(ledger, [report(first)], now=30)
    assert len(lease(ledger, 9, now=31)) == 1
    assert lease(ledger, 9, now=60) == []


def test_who_waits_for_a_server_keeps_no_other_host_waiting(ledger: Ledger) -> None:
    """Also within one job; and hosts that are found while others wait are no work for the search."""
    ledger.caps = Caps(address=Cap(1, 1.0))
    at_one_server(ledger, 60, now=0)
    assert len(lease(ledger, 100, now=1)) == 1
    admit_hosts(ledger, [f"www.more{n}.test" for n in range(500)], 2, name="k")
    look_up(ledger, 2, {f"www.more{n}.test": ADDRESS for n in range(500)})
    admit_hosts(ledger, ["free.test"], 3, name="k")
    look_up(ledger, 3, {"free.test": ANOTHER})
    assert [batch.host for batch in lease(ledger, 1, now=4)] == ["free.test"]


def test_turns_that_brought_nothing_are_no_turns(ledger: Ledger) -> None:
    """A job whose hosts wait for one server has not had its share."""
    ledger.caps = Caps(address=Cap(1, 1.0))
    at_one_server(ledger, 300, now=0)
    admit_hosts(ledger, [f"j{n}.test" for n in range(100)], 1)
    admit_hosts(ledger, [f"k{n}.test" for n in range(800)], 1, name="k")
    look_up(ledger, 1, {f"{name}{n}.test": f"10.{n // 250}.{ord(name)}.{n % 250}" for name in "jk" for n in range(800)})
    shares: dict[str, int] = {"j": 0, "k": 0}
    for now in range(2, 60):
        for batch in lease(ledger, 20, now):
            shares[batch.job.name] += 1
        if shares["j"] > 50:
            break
    assert shares["k"] < 800  # j's own hosts did not wait for the end of k


def test_who_waits_for_a_server_takes_no_turn_from_other_jobs(ledger: Ledger) -> None:
    """Even if that job is owed far more than a call leases."""
    ledger.caps = TWO
    own = [f"{n}.own.example" for n in range(20)]
    at_one_server(ledger, 100, now=0, name="many")
    admit_hosts(ledger, own, 0, pages=40, name="few")
    look_up(ledger, 0, {host: f"198.51.100.{n}" for n, host in enumerate(own)})
    orders.set_state(ledger, "many", "paused", 0)
    record(ledger, [report(batch) for batch in lease(ledger, 10, now=1)], now=2)
    orders.set_state(ledger, "many", "running", 3)
    jobs_of = Counter(batch.job.name for batch in lease(ledger, 10, now=4))
    assert jobs_of == {"many": 2, "few": 8}


def test_hosts_of_a_paused_job_keep_nobody_waiting(ledger: Ledger) -> None:
    ledger.caps = Caps(address=Cap(1, 1.0))
    at_one_server(ledger, 100, now=0)
    (batch,) = lease(ledger, 50, now=1)
    lease(ledger, 100, now=1)  # all the others wait now
    admit_hosts(ledger, ["k.test"], 2, name="k")
    look_up(ledger, 2, {"k.test": ADDRESS})
    orders.set_state(ledger, "j", "paused", now=3)
    record(ledger, [report(batch)], now=3)
    found = [batch.host for call in range(20) for batch in lease(ledger, 5, now=5 + call / 10)]
    assert found == ["k.test"]
    orders.set_state(ledger, "j", "running", now=8)
    assert len(lease(ledger, 50, now=700)) == 1  # they are due again, and wait in turn


def test_a_new_host_is_leased_when_its_address_is_known(ledger: Ledger) -> None:
    ledger.caps = TWO
    admit_hosts(ledger, ["a.test", "slow.test", "dead.test"], 0)
    assert lease(ledger, 9, now=0.1) == []
    look_up(ledger, 0.2, {"a.test": ADDRESS, "dead.test": None})
    batches = {batch.host: batch.delay for batch in lease(ledger, 9, now=0.3)}
    assert batches == {"a.test": 5.0, "dead.test": 0.0}
    assert [batch.host for batch in lease(ledger, 9, now=limits.LOOK_UP + 0.1)] == ["slow.test"]


def test_an_address_is_looked_up_again_when_it_is_old(ledger: Ledger) -> None:
    ledger.caps = TWO
    admit_hosts(ledger, ["a.test", "b.test"], 0, pages=60)
    look_up(ledger, 0, {"a.test": ADDRESS, "b.test": None})
    batches = lease(ledger, 9, now=1)
    assert addresses.to_look_up(ledger, 9) == []
    record(ledger, [report(batch) for batch in batches], now=100)
    lease(ledger, 9, now=110)
    assert addresses.to_look_up(ledger, 9) == ["b.test"]
    look_up(ledger, 111, {"b.test": ANOTHER})
    with ledger.engine.connect() as connection:
        known = connection.execute(sa.select(hosts.c.host, hosts.c.address).order_by(hosts.c.host)).all()
    assert [tuple(row) for row in known] == [("a.test", ADDRESS), ("b.test", ANOTHER)]


def test_without_caps_nothing_is_looked_up_or_taken(ledger: Ledger) -> None:
    admit_hosts(ledger, ["a.test"], 0)
    assert addresses.to_look_up(ledger, 9) == []
    assert len(lease(ledger, 9, now=0)) == 1
    with ledger.engine.connect() as connection:
        assert connection.execute(sa.select(sa.func.count()).select_from(slots)).scalar_one() == 0


def test_many_hosts_that_wait_cost_a_lease_nothing(ledger: Ledger) -> None:
    """Of 5,000 hosts of one server, one call looks at no more than of 50."""
    ledger.caps = Caps(address=Cap(1, 1.0))
    at_one_server(ledger, 5_000, now=0)
    now = 1.0
    while True:  # until all that were due at once wait
        lease(ledger, 500, now)
        now += 0.01
        with ledger.engine.connect() as connection:
            due = sa.select(sa.func.count()).where(host_queues.c.queued > 0, host_queues.c.next_due <= now)
            if connection.execute(due).scalar_one() == 0:
                break
    statements: list[str] = []
    sa.event.listen(ledger.engine, "before_cursor_execute", lambda *a: statements.append(a[2]))
    began = time.perf_counter()
    assert lease(ledger, 200, now + 0.01) == []
    assert time.perf_counter() - began < 1
    assert len(statements) <= 3


@settings(max_examples=30, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_machine_ever_has_more_than_its_cap(ledger: Ledger, data: Any) -> None:
    """Whatever is leased, reported, reported twice, lost and expired: slots in use or at rest, counted beside it."""
    draw = data.draw
    with ledger.engine.begin() as tx:
        for table in metadata.sorted_tables:
            tx.execute(table.delete())
    delay = draw(st.sampled_from([0.0, 3.0]))
    caps = ledger.caps = Caps(draw(st.sampled_from([NO_CAP, Cap(2, 1.0)])), Cap(draw(st.integers(1, 3)), delay))
    names = {f"{n}.d{n % 3}.test": draw(st.sampled_from([ADDRESS, ANOTHER])) for n in range(12)}
    admit_hosts(ledger, list(names), 0, pages=3)
    look_up(ledger, 0, names)
    now, under_way, reported = 0.0, dict[str, Batch](), list[Batch]()
    free_at: dict[str, float] = {}
    of_lease: dict[str, Batch] = {}

    def check() -> None:
        for machine in {m for host, address in names.items() for m in caps.machines_of(host, address)}:
            used = [
                name
                for name, at in free_at.items()
                if at > now and machine in caps.machines_of(of_lease[name].host, names[of_lease[name].host])
            ]
            assert len(used) <= caps.of(machine).batches, machine

    def step(what: str) -> None:
        nonlocal now
        now += draw(st.sampled_from([0.0, 0.5, 2.0, 3.5]))
        if what == "lease":
            for batch in lease(ledger, draw(st.integers(1, 10)), now):
                under_way[batch.lease] = of_lease[batch.lease] = batch
                free_at[batch.lease] = now + limits.LEASE
                assert batch.delay == caps.delay_of(caps.machines_of(batch.host, names[batch.host]))
        elif what == "report" and under_way:
            batch = under_way.pop(draw(st.sampled_from(sorted(under_way))))
            reported.append(batch)
            record(ledger, [report(batch)], now)
            if free_at[batch.lease] > now:
                free_at[batch.lease] = now + batch.delay
        elif what == "again" and reported:
            record(ledger, [report(draw(st.sampled_from(reported)))], now)
        elif what == "lose" and under_way:
            del under_way[draw(st.sampled_from(sorted(under_way)))]
        elif what == "expire":
            now += draw(st.sampled_from([10.0, limits.LEASE]))
            tidy.tidy(ledger, now)
            under_way.clear()
        check()

    kinds = ["lease", "lease", "report", "report", "again", "lose", "expire"]
    for what in draw(st.lists(st.sampled_from(kinds), max_size=25)):
        step(what)
    for _ in range(200):  # and in the end every host has been asked
        now += 30.0
        tidy.tidy(ledger, now)
        for batch in [*under_way.values(), *lease(ledger, 50, now)]:
            record(ledger, [report(batch)], now)
        under_way.clear()
    with ledger.engine.connect() as connection:
        left = sa.select(sa.func.sum(host_queues.c.queued + host_queues.c.leased))
        assert connection.execute(left).scalar_one() == 0
