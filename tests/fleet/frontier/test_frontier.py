"""The frontier host: database, recorders, scheduler."""

from __future__ import annotations

from fleet import Fleet
from testinfra.host import Host


def test_services_run(host: Host, fleet: Fleet) -> None:
    running = fleet.running(host.backend.host.name)
    assert {"crawler-recorder@1", "crawler-recorder@2", "crawler-scheduler"} <= set(running)


def test_services_come_back_after_a_reboot(host: Host) -> None:
    assert host.service("crawler.target").is_enabled
    assert host.service("postgresql").is_enabled


def test_database_listens_to_this_host_alone(host: Host) -> None:
    listening = host.check_output("ss --no-header --tcp --listening --numeric 'sport = 5432'").splitlines()
    assert [line.split()[3] for line in listening] == ["127.0.0.1:5432"]


def test_ledger_accounts_for_every_url(fleet: Fleet, crawled: str) -> None:
    states = ("queued", "leased", "done", "failed", "excluded")
    jobs = fleet.recount()
    assert jobs[crawled]["done"] == sum(map(len, fleet.pages().values())) > 1000
    for name, job in jobs.items():
        assert job["discovered"] == sum(job[state] for state in states), name
