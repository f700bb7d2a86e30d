"""Crawls a million real pages on this machine, each parsed, deduplicated and archived: the whole system, all included.

    python bench/million.py                     some 25 minutes on two cores; wants 12 GB of disk
    python bench/million.py --pages 20000       the same, smaller

The fixed documentation (stage.py) is served under as many names as it takes: some 2,300 hosts. The account at the end
compares what the ledger and the archive hold with a walk over the files that shares no code with the crawler. It takes
root, for containers and names.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import string
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fairness
import report
import stage
from stage import CACHE, HOST, WEB

EVERY = 10
"""Seconds between two lines of progress."""
PAGE_BYTES = 12_000
"""Of disk that a page takes at most: in the archive, the ledger and the logs of both."""
SPARE_BYTES = 4 * 1024**3
ARCHIVE, CHECKER = "/var/lib/crawler/archive", "/root/archived.py"
"""On the deployed host."""
SHOWN = 10


def names(pages: int, of_each: int) -> list[str]:
    """As many names, of letters only, as it takes for `pages`, if each stands for `of_each` of them."""
    letters = itertools.product(string.ascii_lowercase, repeat=3)
    return ["".join(three) for three in itertools.islice(letters, math.ceil(pages / of_each))]


def expected(prefixes: list[str], paths: dict[str, list[str]]) -> Iterator[str]:
    """The URL of every page."""
    for prefix, (site, of_site) in itertools.product(prefixes, paths.items()):
        yield from (f"http://{prefix}.{site}.test{path}" for path in of_site)


def crawl(job: str, pages: int, patience: float) -> None:
    """Wait for the job's end, telling how far it is."""
    began = last = time.monotonic()
    before = 0
    counted = f"""SELECT state, sum(done), sum(failed) + sum(excluded), sum(discovered)
        FROM jobs JOIN job_counts USING (job_id) WHERE name = '{job}' GROUP BY state"""  # noqa: S608  our own name
    while True:
        time.sleep(EVERY)
        row = next(iter(fairness.ledger(counted)), ["new", "0", "0", "0"])
        done, others, known = map(int, row[1:])
        now = time.monotonic()
        speed, average = (done - before) / (now - last), done / (now - began)
        last, before = now, done
        left = f", {(pages - done) / average / 60:.1f} min left" if average else ""
        print(
            f"{now - began:5.0f} s: {done:,} of {pages:,} pages, {speed:,.0f} a second now, {average:,.0f} on average; "
            f"{known:,} URLs known, {others:,} failed or excluded{left}",
            flush=True,
        )
        if row[0] == "done":
            return
        if now - began > patience:
            raise SystemExit(f"{job}: not finished after {patience:.0f} s, state {row[0]}")


def account(job: str, wanted: set[str]) -> dict[str, Any]:
    """What ledger and archive hold, beside the pages that there are."""
    of_job = f"job_id = (SELECT job_id FROM jobs WHERE name = '{job}')"  # noqa: S608  the name is our own
    pages = f"SELECT warc_file, warc_offset, url FROM urls WHERE {of_job} AND state = 'done' ORDER BY 1, 2"  # noqa: S608
    again = f"""SELECT coalesce(sum(times - 1), 0) FROM (SELECT count(*) AS times FROM requests
        WHERE {of_job} AND status = 200 GROUP BY host, url HAVING count(*) > 1) AS again"""  # noqa: S608
    rows = _copied(pages)
    got = Counter(url for _, _, url in rows)
    archived = "".join("\t".join(row) + "\n" for row in rows if row[0] != "\\N")
    stage.run("podman", "cp", stage.BENCH / "archived.py", f"{HOST}:{CHECKER}")
    looked = json.loads(stage.run("podman", "exec", "-i", HOST, "python3", CHECKER, ARCHIVE, input=archived))
    for what, urls in (("lost", wanted - got.keys()), ("not linked to", got.keys() - wanted)):
        for url in sorted(urls)[:SHOWN]:
            print(f"{what}: {url}")
    for line in looked["shown"]:
        print(f"not archived: {line}")
    return {
        "pages": got.total(),
        "hosts": len({url.split("/", 3)[2] for url in got}),
        "lost": len(wanted - got.keys()),
        "others": len(got.keys() - wanted),
        "twice": int(fairness.ledger(again)[0][0]),
        "not_archived": got.total() - looked["records"] + looked["wrong"],
        "archive_bytes": int(stage.run("podman", "exec", HOST, "du", "-sb", ARCHIVE).split()[0]),
        "archive_files": len(stage.run("podman", "exec", HOST, "ls", ARCHIVE).split()),
    }


def _copied(query: str) -> list[list[str]]:
    """All rows of a query, too many for a table on a screen."""
    psql = ["runuser", "-u", "postgres", "--", "psql", "-q", "-d", "crawler", "-c", f"COPY ({query}) TO STDOUT"]
    told = stage.run("podman", "exec", "--workdir", "/", HOST, *psql)
    return [line.split("\t") for line in told.splitlines()]


def run(pages: int, patience: float) -> dict[str, Any]:
    """Crawl at least so many pages; the final account."""
    paths = stage.pages()
    of_each = sum(map(len, paths.values()))
    prefixes = names(pages, of_each)
    wanted = set(expected(prefixes, paths))
    hosts = stage.hosts(prefixes)
    job = f"million-{time.strftime('%H%M%S')}"
    print(f"{job}: {len(wanted):,} pages on {len(hosts):,} hosts", flush=True)
    cpu, web, units, began = stage.container_cpu(), stage.container_cpu(WEB), stage.units(), time.monotonic()
    try:
        fairness.seed(job, (f"http://{host}/" for host in hosts), connections=4, archive="warc")
        crawl(job, len(wanted), patience)
    except BaseException:
        subprocess.run(["podman", "exec", HOST, "crawler", "cancel", job], stdout=subprocess.DEVNULL)
        raise
    wall = time.monotonic() - began
    cpu, web = stage.container_cpu() - cpu, stage.container_cpu(WEB) - web
    parts = {unit: round(spent - units[unit], 1) for unit, spent in stage.units().items() if spent - units[unit] >= 0.1}
    parts = dict(sorted(parts.items(), key=lambda part: -part[1]))
    told = account(job, wanted)
    return {
        **told,
        "wall": round(wall, 1),
        "pages_a_second": round(told["pages"] / wall, 1),
        "cpu": round(cpu, 1),
        "pages_per_cpu_second": round(told["pages"] / cpu, 1),
        "parts": parts,
        "web_cpu": round(web, 1),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pages", type=int, default=1_000_000, help="at least so many (default %(default)s)")
    parser.add_argument("--minutes", type=float, default=90, help="after which it gives up (default %(default)s)")
    parser.add_argument("--keep", action="store_true", help="leave the containers up")
    options = parser.parse_args()
    CACHE.mkdir(parents=True, exist_ok=True)
    free, needed = shutil.disk_usage(CACHE).free, options.pages * PAGE_BYTES + SPARE_BYTES
    if free < needed:
        raise SystemExit(f"{CACHE}: {free:,} bytes are free; {options.pages:,} pages want {needed:,}")
    stage.deploy()
    stage.web()
    stage.introduce()
    told = run(options.pages, options.minutes * 60)
    if not options.keep:
        stage.down()
    print(report.million(told), end="")
    kept = CACHE / "results.json"
    results = json.loads(kept.read_text()) if kept.exists() else {}
    kept.write_text(json.dumps(results | {"million": told}, indent=1) + "\n")
    return int(any(told[name] for name in report.MISTAKES))


if __name__ == "__main__":
    sys.exit(main())
