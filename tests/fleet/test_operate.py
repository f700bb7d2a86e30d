"""status.yml and logs.yml: what an operator looks at."""

from __future__ import annotations

import gzip
import re

from fleet import ROOT, Fleet


def test_status_shows_services_queues_and_jobs(fleet: Fleet) -> None:
    shown = fleet.playbook("playbooks/status.yml")
    assert shown.returncode == 0, shown.stdout
    for service, hosts in (("worker", fleet.groups["workers"]), ("recorder", fleet.groups["frontier"])):
        for host in hosts:
            running = sum(f"-{service}@" in unit for unit in fleet.wanted(host))
            assert re.search(rf"{host} +{service} +{running} +0 ", shown.stdout), shown.stdout
    for name in ("admit", "fetch", "record", "dead", *fleet.status()):
        assert name in shown.stdout
    assert not [secret for secret in fleet.secrets() if secret in shown.stdout]


def logs(fleet: Fleet, since: str) -> dict[str, str]:
    """What logs.yml brings home of each host, typed as in the README."""
    for host in fleet.product:
        (ROOT / "logs" / host / "journal.gz").unlink(missing_ok=True)
    brought = fleet.playbook("playbooks/logs.yml", "-e", f"since={since}")
    assert brought.returncode == 0, brought.stdout
    files = {host: ROOT / "logs" / host / "journal.gz" for host in fleet.product}
    return {host: gzip.decompress(path.read_bytes()).decode() for host, path in files.items()}


def test_logs_come_home_from_every_host_without_secrets(fleet: Fleet) -> None:
    secrets = fleet.secrets()
    assert secrets
    newest = logs(fleet, "1 second ago")
    for host, log in logs(fleet, "2 hours ago").items():
        assert log.count("\n") > newest[host].count("\n") + 3, host
        assert not [secret for secret in secrets if secret in log], host
