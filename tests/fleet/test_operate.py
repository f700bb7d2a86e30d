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
    for name in ("fetch", "record", "dead", *fleet.status()):
        assert name in shown.stdout
    assert not [secret for secret in fleet.secrets() if secret in shown.stdout]


def test_logs_come_home_from_every_host_without_secrets(fleet: Fleet) -> None:
    brought = fleet.playbook("playbooks/logs.yml", "-e", "since=today")
    assert brought.returncode == 0, brought.stdout
    secrets = fleet.secrets()
    for host in fleet.product:
        log = gzip.decompress((ROOT / "logs" / host / "journal.gz").read_bytes()).decode()
        assert log.count("\n") > 3
        assert not [secret for secret in secrets if secret in log]
