"""Addresses, the race for a connection, and TLS sessions."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gevent
import pytest
from website import Answer, Site

from crawler.worker import connect
from crawler.worker.egress import from_settings
from crawler.worker.fetch import Client
from crawler.worker.fetch_errors import ConnectError, DNSError

SIX, FOUR = socket.AF_INET6, socket.AF_INET
HERE = from_settings(["127.0.0.0/8"])
Address = connect.Address


@pytest.fixture(autouse=True)
def forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_addresses", {})
    monkeypatch.setattr(connect, "_sessions", {})


@pytest.mark.parametrize(
    ("found", "tried"),
    [
        ([(SIX, 1), (SIX, 2), (FOUR, 3), (FOUR, 4)], [1, 3, 2, 4]),
        ([(FOUR, 1), (FOUR, 2), (FOUR, 3), (SIX, 4)], [1, 4, 2, 3]),
        ([(FOUR, 1)], [1]),
    ],
)
def test_families_take_turns(found: list[Address], tried: list[int]) -> None:
    assert [where for _, where in connect.interleaved(found)] == tried


class Connection:
    closed = False

    def close(self) -> None:
        self.closed = True


def opener(seconds: dict[int, float | None], made: dict[int, Connection]) -> Callable[[Address], Any]:
    """Opens each address after so many seconds; refuses where there are none."""

    def open_one(address: Address) -> Connection:
        _, where = address
        took = seconds[where]
        gevent.sleep(took or 0)
        if took is None:
            raise ConnectionRefusedError(f"no {where}")
        made[where] = Connection()
        return made[where]

    return open_one


@pytest.mark.parametrize(
    ("seconds", "taken"),
    [
        ({1: 0.0, 2: 0.0}, 1),
        ({1: 60.0, 2: 0.0}, 2),  # after STAGGER
        ({1: None, 2: 0.0}, 2),  # at once
        ({1: 60.0, 2: 60.0, 3: 0.0}, 3),
        ({1: 60.0, 2: None, 3: 0.0}, 3),
    ],
)
def test_the_first_that_answers_is_taken(
    monkeypatch: pytest.MonkeyPatch, seconds: dict[int, float | None], taken: int
) -> None:
    monkeypatch.setattr(connect, "STAGGER", 0.05)
    made: dict[int, Connection] = {}
    with gevent.Timeout(20):
        found = connect._race([(FOUR, where) for where in seconds], opener(seconds, made))
    assert found is made[taken]
    assert [where for where, connection in made.items() if not connection.closed] == [taken]


def test_where_none_answers_the_last_error_tells() -> None:
    with pytest.raises(ConnectionRefusedError, match="no 2"):
        connect._race([(FOUR, 1), (FOUR, 2)], opener({1: None, 2: None}, {}))


def test_a_name_is_looked_up_once_a_minute(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.pages["/"] = Answer("x")
    asked: list[str] = []
    port = int(site.host.rpartition(":")[2])

    def getaddrinfo(name: str, port: int, **_: Any) -> list[Any]:
        asked.append(name)
        if name == "dead.test":
            raise socket.gaierror(-2, "Name or service not known")
        return [(FOUR, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(connect.socket, "getaddrinfo", getaddrinfo)
    clock = [time.monotonic()]
    monkeypatch.setattr(connect.time, "monotonic", lambda: clock[0])
    for _ in range(3):
        connect.connect("living.test", port, None, HERE).close()
    assert asked == ["living.test"]
    clock[0] += connect.REMEMBERED + 1
    connect.connect("living.test", port, None, HERE).close()
    assert asked == ["living.test"] * 2
    for _ in range(2):  # a failure is not remembered
        with pytest.raises(DNSError, match=r"dead\.test"):
            connect.connect("dead.test", port, None, HERE)
    assert asked[2:] == ["dead.test"] * 2
    with pytest.raises(ConnectError):
        connect.connect("living.test", 1, None, HERE)
    assert (HERE, "living.test", 1) not in connect._addresses  # may have moved


def test_what_is_remembered_has_a_bound() -> None:
    known: dict[int, int] = {}
    for key in (1, 2, 1, 3, 4):
        connect._keep(known, key, key, 3)
    assert known == {1: 1, 3: 3, 4: 4}


def test_a_host_s_next_connection_resumes_its_tls_session(tmp_path: Path) -> None:
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=site"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key", "-out", "certificate"]
    subprocess.run([*made, *names], cwd=tmp_path, check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "certificate", tmp_path / "key")
    resumed: list[bool] = []

    def serve(server: socket.socket) -> None:
        while True:
            try:
                connection = context.wrap_socket(server.accept()[0], server_side=True)
            except OSError:
                return
            with connection:
                resumed.append(bool(connection.session_reused))
                connection.recv(10_000)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx")

    with socket.create_server(("127.0.0.1", 0)) as server:
        threading.Thread(target=serve, args=(server,), daemon=True).start()
        url = f"https://127.0.0.1:{server.getsockname()[1]}/"
        trusting = connect.new_context(str(tmp_path / "certificate"))
        for context_of_client in (trusting, trusting, connect.new_context(str(tmp_path / "certificate"))):
            with Client("x", context_of_client) as client:
                assert client.get(url, max_body=10).body == b"x"
    assert resumed == [False, True, False]
