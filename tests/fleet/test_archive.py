"""The archive: it comes home whole, is deleted when told to, and a full disk stops the work until there is room."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from fleet import Fleet, changes, eventually
from warcio.archiveiterator import ArchiveIterator

ARCHIVE = "/var/lib/crawler/archive"
Collect = Callable[..., CompletedProcess[str]]
Files = dict[str, dict[str, str]]
"""Of each worker host: name to SHA-256 digest."""


def on_all(fleet: Fleet, command: str) -> dict[str, str]:
    """Run it on all worker hosts at the same time; what it prints."""
    hosts = fleet.groups["workers"]
    with ThreadPoolExecutor() as pool:
        return dict(zip(hosts, pool.map(lambda host: fleet.host(host).check_output(command), hosts), strict=True))


def complete(fleet: Fleet) -> None:
    """Let the workers complete their files now, not in a minute: they do so when they stop."""
    if any(on_all(fleet, f"ls {ARCHIVE} | grep .open || true").values()):
        on_all(fleet, "systemctl restart 'crawler-worker@*'")


def there(fleet: Fleet) -> Files:
    printed = on_all(fleet, f"find {ARCHIVE} -name '*.warc.gz' -exec sha256sum {{}} +")
    return {
        host: {Path(path).name: digest for digest, path in (line.split() for line in lines.splitlines())}
        for host, lines in printed.items()
    }


def home(fleet: Fleet, folder: Path) -> Files:
    return {
        host: {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in (folder / host).glob("*")}
        for host in fleet.groups["workers"]
    }


def done(fleet: Fleet, job: str) -> dict[str, int]:
    """Once the job is done: how many pages of each site."""
    eventually(lambda: fleet.status()[job]["state"] == "done")
    return {site["host"]: site["done"] for site in fleet.status()[job]["sites"]}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def collect(fleet: Fleet, folder: Path) -> Collect:
    return lambda *options: fleet.playbook("playbooks/collect.yml", "-e", f"to={folder}", *options)


@pytest.fixture(scope="module")
def job(fleet: Fleet) -> str:
    """The first pages of each site, in files that are complete."""
    name = f"archive{time.time():.0f}"
    fleet.seed(name, "--depth", "1")
    done(fleet, name)
    complete(fleet)
    return name


@pytest.fixture(scope="module")
def files(fleet: Fleet, folder: Path, job: str, collect: Collect) -> Files:
    """What lies there and has been brought home."""
    before = there(fleet)
    assert any(job in name for names in before.values() for name in names)
    run = collect()
    assert run.returncode == 0, run.stdout
    assert home(fleet, folder) == there(fleet) == before
    return before


def test_what_is_home_is_not_brought_again(fleet: Fleet, folder: Path, files: Files, collect: Collect) -> None:
    run = collect()
    assert run.returncode == 0, run.stdout
    assert changes(run) == dict.fromkeys(fleet.groups["workers"], 0), run.stdout
    assert home(fleet, folder) == there(fleet) == files


@pytest.mark.usefixtures("files")
def test_what_an_export_points_to_is_home(fleet: Fleet, folder: Path, job: str) -> None:
    frontier = fleet.host(fleet.groups["frontier"][0])
    rows = frontier.check_output(f"crawler export --job {job} --where state=done").splitlines()
    assert len(rows) == sum(done(fleet, job).values())
    at_home = {path.name: path for path in folder.rglob("*.warc.gz")}
    for row in map(json.loads, rows):
        with at_home[row["warc_file"]].open("rb") as stream:
            stream.seek(row["warc_offset"])
            record = next(iter(ArchiveIterator(stream, check_digests="raise")))
            assert (record.rec_type, record.rec_headers["WARC-Target-URI"]) == ("response", row["url"])
            assert hashlib.sha256(record.content_stream().read()).hexdigest() == row["digest"]


@pytest.fixture
def being_written(fleet: Fleet) -> Iterator[str]:
    """A file on each worker host that a process holds as a worker does."""
    name = "test.warc.gz.open"
    on_all(fleet, f"systemd-run --quiet --unit=test-archive flock {ARCHIVE}/{name} sleep infinity")
    on_all(fleet, f"until [ -e {ARCHIVE}/{name} ]; do sleep 0.1; done")
    yield name
    on_all(fleet, f"systemctl stop test-archive; rm {ARCHIVE}/{name}")


def test_deletes_exactly_what_is_home(
    fleet: Fleet, folder: Path, files: Files, collect: Collect, being_written: str
) -> None:
    host = next(host for host in files if files[host])
    name = next(iter(files[host]))
    copy = folder / host / name

    copy.unlink()
    copy.mkdir()  # where it cannot come home to
    failed = collect("-e", "delete=yes", "--limit", host)
    assert failed.returncode != 0
    assert name in failed.stdout + failed.stderr
    assert there(fleet) == files

    copy.rmdir()
    copy.write_bytes(b"damaged")
    dry = collect("-e", "delete=yes", "--check")
    assert dry.returncode == 0, dry.stdout
    assert there(fleet) == files
    assert copy.read_bytes() == b"damaged"

    run = collect("-e", "delete=yes")
    assert run.returncode == 0, run.stdout
    assert re.search(rf"{host} +1 +[\d,]+ +{len(files[host]) - 1} +{len(files[host])}\n", run.stdout), run.stdout
    assert home(fleet, folder) == files
    assert on_all(fleet, f"ls {ARCHIVE}") == dict.fromkeys(files, being_written)


# --- a disk that is full ----------------------------------------------------------------------------------------------


@pytest.fixture
def disk(fleet: Fleet) -> Iterator[Callable[[str], object]]:
    """A disk of their own for the archives, of a size that a test may change; nothing needs to be filled for that."""
    complete(fleet)
    on_all(fleet, f"mount -t tmpfs -o size=4g,mode=0750,uid=crawler,gid=crawler tmpfs {ARCHIVE}")
    yield lambda size: on_all(fleet, f"mount -o remount,size={size} {ARCHIVE}")
    complete(fleet)
    on_all(fleet, f"umount --lazy {ARCHIVE}")


def words(fleet: Fleet) -> set[str]:
    """What the workers say of themselves to systemd."""
    units = [unit for said in on_all(fleet, "crawler-units status").values() for unit in json.loads(said)["units"]]
    return {unit["says"] for unit in units if unit["unit"].startswith("crawler-worker@")}


def consumers(fleet: Fleet) -> int:
    """How many workers take work."""
    broker = fleet.host(fleet.groups["broker"][0])
    listed = broker.check_output("rabbitmqctl --quiet --vhost crawler list_queues name consumers")
    return int(re.search(r"^fetch\s+(\d+)$", listed, re.MULTILINE)[1])  # type: ignore[index]


def test_work_stops_while_the_disk_is_full_and_goes_on_by_itself(
    fleet: Fleet, folder: Path, job: str, collect: Collect, disk: Callable[[str], object]
) -> None:
    processes = on_all(fleet, "systemctl show --property=MainPID 'crawler-worker@*'")
    workers = consumers(fleet)
    name = f"full{time.time():.0f}"
    fleet.seed(name, "--depth", "1", "--delay", "0.3")
    eventually(lambda: fleet.status().get(name, {}).get("done"))

    disk("1g")  # less than the floor of 2 GiB
    eventually(lambda: all(said.startswith("taking no work: ") for said in words(fleet)))
    eventually(lambda: consumers(fleet) == 0)
    shown = fleet.playbook("playbooks/status.yml").stdout
    for host in fleet.groups["workers"]:
        count = sum("worker@" in unit for unit in fleet.wanted(host))
        assert re.search(rf"{host} +worker .*\n +{count} of {count}: taking no work: less than 2 GiB", shown), shown
    standing = fleet.status()[name]
    assert standing["state"] == "running"
    assert standing["queued"]

    disk("4g")
    eventually(lambda: words(fleet) == {""})
    assert done(fleet, name) == done(fleet, job)
    assert consumers(fleet) == workers
    assert on_all(fleet, "systemctl show --property=MainPID 'crawler-worker@*'") == processes

    # Files of a later crawl stand beside those that came home and were deleted, and replace none.
    before = home(fleet, folder)
    complete(fleet)
    run = collect("-e", "delete=yes")
    assert run.returncode == 0, run.stdout
    after = home(fleet, folder)
    assert any(name in file for names in after.values() for file in names)
    assert all(names.items() <= after[host].items() for host, names in before.items())
