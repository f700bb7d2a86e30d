"""destroy.yml: a host is left as it was found, and can be deployed to again."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import traces
from fleet import ROOT, Fleet, changes
from testinfra.host import Host


def destroy(fleet: Fleet, *options: str) -> None:
    destroyed = fleet.playbook("playbooks/destroy.yml", "-e", "confirm=yes", *options)
    assert destroyed.returncode == 0, destroyed.stdout


def deploy(fleet: Fleet) -> str:
    """Deploy, and check that all runs; what was said. Where a file is new, all of it is in the diff."""
    deployed = fleet.playbook("deploy.yml", "--diff")
    assert deployed.returncode == 0, deployed.stdout
    for host in fleet.product:
        assert fleet.running(host) == fleet.wanted(host)
    assert all(fleet.running(host) for host in fleet.groups["frontier"] + fleet.groups["workers"])
    return deployed.stdout + deployed.stderr


@pytest.mark.timeout(900)  # two deploys
def test_host_is_left_as_found_and_can_be_deployed_to_again(fleet: Fleet) -> None:
    kept, passwords = ROOT / ".fleet" / fleet.name, fleet.secrets()
    retired, *others = sorted(fleet.product, key=fleet.groups["workers"].__contains__, reverse=True)
    if others:
        destroy(fleet, "--limit", retired)
        assert traces.of(fleet, retired) == traces.of_a_new(fleet, retired)
        assert fleet.secrets() == passwords, "the other hosts still need them"
        for host in others:
            assert fleet.running(host) == fleet.wanted(host)

    destroy(fleet)
    assert not kept.exists()
    found = {host: traces.of(fleet, host) for host in fleet.product}
    assert found == {host: traces.of_a_new(fleet, host) for host in fleet.product}

    dry = fleet.playbook("deploy.yml", "--check", "--diff")
    assert dry.returncode == 0, dry.stdout
    assert min(changes(dry).values()) > 0, "nothing to change on a host that is bare"
    assert {host: traces.of(fleet, host) for host in fleet.product} == found

    said = deploy(fleet)
    secrets = fleet.secrets()
    assert secrets
    for text in (dry.stdout + dry.stderr, said):
        assert not [secret for secret in secrets if secret in text]


# Both servers, as their owner has them: the distribution's packages, a database and a virtual host.
INSTALL = """
export DEBIAN_FRONTEND=noninteractive
apt-get update --quiet=2
apt-get install --yes --quiet=2 --no-install-recommends postgresql rabbitmq-server
runuser -u postgres -- psql -c 'CREATE DATABASE theirs'
rabbitmqctl --quiet add_vhost theirs
"""
PURGE = """
export DEBIAN_FRONTEND=noninteractive
apt-get purge --autoremove --yes --quiet=2 'postgresql*' rabbitmq-server 'erlang-*'
rm -rf /etc/postgresql /etc/rabbitmq /var/lib/postgresql /var/lib/rabbitmq /var/log/rabbitmq
"""
DATABASES = "runuser -u postgres -- psql -At -c 'SELECT datname FROM pg_database UNION SELECT rolname FROM pg_roles'"


def servers(host: Host) -> dict[str, set[str]]:
    """What somebody would miss."""
    return {
        "packages": set(host.check_output("dpkg-query --show --showformat '${Package}\\n'").split()),
        "databases and roles": set(host.check_output(DATABASES).split()),
        "virtual hosts": set(host.check_output("rabbitmqctl --quiet list_vhosts").split()),
        "running": set(host.check_output("systemctl is-active postgresql rabbitmq-server").split()),
        "configuration": set(host.check_output("find /etc/rabbitmq /etc/postgresql").split()),
    }


@pytest.fixture
def somebody_elses(fleet: Fleet) -> Iterator[Host]:
    """A host on which both servers were before the crawler came; the crawler is not there."""
    if len(fleet.product) > 1:
        pytest.skip("takes two more deploys; shown on a single machine: molecule test -s single")
    destroy(fleet)
    (name,) = fleet.product
    host = fleet.host(name)
    host.check_output(f"( {INSTALL} ) 2>&1")
    yield host
    destroy(fleet)
    host.check_output(f"( {PURGE} ) 2>&1")
    deploy(fleet)


@pytest.mark.timeout(900)  # two deploys
def test_servers_that_were_there_before_stay(fleet: Fleet, somebody_elses: Host) -> None:
    before = servers(somebody_elses)
    assert {"postgresql", "rabbitmq-server"} <= before["packages"]
    assert "theirs" in before["databases and roles"] & before["virtual hosts"]
    assert before["running"] == {"active"}
    deploy(fleet)
    assert "theirs" in servers(somebody_elses)["databases and roles"]
    destroy(fleet)
    assert servers(somebody_elses) == before
