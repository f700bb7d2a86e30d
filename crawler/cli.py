"""The `crawler` command: questions to the ledger, orders to it, and the processes of scheduler and recorder.

It uses PostgreSQL on the frontier host, or, with --local FILE, the SQLite ledger of an embedded crawl. `watch --fleet`
works on the control node as well, over the broker.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TextColumn, TimeElapsedColumn
from sqlalchemy.exc import DBAPIError

from crawler import ceilings, fields, progress, settings, urls
from crawler.frontier import caps, export, orders, politeness, status
from crawler.frontier.ledger import Ledger
from crawler.printable import log_printably, printable

console = progress.standard_output()

_EXPLAINED = (
    settings.SettingMissingError,
    settings.SettingInvalidError,
    export.ExportError,
    status.UnknownError,
    orders.RefusedError,
    urls.InvalidURLError,
)
"""Errors whose message is all that a person needs."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exits with 0, or with 1 and a message."""
    options = _parser().parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except _EXPLAINED as error:
        sys.exit(_shown(str(error)))
    except DBAPIError as error:
        sys.exit(_shown(f"The ledger's database says: {str(error.orig).strip()}"))
    except (BrokenPipeError, KeyboardInterrupt):
        sys.exit(130)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="crawler", description=__doc__)
    parser.add_argument("--local", type=Path, metavar="FILE", help="the SQLite ledger of an embedded crawl")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], int], text: str, *named: str) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=text, description=text)
        for argument in named:
            added.add_argument(argument)
        added.set_defaults(run=run)
        return added

    def with_json(added: argparse.ArgumentParser) -> argparse.ArgumentParser:
        added.add_argument("--json", action="store_true", help="print JSON")
        return added

    status = with_json(
        command("status", _status, "jobs that are not finished, sites and workers; exit 1 if counts do not add up")
    )
    status.add_argument("--all", action="store_true", help="finished jobs as well")
    status.add_argument("--recount", action="store_true", help="count every host and every URL anew and compare")
    with_json(command("jobs", _jobs, "every job, a line each"))
    watch = command("watch", _watch, "progress of a job until it is done", "job")
    watch.add_argument(
        "--fleet", help="on the control node: watch over the broker of this fleet; current: the fleet deployed last"
    )
    with_json(command("explain", _explain, "all that is known of a URL", "url"))
    with_json(command("audit", _audit, "every request made to a host, and how long it rested before each", "host"))
    exporting = command("export", _export, "a job's URLs and what became of them")
    exporting.description, exporting.formatter_class = export.__doc__, argparse.RawDescriptionHelpFormatter
    exporting.add_argument("--job", required=True)
    exporting.add_argument("--format", choices=export.FORMATS, default="jsonl")
    exporting.add_argument("--where", default="", metavar="CONDITIONS")
    exporting.add_argument("-o", "--output", type=Path, help="default: standard output")
    exporting.add_argument(
        "--raw", action="store_true", help="for programs: every text as it is, also in CSV and on a terminal"
    )
    command("block", _block, "never ask a host again; exclude the URLs queued for it", "host")
    command("unblock", _unblock, "undo block; queue again the URLs it excluded", "host")
    command("pause", _state("paused"), "stop fetching for a job; workers return the batches they hold", "job")
    command("resume", _state("running"), "go on with a paused or cancelled job", "job")
    command("cancel", _state("cancelled"), "end a job; exclude the URLs queued", "job")
    retry = command("retry", _retry, "queue a job's failed URLs again", "job")
    retry.add_argument("--reason", help="only those whose reason contains this; opens sections closed as traps")
    deleting = command(
        "delete", _delete, "delete what the ledger knows of a job that has ended; archives and requests stay", "job"
    )
    deleting.add_argument("--yes", action="store_true", help="do not ask")
    command("init", _init, "create what is missing of the ledger's tables")
    command("scheduler", _scheduler, "lease the URLs of due hosts to the workers, until told to stop")
    command("recorder", _recorder, "take admissions and reports into the ledger, until told to stop", "number")
    return parser


def _ledger(options: argparse.Namespace) -> Ledger:
    if options.local and not options.local.is_file():
        sys.exit(f"{options.local}: no such ledger. seed.py --local names the file it writes.")
    database = f"sqlite:///{options.local}" if options.local else settings.database_url()
    return Ledger.open(database, caps.from_settings(), ceilings.from_settings())


def _shown(text: str) -> str:
    return "\n".join(printable(line.strip()) for line in text.split("\n"))


def _say(*lines: str) -> None:
    progress.say(console, *lines)


# --- questions --------------------------------------------------------------------------------------------------------


def _status(options: argparse.Namespace) -> int:
    now = time.time()
    since = 0 if options.all or options.json else now - 600
    jobs = status.snapshots(_ledger(options), now, finished_since=since, recount=options.recount)
    for job in jobs:
        counts = job["counts"]
        job["conserved"] = progress.conserved(counts) and all(
            job.get(other, counts) == counts for other in ("by_host", "recounted")
        )
    if options.json:
        # The counts stand beside the job's name as well: short for `status.yml` and jq.
        print(json.dumps({"jobs": [{**job, **job["counts"]} for job in jobs]}))
    elif not jobs:
        _say("Nothing to do: hand over URLs with `python crawler/seed.py URL` on the control node.")
    for job in () if options.json else jobs:
        for table in progress.summary(job):
            console.print(table)
        if job.get("broken"):
            _say(f"broken: {job['broken']}")
        for budget in job["budgets"]:
            _say(f"{budget['pages']:,} of {budget['most']:,} pages below {budget['prefix']}")
        for closed in job["closed"]:
            _say(f"closed: {closed['host']}{closed['section']}: {closed['reason']}")
        _say(f"{job['rate']:g} pages/s; counts {'add up' if job['conserved'] else 'DO NOT ADD UP'}", "")
    return 0 if all(job["conserved"] for job in jobs) else 1


def _jobs(options: argparse.Namespace) -> int:
    jobs = status.snapshots(_ledger(options), time.time(), sites=0)
    if options.json:
        print(json.dumps([{"job": job["job"], "state": job["state"], **job["counts"]} for job in jobs]))
        return 0
    states = ("discovered", "queued", "leased", "done", "failed", "excluded")
    table = progress.table("", ("job", "state", "created"), (*states, "pages/s"))
    for job in jobs:
        counts = (job["counts"][state] for state in states)
        table.add_row(*progress.cells(job["job"], job["state"], _when(job["created_at"]), *counts, f"{job['rate']:g}"))
    console.print(table)
    return 0


def _watch(options: argparse.Namespace) -> int:
    with progress.Watch(console) as shown, contextlib.ExitStack() as stack:
        for jobs in _snapshots(options, stack):
            for job in jobs:
                if job["job"] == options.job:
                    shown.show(job)
                    if job["state"] not in ("running", "paused"):
                        return 1 if job["state"] == "broken" else 0
    return 1


def _snapshots(options: argparse.Namespace, stack: contextlib.ExitStack) -> Iterable[list[dict[str, Any]]]:
    if options.fleet:
        settings.use_fleet(None if options.fleet == "current" else options.fleet)
        from crawler.processes.broker import Broker

        yield from stack.enter_context(Broker().watching())
    ledger = _ledger(options)
    status.job_named(ledger, options.job)
    while True:
        yield status.snapshots(ledger, time.time())
        time.sleep(1)


def _explain(options: argparse.Namespace) -> int:
    found = status.explain(_ledger(options), urls.normalise(options.url))
    if options.json:
        print(json.dumps(found))
        return 0
    for row in found:
        _say(row["url"], f"  job         {row['job']} ({row['job_state']})", f"  state       {row['state']}")
        if row["reason"]:
            _say(f"  reason      {row['reason']}")
        origin = f" on {row['found_on']}" if row["found_on"] else " as a seed"
        _say(f"  discovered  {_when(row['discovered_at'])}{origin}, depth {row['depth']}")
        if row["title"]:
            _say(f"  title       {row['title']}")
        if row["warc_file"]:
            _say(f"  archived    {row['warc_file']} at {row['warc_offset']}, by {row['worker']}")
        for request in row["requests"]:
            outcome = request["status"] or request["reason"]
            _say(
                f"  request     {_when(request['at'])}: {outcome} in {request['seconds']:.3f} s, "
                f"{request['worker']}, release {request['release']}"
            )
        if row["state"] == "queued":
            _say(f"  next        due {_when(max(row['next_due'], row.get('not_before') or 0))}")
        elif row["state"] == "leased":
            _say(f"  next        a worker has it; queued again {_when(row['next_due'])} if the worker does not answer")
    return 0


def _audit(options: argparse.Namespace) -> int:
    known = status.audit(_ledger(options), options.host)
    if options.json:
        print(json.dumps({**known, "requests": list(known["requests"])}))
        return 0
    state = f"blocked since {_when(known['blocked_at'])}" if known["blocked_at"] else f"due {_when(known['next_due'])}"
    _say(f"{known['host']}: {state}; failures in a row: {known['failures']} {known['failure'] or ''}")
    for origin, file in politeness.robots_of(known["robots"]).items():
        version = hashlib.sha256(file.body.encode()).hexdigest()[:12]
        _say(f"{origin}/robots.txt: {file.status or 'no answer'} at {_when(file.fetched_at)}, version {version}")
    number, shortest = 0, float("inf")
    for request in known["requests"]:
        number += 1
        shortest = min(shortest, request["gap"] if request["gap"] is not None else float("inf"))
        rest = "" if request["gap"] is None else f"after {request['gap']:.2f} s of rest "
        outcome = request["status"] or request["reason"]
        _say(f"{_when(request['at'])} {rest}{outcome} {request['url']} {request['worker']}")
    _say(f"{number} requests" + (f", shortest rest between two: {shortest:.3f} s" if number > 1 else ""))
    return 0


def _export(options: argparse.Namespace) -> int:
    where = export.conditions(options.where)
    ledger = _ledger(options)
    job = status.job_named(ledger, options.job)
    columns = TextColumn("{task.description}", markup=False), "{task.completed:,} URLs", TimeElapsedColumn()
    bar = Progress(*columns, console=Console(stderr=True))
    try:
        with bar:
            task = bar.add_task(job.name, total=None)
            export.write(
                status.pages(ledger, job.name, where),
                options.format,
                options.output or sys.stdout.buffer,
                names=fields.names(job.extract),
                raw=options.raw,
                shown=options.output is None and sys.stdout.isatty(),
                progress=lambda count: bar.update(task, completed=count),
            )
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _when(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


# --- orders -----------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _working() -> Iterator[Callable[[int], None]]:
    """Something to tell how many URLs an order has moved, shown on a terminal for as long as it works."""
    columns = TextColumn("{task.completed:,} URLs"), TimeElapsedColumn()
    errors = Console(stderr=True)
    with Progress(*columns, console=errors, transient=True, disable=not errors.is_terminal) as bar:
        task = bar.add_task("", total=None)
        yield lambda count: bar.update(task, completed=count)


def _block(options: argparse.Namespace) -> int:
    with _working() as shown:
        dropped = orders.block(_ledger(options), options.host, time.time(), shown)
    _say(
        f"{options.host} is blocked; {dropped:,} queued URLs were excluded. Workers return what they hold of it within "
        "seconds."
    )
    return 0


def _unblock(options: argparse.Namespace) -> int:
    with _working() as shown:
        again = orders.unblock(_ledger(options), options.host, time.time(), shown)
    _say(f"{options.host} is no longer blocked; {again:,} URLs are queued again.")
    return 0


def _state(state: str) -> Callable[[argparse.Namespace], int]:
    def run(options: argparse.Namespace) -> int:
        with _working() as shown:
            moved = orders.set_state(_ledger(options), options.job, state, time.time(), shown)
        what = "queued URLs were excluded" if state == "cancelled" else "excluded URLs are queued again"
        _say(f"{options.job} is {state}" + (f"; {moved:,} {what}" if moved else ""))
        return 0

    return run


def _retry(options: argparse.Namespace) -> int:
    with _working() as shown:
        again = orders.retry(_ledger(options), options.job, options.reason, time.time(), shown)
    _say(f"{again:,} URLs of {options.job} are queued again")
    return 0


def _delete(options: argparse.Namespace) -> int:
    ledger = _ledger(options)
    files = orders.archives(ledger, options.job)
    for worker, file, pages in files:
        _say(f"{pages:,} pages are archived in {file}, by {worker}")
    if not options.yes:
        if not sys.stdin.isatty():
            sys.exit(f"To delete {options.job} without being asked: --yes")
        if console.input(f"Delete all that the ledger knows of {printable(options.job)}? [y/N] ", markup=False) not in (
            "y",
            "yes",
        ):
            sys.exit("Nothing was deleted.")
    with _working() as shown:
        deleted = orders.delete(ledger, options.job, time.time(), shown)
    kept = f" Its {len(files):,} archives were not touched." if files else ""
    _say(f"{options.job} is deleted: {deleted:,} URLs.{kept}")
    return 0


# --- processes --------------------------------------------------------------------------------------------------------


def _init(options: argparse.Namespace) -> int:
    print("changed" if _ledger(options).create() else "unchanged")
    return 0


def _scheduler(options: argparse.Namespace) -> int:
    from crawler.processes.broker import Broker
    from crawler.processes.scheduler import Scheduler

    stop = _until_told_to_stop()
    Scheduler(_ledger(options), Broker(), stop).run()
    return 0


def _recorder(options: argparse.Namespace) -> int:
    from crawler.processes.inbox import Inbox
    from crawler.processes.recorder import Recorder

    stop = _until_told_to_stop()
    name = f"recorder-{options.number}@{settings.host_name()}"
    Recorder(_ledger(options), Inbox(settings.broker_url(), name), stop).run()
    return 0


def _until_told_to_stop() -> Any:
    """Be a process: log to standard error, which is the journal. Returns the event that SIGTERM and SIGINT set."""
    from crawler.processes import systemd

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    log_printably(logging.getLogger())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: systemd.STOP.set())
    return systemd.STOP
