"""A connection to a host: its addresses looked up, judged and remembered, the first one that answers taken, TLS spoken.

An address that was judged (egress.py) is the one that is connected to: no name is looked up a second time in between.

Source: RFC 8305 (happy eyeballs), RFC 8446, section 2.2 (resumption)
"""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Callable
from typing import Any, TypeVar

import gevent
import gevent.ssl
from gevent import socket
from gevent.queue import Empty, Queue

from crawler import limits
from crawler.worker.egress import Egress, Refusal
from crawler.worker.fetch_errors import ConnectError, DNSError, HungUpError, TimedOutError, TLSError

LOOKUPS = 100
"""Host names looked up at the same time. A failing DNS lookup holds its thread past our deadline; with gevent's default
of ten threads, ten dead names would block all lookups."""
REMEMBERED = 60.0
"""Seconds for which a name's addresses are not looked up again. Failures are not remembered."""
MAX_NAMES, MAX_SESSIONS = 10_000, 1_000
"""Names, and TLS sessions (some 6 KB each), that are remembered at most."""
STAGGER = 0.25
"""Seconds after which the next address is tried as well (RFC 8305, section 5)."""
MAX_ADDRESSES = 6
"""Of one host that are tried."""

Address = tuple[int, Any]
"""Family and socket address."""
_addresses: dict[tuple[Egress, str, int], tuple[float, list[Address] | Refusal]] = {}
"""By name and port: until when they count, and in which order they are tried; or why none of them is."""
_sessions: dict[tuple[ssl.SSLContext, str, int], ssl.SSLSession] = {}
_Key = TypeVar("_Key")
_Value = TypeVar("_Value")


def new_context(authorities: str | None = None) -> ssl.SSLContext:
    """A TLS client context, TLS 1.2 or later, host names verified. `authorities`: a file of CA certificates (PEM)
    instead of the system's."""
    context: ssl.SSLContext = gevent.ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    if authorities:
        context.load_verify_locations(authorities)
    else:
        context.load_default_certs()
    return context


_CONTEXT: ssl.SSLContext | None = None


def tls_context() -> ssl.SSLContext:
    """The process's context: loading the system's CA certificates costs 15 ms."""
    global _CONTEXT
    if _CONTEXT is None:
        _CONTEXT = new_context()
    return _CONTEXT


def connect(name: str, port: int, context: ssl.SSLContext | None, egress: Egress) -> Any:
    """A gevent socket to a host, over TLS where there is a `context`. Raises FetchError."""
    sock = open_socket(name, port, egress)
    return sock if context is None else _secured(sock, context, name, port)


def open_socket(name: str, port: int, egress: Egress) -> Any:
    """A gevent socket to one of the addresses of a host that `egress` allows. Raises FetchError: RefusedError where
    there is none."""
    addresses = look_up(name, port, egress)
    try:
        return _open(addresses[0]) if len(addresses) == 1 else _race(addresses, _open)
    except OSError as error:
        _addresses.pop((egress, name, port), None)
        if isinstance(error, TimeoutError):
            raise ConnectError(f"no connection within {limits.CONNECT:g} s") from None
        raise ConnectError(f"Failed to establish a new connection: {error}") from None


def _secured(sock: Any, context: ssl.SSLContext, name: str, port: int) -> Any:
    session = _sessions.get((context, name, port))
    try:
        sock = context.wrap_socket(sock, do_handshake_on_connect=False, server_hostname=name, session=session)
        sock.do_handshake()
    except BaseException as error:
        sock.close()
        if isinstance(error, TimeoutError):
            raise TimedOutError(f"silent for {limits.CONNECT:g} s") from None
        if isinstance(error, ssl.SSLError | ValueError):
            raise TLSError(f"TLS: {error}") from None
        if isinstance(error, OSError):
            raise HungUpError(f"Connection aborted: {error}") from None
        raise
    return sock


def remember_session(sock: Any, context: ssl.SSLContext, name: str, port: int) -> None:
    """Keep a connection's TLS session, so that the next one to the host costs no certificates. Its tickets arrive after
    the handshake (TLS 1.3), so this is to be called once something was read."""
    if sock.session:
        _keep(_sessions, (context, name, port), sock.session, MAX_SESSIONS)


def look_up(name: str, port: int, egress: Egress) -> list[Address]:
    """The addresses of a host that may be connected to, in the order in which they are tried. Raises DNSError, or
    RefusedError where there is none."""
    until, judged = _addresses.get((egress, name, port), (0.0, []))
    now = time.monotonic()
    if until <= now:
        egress.check_port(port)
        judged = _judged(found(name, port), port, egress)
        _keep(_addresses, (egress, name, port), (now + REMEMBERED, judged), MAX_NAMES)
    if isinstance(judged, Refusal):
        raise judged.error()
    return judged


def found(name: str, port: int) -> list[Address]:
    """All addresses of a host, as the resolver gives them. Raises DNSError."""
    try:
        answers = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError) as error:
        raise DNSError(f"Failed to resolve {name!r} ({error})") from None
    return [(family, address) for family, _, _, _, address in answers]


def _judged(addresses: list[Address], port: int, egress: Egress) -> list[Address] | Refusal:
    """Those of a host's addresses that may be connected to; why none may be."""
    refusals = [egress.refusal(where[0], port) for _, where in addresses]
    allowed = [address for address, refusal in zip(addresses, refusals, strict=True) if refusal is None]
    return interleaved(allowed)[:MAX_ADDRESSES] if allowed else next(filter(None, refusals))


def interleaved(addresses: list[Address]) -> list[Address]:
    """Families by turns, beginning with that of the first address (RFC 8305, section 4)."""
    families = [[a for a in addresses if a[0] == family] for family in dict.fromkeys(family for family, _ in addresses)]
    return [address for turn in itertools.zip_longest(*families) for address in turn if address is not None]


def _keep(known: dict[_Key, _Value], key: _Key, value: _Value, at_most: int) -> None:
    known.pop(key, None)
    while len(known) >= at_most:
        del known[next(iter(known))]  # the oldest
    known[key] = value


def _open(address: Address) -> Any:
    family, where = address
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.settimeout(limits.CONNECT)
        sock.connect(where)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    except BaseException:
        sock.close()
        raise
    return sock


def _race(addresses: list[Address], open_one: Callable[[Address], Any]) -> Any:
    """The first connection of those to `addresses`, each begun STAGGER seconds after the one before, or as soon as that
    has failed. Raises the last one's OSError if all fail."""
    outcomes: Queue = Queue()

    def attempt(address: Address) -> None:
        try:
            outcomes.put(open_one(address))
        except OSError as error:
            outcomes.put(error)

    waiting, racing, failed = list(addresses), [], 0
    try:
        while True:
            if waiting:
                racing.append(gevent.spawn(attempt, waiting.pop(0)))
            try:
                outcome = outcomes.get(timeout=STAGGER if waiting else None)
            except Empty:
                continue
            if not isinstance(outcome, OSError):
                return outcome
            failed += 1
            if failed == len(addresses):
                raise outcome
    finally:
        gevent.killall(racing)
        while not outcomes.empty():  # connected in the same moment as the one that was taken
            if not isinstance(late := outcomes.get(), OSError):
                late.close()
