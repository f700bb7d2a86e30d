"""A worker host: its services, what they run, and what they keep to themselves."""

from __future__ import annotations

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
