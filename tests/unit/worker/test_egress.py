"""Where the fetcher may connect to: which addresses are public, and that nothing else is connected to, on any path."""

from __future__ import annotations

import contextlib
import ipaddress
import socket
import threading
import time
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from website import Answer, Site

from crawler import settings, urls
from crawler.job import Job
from crawler.messages import Batch, Cause, Report, Target
from crawler.worker import connect, egress
from crawler.worker.batch import fetch_batch
from crawler.worker.egress import Egress, from_settings, is_public
from crawler.worker.fetch import Client
from crawler.worker.fetch_errors import RefusedError

ANY_PORT = (range(1, 65536),)
NOTHING, EVERY_PORT = Egress(), Egress(ports=ANY_PORT)
PUBLIC, OTHER = "93.184.216.34", "2606:2800:220:1::1"

# --- which addresses are public ---------------------------------------------------------------------------------------

# The registries of special-purpose addresses as of 2025: each block with its first and last address, and neighbours.
NOT_PUBLIC = """
    0.0.0.0 0.0.0.1 0.255.255.255
    10.0.0.0 10.1.2.3 10.255.255.255
    100.64.0.0 100.100.100.200 100.127.255.255
    127.0.0.0 127.0.0.1 127.255.255.255
    169.254.0.0 169.254.169.254 169.254.170.2 169.254.255.255
    172.16.0.0 172.31.255.255
    192.0.0.0 192.0.0.8 192.0.0.9 192.0.0.10 192.0.0.170 192.0.0.192 192.0.0.255
    192.0.2.0 192.0.2.255
    192.88.99.0 192.88.99.2 192.88.99.255
    192.168.0.0 192.168.255.255
    198.18.0.0 198.19.255.255
    198.51.100.0 198.51.100.255
    203.0.113.0 203.0.113.255
    224.0.0.0 224.0.0.1 233.252.0.1 239.255.255.255
    240.0.0.0 255.255.255.254 255.255.255.255

    :: ::1
    ::127.0.0.1 ::8.8.8.8
    ::ffff:0.0.0.0 ::ffff:10.0.0.1 ::ffff:127.0.0.1 ::ffff:169.254.169.254 ::ffff:a00:1
    ::ffff:0:8.8.8.8
    64:ff9b::10.0.0.1 64:ff9b::127.0.0.1 64:ff9b::a9fe:a9fe 64:ff9b::100.64.0.1 64:ff9b::0.0.0.0
    64:ff9b:1:: 64:ff9b:1::8.8.8.8 64:ff9b:1:ffff:ffff:ffff:ffff:ffff
    64:ff9b:0:0:0:1:: 64:ff9a:ffff:: 64:ff9b:2::
    100:: 100::1 100::ffff:ffff:ffff:ffff 100:0:0:1::1
    200::1 400::1 1fff:ffff::1
    2001:: 2001:0:a00:1:: 2001:0:4136:e378:8000:63bf:3fff:fdd2
    2001:1::1 2001:1::2 2001:1::3 2001:2::1 2001:2:0:ffff:: 2001:3::1 2001:4:112::1
    2001:10::1 2001:1f:ffff:: 2001:20::1 2001:2f:ffff:: 2001:30::1 2001:1ff:ffff::
    2001:db8:: 2001:db8::1 2001:db8:ffff:ffff:ffff:ffff:ffff:ffff
    2002:: 2002:7f00:1::1 2002:a00:1:: 2002:a9fe:a9fe:: 2002:808:808:: 2002:ffff:ffff::
    3fff:: 3fff:fff:ffff::
    4000:: 5f00:: 5f00:ffff:: 8000::1
    fc00:: fc00::1 fd00:ec2::254 fd12:3456:789a::1 fdff:ffff::
    fe80:: fe80::1 fe80::1%eth0 fe80::a9fe:a9fe febf:ffff::
    fec0:: fec0::1 feff:ffff::
    ff00:: ff02::1 ff0e::1 ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff
"""
IS_PUBLIC = """
    1.0.0.0 1.1.1.1 8.8.8.8 9.255.255.255 11.0.0.0
    93.184.216.34 100.63.255.255 100.128.0.0 126.255.255.255 128.0.0.0
    169.253.255.255 169.255.0.0 172.15.255.255 172.32.0.0
    191.255.255.255 192.0.1.0 192.0.3.0 192.31.196.1 192.52.193.1 192.88.98.255 192.88.100.0
    192.167.255.255 192.169.0.0 192.175.48.1
    198.17.255.255 198.20.0.0 198.51.99.255 198.51.101.0 203.0.112.255 203.0.114.0 223.255.255.255

    ::ffff:8.8.8.8 ::ffff:5db8:d822
    64:ff9b::8.8.8.8 64:ff9b::5db8:d822
    2000::1 2001:200:: 2001:4860:4860::8888 2001:db7:ffff:: 2001:db9:: 2001:ffff::1
    2003::1 2400:cb00::1 2606:2800:220:1::1 2620:4f:8000::1 2a00:1450:4001::1
    3ffe:ffff::1 3fff:1000:: 3fff:ffff::1
"""


@pytest.mark.parametrize("address", NOT_PUBLIC.split())
def test_not_public(address: str) -> None:
    assert not is_public(address)
    refusal = EVERY_PORT.refusal(address, 80)
    assert refusal is not None
    assert (refusal.cause, refusal.reason) == (Cause.ADDRESS, f"address not public: {address}")


@pytest.mark.parametrize("address", IS_PUBLIC.split())
def test_public(address: str) -> None:
    assert is_public(address)
    assert NOTHING.refusal(address, 443) is None


@hypothesis_settings(deadline=None, max_examples=500)
@given(st.ip_addresses())
def test_what_python_calls_special_is_not_public(address: egress.Address) -> None:
    """Outside of ::/8, where an IPv4 address within counts. A mistake in our table shows unless Python has it too."""
    assume(address.version == 4 or int(address) >> 120)
    special = address.is_private, address.is_loopback, address.is_link_local, address.is_multicast, address.is_reserved
    assert not (any(special) and is_public(str(address)))


@pytest.mark.parametrize(
    ("address", "port", "cause"),
    [
        ("10.1.2.3", 80, None),
        ("10.1.2.3", 22, None),  # at every port
        ("::ffff:10.1.2.3", 22, None),  # the same address
        ("64:ff9b::10.1.2.3", 80, Cause.ADDRESS),  # who translates it, has another such network
        ("10.2.0.0", 80, Cause.ADDRESS),
        ("10.2.0.0", 22, Cause.PORT),
        ("fd00::1", 80, None),
        ("fd01::1", 80, Cause.ADDRESS),
        (PUBLIC, 8080, None),
        (PUBLIC, 8081, Cause.PORT),
        (OTHER, 8443, None),
        ("127.0.0.1", 8443, Cause.ADDRESS),
    ],
)
def test_networks_and_ports_that_an_operator_allows(
    monkeypatch: pytest.MonkeyPatch, address: str, port: int, cause: Cause | None
) -> None:
    monkeypatch.setenv("CRAWLER_ALLOW_NETWORKS", "10.1.0.0/16")
    monkeypatch.setenv("CRAWLER_ALLOW_PORTS", "8000-8080, 8443")
    refusal = from_settings(["fd00::/16"]).refusal(address, port)
    assert (refusal and refusal.cause) == cause


def test_where_no_network_is_allowed_a_port_needs_no_look_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def getaddrinfo(*_: Any, **__: Any) -> None:
        raise AssertionError("looked up")

    monkeypatch.setattr(connect.socket, "getaddrinfo", getaddrinfo)
    with pytest.raises(RefusedError, match=r"^port not allowed: 22$"):
        connect.open_socket("a.test", 22, NOTHING)


def test_a_process_asks_its_settings_once(monkeypatch: pytest.MonkeyPatch) -> None:
    egress.of_process.cache_clear()
    monkeypatch.setenv("CRAWLER_ALLOW_NETWORKS", "nonsense")
    with pytest.raises(settings.SettingInvalidError, match="CRAWLER_ALLOW_NETWORKS"):
        egress.of_process()
    monkeypatch.undo()
    assert egress.of_process() is egress.of_process()


# --- at the connection ------------------------------------------------------------------------------------------------


@pytest.fixture(params=["own", "requests"])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each of the two clients."""
    return request.param


class Net:
    """A resolver that answers as a test tells it to, and a network in which every address is one server of ours."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, port: int) -> None:
        self.names: dict[str, list[list[str]]] = {}
        """By name: the answers, each with its addresses; the last again and again."""
        self.asked: list[str] = []
        self.connected: list[tuple[str, int]] = []
        """To which addresses and ports."""
        self.now = 1000.0
        self._real, self._open, self._port = connect.socket.getaddrinfo, connect._open, port
        monkeypatch.setattr(connect, "_addresses", {})
        monkeypatch.setattr(connect.socket, "getaddrinfo", self._getaddrinfo)
        monkeypatch.setattr(connect, "_open", self._opened)
        monkeypatch.setattr(connect.time, "monotonic", lambda: self.now)

    def _getaddrinfo(self, name: str, port: int, **options: Any) -> list[Any]:
        self.asked.append(name)
        if name not in self.names:
            return list(self._real(name, port, **options))
        answers = self.names[name]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [entry for address in addresses for entry in self._real(address, port, **options)]

    def _opened(self, address: connect.Address) -> Any:
        self.connected.append(address[1][:2])
        return self._open((socket.AF_INET, ("127.0.0.1", self._port)))


@pytest.fixture
def net(site: Site, monkeypatch: pytest.MonkeyPatch) -> Net:
    return Net(monkeypatch, int(site.host.rpartition(":")[2]))


def crawl(kind: Any, *given: str, allowed: Egress = NOTHING, sitemap: bool = False, **job: Any) -> Report:
    """The report of a batch of URLs of one host, as they are written somewhere."""
    written = [urls.normalise(url) for url in given]
    batch = Batch(
        lease="l",
        job=Job(**{"name": "t", "delay": 0, "client": kind, **job}),
        host=urls.host_of(written[0]),
        targets=[Target(url=url, depth=0, sitemap=sitemap) for url in written],
        expires_at=time.time() + 60,
    )
    with Client("x", kind=kind, egress=allowed) as client:
        return fetch_batch(batch, client, threading.Event(), worker="t")


def outcomes(report: Report) -> list[tuple[str, str | None, str | None]]:
    assert (report.retries, report.unfetched, report.back_off) == ([], [], None)
    return [(page.state, page.cause, page.reason) for page in report.results]


LITERALS = """
    127.0.0.1 127.1 127.0.1 2130706433 017700000001 0x7f000001 0x7f.0.0.1 0177.0.0.1 127.0.0.1. %31%32%37.0.0.1
    \uff11\uff12\uff17.0.0.1 127\u30020\u30020\u30021 0 0.0.0.0 10.0.0.1 192.168.1.1 169.254.169.254
    2852039166 0xa9fea9fe [::1] [0:0:0:0:0:0:0:1] [::] [::ffff:127.0.0.1] [::ffff:7f00:1] [::127.0.0.1] [fd00:ec2::254]
    [fe80::1] [64:ff9b::7f00:1] [64:ff9b:1::1] [2002:7f00:1::] [2001::1] [ff02::1] localhost LOCALHOST
"""


@pytest.mark.parametrize("robots", [True, False])
def test_an_address_in_any_spelling_is_refused(kind: Any, net: Net, robots: bool) -> None:
    net.names = {"localhost": [["127.0.0.1", "::1"]]}
    for host in LITERALS.split():
        ((state, cause, reason),) = outcomes(crawl(kind, f"http://{host}/", robots=robots))
        assert (state, cause) == ("excluded", "address"), host
        assert str(reason).startswith("address not public: ")
    assert net.connected == []


@pytest.mark.parametrize("name", ["127.1", "0x7f000001", "017700000001", "2130706433"])
def test_what_only_the_resolver_takes_for_an_address_is_judged_after_it(name: str) -> None:
    with pytest.raises(RefusedError, match=r"^address not public: 127\.0\.0\.1$"):
        connect.open_socket(name, 80, NOTHING)


def test_a_server_on_loopback_that_would_answer_is_not_asked(kind: Any, site: Site) -> None:
    """Nothing stands in for anything here: a real server, a real connection but for the rule."""
    site.tree(3)
    report = crawl(kind, f"{site.url}/", f"{site.url}/1", allowed=EVERY_PORT)
    assert outcomes(report) == [("excluded", "address", "address not public: 127.0.0.1")] * 2
    port = site.host.rpartition(":")[2]
    assert outcomes(crawl(kind, f"{site.url}/")) == [("excluded", "port", f"port not allowed: {port}")]
    assert site.requests == []
    own = Egress((ipaddress.ip_network("127.0.0.0/8"),))
    assert [page.state for page in crawl(kind, f"{site.url}/", allowed=own).results] == ["done"]


@pytest.mark.parametrize("delay", [0, 3600])
def test_a_name_that_leads_inward_is_refused_without_a_request_or_a_wait(kind: Any, net: Net, delay: float) -> None:
    net.names = {"inward.test": [["192.168.1.1"]]}
    began = time.perf_counter()
    report = crawl(kind, *(f"http://inward.test/{number}" for number in range(20)), delay=delay)
    assert outcomes(report) == [("excluded", "address", "address not public: 192.168.1.1")] * 20
    assert (report.requests, report.robots, net.connected) == ([], {}, [])  # so no host rests, or is given up
    assert net.asked == ["inward.test"]
    assert time.perf_counter() - began < 30


def test_both_schemes_are_judged(kind: Any, net: Net) -> None:
    net.names = {"inward.test": [["10.0.0.1"]]}
    report = crawl(kind, "https://inward.test/", "http://inward.test/", "https://inward.test:80/")
    assert outcomes(report) == [("excluded", "address", "address not public: 10.0.0.1")] * 3


def test_a_redirect_s_goal_is_judged(kind: Any, net: Net, site: Site) -> None:
    net.names = {"outward.test": [[PUBLIC]]}
    site.pages["/"] = Answer("", 302, {"Location": "http://169.254.169.254/latest/meta-data/"})
    report = crawl(kind, "http://outward.test/", scope={"kind": "any"})
    assert outcomes(report) == [("excluded", "redirect", "redirect to http://169.254.169.254/latest/meta-data/")]
    (link,) = report.links
    assert outcomes(crawl(kind, link.url)) == [("excluded", "address", "address not public: 169.254.169.254")]
    assert net.connected == [(PUBLIC, 80)]


@pytest.mark.parametrize(
    ("goal", "cause", "reason"),
    [
        ("http://127.0.0.1/robots.txt", "address", "robots.txt: address not public: 127.0.0.1"),
        ("http://inward.test/", "address", "robots.txt: address not public: fd00::1"),
        ("http://outward.test:22/", "port", "robots.txt: port not allowed: 22"),
    ],
)
def test_robots_txt_that_redirects_inward_settles_its_origin(
    kind: Any, net: Net, site: Site, goal: str, cause: str, reason: str
) -> None:
    """Nobody can say what is allowed: no page is asked for, nothing is asked for twice, and the host does not rest."""
    net.names = {"outward.test": [[PUBLIC]], "inward.test": [["fd00::1"]]}
    site.tree(5)
    site.pages["/robots.txt"] = Answer("", 301, {"Location": goal})
    report = crawl(kind, *(f"http://outward.test/{number}" for number in (1, 2, 3)))
    assert outcomes(report) == [("excluded", cause, reason)] * 3
    assert (site.paths, report.robots) == (["/robots.txt"], {})
    assert [request.url for request in report.requests] == ["http://outward.test/robots.txt"]


def test_an_origin_whose_robots_txt_leads_inward_does_not_hold_the_other(kind: Any, net: Net, site: Site) -> None:
    """http beside https, and another port: each has a robots.txt of its own."""
    net.names = {"outward.test": [[PUBLIC]]}
    site.tree(3)
    report = crawl(kind, "https://outward.test:22/", "http://outward.test/", "http://outward.test/1")
    assert [(page.state, page.cause) for page in report.results] == [("excluded", "port"), *[("done", None)] * 2]


def test_a_sitemap_is_judged(kind: Any, net: Net) -> None:
    net.names = {"inward.test": [["100.64.0.1"]]}
    for robots in (True, False):
        report = crawl(kind, "http://inward.test/sitemap.xml", sitemap=True, robots=robots)
        assert outcomes(report) == [("excluded", "address", "address not public: 100.64.0.1")]


def test_the_address_that_was_judged_is_the_one_connected_to(kind: Any, net: Net, site: Site) -> None:
    """DNS rebinding: a name that is public when it is judged, and leads inward with every later look-up."""
    net.names = {"rebinding.test": [[PUBLIC], ["127.0.0.1"]]}
    site.tree(3)
    report = crawl(kind, "http://rebinding.test/", "http://rebinding.test/1")
    assert [page.state for page in report.results] == ["done", "done"]
    assert (net.asked, set(net.connected)) == (["rebinding.test"], {(PUBLIC, 80)})
    net.now += connect.REMEMBERED + 1
    assert outcomes(crawl(kind, "http://rebinding.test/2")) == [
        ("excluded", "address", "address not public: 127.0.0.1")
    ]
    assert set(net.connected) == {(PUBLIC, 80)}


def test_a_page_that_led_inward_is_asked_for_again_once_it_leads_outward(kind: Any, net: Net, site: Site) -> None:
    net.names = {"late.test": [["127.0.0.1"], [PUBLIC]]}
    site.tree(1)
    assert outcomes(crawl(kind, "http://late.test/"))[0][0] == "excluded"
    net.now += connect.REMEMBERED + 1
    assert [page.state for page in crawl(kind, "http://late.test/").results] == ["done"]


@pytest.mark.parametrize(
    ("addresses", "tried"),
    [
        (["10.0.0.1", PUBLIC], [PUBLIC]),
        ([PUBLIC, "127.0.0.1", "::1"], [PUBLIC]),
        (["::1", "fd00::1", "127.0.0.1", "10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", PUBLIC], [PUBLIC]),
        (["fd00::1", OTHER], [OTHER]),
        (["10.0.0.1", "fd00::1", "169.254.169.254"], []),
    ],
)
def test_of_several_addresses_only_public_ones_are_tried(
    kind: Any, net: Net, site: Site, addresses: list[str], tried: list[str]
) -> None:
    net.names = {"several.test": [addresses]}
    site.tree(1)
    report = crawl(kind, "http://several.test/", robots=False)
    assert net.connected == [(address, 80) for address in tried]
    assert [page.state for page in report.results] == ["done" if tried else "excluded"]


def test_where_public_addresses_fail_no_other_is_tried(kind: Any, net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.names = {"several.test": [["10.0.0.1", PUBLIC, "127.0.0.1", OTHER]]}
    tried = []

    def refuse(address: connect.Address) -> None:
        tried.append(address[1][0])
        raise ConnectionRefusedError("Connection refused")

    monkeypatch.setattr(connect, "_open", refuse)
    report = crawl(kind, "http://several.test/", robots=False)
    assert report.back_off is not None
    assert (report.back_off.cause, set(tried)) == (Cause.CONNECT, {PUBLIC, OTHER})


def test_no_proxy_of_the_environment_is_asked(kind: Any, net: Net, site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://10.0.0.99:3128")
    net.names = {"outward.test": [[PUBLIC]], "inward.test": [["10.0.0.1"]]}
    site.tree(1)
    assert [page.state for page in crawl(kind, "http://outward.test/", robots=False).results] == ["done"]
    assert net.connected == [(PUBLIC, 80)]
    assert outcomes(crawl(kind, "http://inward.test/"))[0][:2] == ("excluded", "address")


def test_a_judgement_is_remembered_with_the_look_up(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    judged = []
    real = Egress.refusal

    def refusal(self: Egress, address: str, port: int) -> Any:
        judged.append(address)
        return real(self, address, port)

    monkeypatch.setattr(Egress, "refusal", refusal)
    net.names = {"a.test": [[PUBLIC]], "b.test": [["10.0.0.1"]]}
    for _ in range(5):
        connect.open_socket("a.test", 80, NOTHING).close()
        with contextlib.suppress(RefusedError):
            connect.open_socket("b.test", 80, NOTHING)
    assert judged == [PUBLIC, "10.0.0.1"]
    assert net.asked == ["a.test", "b.test"]
    connect.open_socket("b.test", 80, Egress((ipaddress.ip_network("10.0.0.0/8"),))).close()  # whose rules are others
