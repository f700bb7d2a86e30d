"""Look-ups: many at once, none waited for longer than it may take, and what becomes of those that hang."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from crawler import limits, resolver
from crawler.frontier import addresses
from crawler.frontier.admit import admit
from crawler.frontier.caps import Cap, Caps
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.job import Job
from crawler.messages import Admission
from crawler.resolver import Resolver, address_of

ADDRESS = "192.0.2.1"


def answers(asked: Resolver, number: int) -> dict[str, str | None]:
    """The next `number` answers."""
    found: dict[str, str | None] = {}
    deadline = time.monotonic() + 10
    while len(found) < number:
        assert time.monotonic() < deadline
        found |= asked.answers()
        time.sleep(0.01)
    return found


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1:8080", "127.0.0.1"), ("[::1]:8080", "::1"), ("[2001:db8::7]", "2001:db8::7"), ("192.0.2.7", None)],
)
def test_a_host_that_is_an_address_has_that(host: str, address: str | None) -> None:
    assert address_of(host) == (address or host)


def test_of_several_addresses_the_smallest_stands_for_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    def found(name: str, *_: Any, **__: Any) -> list[Any]:
        assert name == "a.test"
        names = ["2001:db8::1", "192.0.2.10", "192.0.2.9"]
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 0)) for address in names]

    monkeypatch.setattr(resolver, "_getaddrinfo", found)
    assert address_of("a.test:8080") == "192.0.2.9"


@pytest.mark.parametrize("error", [socket.gaierror(-2, "no such name"), UnicodeError("label too long")])
def test_a_name_that_is_not_found_has_no_address(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def fails(*_: Any, **__: Any) -> list[Any]:
        raise error

    monkeypatch.setattr(resolver, "_getaddrinfo", fails)
    assert address_of("a.test") is None


def test_names_are_looked_up_at_once_and_each_only_once() -> None:
    together = threading.Barrier(20)
    calls: list[str] = []

    def look_up(host: str) -> str:
        calls.append(host)
        together.wait(timeout=5)
        return ADDRESS

    asked, names = Resolver(look_up, at_once=20), [f"{n}.test" for n in range(20)]
    asked.ask(names)
    asked.ask(names)
    assert asked.room == 0
    assert answers(asked, 20) == dict.fromkeys(names, ADDRESS)
    assert sorted(calls) == sorted(names)
    assert asked.room == 20


def test_a_look_up_that_hangs_is_not_waited_for_and_keeps_its_thread() -> None:
    now, hangs = [0.0], threading.Event()

    def look_up(host: str) -> str:
        if host == "hangs.test":
            hangs.wait(timeout=10)
        return ADDRESS

    asked = Resolver(look_up, at_once=2, clock=lambda: now[0])
    asked.ask(["hangs.test", "a.test", "b.test"])
    assert answers(asked, 1) == {"a.test": ADDRESS}
    now[0] = limits.LOOK_UP - 0.1
    assert asked.answers() == {}
    now[0] = limits.LOOK_UP
    assert asked.answers() == {"hangs.test": None}
    assert asked.room == 1
    hangs.set()
    deadline = time.monotonic() + 10
    while asked.room < 2:
        assert asked.answers() == {}
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_an_error_in_a_look_up_is_no_address() -> None:
    asked = Resolver(lambda host: str(1 // len(host[6:])), at_once=1)
    asked.ask(["a.test"])
    assert answers(asked, 1) == {"a.test": None}


@pytest.fixture
def crawled(tmp_path: Path) -> Callable[..., Ledger]:
    """A ledger with these caps that knows these hosts."""

    def make(caps: Caps, *names: str) -> Ledger:
        ledger = Ledger.open(f"sqlite:///{tmp_path}/ledger.sqlite", caps)
        ledger.create()
        seeds = [f"http://{host}/" for host in names]
        admit(ledger, Admission(job=Job(name="j"), seeding="s", chunk=0, urls=seeds), time.time())
        return ledger

    return make


def test_hosts_are_leased_when_the_resolver_has_answered(crawled: Callable[..., Ledger]) -> None:
    names = [f"s{n}.d{n}.test" for n in range(300)]
    ledger = crawled(Caps(address=Cap(2, 0.5)), *names)
    asked, deadline = Resolver(lambda host: ADDRESS if int(host[1:].partition(".")[0]) % 2 else None), time.time() + 20
    leased: list[str] = []
    while len(leased) < 152:
        assert time.time() < deadline
        addresses.look_up(ledger, asked, time.time())
        leased += [batch.host for batch in lease(ledger, 300, time.time())]
        time.sleep(0.01)
    assert sum(int(host[1:].partition(".")[0]) % 2 for host in leased) == 2  # the others wait for these


@pytest.mark.parametrize(
    ("caps", "host"), [(Caps(domain=Cap(2, 0.5)), "a.test"), (Caps(address=Cap(2, 0.5)), "127.0.0.1:8080")]
)
def test_who_needs_no_address_is_not_looked_up(crawled: Callable[..., Ledger], caps: Caps, host: str) -> None:
    """Where caps count for domains alone, and for hosts that are written as an address."""
    ledger, asked = crawled(caps, host), Resolver(lambda _: pytest.fail("it is looked up"))
    addresses.look_up(ledger, asked, time.time())
    assert asked.under_way == 0
    assert addresses.to_look_up(ledger, 9) == []
    (batch,) = lease(ledger, 9, time.time())
    assert batch.delay == 0.5


def test_a_look_up_that_never_answers_delays_its_host_alone(crawled: Callable[..., Ledger]) -> None:
    ledger, began, hangs = crawled(Caps(address=Cap(2, 0.5)), "hangs.test", "a.test"), time.time(), threading.Event()
    clock = [0.0]

    def look_up(host: str) -> str:
        if host == "hangs.test":
            hangs.wait(timeout=10)
        return ADDRESS

    asked = Resolver(look_up, clock=lambda: clock[0])
    deadline = time.monotonic() + 10
    leased: list[str] = []
    while not leased:
        assert time.monotonic() < deadline
        addresses.look_up(ledger, asked, began)
        leased += [batch.host for batch in lease(ledger, 9, began)]
        time.sleep(0.01)
    assert leased == ["a.test"]
    clock[0] = limits.LOOK_UP
    addresses.look_up(ledger, asked, began + 1)
    assert [batch.host for batch in lease(ledger, 9, began + 1.1)] == ["hangs.test"]
    hangs.set()
