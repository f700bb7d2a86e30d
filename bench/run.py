"""Measures, side by side and in turns, how many pages a second of CPU time buys: ours, Scrapy, and the recipe of old.

    python bench/run.py                     everything; writes docs/performance.md, .json and .png
    python bench/run.py --rounds 1 --only scrapy,alone
    python bench/run.py --only frontier     the ledger with up to ten million URLs

CPU time is that of every process a contestant needs, but for the web server. It takes root, for containers and names.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import report
import stage
from stage import BENCH, CACHE, HOST, ROOT, Process, Spent

RECIPE_PAGES = 1000
"""The recipe is too slow for them all."""
ENDURANCE_PAGES = 100_000
SEEDS = 1_000_000
FLEET = "bench"


def seeds(names: str = stage.CRAWLED) -> list[str]:
    return [f"http://{host}/" for host in stage.hosts(names)]


def job_file(name: str, archive: str) -> Path:
    """A job as all contestants do it: every page, no delay, four at a time from one host."""
    job = {"name": name, "seeds": seeds(), "scope": {"kind": "host"}, "delay": 0, "connections": 4, "archive": archive}
    path = CACHE / f"{name}.yml"
    path.write_text(json.dumps(job))  # JSON is YAML
    return path


# --- contestants: each crawls, and returns what it took and how many pages it got -----------------------------------


def scrapy(tools: Path, kind: str = "documented", names: str = stage.CRAWLED[:3]) -> tuple[Spent, int]:
    """Half the hosts: a page costs it the same however many there are, and it takes its time."""
    output = CACHE / "scrapy.jsonl"
    spent = Process(tools / "python", BENCH / "scrapy_spider.py", kind, output, *seeds(names), log="scrapy").wait()
    return spent, len(output.read_text().splitlines())


def scrapy_bare(tools: Path) -> tuple[Spent, int]:
    return scrapy(tools, "bare", stage.CRAWLED)


def recipe(_: Path) -> tuple[Spent, int]:
    url = _recipe_broker()
    before = stage.units()["rabbitmq"]
    command: list[str | Path] = [stage.BIN / "celery", "-A", "recipe", "worker", "-P", "prefork", "-c", "10"]
    worker = Process(
        *command,
        "-n",
        "recipe@here",
        "-l",
        "WARNING",
        log="recipe-worker",
        RECIPE_BROKER_URL=url,
        PYTHONPATH=str(BENCH),
    )
    driver = Process(
        sys.executable, BENCH / "recipe.py", str(RECIPE_PAGES), *seeds(), log="recipe", RECIPE_BROKER_URL=url
    ).wait()
    broker = stage.units()["rabbitmq"] - before
    workers = worker.end()
    parts = {"driver": driver.cpu, "workers": workers.cpu, "rabbitmq": broker}
    return Spent(sum(parts.values()), driver.wall, parts), json.loads(driver.output)["pages"]


def _recipe_broker() -> str:
    """A corner of the broker where everything is allowed, as the recipe has it; its address."""
    for command in (
        "list_vhosts --silent | grep -qx recipe || rabbitmqctl add_vhost recipe",
        "list_users --silent | grep -q ^recipe || rabbitmqctl add_user recipe recipe",
        "set_permissions -p recipe recipe '.*' '.*' '.*'",
    ):
        stage.run("podman", "exec", HOST, "sh", "-c", f"rabbitmqctl --silent {command}")
    ours = (ROOT / ".fleet" / FLEET / "broker_url").read_text().strip()
    return re.sub(r"//.*@(.*/).*", r"//recipe:recipe@\1recipe", ours)


def alone(_: Path) -> tuple[Spent, int]:
    urls = CACHE / "urls.txt"
    if not urls.exists():
        embedded(_)
    spent = Process(sys.executable, BENCH / "worker_alone.py", urls, log="alone").wait()
    told = json.loads(spent.output)
    spent.parts = {"peak MiB": max(size for _, size in told["memory"])}
    return spent, told["pages"]


def embedded(_: Path) -> tuple[Spent, int]:
    folder = CACHE / "embedded"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    summary, ledger = folder / "summary.json", folder / "ledger.sqlite"
    job = job_file("embedded", "none")
    options = ("--local", "--job", job, "--ledger", ledger, "--summary", summary)
    spent = Process(sys.executable, ROOT / "crawler/seed.py", *options, log="embedded").wait()
    # What a crawl asks for, errors and pictures included, is what the worker alone is given.
    asked = sqlite3.connect(ledger).execute("SELECT url FROM requests WHERE url NOT LIKE '%/robots.txt' ORDER BY url")
    (CACHE / "urls.txt").write_text("\n".join(url for (url,) in asked))
    return spent, json.loads(summary.read_text())["counts"]["done"]


def system(_: Path, archive: str = "none") -> tuple[Spent, int]:
    name = f"{archive}-{time.strftime('%H%M%S')}"
    job, summary = job_file(name, archive), CACHE / "system.json"
    group, parts = stage.container_cpu(), stage.units()
    options = ("--fleet", FLEET, "--job", job, "--watch", "--timeout", "900", "--summary", summary)
    spent = Process(sys.executable, ROOT / "crawler/seed.py", *options, log="system").wait()
    inside = stage.container_cpu() - group
    units = {unit: round(cpu - parts[unit], 2) for unit, cpu in stage.units().items() if cpu - parts[unit] >= 0.1}
    spent.parts = {"seed.py": round(spent.cpu, 2), **dict(sorted(units.items()))}
    spent.cpu += inside
    job.unlink()
    return spent, json.loads(summary.read_text())["counts"]["done"]


def system_warc(tools: Path) -> tuple[Spent, int]:
    return system(tools, "warc")


CONTESTANTS: dict[str, tuple[str, Callable[[Path], tuple[Spent, int]]]] = {
    "scrapy": ("Scrapy, tuned: LinkExtractor and its own dedup, one process", scrapy),
    "bare": ("Scrapy, tuned, with links and dedup by hand instead", scrapy_bare),
    "recipe": ("The recipe: a Celery task per URL, requests, BeautifulSoup", recipe),
    "alone": ("Our worker alone", alone),
    "embedded": ("Embedded: seed.py --local", embedded),
    "system": ("Our whole system: broker, database, scheduler, 2 recorders, 2 workers", system),
    "warc": ("Our whole system, every page archived (WARC)", system_warc),
}


def race(names: list[str], rounds: int, tools: Path, keep: Callable[[dict[str, Any]], None]) -> None:
    """Let the contestants run in turns; `keep` is given the results so far after each."""
    expected = sum(len(urls) for urls in stage.pages().values()) * len(stage.CRAWLED)
    results: dict[str, Any] = {name: {"title": CONTESTANTS[name][0], "rounds": []} for name in names}
    for _ in range(rounds):
        for name in names:
            load = os.getloadavg()[0]
            spent, pages = CONTESTANTS[name][1](tools)
            rows = results[name]["rounds"]
            rows.append(
                {
                    "pages": pages,
                    "cpu": round(spent.cpu, 2),
                    "wall": round(spent.wall, 2),
                    "pages_per_cpu_second": round(pages / spent.cpu, 1),
                    "parts": {part: round(cpu, 2) for part, cpu in spent.parts.items()},
                    "load_before": round(load, 1),
                }
            )
            print(name, json.dumps(rows[-1]), flush=True)
            speeds = [row["pages_per_cpu_second"] for row in rows]
            results[name] |= {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}
            keep({"expected": expected, "contestants": {name: row for name, row in results.items() if row["rounds"]}})


# --- the other promises ---------------------------------------------------------------------------------------------


def endurance() -> dict[str, Any]:
    """The memory of a worker with 64 hosts at once over 100,000 pages."""
    urls = CACHE / "endurance.txt"
    found = stage.pages()
    hosts = [(name, site) for name in stage.NAMES for site in stage.SITES]
    urls.write_text("\n".join(f"http://{name}.{site}.test{path}" for name, site in hosts for path in found[site]))
    options = ("--hosts", "64", "--pages", str(ENDURANCE_PAGES))
    spent = Process(sys.executable, BENCH / "worker_alone.py", urls, *options, log="endurance").wait()
    told = json.loads(spent.output)
    return {"hosts": len(hosts), "pages": told["pages"], "cpu": round(spent.cpu, 1), "memory_mib": told["memory"]}


def seeding() -> dict[str, Any]:
    """How fast seed.py hands a million URLs to the broker, with nobody there yet to take them."""
    urls = CACHE / "million.txt"
    with urls.open("w") as file:
        for number in range(SEEDS):
            file.write(f"https://site{number % 5000}.example/articles/{number}/a-title-of-some-length.html\n")
    stage.run("podman", "exec", HOST, "systemctl", "stop", "crawler.target")
    try:
        options = ("--fleet", FLEET, "--file", urls, "--name", "million")
        spent = Process(sys.executable, ROOT / "crawler/seed.py", *options, log="seeding").wait()
    finally:
        stage.run("podman", "exec", HOST, "rabbitmqctl", "--silent", "purge_queue", "-p", "crawler", "record")
        stage.run("podman", "exec", HOST, "systemctl", "start", "crawler.target")
    urls.unlink()
    speed = round(SEEDS / spent.wall)
    return {"urls": SEEDS, "wall": round(spent.wall, 2), "cpu": round(spent.cpu, 2), "per_second": speed}


def frontier() -> dict[str, Any]:
    """What a page costs in the ledger, by how many URLs it knows; measured on the database's host."""
    program = (BENCH / "frontier.py").read_text()
    database = ["runuser", "-u", "postgres", "--"]
    names = ("bench_small", "bench_large")
    for name in names:
        stage.run("podman", "exec", HOST, *database, "createdb", "--owner", "crawler", name)
    try:
        python = ["/opt/crawler/current/venv/bin/python", "-", "/etc/crawler/credentials/database_url"]
        told = stage.run("podman", "exec", "-i", HOST, *python, input=program)
    finally:
        for name in names:
            stage.run("podman", "exec", HOST, *database, "dropdb", "--force", name)
    return {"sizes": json.loads(told)}


EXTRAS: dict[str, Callable[[], dict[str, Any]]] = {"seeding": seeding, "frontier": frontier, "endurance": endurance}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"some of {','.join([*CONTESTANTS, *EXTRAS])}; the other results stay")
    parser.add_argument("--keep", action="store_true", help="leave the containers up")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the report of the last results")
    options = parser.parse_args()
    chosen = options.only.split(",") if options.only else [*CONTESTANTS, *EXTRAS]
    if unknown := set(chosen) - {*CONTESTANTS, *EXTRAS}:
        parser.error(f"--only {','.join(sorted(unknown))}: there are {', '.join([*CONTESTANTS, *EXTRAS])}")
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / "results.json"
    tools = stage.tools()
    if options.report:
        results = json.loads(kept.read_text())
    else:
        stage.deploy()
        stage.web()
        results = {"machine": report.machine(tools)}

        def keep(more: dict[str, Any]) -> None:
            before = json.loads(kept.read_text()) if kept.exists() else {}
            if "contestants" in more:
                more["contestants"] = before.get("contestants", {}) | more["contestants"]
            kept.write_text(json.dumps(before | results | more, indent=1) + "\n")

        if racing := [name for name in CONTESTANTS if name in chosen]:
            race(racing, options.rounds, tools, keep)
        for name in EXTRAS:
            if name in chosen:
                keep(measured := {name: EXTRAS[name]()})
                print(json.dumps(measured), flush=True)
        results = json.loads(kept.read_text())
        if not options.keep:
            stage.down()
    report.write(results, ROOT / "docs", tools)
    return 0


if __name__ == "__main__":
    sys.exit(main())
