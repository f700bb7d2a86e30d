"""Addresses of hosts, many at a time, for the caps by server (frontier/caps.py).

A host may have several addresses, and others elsewhere (a CDN's): the smallest that this machine is told stands for
the server, so that all names with the same set of addresses count as one.
"""

from __future__ import annotations

import ipaddress
import logging
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable

import gevent.monkey
from gevent.threadpool import ThreadPool

from crawler import limits

log = logging.getLogger(__name__)

AT_ONCE = 200
"""Look-ups under way at most. At 20,000 new hosts a minute each may take half a second on average."""
LookUp = Callable[[str], str | None]

_getaddrinfo = gevent.monkey.get_original("socket", "getaddrinfo")


def address_of(host: str) -> str | None:
    """The address of a host (with its port, if any), as text; None if none is found. Blocks its thread, for as long as
    the system's resolver takes."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        found = _getaddrinfo(name, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return None
    known = (ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found)
    return str(min(known, key=lambda address: (address.version, address), default=None) or "") or None


class Resolver:
    """Look-ups in threads of their own. `clock`: monotonic seconds."""

    def __init__(
        self, look_up: LookUp = address_of, at_once: int = AT_ONCE, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._look_up, self._at_once, self._clock = look_up, at_once, clock
        self._pool = ThreadPool(at_once)
        self._asked: dict[str, float] = {}
        """Whose answer somebody waits for, and since when."""
        self._busy = 0
        """Threads in use: also with what nobody waits for any more."""
        self._answers: deque[tuple[str, str | None]] = deque()

    @property
    def under_way(self) -> int:
        return len(self._asked)

    @property
    def room(self) -> int:
        """Look-ups that may be begun now."""
        return self._at_once - self._busy

    def ask(self, hosts: Iterable[str]) -> None:
        """Begin to look up those of `hosts` that are not under way, as far as there is room."""
        now = self._clock()
        for host in hosts:
            if self.room > 0 and host not in self._asked:
                self._asked[host] = now
                self._busy += 1
                self._pool.spawn(self._run, host)

    def _run(self, host: str) -> None:
        address = None
        try:
            address = self._look_up(host)
        except Exception:
            log.exception("%s: cannot be looked up", host)
        self._answers.append((host, address))

    def answers(self) -> dict[str, str | None]:
        """What has been found since the last call; None for what was not found, or not within limits.LOOK_UP."""
        found: dict[str, str | None] = {}
        while self._answers:
            host, address = self._answers.popleft()
            self._busy -= 1
            if self._asked.pop(host, None) is not None:
                found[host] = address
        late = self._clock() - limits.LOOK_UP
        for host in [host for host, since in self._asked.items() if since <= late]:
            del self._asked[host]
            found[host] = None
        return found
