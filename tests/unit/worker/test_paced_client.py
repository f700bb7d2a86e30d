"""When a batch may ask for its next URL: delay, budget, lease, disk and the order to stop, on a clock of the test's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from crawler import limits
from crawler.job import Job
from crawler.messages import Batch, Report
from crawler.worker.fetch_errors import StaleConnectionError
from crawler.worker.paced_client import PacedClient


class Clock:
    """Time that passes only while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.told = False
        self.waits: list[float] = []

    def is_set(self) -> bool:
        return self.told

    def wait(self, timeout: float) -> bool:
        self.waits.append(timeout)
        self.now += timeout
        return self.told


def paced(
    clock: Clock, get: Any = None, archive: Any = None, delay: float = 10, expires_at: float = 9e9, least: float = 0
) -> PacedClient:
    job = Job(name="j", delay=delay)
    batch = Batch(lease="l", job=job, host="a.test", targets=[], expires_at=expires_at, delay=least)
    report = Report(lease="l", job="j", host="a.test", worker="w", release="r", delay=0)
    client = SimpleNamespace(get=get or (lambda *_, **__: SimpleNamespace(status=200)))
    return PacedClient(client, batch, report, clock, lambda: clock.now, archive)


def asked(client: PacedClient, times: int) -> int:
    """How many of so many requests are made."""
    return sum(client.ask("http://a.test/") is not None for _ in range(times))


def test_each_request_waits_for_the_delay_after_the_one_before() -> None:
    clock = Clock()
    assert asked(paced(clock), 3) == 3
    assert clock.waits == [10, 10]


@pytest.mark.parametrize(("delay", "least", "waits"), [(0.1, 2, 2), (3, 2, 3)])
def test_the_longer_of_the_job_s_delay_and_its_server_s_counts(delay: float, least: float, waits: float) -> None:
    clock = Clock()
    assert asked(paced(clock, delay=delay, least=least), 3) == 3
    assert clock.waits == [waits, waits]


def test_a_batch_ends_with_its_budget() -> None:
    clock = Clock()
    assert asked(paced(clock), 100) == 1 + limits.BATCH // 10
    assert clock.now <= 1000 + limits.BATCH


def test_the_first_request_is_made_however_long_the_delay() -> None:
    assert asked(paced(Clock(), delay=3600), 3) == 1


def test_nothing_is_asked_for_after_the_lease_s_end() -> None:
    clock = Clock()
    assert asked(paced(clock, expires_at=1025), 100) == 3
    assert clock.now == 1020  # it does not wait for what will not come
    assert asked(paced(clock, expires_at=1019), 1) == 0


def test_nothing_is_asked_for_that_the_disk_has_no_room_for() -> None:
    room = iter([True, True, False, True])
    clock = Clock()
    client = paced(clock, archive=SimpleNamespace(has_room=lambda: next(room)))
    assert asked(client, 3) == 2
    assert clock.waits == [10]


def test_told_to_stop_it_asks_no_more() -> None:
    clock = Clock()
    client = paced(clock)
    assert asked(client, 1) == 1
    clock.told = True
    assert asked(client, 1) == 0
    assert clock.waits == []


def test_told_to_stop_while_it_waits_it_asks_no_more() -> None:
    class Told(Clock):
        def wait(self, timeout: float) -> bool:
            self.told = True
            return super().wait(timeout)

    clock = Told()
    assert asked(paced(clock), 2) == 1
    assert clock.waits == [10]


def test_a_stale_connection_is_tried_once_more_and_in_its_time() -> None:
    clock, failing = Clock(), [True, False, True, True]

    def get(*_: Any, **__: Any) -> Any:
        if failing.pop(0):
            raise StaleConnectionError("closed")
        return SimpleNamespace(status=200)

    client = paced(clock, get)
    assert client.ask("http://a.test/") is not None
    assert clock.waits == [10]
    with pytest.raises(StaleConnectionError):
        client.ask("http://a.test/")
    assert client.answers == 1
