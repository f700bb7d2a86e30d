"""The crawler's processes, started from this checkout, against real services in a container, reached over SSH.

The container is left up, so that a second run takes seconds; `make clean` takes it down.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest
import yaml
from website import NETWORKS, Site

from crawler.frontier import status
from crawler.frontier.ledger import Ledger
from crawler.frontier.schema import metadata

ROOT = Path(__file__).resolve().parents[2]
INVENTORY = "inventory/integration"
SSH = ["ssh", "-F", str(ROOT / ".cache/fleet/integration/ssh_config")]
BROKER = "amqp://{}@127.0.0.1:22292/crawler"
"""With a user and its password: USERS."""
USERS = {"seed": "seed:seed", "ledger": "ledger:ledger", "worker": "worker%40here:worker"}
BIN = Path(sys.executable).parent


def eventually(condition: Callable[[], Any], timeout: float = 60) -> Any:
    """What `condition` returns as soon as that is true; fails when it does not become so in time."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {condition}"
        time.sleep(0.2)
    return result


class Services:
    """RabbitMQ and PostgreSQL."""

    def __init__(self) -> None:
        environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
        for playbook in ("molecule/create.yml", "tests/integration/services.yml"):
            command = ["ansible-playbook", "-i", INVENTORY, playbook]
            ran = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
            assert ran.returncode == 0, ran.stdout[-3000:] + ran.stderr[-3000:]
        self._port = _free_port()
        self._tunnel: subprocess.Popen[bytes] | None = None
        self.tunnel()

    def tunnel(self) -> None:
        """Reach PostgreSQL, which listens on the container's loopback only."""
        forward = f"127.0.0.1:{self._port}:127.0.0.1:5432"
        self._tunnel = subprocess.Popen([*SSH, "-N", "-o", "ExitOnForwardFailure=yes", "-L", forward, "services1"])
        eventually(lambda: _listening(self._port))

    @property
    def database(self) -> str:
        return f"postgresql+psycopg://crawler:crawler@127.0.0.1:{self._port}/crawler"

    def run(self, command: str) -> str:
        """Run a shell command on the host as root; its output."""
        ran = subprocess.run([*SSH, "services1", f"sudo {command}"], capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout + ran.stderr
        return ran.stdout

    def queues(self) -> dict[str, int]:
        """Messages in each queue, ready or not."""
        listed = self.run("rabbitmqctl list_queues --silent --no-table-headers -p crawler name messages")
        return {name: int(messages) for name, messages in (line.split() for line in listed.splitlines())}

    def close(self) -> None:
        if self._tunnel:
            self._tunnel.terminate()
            self._tunnel.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _listening(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


class Processes:
    """The crawler's own processes."""

    def __init__(self, services: Services, folder: Path) -> None:
        self._services, self._folder = services, folder
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._logs: list[IO[bytes]] = []
        self.settings: dict[str, str] = {}
        """Environment variables of those that are started from now on."""

    def _environment(self, user: str, name: str = "tests") -> dict[str, str]:
        return os.environ | {
            "CRAWLER_BROKER_URL": BROKER.format(USERS[user]),
            "CRAWLER_DATABASE_URL": self._services.database,
            "CRAWLER_ALLOW_NETWORKS": NETWORKS,
            "CRAWLER_CONTACT": f"mailto:{name}@example.org",
            "CRAWLER_HOST": "here",
            "CRAWLER_STATE_DIR": str(self._folder),
            **self.settings,
        }

    def _start(self, name: str, user: str, *command: str) -> None:
        log = (self._folder / f"{name}.log").open("ab")
        self._logs.append(log)
        self.running[name] = subprocess.Popen(
            [str(BIN / command[0]), *command[1:]], env=self._environment(user, name), stderr=log, stdout=log, cwd=ROOT
        )

    def worker(self, number: int) -> None:
        name, quiet = f"worker-{number}", ("--without-gossip", "--without-mingle", "--without-heartbeat", "-l", "INFO")
        command = ("celery", "-A", "crawler.processes.worker_tasks", "worker", "-n", f"{name}@here")
        self._start(name, "worker", *command, "-Q", "fetch", "-P", "gevent", "-c", "50", *quiet)

    def recorder(self, number: int) -> None:
        self._start(f"recorder-{number}", "ledger", "crawler", "recorder", str(number))

    def scheduler(self, before: str = "") -> None:
        """`before`: Python that this process executes first."""
        code = f"{before}\nimport sys\nfrom crawler.cli import main\nsys.argv[1:] = ['scheduler']\nsys.exit(main())"
        self._start("scheduler", "ledger", *(("python", "-c", code) if before else ("crawler", "scheduler")))

    def stop(self, name: str, number: int = signal.SIGTERM) -> float:
        """End a process; the seconds it took."""
        process, began = self.running.pop(name), time.monotonic()
        process.send_signal(number)
        process.wait(timeout=60)
        return time.monotonic() - began

    def freeze(self, name: str) -> None:
        """Let a process stand still, as a machine does that is suspended."""
        self.running[name].send_signal(signal.SIGSTOP)

    def thaw(self, name: str) -> None:
        self.running[name].send_signal(signal.SIGCONT)

    def seed(self, *arguments: str, text: str | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "crawler/seed.py", *arguments],
            env=self._environment("seed"),
            cwd=ROOT,
            input=text,
            capture_output=True,
            text=True,
        )

    def file(self, name: str, content: object) -> Path:
        """Write `content` as YAML; where it is."""
        path = self._folder / name
        path.write_text(yaml.safe_dump(content))
        return path

    def close(self) -> None:
        for process in self.running.values():
            process.terminate()
            process.send_signal(signal.SIGCONT)
        for process in self.running.values():
            process.wait(timeout=60)
        for log in self._logs:
            log.close()


@pytest.fixture(scope="session")
def services() -> Iterator[Services]:
    up = Services()
    yield up
    up.close()


@pytest.fixture
def ledger(services: Services) -> Iterator[Ledger]:
    """An empty ledger on PostgreSQL."""
    opened = Ledger.open(services.database)
    metadata.drop_all(opened.engine)
    opened.create()
    yield opened
    opened.engine.dispose()


@pytest.fixture
def processes(services: Services, ledger: Ledger, tmp_path: Path) -> Iterator[Processes]:
    """Two recorders, two workers and a scheduler, on an empty `ledger` and empty queues."""
    assert ledger.engine.dialect.name == "postgresql"
    for queue in ("admit", "record", "fetch", "dead"):
        services.run(f"rabbitmqctl --silent purge_queue -p crawler {queue}")
    started = Processes(services, tmp_path)
    for number in (1, 2):
        started.worker(number)
        started.recorder(number)
    started.scheduler()
    yield started
    started.close()


@pytest.fixture
def site() -> Iterator[Site]:
    running = Site()
    yield running
    running.close()


@pytest.fixture
def outcome(ledger: Ledger) -> Callable[[str], dict[str, int]]:
    """Waits for the end of a job; its counts, after checking that they are the true ones."""

    def wait(job: str, timeout: float = 120) -> dict[str, int]:
        def finished() -> dict[str, Any] | None:
            jobs = status.snapshots(ledger, time.time(), recount=True)
            return next((known for known in jobs if known["job"] == job and known["state"] == "done"), None)

        snapshot = eventually(finished, timeout)
        counts: dict[str, int] = snapshot["counts"]
        assert counts == snapshot["by_host"] == snapshot["recounted"]
        return counts

    return wait
