"""What another machine can reach on the hosts: SSH everywhere, AMQP at the broker, nothing else."""

from __future__ import annotations

from fleet import Fleet

SCAN = """
import socket
def listens(port):
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("{host}", port)) == 0
print(*filter(listens, range(1, 65536)))
"""


def test_only_ssh_and_the_broker_can_be_reached(fleet: Fleet) -> None:
    web = fleet.host(fleet.groups["web"][0])  # in the same network, with no firewall between
    for host in sorted(fleet.product):
        found = web.check_output("python3 -c %s", SCAN.format(host=host)).split()
        assert found == (["22", "5672"] if host in fleet.groups["broker"] else ["22"]), host
