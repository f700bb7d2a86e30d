"""A deployed fleet, as its operator sees it."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import testinfra
from site_walk import pages_of
from testinfra.host import Host

ROOT = Path(__file__).resolve().parents[2]
# As in inventory/*/group_vars/all.yml:
CONTACT = "https://example.org/demo-crawler"
NETWORKS = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7"
UNITS = "crawler-worker@* crawler-recorder@* crawler-scheduler.service"


class Crawl(NamedTuple):
    """A crawl of the demo's sites from the seeds to the last page."""

    job: str
    summary: dict[str, Any]
    """What seed.py wrote of it."""
    log: str
    """What web1 wrote down of it."""


class Fleet:
    """A deployed inventory, and what an operator does with it."""

    def __init__(self, inventory: str) -> None:
        self.inventory = inventory
        listed = json.loads(self._run("ansible-inventory", "--list").stdout)
        self.groups = {name: group["hosts"] for name, group in listed.items() if group.get("hosts")}
        self.name: str = listed["_meta"]["hostvars"][self.groups["web"][0]]["crawler_fleet"]
        self.ssh_config = ROOT / ".cache" / "fleet" / self.name / "ssh_config"
        self._hosts: dict[str, Host] = {}

    def _run(self, *command: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_FORCE_COLOR": "0",  # molecule asks for it
        }
        return subprocess.run(
            [command[0], "-i", self.inventory, *command[1:]],
            check=check,
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
        )

    @property
    def product(self) -> set[str]:
        """The hosts that the product is deployed to."""
        return {host for group in ("broker", "frontier", "workers") for host in self.groups[group]}

    def host(self, name: str) -> Host:
        """The host of that name, as root."""
        if name not in self._hosts:
            self._hosts[name] = testinfra.get_host(f"ssh://{name}", ssh_config=str(self.ssh_config), sudo=True)
        return self._hosts[name]

    def playbook(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run `ansible-playbook`; whether it succeeded is for the test to say."""
        return self._run("ansible-playbook", *arguments, check=False)

    def seed(self, job: str, *options: str, file: str | Path = "molecule/job.yml") -> None:
        """Hand the demo's sites, or another job file's, over to the fleet, as a job of that name."""
        command = ["crawler/seed.py", "--fleet", self.name, "--job", str(file), "--name", job, *options]
        seeding = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True)
        assert seeding.returncode == 0, seeding.stdout + seeding.stderr

    def crawl(self, job: str) -> dict[str, Any]:
        """Crawl the demo's sites to the end; the summary that seed.py writes."""
        written = self.ssh_config.with_name("summary.json")
        written.unlink(missing_ok=True)
        self.seed(job, "--watch", "--timeout", "280", "--summary", str(written))
        summary: dict[str, Any] = json.loads(written.read_text())
        return summary

    def export(self, job: str, where: str = "") -> list[dict[str, Any]]:
        """The URLs of a job and what became of them, as `crawler export` tells it."""
        frontier = self.host(self.groups["frontier"][0])
        return json_lines(frontier.check_output("crawler export --job %s --format jsonl --where %s", job, where))

    def done(self, job: str) -> dict[str, list[str]]:
        """The URLs of each site that are done."""
        return by_site(self.export(job, "state=done"))

    def crawl_embedded(self, *options: str) -> dict[str, list[str]]:
        """Crawl the demo's sites with `seed.py --local` on a worker host, from where they can be reached; the URLs of
        each site that are done."""
        host = self.host(self.groups["workers"][0])
        job = shlex.quote((ROOT / "molecule" / "job.yml").read_text())
        command = "/opt/crawler/current/venv/bin/python -m crawler.seed --local --job job.yml -o pages.jsonl"
        script = f"cd $(mktemp -d) && echo {job} > job.yml && {command} {' '.join(options)} >&2 && cat pages.jsonl"
        told = [f"CRAWLER_{name}={NETWORKS}" for name in ("EXEMPT_NETWORKS", "ALLOW_NETWORKS")]
        told.append(f"CRAWLER_CONTACT={CONTACT}")
        crawled = host.check_output("env %s %s %s runuser -u crawler -- sh -c %s", *told, script)
        return by_site(row for row in json_lines(crawled) if row["state"] == "done")

    def status(self) -> dict[str, dict[str, Any]]:
        """What the ledger knows of each job."""
        frontier = self.host(self.groups["frontier"][0])
        return {job["job"]: job for job in json.loads(frontier.check_output("crawler status --json"))["jobs"]}

    def secrets(self) -> set[str]:
        """The passwords that deploy.yml made."""
        files = (path for path in (ROOT / ".fleet" / self.name).rglob("*") if path.is_file())
        return {word for path in files for word in re.findall(r"[A-Za-z0-9]{40}", path.read_text())}

    def pages(self) -> dict[str, list[str]]:
        """The pages of each site, found without the crawler."""
        return pages_of(self.name, self.groups["web"][0])

    def queues(self) -> dict[str, int]:
        """Messages in each queue of the crawler, ready or not."""
        broker = self.host(self.groups["broker"][0])
        command = "rabbitmqctl --quiet --formatter json --vhost crawler list_queues name messages"
        return {queue["name"]: queue["messages"] for queue in json.loads(broker.check_output(command))}

    def recount(self) -> dict[str, dict[str, Any]]:
        """What the ledger knows of each job, once all its counts have been compared with the rows; fails where one is
        not what the rows say."""
        frontier = self.host(self.groups["frontier"][0])
        counted = frontier.run("crawler status --recount --json")
        assert counted.rc == 0, f"the counts do not add up: {counted.stdout}{counted.stderr}"
        return {job["job"]: job for job in json.loads(counted.stdout)["jobs"]}

    def running(self, host: str) -> list[str]:
        """Our units that run on the host, workers and recorders with their numbers."""
        shown = self.host(host).check_output(f"systemctl list-units --no-legend --plain --state=running {UNITS}")
        return sorted(line.split()[0].removesuffix(".service") for line in shown.splitlines())

    def wanted(self, host: str) -> list[str]:
        """Our units that crawler.target wants on the host: what a reboot brings back."""
        shown = self.host(host).check_output("systemctl show --property=Wants --value crawler.target")
        return sorted(unit.removesuffix(".service") for unit in shown.split() if unit.startswith("crawler-"))

    def reboot(self, host: str) -> None:
        """Returns when one can log in again; the services may take longer."""
        subprocess.run(["podman", "restart", f"{self.name}-{host}"], check=True, capture_output=True)
        eventually(lambda: subprocess.run(["ssh", "-qF", self.ssh_config, host, "true"]).returncode == 0)


def changes(run: subprocess.CompletedProcess[str]) -> dict[str, int]:
    """How many tasks of a playbook changed something, by host, as its recap tells; `localhost` left out."""
    recap = re.findall(r"^(\S+) +: ok=\d+ +changed=(\d+) ", run.stdout, re.MULTILINE)
    return {host: int(changed) for host, changed in recap if host != "localhost"}


def json_lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def by_site(rows: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """The URLs of the rows, sorted, by site."""
    sites: dict[str, list[str]] = defaultdict(list)
    for row in rows:
        sites[urlsplit(row["url"]).netloc].append(row["url"])
    return {site: sorted(urls) for site, urls in sites.items()}


def eventually(condition: Callable[[], Any], timeout: float = 90) -> Any:
    """What the condition returns as soon as that is true; fails when it does not become so in time."""
    deadline = time.monotonic() + timeout
    while not (result := condition()):
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {condition}"
        time.sleep(0.5)
    return result
