"""How much a registrable domain and a server may be asked, whatever their hosts' own pace allows: the operator's caps.

A *machine* is what a cap counts for: a registrable domain, by its name, or the address of a server, as text. For each:

* at most `batches` batches are under way at once, over all hosts and jobs;
* within each of them, and after its end before another begins in its place, lie at least `delay` seconds.

So a machine has at most `batches` requests in flight, and gets at most `batches` new ones in any `delay` seconds. Where
a site's owner allows a job more `connections` to one host than `batches`, its machine may have as many batches of that
host's under way; the delay holds within each of them. A host in an exempt network has no caps; nor has its domain's cap
anything to say to it.
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from crawler import settings
from crawler import urls as url_rules

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

LOOPBACK = ("127.0.0.0/8", "::1/128")
"""Exempt always, unless settings.caps_loopback()."""


@dataclass(frozen=True)
class Cap:
    """What one machine may be asked."""

    batches: int
    """At once; 0: no cap at all, and no least delay either."""
    delay: float
    """Seconds."""


NO_CAP = Cap(0, 0.0)


@dataclass(frozen=True)
class Caps:
    """The caps of an inventory."""

    domain: Cap = NO_CAP
    address: Cap = NO_CAP
    exempt: tuple[Network, ...] = ()

    @property
    def on(self) -> bool:
        """Whether any host can be capped."""
        everything = sum(network.prefixlen == 0 for network in self.exempt) == 2
        return bool(self.domain.batches or self.address.batches) and not everything

    @property
    def by_address(self) -> bool:
        """Whether a host's address has to be known to say what caps it has. Networks of loopback alone are told from
        the hosts' names."""
        named = any(not network.is_loopback for network in self.exempt)
        return self.on and bool(self.address.batches or named)

    def machines_of(self, host: str, address: str | None) -> tuple[str, ...]:
        """What of a host with this `address` (None: not known) is capped: its domain, its address, both or nothing."""
        return _machines_of(self, host, address or literal(host))

    def of(self, machine: str) -> Cap:
        """The cap of a machine."""
        return self.address if self.kind_of(machine) == "address" else self.domain

    @staticmethod
    def kind_of(machine: str) -> str:
        """Which of the two a machine is: "domain" or "address"."""
        return "address" if is_address(machine) else "domain"

    def delay_of(self, machines: Iterable[str]) -> float:
        """Least seconds between two requests of a batch whose host is at these machines."""
        return max((self.of(machine).delay for machine in machines), default=0.0)


NO_CAPS = Caps()


@functools.lru_cache(maxsize=65536)
def _machines_of(caps: Caps, host: str, address: str | None) -> tuple[str, ...]:
    if not caps.on:
        return ()
    found = []
    if address is not None:
        known = ipaddress.ip_address(address)
        if any(known in network for network in caps.exempt):
            return ()
        if caps.address.batches:
            found.append(address)
    if caps.domain.batches and literal(host) is None:
        found.append(url_rules.domain_of(host))
    return tuple(found)


@functools.lru_cache(maxsize=65536)
def literal(host: str) -> str | None:
    """The address that a `host` (with its port, if any) is written as; None where it is a name."""
    if host[0] != "[" and not host.partition(":")[0][-1:].isdigit():
        return None
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name if is_address(name) else None


@functools.lru_cache(maxsize=65536)
def is_address(text: str) -> bool:
    """Whether a text is an address, and no domain: that has a last label with a letter in it."""
    if ":" not in text and not text[-1:].isdigit():
        return False
    try:
        ipaddress.ip_address(text)
    except ValueError:
        return False
    return True


def from_settings() -> Caps:
    """The caps that this process is told. Raises SettingInvalidError."""
    networks = settings.exempt_networks() + (() if settings.caps_loopback() else LOOPBACK)
    return Caps(
        Cap(*settings.cap("domain")),
        Cap(*settings.cap("address")),
        tuple(ipaddress.ip_network(network) for network in networks),
    )
