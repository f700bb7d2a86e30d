from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu import Exchange, Queue


@pytest.fixture(scope="session")
def app() -> Iterator[object]:
    """The Celery application, with a broker in memory: queues and exchanges as RabbitMQ's definitions have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAWLER_BROKER_URL", "memory://")
        from crawler.processes.app import app as application
        from crawler.processes.queues import ORDERS, STATUS

        with application.connection_for_write() as connection:
            channel = connection.default_channel
            for name in ("admit", "record", "fetch"):
                Queue(name, Exchange(name, type="direct"), routing_key=name)(channel).declare()
            Queue("hold", Exchange("record", type="direct"), routing_key="hold")(channel).declare()
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
