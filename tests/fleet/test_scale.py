"""scale.yml: up and down, kept by the next deploy, and no nonsense."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from fleet import Fleet, changes, eventually


def workers(fleet: Fleet) -> dict[str, int]:
    """How many workers run on each worker host; fails where a reboot would bring back others."""
    for host in fleet.groups["workers"]:
        assert fleet.running(host) == fleet.wanted(host)
    return {host: sum("worker@" in unit for unit in fleet.running(host)) for host in fleet.groups["workers"]}


@pytest.fixture(scope="module", autouse=True)
def as_before(fleet: Fleet) -> Iterator[None]:
    before = set(workers(fleet).values())
    yield
    assert fleet.playbook("scale.yml", "-e", f"workers={max(before)}").returncode == 0


@contextmanager
def at_rest(fleet: Fleet, hosts: list[str]) -> Iterator[None]:
    """These hosts do not crawl meanwhile."""
    for host in hosts:
        fleet.host(host).check_output("systemctl stop crawler.target")
    try:
        yield
    finally:
        for host in hosts:
            fleet.host(host).check_output("systemctl start crawler.target")
            eventually(lambda host=host: fleet.running(host) == fleet.wanted(host))


def test_exact_with_20_and_with_1_worker_and_kept_by_a_deploy(fleet: Fleet) -> None:
    """20 and 1 in all: over two worker hosts that is 10 on each, and one host at rest."""
    hosts = fleet.groups["workers"]
    for total in (20, 1):
        count = max(1, total // len(hosts))
        scaled = fleet.playbook("scale.yml", "-e", f"workers={count}")
        assert scaled.returncode == 0, scaled.stdout
        assert workers(fleet) == dict.fromkeys(hosts, count)
        job = f"exact-with-{total}-{time.time():.0f}"
        with at_rest(fleet, hosts[1:] if total == 1 else []):
            crew = fleet.crawl(job)["workers"]
        assert len(crew) == 1 if total == 1 else len(crew) > len(hosts)
        assert fleet.done(job) == fleet.pages()
    deployed = fleet.playbook("deploy.yml")
    assert deployed.returncode == 0, deployed.stdout
    assert changes(deployed) == dict.fromkeys(fleet.product, 0), deployed.stdout
    assert workers(fleet) == dict.fromkeys(hosts, 1)


def test_one_host_of_many(fleet: Fleet) -> None:
    first, *others = fleet.groups["workers"]
    before = workers(fleet)
    scaled = fleet.playbook("scale.yml", "-e", "workers=3", "--limit", first)
    assert scaled.returncode == 0, scaled.stdout
    assert workers(fleet) == {first: 3} | {host: before[host] for host in others}


@pytest.mark.parametrize("nonsense", ["0", "-1", "abc", "100000", "1.5", ""])
def test_nonsense_is_refused(fleet: Fleet, nonsense: str) -> None:
    before = workers(fleet)
    refused = fleet.playbook("scale.yml", "-e", f"workers={nonsense}")
    assert refused.returncode != 0
    assert "scale.yml -e workers=" in refused.stdout + refused.stderr
    assert workers(fleet) == before
