"""The units as systemd reads them, and the command that applies them."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

from crawler import cli, settings
from crawler.frontier import caps

ROOT = Path(__file__).parents[2]
Render = Callable[..., str]
SERVICES = {
    "crawler-worker@.service": "worker",
    "crawler-recorder@.service": "frontier",
    "crawler-scheduler.service": "frontier",
}
systemd = pytest.mark.skipif(not shutil.which("systemd-analyze"), reason="systemd is not installed on this machine")


@pytest.fixture
def units(render: Render, tmp_path: Path) -> Path:
    """Render all units into a directory as they lie in /etc/systemd/system; their programs exist on this machine."""
    files = {name: render(role, f"{name}.j2") for name, role in SERVICES.items()}
    files |= {
        "crawler.target": render("release", "crawler.target.j2"),
        "crawler.target.d/workers.conf": render("worker", "workers.conf.j2", worker_count=3),
        "crawler.target.d/frontier.conf": render("frontier", "frontier.conf.j2"),
        "crawler-.service.d/common.conf": render("release", "common.conf.j2"),
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(re.sub(r"/opt/crawler/current/venv/bin/\w+", "/bin/true", text))
    return tmp_path


@systemd
def test_systemd_understands_the_units(units: Path) -> None:
    names = ["crawler-worker@1.service", "crawler-recorder@1.service", "crawler-scheduler.service", "crawler.target"]
    # The units before the colon, then the machine's own, which ours name.
    environment = {**os.environ, "SYSTEMD_UNIT_PATH": f"{units}:"}
    run = subprocess.run(["systemd-analyze", "verify", *names], env=environment, capture_output=True, text=True)
    complaints = [line for line in run.stderr.splitlines() if "crawler" in line]
    assert complaints == []


@systemd
@pytest.mark.parametrize("service", SERVICES)
def test_services_are_confined(units: Path, service: str) -> None:
    """systemd's own score: 10 is no protection at all, 2 and less is OK."""
    merged = units / "merged.service"
    merged.write_text((units / service).read_text() + (units / "crawler-.service.d/common.conf").read_text())
    run = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", "--threshold=20", str(merged)], capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-2000:] + run.stderr


def test_services_write_to_their_state_directory_alone_and_gain_no_rights(units: Path) -> None:
    lines = (units / "crawler-.service.d/common.conf").read_text().splitlines()
    assert {"ProtectSystem=strict", "ProtectHome=true"} <= set(lines)
    assert {"NoNewPrivileges=true", "CapabilityBoundingSet=", "AmbientCapabilities="} <= set(lines)


def test_workers_and_the_frontier_are_strangers_to_each_other(units: Path, render: Render) -> None:
    """On a host that carries both, a worker must not read what the scheduler was given."""

    def owner(text: str) -> dict[str, str]:
        return dict(re.findall(r"\b(User|Group|StateDirectory|WorkingDirectory)=([^\s\\]+)", text))

    owners = {service: owner((units / service).read_text()) for service in SERVICES}
    owners["crawler"] = owner(render("frontier", "crawler.j2"))
    users = {"crawler-worker@.service": "crawler"}
    for service, found in owners.items():
        user = users.get(service, "crawler-frontier")
        place = f"/var/lib/{user}"
        assert found == {"User": user, "Group": user, "StateDirectory": user, "WorkingDirectory": place}


@pytest.mark.parametrize("service", SERVICES)
def test_stopping_lets_running_work_finish(units: Path, service: str) -> None:
    text = (units / service).read_text()
    assert "KillMode=mixed" in text
    assert "Type=notify" in text
    assert re.search("^NotifyAccess=(main|all)$", text, re.MULTILINE)
    assert "Restart=always" in text
    assert "StartLimitIntervalSec=0" in text
    assert "LoadCredential=broker_url:" in text
    assert ("LoadCredential=database_url:" in text) is (service != "crawler-worker@.service")
    assert "PartOf=crawler.target" in text


@pytest.mark.parametrize(("service", "role"), SERVICES.items())
def test_a_process_that_grows_is_ended_before_its_host_suffers(render: Render, service: str, role: str) -> None:
    assert f"MemoryMax={'1G' if role == 'worker' else '2G'}\n" in render(role, f"{service}.j2")


def test_celery_runs_the_tasks_of_the_queue_it_reads(render: Render) -> None:
    (command,) = re.findall(r"^ExecStart=(.*)$", render("worker", "crawler-worker@.service.j2"), re.MULTILINE)
    assert " -A crawler.processes.worker_tasks worker -Q fetch -P gevent " in command
    assert importlib.util.find_spec("crawler.processes.worker_tasks")


@pytest.mark.parametrize(
    ("service", "arguments"), [("crawler-recorder@.service", "recorder %i"), ("crawler-scheduler.service", "scheduler")]
)
def test_the_frontier_s_processes_are_commands_that_exist(render: Render, service: str, arguments: str) -> None:
    (command,) = re.findall(r"^ExecStart=(.*)$", render("frontier", f"{service}.j2"), re.MULTILINE)
    program, _, rest = command.partition(" ")
    assert (program, rest) == ("/opt/crawler/current/venv/bin/crawler", arguments)
    assert cli._parser().parse_args(rest.split()).command == rest.split()[0]


def test_every_service_is_told_the_ceilings_of_jobs(render: Render) -> None:
    lines = render("release", "crawler.env.j2", release_without_robots=["a.test", "b.test"]).splitlines()
    assert {"CRAWLER_LEAST_DELAY=0", "CRAWLER_MOST_CONNECTIONS=8", "CRAWLER_MOST_BODY=67108864"} <= set(lines)
    assert "CRAWLER_WITHOUT_ROBOTS=a.test,b.test" in lines
    assert "CRAWLER_WITHOUT_ROBOTS=" in render("release", "crawler.env.j2").splitlines()


def test_nothing_secret_stands_in_a_unit_or_the_environment(units: Path, render: Render) -> None:
    texts = [path.read_text() for path in units.rglob("*.*") if path.is_file()]
    texts += [render("release", "crawler.env.j2"), render("frontier", "crawler.j2")]
    assert not any("secret" in text for text in texts)


def test_a_worker_is_called_after_its_host_as_the_inventory_spells_it(render: Render) -> None:
    """As its user at the broker is: what the machine calls itself may be another name."""
    assert "-n worker-%i@worker1 " in render("worker", "crawler-worker@.service.j2")


@pytest.mark.parametrize(
    ("persisted", "asked", "keep", "workers"),
    [
        ("", 2, True, 2),  # a first deploy takes the inventory's number
        ("network-online.target crawler-worker@1.service", 5, True, 1),  # scale.yml's number is kept
        ("crawler-worker@1.service crawler-worker@2.service", 5, False, 5),  # unless another is asked for
    ],
)
def test_number_of_workers(render: Render, persisted: str, asked: int, keep: bool, workers: int) -> None:
    text = render(
        "worker", "workers.conf.j2", worker_count=asked, worker_keep_count=keep, __worker_target={"stdout": persisted}
    )
    wants = [line for line in text.splitlines() if line.startswith("Wants=")]
    assert wants == [f"Wants=crawler-worker@{n}.service" for n in range(1, workers + 1)]


@pytest.fixture
def command() -> ModuleType:
    """The program crawler-units as a module."""
    path = Path(__file__).parents[2] / "roles/release/files/crawler-units.py"
    spec = importlib.util.spec_from_file_location("crawler_units", path)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_service_is_stale_when_what_it_read_is_younger(command: ModuleType, tmp_path: Path) -> None:
    credential = tmp_path / "broker_url"
    credential.write_text("amqp://")
    unit = tmp_path / "crawler-worker@.service"
    unit.write_text(f"[Service]\nLoadCredential=broker_url:{credential}\n")
    os.utime(unit, (1000, 1000))
    started = {"FragmentPath": str(unit), "DropInPaths": "", "InactiveExitTimestamp": "@2000"}

    os.utime(credential, (1999, 1999))
    assert not command.is_stale(started)
    os.utime(credential, (2001, 2001))
    assert command.is_stale(started)


@pytest.mark.parametrize(
    ("unit", "belongs"),
    [
        ("crawler-worker@3.service", True),
        ("crawler-worker.service", True),
        ("crawler-workers@1.service", False),
        ("crawler-recorder@1.service", False),
    ],
)
def test_services_are_told_apart_by_name(command: ModuleType, unit: str, belongs: bool) -> None:
    assert command.belongs(unit, ["crawler-worker"]) is belongs


@pytest.mark.parametrize("unit", ["crawler-scheduler.service", "crawler-recorder@.service"])
def test_the_frontier_s_processes_are_told_the_same_caps(
    render: Render, monkeypatch: pytest.MonkeyPatch, unit: str
) -> None:
    networks = ["192.0.2.0/24", "2001:db8::/32"]
    for more in ({}, {"frontier_address_batches": 2, "frontier_address_delay": 1.5}):
        text = render("frontier", f"{unit}.j2", frontier_exempt_networks=networks, **more)
        for line in re.findall(r"^Environment=(.*)$", text, re.MULTILINE):
            for setting in line.split():
                monkeypatch.setenv(*setting.split("="))
        told = caps.from_settings()
        assert told.domain == caps.Cap(*settings.CAPS["domain"])  # the role's defaults and the program's agree
        assert told.address == (caps.Cap(2, 1.5) if more else caps.Cap(*settings.CAPS["address"]))
        assert [str(network) for network in told.exempt] == [*networks, *caps.LOOPBACK]


def test_a_worker_is_told_where_it_may_connect_to(
    render: Render, evaluate: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the inventory's variables by the playbooks' and the role's to what the program makes of them."""
    derived = yaml.safe_load((ROOT / "playbooks/group_vars/all.yml").read_text())
    for given, networks, ports in (
        ({}, (), ()),
        ({"crawler_allow_ports": 8443, "crawler_allow_networks": "10.0.0.0/8"}, ("10.0.0.0/8",), (range(8443, 8444),)),
        (
            {"crawler_allow_networks": ["10.0.0.0/8", "fd00::/8"], "crawler_allow_ports": "8443, 8000-8999"},
            ("10.0.0.0/8", "fd00::/8"),
            (range(8443, 8444), range(8000, 9000)),
        ),
    ):
        names = ("worker_allow_networks", "worker_allow_ports")
        of_role = {name: evaluate(derived[name], **given) for name in names}
        for line in re.findall(
            r"^Environment=(.*)$", render("worker", "crawler-worker@.service.j2", **of_role), re.MULTILINE
        ):
            monkeypatch.setenv(*line.split("="))
        assert (settings.allow_networks(), settings.allow_ports()) == (networks, ports)


def test_the_scheduler_is_told_for_how_long_requests_are_kept(render: Render) -> None:
    unit = render("frontier", "crawler-scheduler.service.j2", frontier_requests_days=30)
    assert "\nEnvironment=CRAWLER_REQUESTS_DAYS=30\n" in unit
