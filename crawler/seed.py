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
    # Run as a script from a checkout: this folder must not shadow other modules, its parent must be importable, and the
    # packages are in .venv, whether activated or not.
    root = Path(__file__).resolve().parent.parent
    sys.path[0] = str(root)
    venv = root / ".venv"
    if Path(sys.prefix).resolve() != venv.resolve() and (venv / "bin" / "python").exists():
        os.execv(  # noqa: S606
            venv / "bin" / "python", [str(venv / "bin" / "python"), *sys.argv]
        )
    if "--local" in sys.argv:
        from gevent import monkey

        monkey.patch_all()

import argparse
import contextlib
import itertools
import json
import signal
import time
import uuid
from collections.abc import Iterable, Iterator
from typing import IO, Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from crawler import progress, settings, urls
from crawler.job import Job, JobError
from crawler.messages import Admission
from crawler.worker import extract

CHUNK = 1000
"""URLs in a message."""
SHOWN_BAD_LINES = 20

console = Console(stderr=True)


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status: 0 all handed over (and, with --watch, crawled), 1 not all was sent or
    the crawl did not end, 2 wrong usage, 130 interrupted."""
    options = _parser().parse_args(arguments)
    try:
        job = _job(options)
        lines = _Lines(options, job)
        if options.local:
            return _crawl_here(job, lines, options)
        return _send(job, lines, options)
    except (JobError, settings.SettingMissingError) as error:
        console.print(f"[red]{error}", highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        console.print("Interrupted. What was sent stays sent; run the same command again to go on.")
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="seed.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("urls", nargs="*", metavar="URL", help="where to begin; - reads them from standard input")
    parser.add_argument("--file", type=Path, help="file with one URL per line")
    parser.add_argument("--job", type=Path, help="job file (YAML); the options below override it")
    parser.add_argument("--name", help="the job's name; an existing job gets the URLs added and goes on")
    parser.add_argument("--depth", type=int, help="links away from the seeds to follow (0: only the seeds)")
    parser.add_argument("--max-pages", type=int, help="stop at exactly this many pages")
    parser.add_argument("--delay", type=float, help="seconds between two requests to a host (default 1)")
    parser.add_argument("--scope", choices=("host", "domain", "prefix", "any"), help="which links to follow")
    parser.add_argument("--watch", action="store_true", help="show progress until the job is done")
    parser.add_argument("--summary", type=Path, help="with --watch or --local: write the last snapshot here, as JSON")
    parser.add_argument("--timeout", type=float, help="with --watch: give up after this many seconds")
    parser.add_argument("--fleet", help="which fleet, if several were deployed from here (default: the last)")
    parser.add_argument("--local", action="store_true", help="crawl in this process, without any server")
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


def _job(options: argparse.Namespace) -> Job:
    """The job that the options and the job file describe."""
    fields: dict[str, Any] = {}
    if options.job:
        fields = Job.from_file(options.job).model_dump(exclude_unset=True)
    if options.output and not options.local:
        raise JobError("-o needs --local; a fleet's results are on its frontier host: `crawler export`")
    if options.workers and not options.local:
        raise JobError(
            "--workers needs --local; for a fleet type: ansible-playbook scale.yml -e workers=" + str(options.workers)
        )
    if options.name:
        fields["name"] = options.name
    for option in ("depth", "max_pages", "delay"):
        if (value := getattr(options, option)) is not None:
            fields[option] = value
    if options.scope:
        fields["scope"] = {**fields.get("scope", {}), "kind": options.scope}
    if fields.get("scope", {}).get("kind") == "prefix" and not fields["scope"].get("prefixes"):
        if options.file or "-" in options.urls:
            raise JobError("--scope prefix needs its seeds on the command line, or 'prefixes' in a job file")
        fields["scope"]["prefixes"] = sorted({_folder(url) for url in options.urls or fields.get("seeds", ())})
    if "name" not in fields:
        fields["name"] = time.strftime("crawl-%Y%m%d-%H%M%S")
    if not (options.urls or options.file or fields.get("seeds")):
        raise JobError("Nothing to crawl: give URLs, --file, or --job with 'seeds'. See --help.")
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


class _Lines:
    """The seeds in messages of CHUNK, read as they are sent, so that a file of any size takes constant memory."""

    def __init__(self, options: argparse.Namespace, job: Job) -> None:
        self._options = options
        self._seeds = job.seeds
        self._job = job.model_copy(update={"seeds": ()})  # they travel once, as URLs
        self.seeding = uuid.uuid4().hex
        self.good = self.bad = 0

    def admissions(self) -> Iterator[Admission]:
        """Raises JobError when a file cannot be read."""
        pieces = _pieces(self._valid())
        number, piece = 0, next(pieces, [])
        while True:
            following = next(pieces, None)
            yield Admission(
                job=self._job,
                seeding=self.seeding,
                chunk=number,
                chunks=number + 1 if following is None else None,
                urls=piece,
            )
            if following is None:
                return
            number, piece = number + 1, following

    def _valid(self) -> Iterator[str]:
        for place, text in self._given():
            if not text or text.startswith("#"):
                continue
            try:
                yield urls.normalise(text)
                self.good += 1
            except urls.InvalidURLError as error:
                self.bad += 1
                if self.bad <= SHOWN_BAD_LINES:
                    console.print(f"{place}: {text[:120]!r} is left out: {error}", highlight=False, markup=False)

    def _given(self) -> Iterator[tuple[str, str]]:
        """(where it stands, text) of every seed."""
        yield from ((f"seed {number}", seed.strip()) for number, seed in enumerate(self._seeds, 1))
        for number, url in enumerate(self._options.urls, 1):
            if url == "-":
                yield from _numbered("standard input", sys.stdin)
            else:
                yield f"argument {number}", url.strip()
        if self._options.file:
            try:
                with self._options.file.open(errors="replace") as file, _reading(file, self._options.file) as lines:
                    yield from _numbered(str(self._options.file), lines)
            except OSError as error:
                raise JobError(f"{self._options.file}: {error.strerror}") from None

    def report(self) -> None:
        more = f" (the first {SHOWN_BAD_LINES} are shown)" if self.bad > SHOWN_BAD_LINES else ""
        console.print(
            f"{self.good:,} URLs handed over to job {self._job.name}, {self.bad:,} left out{more}",
            highlight=False,
            soft_wrap=True,
        )


def _numbered(name: str, lines: Iterable[str]) -> Iterator[tuple[str, str]]:
    return ((f"{name} line {number}", line.strip()) for number, line in enumerate(lines, 1))


def _pieces(items: Iterator[str]) -> Iterator[list[str]]:
    while piece := list(itertools.islice(items, CHUNK)):
        yield piece


@contextlib.contextmanager
def _reading(file: IO[str], path: Path) -> Iterator[Iterable[str]]:
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

    with Progress(TextColumn(path.name), BarColumn(), DownloadColumn(), TimeRemainingColumn(), console=console) as bar:
        task = bar.add_task("", total=size)
        yield counted()


def _send(job: Job, lines: _Lines, options: argparse.Namespace) -> int:
    """To the fleet."""
    broker_url = settings.use_fleet(options.fleet)
    from crawler.processes.broker import Broker, watching

    broker = Broker()
    confirmed = 0
    try:
        broker.check()
        with contextlib.ExitStack() as stack:
            snapshots = stack.enter_context(watching(broker)) if options.watch else None
            for admission in lines.admissions():
                broker.admit(admission)
                confirmed += len(admission.urls)
            lines.report()
            if snapshots is None:
                return 0
            return _watch(job.name, snapshots, options)
    except broker.errors as error:
        shown = settings.without_password(broker_url)
        console.print(
            f"[red]The broker {shown} does not take the URLs: {error}\n"
            f"{confirmed:,} URLs were handed over and are safe; the rest was not sent. "
            "Is RabbitMQ up (`ansible-playbook status.yml`)? Then run the same command again: what is known already is "
            "not crawled twice.",
            highlight=False,
            soft_wrap=True,
        )
        return 1


def _watch(name: str, snapshots: Iterator[list[dict[str, Any]]], options: argparse.Namespace) -> int:
    deadline = time.monotonic() + options.timeout if options.timeout else None
    with progress.Watch(console) as watch:
        for jobs in snapshots:
            for snapshot in jobs:
                if snapshot["job"] != name:
                    continue
                watch.show(snapshot)
                if snapshot["state"] != "running":
                    break
            else:
                if deadline and time.monotonic() > deadline:
                    break
                continue
            break
    if deadline and time.monotonic() > deadline:
        console.print(f"[red]job {name} did not end within {options.timeout:g} s", highlight=False)
        return 1
    return _conclude(snapshot, options)


def _conclude(snapshot: dict[str, Any], options: argparse.Namespace) -> int:
    for table in progress.summary(snapshot):
        Console().print(table)
    if options.summary:
        options.summary.write_text(json.dumps(snapshot, indent=2) + "\n")
    return 0 if snapshot["state"] == "done" else 1


def _crawl_here(job: Job, lines: _Lines, options: argparse.Namespace) -> int:
    """In this process."""
    from gevent.event import Event

    from crawler import local
    from crawler.frontier import export, status
    from crawler.frontier.ledger import Ledger
    from crawler.worker.archive import Archive

    stop = Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: stop.set())
    path = options.ledger or Path(f"{job.name}.sqlite")
    ledger = Ledger.open(f"sqlite:///{path}")
    with progress.Watch(console) as watch:
        archive = Archive(Path("archive"), host=settings.host_name(), worker=local.WORKER) if options.warc else None
        workers = options.workers or local.CONCURRENCY
        snapshot = local.crawl(ledger, lines.admissions(), stop, watch.show, archive, workers)
    if archive:
        archive.close()
    lines.report()
    if options.output:
        export.write(status.pages(ledger, job.name), "jsonl", options.output)
    console.print(f"ledger: {path}", highlight=False)
    return _conclude(snapshot, options)


def run() -> NoReturn:
    sys.exit(main())


if __name__ == "__main__":
    run()
