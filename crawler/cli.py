"""The `crawler` command on the frontier host: what the ledger knows, and the scheduler's process."""

from __future__ import annotations

import argparse
import json
import logging
import signal
import sys
import time
from typing import Any

from rich.console import Console

from crawler import operations, progress, settings
from crawler.ledger import Ledger


def main(arguments: list[str] | None = None) -> None:
    """Entry point; exits with 0, or 1 and a message."""
    parser = argparse.ArgumentParser(prog="crawler", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("init", help="create what is missing of the ledger's tables").set_defaults(run=_init)
    commands.add_parser("scheduler", help="lease due hosts to the workers until told to stop").set_defaults(
        run=_scheduler
    )
    status = commands.add_parser("status", help="jobs, their counts and rates")
    status.add_argument("--json", action="store_true", help="for machines")
    status.add_argument("--recount", action="store_true", help="count every URL anew and compare")
    status.set_defaults(run=_status)
    options = parser.parse_args(arguments)
    try:
        sys.exit(options.run(options))
    except settings.SettingMissingError as error:
        sys.exit(str(error))


def _init(_: argparse.Namespace) -> int:
    print("changed" if Ledger.open(settings.database_url()).create() else "unchanged")
    return 0


def _scheduler(_: argparse.Namespace) -> int:
    from crawler import service
    from crawler.broker import Broker
    from crawler.scheduler import Scheduler

    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(message)s", stream=sys.stderr)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: service.STOP.set())
    Scheduler(Ledger.open(settings.database_url()), Broker(), service.STOP).run()
    return 0


def _status(options: argparse.Namespace) -> int:
    """Exit status 1 if a job's counts do not add up."""
    ledger = Ledger.open(settings.database_url())
    jobs = operations.status(ledger, time.time())
    kept = True
    for job in jobs:
        job["conserved"] = progress.conserved(job["counts"])
        if options.recount:
            job["conserved"] &= operations.count_again(ledger, job["job"]) == job["counts"]
        kept &= job["conserved"]
    if options.json:
        # The counts stand beside the job's name as well: short for `status.yml` and jq.
        print(json.dumps({"jobs": [{**job, **job["counts"]} for job in jobs]}))
    else:
        _print(jobs)
    return 0 if kept else 1


def _print(jobs: list[dict[str, Any]]) -> None:
    console = Console()
    if not jobs:
        console.print("No job yet: hand one over with `python crawler/seed.py URL` on the control node.")
    for job in jobs:
        for table in progress.summary(job):
            console.print(table)
        console.print(f"{job['rate']:g} pages/s; counts {'add up' if job['conserved'] else 'DO NOT ADD UP'}\n")
