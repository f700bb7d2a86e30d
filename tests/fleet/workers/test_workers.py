"""A worker host: its services, what they run, and what they keep to themselves."""

from __future__ import annotations

import shlex

import pytest
from fleet import Fleet, eventually
from testinfra.host import Host


def process(host: Host, unit: str) -> str:
    return host.check_output(f"systemctl show --property=MainPID --value {unit}")


def environment_and_arguments(host: Host, unit: str) -> str:
    place = f"/proc/{process(host, unit)}"
    return host.check_output(f"cat {place}/environ {place}/cmdline | tr '\\0' '\\n'")


def test_runs_what_a_reboot_would_bring_back(host: Host, fleet: Fleet) -> None:
    name = host.backend.host.name
    assert fleet.running(name) == fleet.wanted(name)
    assert host.service("crawler.target").is_enabled


def test_runs_the_deployed_release(host: Host) -> None:
    """The process that runs, not the link that the next one would start from."""
    release = host.check_output("cat /opt/crawler/current/RELEASE")
    assert f"/opt/crawler/releases/{release}/" in environment_and_arguments(host, "crawler-worker@1")


def test_runs_without_rights(host: Host) -> None:
    shown = host.check_output("systemctl show crawler-worker@1 --property=User,NoNewPrivileges,ProtectSystem")
    assert set(shown.splitlines()) == {"User=crawler", "NoNewPrivileges=yes", "ProtectSystem=strict"}


def test_what_took_a_worker_over_cannot_look_into_other_services(host: Host, fleet: Fleet) -> None:
    """From inside its sandbox, as its user, on a host that carries other roles as well: memory, environment and
    credentials of what else runs there."""
    name = host.backend.host.name
    others = [unit for unit in fleet.running(name) if not unit.startswith("crawler-worker@")]
    pids = [process(host, unit) for unit in others] or ["1"]
    inside = (
        "import ctypes, os, sys\n"
        "for pid in sys.argv[1:]:\n"
        "    for path in ('environ', 'mem', 'maps', 'root', 'cwd', 'fd'):\n"
        "        try:\n"
        "            place = f'/proc/{pid}/{path}'\n"
        "            os.listdir(place) if path in ('root', 'cwd', 'fd') else open(place, 'rb')\n"
        "            print('read', place)\n"
        "        except OSError:\n"
        "            pass\n"
        "libc = ctypes.CDLL(None, use_errno=True)\n"
        "print('traced' if libc.process_vm_readv(os.getpid(), 0, 0, 0, 0, 0) == 0 else 'refused')\n"
        "for place, _, names in os.walk('/run/credentials'):\n"
        "    print('credentials', place, names) if names else None\n"
    )
    sandbox = "--property=User=crawler --property=Group=crawler --property=StateDirectory=crawler"
    command = f"/opt/crawler/current/venv/bin/python -c {shlex.quote(inside)} {' '.join(pids)}"
    run = f"systemd-run --quiet --collect --pipe --wait --unit=crawler-inside {sandbox} {command}"
    assert host.check_output(run).splitlines() == ["refused"]


def test_password_is_known_to_the_service_alone(host: Host) -> None:
    url = host.file("/etc/crawler/credentials/worker_broker_url")
    assert (url.user, url.mode) == ("root", 0o600)
    password = url.content_string.split("@")[0].rpartition(":")[2]
    assert len(password) >= 40
    assert password not in environment_and_arguments(host, "crawler-worker@1")
    assert password not in host.check_output("systemctl show crawler-worker@1")
    assert password not in host.check_output("journalctl --unit 'crawler-worker@*' --no-pager")


@pytest.mark.parametrize("signal", ["SIGKILL", "SIGSEGV"])
def test_comes_back_from_a_crash(host: Host, fleet: Fleet, signal: str) -> None:
    name = host.backend.host.name
    before = process(host, "crawler-worker@1")
    host.check_output(f"systemctl kill --signal={signal} crawler-worker@1")
    eventually(lambda: process(host, "crawler-worker@1") not in ("0", before))
    eventually(lambda: fleet.running(name) == fleet.wanted(name))
