from __future__ import annotations

from collections.abc import Iterator

import pytest
from kombu import Exchange, Queue


@pytest.fixture(scope="session")
def app() -> Iterator[object]:
    """The Celery application, with a broker in memory: queues and exchanges as RabbitMQ's definitions have them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CRAWLER_BROKER_URL", "memory://")
        from crawler.processes.app import app as application
        from crawler.processes.broker import STATUS
        from crawler.processes.systemd import ORDERS

        with application.connection_for_write() as connection:
            channel = connection.default_channel
            for name in ("record", "fetch"):
                Queue(name, Exchange(name, type="direct"), routing_key=name)(channel).declare()
            Queue("orders-heard", Exchange(ORDERS.name, type="fanout"))(channel).declare()
            Exchange(STATUS.name, type="fanout")(channel).declare()
            yield application
