"""What another machine can reach on the hosts: SSH everywhere, AMQP at the broker, nothing else."""

from __future__ import annotations

from fleet import Fleet

CONNECT = """
import socket
def answers(port):
    with socket.socket() as probe:
        probe.settimeout(2)
        return probe.connect_ex(("{host}", port)) == 0
print(*filter(answers, {ports}))
"""


def test_only_ssh_and_the_broker_can_be_reached(fleet: Fleet) -> None:
    web = fleet.host(fleet.groups["web"][0])  # in the same network, with no firewall between
    for host in sorted(fleet.product):
        listening = fleet.host(host).check_output("ss --no-header --tcp --listening --numeric").splitlines()
        ports = sorted({int(line.split()[3].rpartition(":")[2]) for line in listening})
        if host in fleet.groups["broker"]:
            assert {4369, 25672} < set(ports), "Erlang's own, for this host alone"
        found = web.check_output("python3 -c %s", CONNECT.format(host=host, ports=ports)).split()
        assert found == (["22", "5672"] if host in fleet.groups["broker"] else ["22"]), host
