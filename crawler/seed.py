"""Hand URLs to the fleet, or crawl them right here with --local.

python crawler/seed.py https://example.org/ --depth 3 --watch
python crawler/seed.py --file urls.txt --name news --delay 2
python crawler/seed.py --job job.yml --watch
zcat urls.gz | python crawler/seed.py - --name archive
python crawler/seed.py https://example.org/ --local -o pages.jsonl
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if __name__ == "__main__":
    # Run as a script from a checkout. This folder must not shadow other modules; its parent has the package; and the
    # packages we need are in .venv, whether activated or not.
    root = Path(__file__).resolve().parent.parent
    sys.path[0] = str(root)
    venv = root / ".venv"
    if Path(sys.prefix).resolve() != venv.resolve() and (venv / "bin" / "python").exists():
        os.execv(  # noqa: S606
            venv / "bin" / "python", [str(venv / "bin" / "python"), *sys.argv]
        )
    import importlib.util

    if importlib.util.find_spec("gevent") is None:
        sys.exit("seed.py needs the packages that this makes: make .venv/ready")
    if "--local" in sys.argv:
        from gevent import monkey

        monkey.patch_all()

import argparse
import contextlib
import hashlib
import ipaddress
import itertools
import json
import re
import signal
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from crawler import limits, progress, settings, urls
from crawler.job import Job, JobError
from crawler.messages import Admission
from crawler.printable import printable
from crawler.worker import egress, extract

CHUNK = 1000
"""URLs in a message; and of how many seeds a job's name is made, where none is given."""
SHOWN_BAD_LINES = 20
MAX_CHECKED = 20
"""Hosts of seeds that are looked up before a crawl right here, to say what option it lacks."""

console = Console(stderr=True)

Line = tuple[str, str]
"""A seed as given: where it stands, and its text."""


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 all handed over (and, with --watch, crawled), 1 not all was sent or
    the crawl did not end, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        job = described_job(options)
        seeding = Seeding(given_lines(options, job.seeds))
        job = job.model_copy(update={"seeds": ()})  # seeds travel once, as URLs
        if not (options.name or options.job):
            job = job.model_copy(update={"name": derived_name(seeding.first_urls(), job)})
        if options.local:
            return _crawl_here(job, seeding, options)
        return _send(job, seeding, options)
    except (JobError, settings.SettingMissingError, settings.SettingInvalidError) as error:
        progress.say(console, *str(error).split("\n"), style="red")
        return 2
    except KeyboardInterrupt:
        progress.say(console, "Interrupted. What was sent stays sent; run the same command again to go on.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seed.py",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,  # `--local` is looked for by name, above
    )
    parser.add_argument("urls", nargs="*", metavar="URL", help="where to begin; - reads URLs from standard input")
    parser.add_argument("--file", type=Path, help="file with one URL per line")
    parser.add_argument("--job", type=Path, help="job file (YAML); the options below override it")
    parser.add_argument(
        "--name",
        help="the job's name; an existing job gets the URLs added and goes on. Default: the job file's, or one made of "
        "the first host, the first 1,000 seeds and the description, so that the same command goes on with its job; "
        "give another name to crawl the same anew",
    )
    parser.add_argument("--depth", type=int, help="follow links up to this many away from the seeds (0: only seeds)")
    parser.add_argument("--max-pages", type=int, help="stop at exactly this many pages")
    parser.add_argument("--delay", type=float, help="seconds between two requests to a host (default 1)")
    parser.add_argument(
        "--retry-wait",
        type=float,
        metavar="SECONDS",
        help="longest wait between two attempts at a URL that failed in a way that may pass (default 3600)",
    )
    parser.add_argument("--scope", choices=("host", "domain", "prefix", "any"), help="which links to follow")
    parser.add_argument("--watch", action="store_true", help="show progress until the job is done")
    parser.add_argument("--summary", type=Path, help="with --watch or --local: write the last snapshot here, as JSON")
    parser.add_argument("--timeout", type=float, help="with --watch: stop watching after this many seconds, exit 1")
    parser.add_argument("--fleet", help="which fleet, if several were deployed from here (default: the last)")
    parser.add_argument("--local", action="store_true", help="crawl in this process, without any server")
    parser.add_argument(
        "--allow-network",
        type=_network,
        action="append",
        default=[],
        metavar="CIDR",
        help="with --local: crawl this network as well, at every port, though it is not public; may be repeated",
    )
    parser.add_argument("--workers", type=_number, help="with --local: hosts crawled at once (default 50)")
    parser.add_argument("--ledger", type=Path, help="with --local: the SQLite file (default: NAME.sqlite)")
    parser.add_argument("--warc", action="store_true", help="with --local: keep every page in WARC files in ./archive")
    parser.add_argument(
        "-o", "--output", type=Path, help="with --local: write every URL and its outcome here, as JSON lines"
    )
    return parser


def _number(text: str) -> int:
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)


def _network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}; write a network as 192.0.2.0/24") from None


# --- the job ----------------------------------------------------------------------------------------------------------


def described_job(options: argparse.Namespace) -> Job:
    """The job that the options and the job file describe; without --name and --job, its name is a placeholder. Raises
    JobError."""
    fields: dict[str, Any] = {}
    if options.job:
        fields = Job.from_file(options.job).model_dump(exclude_unset=True)
    if options.output and not options.local:
        raise JobError("-o needs --local; a fleet's results are on its frontier host: `crawler export`")
    if options.workers and not options.local:
        raise JobError(
            "--workers needs --local; for a fleet type: ansible-playbook scale.yml -e workers=" + str(options.workers)
        )
    if options.allow_network and not options.local:
        raise JobError(
            "--allow-network needs --local; for a fleet set crawler_allow_networks in the inventory's "
            "group_vars/all.yml and type: ansible-playbook deploy.yml"
        )
    for option in ("name", "depth", "max_pages", "delay", "retry_wait"):
        if (value := getattr(options, option)) is not None:
            fields[option] = value
    if options.scope:
        fields["scope"] = {**fields.get("scope", {}), "kind": options.scope}
    if fields.get("scope", {}).get("kind") == "prefix" and not fields["scope"].get("prefixes"):
        if options.file or "-" in options.urls:
            raise JobError("--scope prefix needs its seeds on the command line, or 'prefixes' in a job file")
        seeds = [*fields.get("seeds", ()), *options.urls]
        fields["scope"]["prefixes"] = sorted({_folder(url) for url in seeds})
    if not (options.urls or options.file or fields.get("seeds")):
        raise JobError("Nothing to crawl: give URLs, --file, or --job with 'seeds'. See --help.")
    fields.setdefault("name", "unnamed")
    origin = str(options.job or "seed.py")
    job = Job.checked(fields, origin)
    if wrong := extract.problems(job.extract):
        raise JobError("\n".join(f"{origin}: {problem}" for problem in wrong))
    return job


def _folder(url: str) -> str:
    try:
        return urls.normalise(url).partition("?")[0].rpartition("/")[0] + "/"
    except urls.InvalidURLError as error:
        raise JobError(f"{url}: {error}") from None


def derived_name(seeds: Iterable[str], job: Job) -> str:
    """A name that the same seeds (normalised, in any order) and the same description always give: the first host in
    alphabetical order, and eight hexadecimal digits. What equals its default does not count as described, so a later
    release with more fields gives the same name."""
    distinct = sorted(set(seeds))
    described = job.model_dump(mode="json", exclude_defaults=True, exclude={"name", "seeds"})
    digest = hashlib.sha256(json.dumps([distinct, described], sort_keys=True).encode()).hexdigest()[:8]
    host = min(map(urls.host_of, distinct), default="")
    return f"{re.sub('[^A-Za-z0-9.-]+', '-', host)[:70].strip('.-') or 'crawl'}-{digest}"


# --- the seeds --------------------------------------------------------------------------------------------------------


class Seeding:
    """The seeds of one run: validated and counted as they are read, and handed over CHUNK at a time, so that a file of
    any size takes constant memory."""

    def __init__(self, lines: Iterable[Line]) -> None:
        self.id = uuid.uuid4().hex
        self.accepted = self.rejected = 0
        self._valid = self._validated(lines)
        self._first: list[str] | None = None

    def first_urls(self) -> list[str]:
        """The URLs of the first message."""
        if self._first is None:
            self._first = self._next_urls()
        return self._first

    def admissions(self, job: Job) -> Iterator[Admission]:
        """The messages, the last of which says how many there are. Raises JobError when a file cannot be read."""
        piece = self.first_urls()
        for number in itertools.count():
            following = self._next_urls()
            yield Admission(
                job=job, seeding=self.id, chunk=number, chunks=None if following else number + 1, urls=piece
            )
            if not following:
                return
            piece = following

    def report(self, job: Job) -> None:
        """Say how many URLs there were."""
        more = f" (the first {SHOWN_BAD_LINES} are shown)" if self.rejected > SHOWN_BAD_LINES else ""
        progress.say(console, f"{self.accepted:,} URLs handed over to job {job.name}, {self.rejected:,} left out{more}")

    def _next_urls(self) -> list[str]:
        return list(itertools.islice(self._valid, CHUNK))

    def _validated(self, lines: Iterable[Line]) -> Iterator[str]:
        for place, text in lines:
            if not text or text.startswith("#"):
                continue
            try:
                url = urls.normalise(text)
            except urls.InvalidURLError as error:
                self.rejected += 1
                if self.rejected <= SHOWN_BAD_LINES:
                    progress.say(console, f"{place}: {text[:120]!r} is left out: {error}")
            else:
                self.accepted += 1
                yield url


def given_lines(options: argparse.Namespace, seeds: Iterable[str]) -> Iterator[Line]:
    """All that is given to crawl: the job file's `seeds`, the arguments, standard input, --file."""
    yield from ((f"seed {number}", seed.strip()) for number, seed in enumerate(seeds, 1))
    for number, url in enumerate(options.urls, 1):
        if url == "-":
            yield from _numbered("standard input", sys.stdin)
        else:
            yield f"argument {number}", url.strip()
    if options.file:
        try:
            with options.file.open(errors="replace") as file, _with_bar(file, options.file) as lines:
                yield from _numbered(str(options.file), lines)
        except OSError as error:
            raise JobError(f"{options.file}: {error.strerror}") from None


def _numbered(name: str, lines: Iterable[str]) -> Iterator[Line]:
    return ((f"{name} line {number}", line.strip()) for number, line in enumerate(lines, 1))


@contextlib.contextmanager
def _with_bar(file: IO[str], path: Path) -> Iterator[Iterable[str]]:
    """The file's lines, with a bar of how much of it is read, if it is large and a terminal is there."""
    size = path.stat().st_size
    if not console.is_terminal or size < 1_000_000:
        yield file
        return

    def counted() -> Iterator[str]:
        for number, line in enumerate(file):
            if number % CHUNK == 0:
                bar.update(task, completed=file.buffer.tell())  # type: ignore[attr-defined]
            yield line
        bar.update(task, completed=size)

    columns = TextColumn("{task.description}", markup=False), BarColumn(), DownloadColumn(), TimeRemainingColumn()
    with Progress(*columns, console=console) as bar:
        task = bar.add_task(printable(path.name), total=size)
        yield counted()


# --- to the fleet -----------------------------------------------------------------------------------------------------


def _send(job: Job, seeding: Seeding, options: argparse.Namespace) -> int:
    broker_url = settings.use_fleet(options.fleet)
    from crawler.processes.broker import Broker

    progress.say(console, f"job {job.name}: the same command goes on with it")
    broker = Broker()
    confirmed, problem = 0, "does not take the URLs"
    try:
        broker.check()
        with contextlib.ExitStack() as stack:
            # Watched from before the first message on, or a short crawl could end unseen.
            snapshots = stack.enter_context(broker.watching()) if options.watch else None
            for admission in seeding.admissions(job):
                broker.admit(admission)
                confirmed += len(admission.urls)
            seeding.report(job)
            problem = "went away while the job was watched"
            return 0 if snapshots is None else _watch(job.name, seeding.id, snapshots, options)
    except broker.errors as error:
        shown = settings.without_password(broker_url)
        progress.say(
            console,
            f"The broker {shown} {problem}: {error}",
            f"{confirmed:,} URLs were handed over and are safe. Is RabbitMQ up (`ansible-playbook "
            "playbooks/status.yml`)? Then run the same command again: it sends what is missing, and what is known "
            "already is not crawled twice.",
            style="red",
        )
        return 1


def _watch(name: str, seeding: str, snapshots: Iterable[list[dict[str, Any]]], options: argparse.Namespace) -> int:
    """Show the job's progress until it ends with this `seeding` in it. A snapshot that does not know the seeding as
    complete tells of the time before: of an earlier run, or of the first of its messages."""
    deadline = time.monotonic() + options.timeout if options.timeout else float("inf")
    arrived = told = False
    with progress.Watch(console) as watch:
        for jobs in snapshots:
            for snapshot in jobs:
                if snapshot["job"] != name:
                    continue
                if "seedings" not in snapshot and not told:
                    told = True
                    progress.say(
                        console,
                        "This fleet's frontier is of an older release, which does not say when a seeding has arrived: "
                        "progress is shown until Ctrl-C. To upgrade it: ansible-playbook deploy.yml",
                    )
                # Once known, it stays so: a snapshot names only the newest seedings of a job.
                arrived = arrived or snapshot.get("seedings", {}).get(seeding, False)
                if arrived or snapshot["state"] == "running":
                    watch.show(snapshot)
                if arrived and snapshot["state"] != "running":
                    return _conclude(snapshot, options)
            if time.monotonic() > deadline:
                break
    progress.say(console, f"job {name} did not end within {options.timeout:g} s", style="red")
    return 1


def _conclude(snapshot: dict[str, Any], options: argparse.Namespace) -> int:
    """Print the outcome, and write --summary; 0 if the job is done."""
    for table in progress.summary(snapshot):
        progress.standard_output().print(table)
    if options.summary:
        options.summary.write_text(json.dumps(snapshot, indent=2) + "\n")
    if snapshot["state"] == "done":
        return 0
    reason = f": {snapshot['broken']}" if snapshot.get("broken") else ""
    remedies = {
        "running": "; the same command goes on with it",
        "paused": "; `crawler resume` lets it go on",
        "cancelled": "; `crawler resume` lets it go on",
    }
    remedy = remedies.get(snapshot["state"], "")
    progress.say(console, f"job {snapshot['job']} is {snapshot['state']}{reason}{remedy}", style="red")
    return 1


# --- right here -------------------------------------------------------------------------------------------------------


def _crawl_here(job: Job, seeding: Seeding, options: argparse.Namespace) -> int:
    from gevent.event import Event
    from sqlalchemy.exc import DBAPIError

    from crawler import local
    from crawler.frontier import caps, export, status
    from crawler.frontier.ledger import Ledger
    from crawler.worker.archive import Archive

    allowed = egress.from_settings(options.allow_network)
    _check_reach(seeding.first_urls(), allowed)
    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    path = options.ledger or Path(f"{job.name}.sqlite")
    try:
        ledger = Ledger.open(f"sqlite:///{path}", caps.from_settings())
        ledger.create()
        known = job.name in {snapshot["job"] for snapshot in status.snapshots(ledger, time.time(), sites=0)}
        progress.say(console, f"job {job.name}: {'known, goes on' if known else 'new'}")
        with progress.Watch(console) as watch:
            archive = Archive(Path("archive"), host=settings.host_name(), worker=local.WORKER) if options.warc else None
            workers = options.workers or local.CONCURRENCY
            snapshot = local.crawl(ledger, seeding.admissions(job), stop, watch.show, archive, workers, allowed)
        if archive:
            archive.close()
        seeding.report(job)
        if options.output:
            export.write(status.pages(ledger, job.name), "jsonl", options.output)
    except export.ExportError as error:
        progress.say(console, error, style="red")
        return 1
    except DBAPIError as error:
        progress.say(console, f"ledger {path}: {str(error.orig).strip()}", style="red")
        return 1
    progress.say(console, f"ledger: {path}")
    return _conclude(snapshot, options)


def _check_reach(seeds: Iterable[str], allowed: egress.Egress) -> None:
    """Say which of a few seeds' hosts cannot be connected to by our own rules (worker/egress.py), and what to type.
    Raises JobError where that is all of them."""
    import gevent

    from crawler.worker import connect
    from crawler.worker.fetch_errors import FetchError, RefusedError

    first = {urls.name_and_port_of(url): url for url in reversed(list(seeds))}
    if len(first) > MAX_CHECKED:
        return
    refused = []

    def check(name: str, port: int, url: str) -> None:
        try:
            connect.look_up(name, port, allowed)
        except RefusedError:
            refused.append(f"{url} will not be asked: {_remedy(name, port)}")
        except FetchError:
            pass  # the crawl will tell

    checks = [gevent.spawn(check, name, port, url) for (name, port), url in first.items()]
    gevent.joinall(checks, timeout=limits.LOOK_UP)
    gevent.killall(checks)
    if first and len(refused) == len(first):
        raise JobError("\n".join(refused))
    if refused:
        progress.say(console, *refused)


def _remedy(name: str, port: int) -> str:
    """Why a host is not connected to, and what allows it."""
    from crawler.worker import connect
    from crawler.worker.fetch_errors import DNSError

    try:
        found = dict.fromkeys(str(where[0]).partition("%")[0] for _, where in connect.found(name, port))
    except DNSError:
        found = {}
    inward = [address for address in found if not egress.is_public(address)]
    if not inward or len(inward) < len(found):
        return f"port {port} is not allowed. To allow it, set the environment variable CRAWLER_ALLOW_PORTS={port}"
    options = " ".join(f"--allow-network {address}" for address in inward)
    known = name if name in inward else f"{name} is {', '.join(inward)}, which"
    return f"{known} is no public address. If that network is yours, add: {options}"


def run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    run()
