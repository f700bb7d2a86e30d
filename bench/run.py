"""Measures, side by side and in turns, how many pages a second of CPU time buys: ours, Scrapy, and the recipe of old.

    python bench/run.py                                 everything; writes docs/performance.md, .json and .png
    python bench/run.py --rounds 1 --only scrapy,alone  these two, on the three corpora
    python bench/run.py --only links,https,alone        our worker alone, on these two
    python bench/run.py --only frontier --parts order --known 5000000 --watched 900
    python bench/run.py --only hosts --hosts 200000     the whole system, with docs/hosts.png
    python bench/run.py --only corpus --corpus-seed 20261124
    python bench/run.py --only shares --minutes 10      some 12 minutes, with docs/shares.png
    python bench/run.py --only block                    some 6 minutes
    python bench/run.py --only sites --rounds 1         up to 2 hours, of which one for fetching packages

CPU time is that of every process a contestant needs, but for the web server. It takes root, for containers and names.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import itertools
import json
import os
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

import corpus
import fairness
import report
import stage
import workloads
from stage import BENCH, CACHE, HOST, ROOT, SITES, Process, Spent
from workloads import Workload

RECIPE_PAGES = 1000
"""The recipe is too slow for them all."""
ENDURANCE_PAGES = 100_000
SEEDS = 1_000_000
DELAY, DELAYED_HOSTS, DELAYED_PAGES, DELAY_PORT = 0.05, 200, 60_000, 8050
"""Seconds that each request takes longer; hosts and pages of a crawl with it; where the delaying relay listens."""
PATIENCE = 60
"""Seconds, and another for each 20 pages, after which a contestant that can hang is ended, with the pages it has."""
SHOWN = 20
"""URLs printed of each kind, where a crawl differs from the walk."""
SLICE = 10
"""Seconds of one point in the curve of pages over time."""
FLEET = "bench"
EMBEDDED = CACHE / "embedded"


def job_options(name: str, archive: str, work: Workload) -> list[str | Path]:
    """seed.py's options for a job as all contestants do it: every page, no delay, four at a time from one host."""
    job = {"name": name, "scope": {"kind": "host"}, "delay": 0, "connections": 4, "archive": archive}
    described, seeds = CACHE / f"{name}.yml", CACHE / f"{name}.txt"
    described.write_text(json.dumps(job))  # JSON is YAML
    seeds.write_text("\n".join(work.seeds))
    return ["--job", described, "--file", seeds]


# --- contestants: each crawls, and returns what it took and how many pages it got -----------------------------------


def scrapy(tools: Path, work: Workload, kind: str = "documented") -> tuple[Spent, int]:
    output = CACHE / "scrapy.jsonl"
    spent = Process(tools / "python", BENCH / "scrapy_spider.py", kind, output, *work.seeds, log="scrapy").wait()
    return spent, len(output.read_text().splitlines())


def spider(tools: Path, work: Workload, script: str = "spider.mjs") -> tuple[Spent, int]:
    node, folder = stage.npm(tools)
    output = CACHE / "npm.jsonl"
    patience = PATIENCE + work.pages / 20
    spent = Process(node, folder / script, output, *work.seeds, log="npm").wait(patience)
    return spent, len({json.loads(line)["url"] for line in output.read_text().splitlines()})


def crawlee(tools: Path, work: Workload) -> tuple[Spent, int]:
    return spider(tools, work, "crawlee.mjs")


def scrapy_bare(tools: Path, work: Workload) -> tuple[Spent, int]:
    return scrapy(tools, work, "bare")


def recipe(_: Path, work: Workload) -> tuple[Spent, int]:
    url = _recipe_broker()
    before = stage.units()["rabbitmq"]
    command: list[str | Path] = [stage.BIN / "celery", "-A", "recipe", "worker", "-P", "prefork", "-c", "10"]
    environment = {"RECIPE_BROKER_URL": url, "PYTHONPATH": str(BENCH)}
    worker = Process(*command, "-n", "recipe@here", "-l", "WARNING", log="recipe-worker", **environment)
    pages = str(RECIPE_PAGES)
    driver = Process(sys.executable, BENCH / "recipe.py", pages, *work.seeds, log="recipe", **environment).wait()
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


def alone(tools: Path, work: Workload) -> tuple[Spent, int]:
    urls = _asked(tools, tuple(work.seeds), work.pages)
    spent = Process(sys.executable, BENCH / "worker_alone.py", urls, log="alone").wait()
    told = json.loads(spent.output)
    spent.parts = {"peak MiB": max((size for _, size in told["memory"]), default=0)}
    return spent, told["pages"]


@functools.cache
def _asked(tools: Path, seeds: tuple[str, ...], pages: int) -> Path:
    """What a crawl asks for, errors and pictures included: what the worker alone is given."""
    embedded(tools, Workload("to know the URLs", list(seeds), pages))
    urls = CACHE / f"urls-{hashlib.sha256(' '.join(seeds).encode()).hexdigest()[:8]}.txt"
    with contextlib.closing(sqlite3.connect(EMBEDDED / "ledger.sqlite")) as ledger:
        asked = ledger.execute("SELECT url FROM requests WHERE url NOT LIKE '%/robots.txt' ORDER BY url")
        urls.write_text("\n".join(url for (url,) in asked))
    return urls


def embedded(_: Path, work: Workload) -> tuple[Spent, int]:
    shutil.rmtree(EMBEDDED, ignore_errors=True)
    EMBEDDED.mkdir()
    summary = EMBEDDED / "summary.json"
    options = ("--local", "--ledger", EMBEDDED / "ledger.sqlite", "--summary", summary)
    command = [sys.executable, ROOT / "crawler/seed.py", *options, *job_options("embedded", "none", work)]
    spent = Process(*command, log="embedded").wait()
    return spent, json.loads(summary.read_text())["counts"]["done"]


def system(_: Path, work: Workload, archive: str = "none") -> tuple[Spent, int]:
    name = f"{archive}-{time.strftime('%H%M%S')}"
    summary = CACHE / "system.json"
    group, parts = stage.container_cpu(), stage.units()
    patience = str(900 + work.pages // 20)
    options = ("--fleet", FLEET, "--watch", "--timeout", patience, "--summary", summary)
    command = [sys.executable, ROOT / "crawler/seed.py", *options, *job_options(name, archive, work)]
    spent = Process(*command, log="system").wait()
    inside = stage.container_cpu() - group
    units = {unit: round(cpu - parts[unit], 2) for unit, cpu in stage.units().items() if cpu - parts[unit] >= 0.1}
    spent.parts = {"seed.py": round(spent.cpu, 2), **dict(sorted(units.items()))}
    spent.cpu += inside
    spent.output = name
    return spent, json.loads(summary.read_text())["counts"]["done"]


def system_warc(tools: Path, work: Workload) -> tuple[Spent, int]:
    return system(tools, work, "warc")


class Contestant(NamedTuple):
    title: str
    crawl: Callable[[Path, Workload], tuple[Spent, int]]
    is_slow: bool = False
    """It crawls a workload's `less`."""
    is_exact: bool = True
    """Whether it gets the pages that links lead to; else it has its own idea of them, or gives up."""


CONTESTANTS = {
    "scrapy": Contestant("Scrapy, tuned: LinkExtractor and its own dedup, one process", scrapy, is_slow=True),
    "bare": Contestant("Scrapy, tuned, with links and dedup by hand instead", scrapy_bare, is_slow=True),
    "spider": Contestant("spider-rs: Rust, as a module of node", spider, is_slow=True, is_exact=False),
    "crawlee": Contestant("Crawlee: CheerioCrawler on node", crawlee, is_slow=True, is_exact=False),
    "recipe": Contestant("The recipe: a Celery task per URL, requests, BeautifulSoup", recipe, is_exact=False),
    "alone": Contestant("Our worker alone", alone),
    "embedded": Contestant("Embedded: seed.py --local", embedded),
    "system": Contestant("Our whole system: broker, database, scheduler, 2 recorders, 2 workers", system),
    "warc": Contestant("Our whole system, every page archived (WARC)", system_warc),
}


def race(
    names: Iterable[str],
    contestants: Iterable[str],
    rounds: int,
    tools: Path,
    settings: workloads.Settings,
    keep: Callable[[dict[str, Any]], None],
) -> None:
    """Let the contestants crawl the workloads in turns; `keep` is given the results so far after each crawl."""
    chosen = {name: workloads.WORKLOADS[name](settings) for name in names}
    results: dict[str, Any] = {
        name: {"title": work.title, "pages": work.pages, "contestants": {}} for name, work in chosen.items()
    }
    for number in range(rounds):
        for name, work in chosen.items():
            for contestant in work.contestants if number == 0 or name not in workloads.ONCE else ():
                if contestant not in contestants:
                    continue
                slow = CONTESTANTS[contestant].is_slow and work.less
                row = _round(contestant, slow or work, tools)
                of_work = results[name]["contestants"].setdefault(
                    contestant, {"title": CONTESTANTS[contestant].title, "rounds": []}
                )
                of_work["rounds"].append(row)
                of_work |= _spread(of_work["rounds"])
                if name == "hosts" and contestant == "system":
                    results[name]["over_time"] = _over_time(row["job"])
                keep({"sites": {name: row for name, row in results.items() if row["contestants"]}})


def _round(name: str, work: Workload, tools: Path) -> dict[str, Any]:
    """Let a contestant crawl once."""
    load = os.getloadavg()[0]
    spent, pages = CONTESTANTS[name].crawl(tools, work)
    row = {
        "pages": pages,
        "expected": work.pages,
        "cpu": round(spent.cpu, 2),
        "wall": round(spent.wall, 2),
        "pages_per_cpu_second": round(pages / spent.cpu, 1),
        "parts": {part: round(cpu, 2) for part, cpu in spent.parts.items()},
        "load_before": round(load, 1),
    }
    if spent.given_up:
        row["given_up"] = True
    if name in ("system", "warc"):
        row["job"] = spent.output
    if work.urls:
        row |= _differences(name, row.get("job", ""), set(work.urls))
    exact = "" if pages == work.pages or not CONTESTANTS[name].is_exact else f" instead of {work.pages:,}"
    print(f"{name}, {work.title}: {pages:,} pages{exact}", json.dumps(row), flush=True)
    return row


def _differences(contestant: str, job: str, expected: set[str]) -> dict[str, int]:
    """How many pages of `expected` a crawl did not get, and how many others it got; prints some of both."""
    if contestant == "embedded":
        with contextlib.closing(sqlite3.connect(EMBEDDED / "ledger.sqlite")) as opened:
            done = {url for (url,) in opened.execute("SELECT url FROM urls WHERE state = 'done'")}
    else:
        pages = f"SELECT url FROM urls JOIN jobs USING (job_id) WHERE name = '{job}' AND urls.state = 'done'"  # noqa: S608
        done = {url for (url,) in fairness.ledger(pages)}
    differences = {"missing": expected - done, "others": done - expected}
    for what, urls in differences.items():
        for url in sorted(urls)[:SHOWN]:
            print(f"{contestant}: {what}: {url}", flush=True)
    return {what: len(urls) for what, urls in differences.items()}


def _spread(rows: list[dict[str, Any]]) -> dict[str, float]:
    speeds = [row["pages_per_cpu_second"] for row in rows]
    return {"median": statistics.median(speeds), "min": min(speeds), "max": max(speeds)}


def _over_time(job: str) -> list[tuple[int, int]]:
    """(seconds since the first page, pages fetched in the SLICE seconds from there) of a finished job."""
    fetched = f"""
        SELECT slice * {SLICE}, count(*) FROM (
            SELECT floor((fetched_at - min(fetched_at) OVER ()) / {SLICE})::int AS slice
            FROM urls JOIN jobs USING (job_id) WHERE name = '{job}' AND urls.state = 'done'
        ) pages GROUP BY slice ORDER BY slice"""  # noqa: S608  the name is our own
    psql = ["runuser", "-u", "postgres", "--", "psql", "-AtF", " ", "-d", "crawler", "-c", fetched]
    lines = stage.run("podman", "exec", "--workdir", "/", HOST, *psql).splitlines()
    return [(int(second), int(pages)) for second, pages in (line.split() for line in lines)]


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


def delay() -> dict[str, Any]:
    """Pages a second of one worker process, 50 ms of network away from 200 hosts, by how many it works on at once."""
    prefixes = ["".join(letters) for letters in itertools.product("delaynt", repeat=3)][: DELAYED_HOSTS // len(SITES)]
    names, found = stage.hosts(prefixes), stage.pages()
    urls, hosts = CACHE / "delay.txt", CACHE / "delay.hosts"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"127.0.0.1 {name}\n" for name in names))
    paths = {name: found[name.partition(".")[2].removesuffix(".test")] for name in names}
    urls.write_text("\n".join(f"http://{name}:{DELAY_PORT}{path}" for name in names for path in paths[name]))
    web = stage.inspect(stage.WEB, "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}")
    relay = subprocess.Popen([sys.executable, BENCH / "delay.py", str(DELAY_PORT), web, "80", str(DELAY)])
    networks = f"127.0.0.0/8 {stage.NETWORKS}"
    rows = []
    try:
        for at_once in (50, 100, 200):
            options = ("--hosts", str(at_once), "--pages", str(DELAYED_PAGES))
            process = Process(
                *(sys.executable, BENCH / "worker_alone.py", urls, *options),
                log="delay",
                hosts=hosts.name,
                CRAWLER_EXEMPT_NETWORKS=networks,
                CRAWLER_ALLOW_NETWORKS=networks,
            )
            spent = process.wait()
            told = json.loads(spent.output)
            rows.append(
                {
                    "hosts_at_once": at_once,
                    "pages": told["pages"],
                    "pages_a_second": round(told["pages"] / told["seconds"]),
                    "cpu_share": round(told["cpu"] / told["seconds"], 2),
                    "work_share": round((told["cpu"] + told["waited"]) / told["seconds"], 2),
                    "greenlets": told["greenlets"],
                    "memory_mib": max(size for _, size in told["memory"]),
                }
            )
            print("delay", json.dumps(rows[-1]), flush=True)
    finally:
        relay.terminate()
        relay.wait()
    return {"delay_ms": round(DELAY * 1000), "hosts": len(names), "rows": rows}


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
        stage.run("podman", "exec", HOST, "rabbitmqctl", "--silent", "purge_queue", "-p", "crawler", "admit")
        stage.run("podman", "exec", HOST, "systemctl", "start", "crawler.target")
    urls.unlink()
    speed = round(SEEDS / spent.wall)
    return {"urls": SEEDS, "wall": round(spent.wall, 2), "cpu": round(spent.cpu, 2), "per_second": speed}


def frontier(**options: str | int | None) -> dict[str, Any]:
    """What the ledger costs, on PostgreSQL and SQLite; measured on the database's host. `options`: of frontier.py."""
    program = (BENCH / "frontier.py").read_text()
    as_postgres = ["podman", "exec", "--workdir", "/", HOST, "runuser", "-u", "postgres", "--"]
    names = ("bench_small", "bench_large")
    # So that filling is over when measuring begins; the host is thrown away afterwards.
    stage.run(*as_postgres, "psql", "-qc", "GRANT pg_checkpoint TO crawler")
    given = [f"--{name}={value}" for name, value in options.items() if value is not None]
    python = ["/opt/crawler/current/venv/bin/python", "-"]
    told: dict[str, Any] = {}
    for name in names:
        stage.run(*as_postgres, "createdb", "--owner", "crawler", name)
    try:
        for dialect, database in (
            ("postgresql", "/etc/crawler/credentials/database_url"),
            ("sqlite", "sqlite:/var/tmp"),
        ):
            output = stage.run("podman", "exec", "-i", HOST, *python, database, *given, input=program)
            told[dialect] = json.loads(output)
    finally:
        for name in names:
            stage.run(*as_postgres, "dropdb", "--force", name)
        stage.run("podman", "exec", HOST, "sh", "-c", "rm -f /var/tmp/bench_*")
    return told


EXTRAS: dict[str, Callable[..., dict[str, Any]]] = {
    "seeding": seeding,
    "frontier": frontier,
    "endurance": endurance,
    "delay": delay,
    "shares": fairness.shares,
    "block": fairness.block,
}
OPTIONS = {"frontier": ("parts", "known", "watched"), "shares": ("minutes",)}
"""Of the command line, which each of EXTRAS is given."""


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    every = [*CONTESTANTS, *workloads.WORKLOADS, *EXTRAS]
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", help=f"some of {','.join(every)}; the other results stay")
    parser.add_argument("--keep", action="store_true", help="leave the containers up")
    parser.add_argument("--report", action="store_true", help="measure nothing: write the report of the last results")
    parser.add_argument("--hosts", type=int, default=2_000, help="of `hosts`; more than 20,000: the whole system alone")
    parser.add_argument("--parts", help="of `frontier`: see frontier.py")
    parser.add_argument("--known", type=int, help="of `frontier`: URLs of a large ledger (default 1,000,000)")
    parser.add_argument("--watched", type=int, help="of `frontier`: seconds for which an order is watched (default 60)")
    parser.add_argument("--minutes", type=float, default=10, help="of `shares` (default %(default)s)")
    today = int(time.strftime("%Y%m%d"))
    parser.add_argument("--corpus-seed", type=int, default=today, help="of `corpus` (default: today, %(default)s)")
    parser.add_argument("--corpus-sites", type=int, default=3)
    parser.add_argument("--corpus-least", type=int, default=200, help="pages of a site (default %(default)s)")
    parser.add_argument("--corpus-most", type=int, default=3_000, help="pages of a site (default %(default)s)")
    parser.add_argument("--corpus-size", type=int, default=corpus.SIZE, help="bytes of a package, at most")
    parser.add_argument(
        "--large-least", type=int, default=7_000, help="of `sites`: pages of each of the three packages"
    )
    parser.add_argument("--large-installed", type=int, default=60_000, help="KiB that each takes when it is unpacked")
    options = parser.parse_args()
    named = options.only.split(",") if options.only else [name for name in every if name not in workloads.ASKED_FOR]
    if unknown := set(named) - set(every):
        parser.error(f"--only {','.join(sorted(unknown))}: there are {', '.join(every)}")
    options.contestants = [name for name in CONTESTANTS if name in named]
    options.workloads = [name for name in workloads.WORKLOADS if name in named]
    if options.contestants and not options.workloads:
        options.workloads = list(report.RACES)
    options.contestants = options.contestants or list(CONTESTANTS)
    options.extras = [name for name in EXTRAS if name in named]
    return options


def main() -> int:
    options = _options()
    CACHE.mkdir(parents=True, exist_ok=True)
    kept = CACHE / "results.json"
    tools = stage.tools()
    if options.report:
        results = json.loads(kept.read_text())
    else:
        stage.deploy()
        stage.web()
        stage.introduce()
        results = {"machine": report.machine(tools)}

        def keep(more: dict[str, Any]) -> None:
            before = json.loads(kept.read_text()) if kept.exists() else {}
            kept.write_text(json.dumps(_merged(before, results | more), indent=1) + "\n")

        if options.workloads:
            of_corpus = workloads.Settings(**{name: getattr(options, name) for name in workloads.Settings._fields})
            race(options.workloads, options.contestants, options.rounds, tools, of_corpus, keep)
        for name in options.extras:
            given = {option: getattr(options, option) for option in OPTIONS.get(name, ())}
            keep(measured := {name: EXTRAS[name](**given)})
            print(json.dumps(measured), flush=True)
        results = json.loads(kept.read_text())
        if not options.keep:
            stage.down()
    report.write(results, ROOT / "docs", tools)
    return 0


def _merged(before: dict[str, Any], more: dict[str, Any]) -> dict[str, Any]:
    """`before` with the parts that were measured again; what was not, stays, but of a workload that was another."""
    if before.get("title") != more.get("title"):
        return more
    parts = {
        name: _merged(before[name], part) if isinstance(part, dict) and isinstance(before.get(name), dict) else part
        for name, part in more.items()
    }
    return before | parts


if __name__ == "__main__":
    sys.exit(main())
