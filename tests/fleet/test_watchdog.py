"""A process that is connected to the broker, but to which nothing comes any more, is restarted by systemd."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import pytest
from fleet import ROOT, Fleet, eventually
from kombu import Connection, Queue

PATIENCE = 40
"""WatchdogSec for this test: more than two heartbeats, less than the three minutes of crawler/limits.py."""


@contextlib.contextmanager
def heartbeats_stolen(fleet: Fleet, unit: str, host: str) -> Iterator[None]:
    """Take the heartbeats that a process sends itself, by a consumer of higher priority. The process stays connected
    and goes on sending; that nothing comes back is all that it could notice. So it is with a consumer that the broker
    has forgotten."""
    kept = ROOT / ".fleet" / fleet.name
    user, file = (f"worker%40{host}", f"workers/{host}") if "worker" in unit else ("ledger", "ledger")
    password, url = (kept / f"{file}_password").read_text().strip(), (kept / "broker_url").read_text().strip()
    name = f"pulse.{unit.removeprefix('crawler-').replace('@', '-')}@{host}"
    queue = Queue(name, no_declare=True, consumer_arguments={"x-priority": 10})
    stop = threading.Event()
    with Connection(f"amqp://{user}:{password}@{url.rpartition('@')[2]}") as connection:

        def take() -> None:
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    connection.drain_events(timeout=1)

        with connection.Consumer([queue], no_ack=True, on_message=lambda _: None):
            thread = threading.Thread(target=take)
            thread.start()
            try:
                yield
            finally:
                stop.set()
                thread.join()


@pytest.fixture
def impatient(fleet: Fleet) -> Iterator[dict[str, str]]:
    """A worker and a recorder (unit to host) whose watchdog waits less long than it does by default."""
    units = {"crawler-worker@1": fleet.groups["workers"][0], "crawler-recorder@1": fleet.groups["frontier"][0]}
    for unit, host in units.items():
        drop_in = f"/run/systemd/system/{unit}.service.d"
        write = rf"mkdir -p {drop_in} && printf '[Service]\nWatchdogSec={PATIENCE}\n' > {drop_in}/test.conf"
        # systemd takes a new WatchdogSec with the next start.
        fleet.host(host).check_output(f"{write} && systemctl daemon-reload && systemctl restart {unit}")
    yield units
    for unit, host in units.items():
        undo = f"rm -r /run/systemd/system/{unit}.service.d && systemctl daemon-reload && systemctl restart {unit}"
        fleet.host(host).check_output(undo)


def shown(fleet: Fleet, host: str, unit: str, *properties: str) -> dict[str, str]:
    lines = fleet.host(host).check_output(f"systemctl show {unit} --property={','.join(properties)}").splitlines()
    return dict(line.split("=", 1) for line in lines)


def test_what_no_longer_consumes_is_restarted_and_nothing_else(fleet: Fleet, impatient: dict[str, str]) -> None:
    units = {host: fleet.running(host) for host in fleet.product}
    before = {(host, unit): shown(fleet, host, unit, "MainPID") for host in units for unit in units[host]}
    victims = {(host, unit): before[host, unit] for unit, host in impatient.items()}
    with contextlib.ExitStack() as thieves:
        for unit, host in impatient.items():
            thieves.enter_context(heartbeats_stolen(fleet, unit, host))
        for (host, unit), process in victims.items():
            eventually(lambda host=host, unit=unit, process=process: shown(fleet, host, unit, "MainPID") != process)
    for host, unit in victims:
        log = fleet.host(host).check_output(f"journalctl --unit {unit} --since -3min --no-pager")
        assert "Watchdog timeout" in log
    eventually(lambda: all(fleet.running(host) == units[host] for host in units))
    after = {(host, unit): shown(fleet, host, unit, "MainPID") for host, unit in before}
    assert {name for name in before if after[name] != before[name]} == set(victims)
