"""Where the fetcher may connect to: public addresses at ports 80 and 443, and what the operator allows besides.

An address is judged after the look-up, and it is the one that is then connected to (connect.py): whatever a name, a
redirect or another answer of a resolver leads to, nothing that only the worker can reach is asked.

Not public is what the IANA registries of special-purpose addresses hold, and what is not handed out as global unicast:
loopback, private, link-local (with it the metadata services of clouds), shared (CGNAT), unique local, multicast,
unspecified, reserved, benchmarking and documentation addresses. An IPv4-mapped address is judged as the IPv4 address it
is sent to. Of NAT64's well-known prefix, which DNS64 gives every IPv4 site in a network of IPv6 alone, the IPv4 address
within is judged. IPv4-compatible, 6to4 and Teredo addresses, and NAT64's local prefix, are refused, whatever they hold.
The table is written out, as what `ipaddress` calls global differs from one Python to the next.

Source: https://www.iana.org/assignments/iana-ipv4-special-registry/, …/iana-ipv6-special-registry/; RFC 6890, RFC 6052
"""

from __future__ import annotations

import functools
import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from crawler import settings
from crawler.messages import Cause
from crawler.worker.fetch_errors import RefusedError

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

PORTS = (80, 443)
"""Allowed always."""

_NOT_PUBLIC_4 = tuple(
    ipaddress.IPv4Network(network)
    for network in (
        "0.0.0.0/8",  # this network; Linux connects 0.0.0.0 to itself
        "10.0.0.0/8",
        "100.64.0.0/10",  # shared by a provider's customers (RFC 6598)
        "127.0.0.0/8",
        "169.254.0.0/16",  # link-local; clouds have their metadata at 169.254.169.254
        "172.16.0.0/12",
        "192.0.0.0/24",  # IETF protocol assignments; Oracle's metadata at 192.0.0.192
        "192.0.2.0/24",  # documentation
        "192.88.99.0/24",  # 6to4 relays (RFC 7526)
        "192.168.0.0/16",
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved; limited broadcast
    )
)
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
"""All that IANA hands out. Outside lie ::, ::1, IPv4-compatible, fc00::/7, fe80::/10, ff00::/8, 100::/64, 5f00::/16."""
_NOT_PUBLIC_6 = tuple(
    ipaddress.IPv6Network(network)
    for network in (
        "2001::/23",  # IETF protocol assignments: Teredo, benchmarking, ORCHID
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "3fff::/20",  # documentation
    )
)
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")


class Refusal(NamedTuple):
    """Why an address, or a port, is not connected to."""

    cause: Cause
    reason: str
    """For people."""

    def error(self) -> RefusedError:
        return RefusedError(self.reason, self.cause)


@dataclass(frozen=True, eq=False)
class Egress:
    """What may be connected to besides public addresses at PORTS. Compared by identity."""

    networks: tuple[Network, ...] = ()
    """The operator's own: their addresses are allowed, at every port."""
    ports: tuple[range, ...] = ()
    """Allowed at public addresses."""

    def refusal(self, address: str, port: int) -> Refusal | None:
        """Why an address, as a look-up gives it, is not to be connected to; None if it is."""
        if self.networks:
            own = _sent_to(address)
            if any(own in network for network in self.networks):
                return None
        return self.refusal_of_port(port) or _refusal_of_address(address)

    def refusal_of_port(self, port: int) -> Refusal | None:
        """Why a port is not to be connected to, outside of `networks`; None if it is."""
        if port in PORTS or any(port in allowed for allowed in self.ports):
            return None
        return Refusal(Cause.PORT, f"port not allowed: {port}")

    def check_port(self, port: int) -> None:
        """Raises RefusedError for a port that no address of any host is asked at: it needs no look-up."""
        if not self.networks and (refusal := self.refusal_of_port(port)):
            raise refusal.error()


@functools.lru_cache(maxsize=65536)
def is_public(address: str) -> bool:
    """Whether an address, written as IPv4 or IPv6, is one of the public Internet."""
    known = _sent_to(address)
    if isinstance(known, ipaddress.IPv6Address) and known in _NAT64:
        known = ipaddress.IPv4Address(int(known) & 0xFFFF_FFFF)
    if isinstance(known, ipaddress.IPv4Address):
        return not any(known in network for network in _NOT_PUBLIC_4)
    return known in _GLOBAL_UNICAST and not any(known in network for network in _NOT_PUBLIC_6)


def _refusal_of_address(address: str) -> Refusal | None:
    return None if is_public(address) else Refusal(Cause.ADDRESS, f"address not public: {address}")


@functools.lru_cache(maxsize=65536)
def _sent_to(address: str) -> Address:
    """The address that packets go to: an IPv4-mapped one names an IPv4 address (RFC 4291, section 2.5.5.2)."""
    known = ipaddress.ip_address(address.partition("%")[0])
    mapped = known.ipv4_mapped if isinstance(known, ipaddress.IPv6Address) else None
    return mapped or known


def from_settings(more_networks: Iterable[str] = ()) -> Egress:
    """What this process is told, and `more_networks`. Raises SettingInvalidError."""
    networks = (*settings.allow_networks(), *more_networks)
    return Egress(tuple(ipaddress.ip_network(network) for network in networks), settings.allow_ports())


@functools.lru_cache(maxsize=1)
def of_process() -> Egress:
    """What this process was told when it first asked. Raises SettingInvalidError."""
    return from_settings()
