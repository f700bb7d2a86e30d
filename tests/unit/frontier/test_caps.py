"""What of a host is capped, by its name, its address and the networks that are exempt."""

from __future__ import annotations

import ipaddress

import pytest

from crawler import settings
from crawler.frontier import caps as caps_module
from crawler.frontier.caps import Cap, Caps

BOTH = Caps(Cap(2, 1.0), Cap(3, 2.0), tuple(ipaddress.ip_network(n) for n in ("10.0.0.0/8", "2001:db8::/32")))


@pytest.mark.parametrize(
    ("host", "address", "machines"),
    [
        ("www.shop.example.co.uk:8080", "192.0.2.1", ("192.0.2.1", "example.co.uk")),
        ("www.example.org", None, ("example.org",)),
        ("www.example.org", "10.1.2.3", ()),
        ("www.example.org", "2001:db8::1", ()),
        ("192.0.2.1:8080", None, ("192.0.2.1",)),  # an address has no domain
        ("[2001:db9::1]:8080", None, ("2001:db9::1",)),
        ("10.0.0.1", None, ()),
    ],
)
def test_machines_of_a_host(host: str, address: str | None, machines: tuple[str, ...]) -> None:
    assert BOTH.machines_of(host, address) == machines


def test_the_stricter_delay_counts() -> None:
    assert BOTH.delay_of(("192.0.2.1", "example.org")) == 2.0
    assert BOTH.delay_of(("example.org",)) == 1.0
    assert BOTH.delay_of(()) == 0.0


@pytest.mark.parametrize(
    ("caps", "on", "by_address"),
    [
        (Caps(), False, False),
        (Caps(domain=Cap(2, 1.0)), True, False),
        (Caps(address=Cap(2, 1.0)), True, True),
        (Caps(domain=Cap(2, 1.0), exempt=(ipaddress.ip_network("127.0.0.0/8"),)), True, False),
        (Caps(domain=Cap(2, 1.0), exempt=(ipaddress.ip_network("10.0.0.0/8"),)), True, True),
        (Caps(Cap(2, 1), Cap(2, 1), (ipaddress.ip_network("0.0.0.0/0"), ipaddress.ip_network("::/0"))), False, False),
    ],
)
def test_addresses_are_looked_up_where_a_cap_needs_them(caps: Caps, on: bool, by_address: bool) -> None:
    assert (caps.on, caps.by_address) == (on, by_address)


def test_loopback_is_exempt_unless_a_test_wants_it_capped(monkeypatch: pytest.MonkeyPatch) -> None:
    assert caps_module.from_settings().machines_of("127.0.0.1:8080", None) == ()
    monkeypatch.setenv("CRAWLER_CAPS_LOOPBACK", "1")
    assert caps_module.from_settings().machines_of("127.0.0.1:8080", None) == ("127.0.0.1",)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("CRAWLER_ADDRESS_DELAY", "fast", "CRAWLER_ADDRESS_DELAY='fast' is no number from 0 to 3600"),
        ("CRAWLER_DOMAIN_BATCHES", "-1", "CRAWLER_DOMAIN_BATCHES='-1' is no number"),
        ("CRAWLER_EXEMPT_NETWORKS", "10.0.0.1/8", "write networks as 192.0.2.0/24"),
    ],
)
def test_a_wrong_setting_is_named(monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(settings.SettingInvalidError) as refused:
        caps_module.from_settings()
    assert says in str(refused.value)
