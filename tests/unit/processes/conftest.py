from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.parse import quote

import pytest
from kombu import Connection, Exchange, Queue


def address(user: str) -> str:
    """The broker in memory, as RabbitMQ's address names a user. It does not check that a message's `user_id` is true,
    as RabbitMQ does."""
    return f"memory://{quote(user, safe='')}@localhost/"


@pytest.fixture(scope="session")
def as_user() -> Callable[[str], Any]:
    """Stands in for the Celery application where something is sent or heard by another user of the broker."""

    def stand_in(user: str) -> SimpleNamespace:
        def connection(**_: Any) -> Connection:
            return Connection(address(user))

        return SimpleNamespace(connection_for_write=connection, connection_for_read=connection)

    return stand_in


@pytest.fixture(scope="session")
def app() -> Iterator[object]:
    """The Celery application, with a broker in memory: queues and exchanges as RabbitMQ's definitions have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAWLER_BROKER_URL", address("seed"))
        from crawler.processes.app import app as application
        from crawler.processes.queues import ORDERS, STATUS, work

        with application.connection_for_write() as connection:
            channel = connection.default_channel
            for name in ("admit", "record", "fetch"):
                Queue(name, Exchange(work(name).exchange.name, type="direct"), routing_key=name)(channel).declare()
            Queue("hold", Exchange("reports", type="direct"), routing_key="hold")(channel).declare()
            Exchange("pulses.ledger", type="direct")(channel).declare()
            Queue("orders-heard", Exchange(ORDERS.name, type="fanout"))(channel).declare()
            Exchange(STATUS.name, type="fanout")(channel).declare()
            yield application


@pytest.fixture(params=["path", "abstract"])
def told(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[socket.socket]:
    """systemd's end of the notify socket, of both kinds that sd_notify(3) names."""
    name = str(tmp_path / "notify") if request.param == "path" else f"@crawler-test-{id(request)}"
    monkeypatch.setenv("NOTIFY_SOCKET", name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(name.replace("@", "\0", 1) if name.startswith("@") else name)
        end.settimeout(5)
        yield end
