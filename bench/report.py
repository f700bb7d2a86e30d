"""From results to docs/performance.md (between its markers), docs/performance.json and the plots beside them."""

from __future__ import annotations

import json
import os
import platform
import re
import statistics
import subprocess
from pathlib import Path
from typing import Any

MARKS = ("<!-- written by bench/run.py: begin -->", "<!-- written by bench/run.py: end -->")
LEDGER_MARKS = ("<!-- written by bench/run.py: ledger begin -->", "<!-- written by bench/run.py: ledger end -->")
BEFORE = Path(__file__).parent / "before.json"
"""The same measures of the release before the frontier worked in sets."""
RACES = ("documentation", "links", "corpus")
"""The workloads by whose worst the goals are judged."""
GOALS = (
    ("our worker alone, against Scrapy", "alone", "scrapy", 25.0),
    ("our worker alone, against Scrapy with links and dedup by hand", "alone", "bare", 12.0),
    ("our whole system, against Scrapy", "system", "scrapy", 10.0),
    ("our whole system with every page archived, against Scrapy without", "warc", "scrapy", 8.0),
    ("embedded, against our whole system", "embedded", "system", 1.1),
    ("our worker alone, against spider-rs", "alone", "spider", 5.0),
    ("our worker alone, against Crawlee", "alone", "crawlee", 5.0),
    ("our whole system, against spider-rs", "system", "spider", 5.0),
    ("our whole system, against Crawlee", "system", "crawlee", 5.0),
)
"""Times the pages per CPU second of another contestant that one has to reach."""
HTTPS_GOALS = (
    ("over HTTPS: our worker alone, against Scrapy", "alone", "scrapy", 10.0),
    ("over HTTPS: our whole system, against Scrapy", "system", "scrapy", 6.0),
)
MISTAKES = ("lost", "others", "twice", "not_archived")
"""Of `make million`: pages that links lead to and were not crawled; the reverse; fetched again; not in the archive."""
BUSY = 0.9
"""Share of a core that one worker process uses, at least, if it is not its concurrency that limits it."""
PLOT = Path(__file__).parent / "plot.py"


def machine(tools: Path) -> dict[str, str]:
    """What it all ran on."""
    model = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
    asked = [str(tools / "python"), "-m", "scrapy", "version", "-v"]
    versions = subprocess.run(asked, capture_output=True, text=True, check=True).stdout
    named = dict(re.findall(r"^(\S+)\s*: (\S+)", versions, re.MULTILINE))
    return {
        "cpu": model[1] if model else platform.processor(),
        "cores": str(os.cpu_count()),
        "memory": f"{os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE') / 2**30:.0f} GiB",
        "kernel": platform.release(),
        "python": platform.python_version(),
        "scrapy": f"{named.get('Scrapy')} (Twisted {named.get('Twisted')}, lxml {named.get('lxml')})",
    }


def write(results: dict[str, Any], docs: Path, tools: Path) -> None:
    docs.mkdir(exist_ok=True)
    (docs / "performance.json").write_text(json.dumps(results, indent=1) + "\n")
    subprocess.run([tools / "python", PLOT, docs / "performance.json", docs], check=True)
    page = docs / "performance.md"
    text = _between(page.read_text(), MARKS, measured(results))
    page.write_text(_between(text, LEDGER_MARKS, before_and_after(json.loads(BEFORE.read_text()), results)))


def _between(text: str, marks: tuple[str, str], new: str) -> str:
    """`text` with what stands between the marks replaced."""
    before, _, rest = text.partition(marks[0])
    _, found, after = rest.partition(marks[1])
    assert found, f"docs/performance.md lost its mark {marks[1]}"
    return f"{before}{marks[0]}\n{new}{marks[1]}{after}"


def measured(results: dict[str, Any]) -> str:
    """The part of the page that the numbers write."""
    parts = [", ".join(f"{name} {value}" for name, value in results["machine"].items()) + ".\n"]
    sites = results.get("sites", {})
    if races := {name: sites[name] for name in (*RACES, "https") if name in sites}:
        parts += [_race(races), _incomplete(races)]
        parts.append("![Pages per CPU second](performance.png)\n")
    if "documentation" in sites:
        parts.append(_where(sites["documentation"]["contestants"]))
    if others := {name: site for name, site in sites.items() if name not in races}:
        parts.append(_sites(others))
    if "over_time" in sites.get("hosts", {}):
        parts.append("![Pages a second over time](hosts.png)\n")
    if "delay" in results:
        parts.append(_delay(results["delay"]))
    if "million" in results:
        parts.append(million(results["million"]))
    for dialect, title in (("postgresql", "PostgreSQL"), ("sqlite", "SQLite")):
        for part, rows in results.get("frontier", {}).get(dialect, {}).items():
            parts.append(_ledger(f"{title}: {part}", rows))
    if "shares" in results:
        parts.append("![Shares of three jobs](shares.png)\n")
    parts.append(_promises(results))
    return "\n".join(parts)


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _race(races: dict[str, Any]) -> str:
    """Every contestant on every corpus: the median, the spread, and how many times Scrapy that is."""
    contestants = {name: row["title"] for race in races.values() for name, row in race["contestants"].items()}
    rows = []
    for name, title in contestants.items():
        cells = []
        for race in races.values():
            row, scrapy = race["contestants"].get(name), race["contestants"].get("scrapy")
            times = f", {row['median'] / scrapy['median']:.1f} x" if row and scrapy else ""
            cells.append(f"{row['median']:,.0f} ({row['min']:,.0f}-{row['max']:,.0f}){times}" if row else "")
        rows.append([title, *cells])
    titles = [f"{race['title']} ({race['pages']:,} pages)" for race in races.values()]
    return _table(["pages per CPU second (min-max), times Scrapy", *titles], rows)


def _incomplete(races: dict[str, Any]) -> str:
    """Where a contestant got other pages than there are, or did not come to an end."""
    rows = []
    for race in races.values():
        for row in race["contestants"].values():
            told = [
                f"{of_round['pages']:,} of {of_round['expected']:,}"
                + (f", ended after {of_round['wall']:.0f} s" if of_round.get("given_up") else "")
                for of_round in row["rounds"]
                if of_round["pages"] != of_round["expected"] or of_round.get("given_up")
            ]
            if told:
                rows.append([f"{row['title']}: {race['title']}", "; ".join(dict.fromkeys(told))])
    return _table(["crawled other than all pages", "pages"], rows) if rows else ""


def _delay(delay: dict[str, Any]) -> str:
    head = [
        f"one worker process, {delay['delay_ms']} ms away from {delay['hosts']} hosts: hosts at once",
        *(
            "greenlets with a batch, mean",
            "most",
            "pages a second",
            "of a core",
            "runs, or waits for a core",
            "memory, MiB",
        ),
    ]
    rows = [
        [row["hosts_at_once"], *row["greenlets"].values(), f"{row['pages_a_second']:,}"]
        + [f"{row[share]:.0%}" for share in ("cpu_share", "work_share")]
        + [f"{row['memory_mib']:.0f}"]
        for row in delay["rows"]
    ]
    return _table(head, rows)


def _where(contestants: dict[str, Any]) -> str:
    """CPU seconds by process, in the median round."""
    rows = []
    for name in ("system", "warc", "recipe"):
        if name in contestants:
            of_name = sorted(contestants[name]["rounds"], key=lambda row: row["pages_per_cpu_second"])
            middle = of_name[(len(of_name) - 1) // 2]
            parts = ", ".join(f"{part} {cpu:.1f}" for part, cpu in sorted(middle["parts"].items(), key=lambda p: -p[1]))
            rows.append([contestants[name]["title"], f"{middle['cpu']:.1f}", parts])
    return _table(["CPU seconds of a round", "all", "of which"], rows) if rows else ""


def _sites(sites: dict[str, Any]) -> str:
    """Pages per CPU second on the other sites; it is said where a crawl got other than the pages that there are."""
    contestants = [
        name for name in ("system", "embedded", "scrapy") if any(name in s["contestants"] for s in sites.values())
    ]
    rows = []
    for site in sites.values():
        row = [site["title"], f"{site['pages']:,}"]
        for name in contestants:
            of_site = site["contestants"].get(name)
            wrong = [r["pages"] for r in of_site["rounds"] if r["pages"] != site["pages"]] if of_site else []
            note = f" (**{wrong[0]:,} pages**)" if wrong else ""
            row.append(f"{of_site['median']}{note}" if of_site else "")
        rows.append(row)
    titles = {"system": "whole system", "embedded": "embedded", "scrapy": "Scrapy, tuned"}
    return _table(["pages per CPU second", "pages", *(titles[name] for name in contestants)], rows)


def million(told: dict[str, Any]) -> str:
    """The account of `make million`."""
    parts = ", ".join(f"{part} {cpu:,.0f}" for part, cpu in told["parts"].items())
    rows = [
        ["pages on hosts", f"{told['pages']:,} on {told['hosts']:,}"],
        ["wall", f"{told['wall'] / 60:.1f} min, {told['pages_a_second']:,.0f} pages a second"],
        ["CPU seconds of the crawler, by process", f"{told['cpu']:,.0f}: {parts}"],
        ["pages per CPU second", f"{told['pages_per_cpu_second']:,.0f}"],
        ["CPU seconds of nginx, which is the web", f"{told['web_cpu']:,.0f}"],
        ["archive", f"{told['archive_bytes'] / 1e9:.2f} GB in {told['archive_files']:,} WARC files"],
        ["lost; crawled without a link to it", f"{told['lost']:,}; {told['others']:,}"],
        ["fetched twice; not in the archive", f"{told['twice']:,}; {told['not_archived']:,}"],
    ]
    return _table(["make million", ""], rows)


def _ledger(title: str, rows: list[dict[str, Any]]) -> str:
    """A part of frontier.py. Its columns are what its rows hold: milliseconds, counts, bytes, a ratio."""
    columns = [name for name in dict.fromkeys(name for row in rows for name in row) if name not in NO_COLUMNS]
    head = [
        title if "bytes" in columns else f"{title}, ms",
        *(name.removesuffix("_ms").replace("_", " ") for name in columns),
    ]
    return _table(head, [[row["what"], *(f"{row[name]:,}" if name in row else "" for name in columns)] for row in rows])


NO_COLUMNS = ("what", "cpu_ms_rounds")


# --- before and after -------------------------------------------------------------------------------------------------


def before_and_after(before: dict[str, Any], after: dict[str, Any]) -> str:
    """The measures that the frontier's work in sets was to mend."""
    old, new = _measures(before), _measures(after)
    rows = []
    for text, (wanted, most) in MUST.items():
        cells = [old[text][0] if text in old else "", *new.get(text, ("not measured yet",))[:1]]
        reached = "" if text not in new else "yes" if new[text][1] <= most else "**no**"
        rows.append([text, cells[0], wanted, cells[1], reached])
    return _table(["measure", f"before ({before['commit']})", "must", "after", "reached"], rows)


MUST: dict[str, tuple[str, float]] = {
    f"{title}: {text}": (wanted, most)
    for title in ("PostgreSQL", "SQLite")
    for text, wanted, most in (
        ("a page on a host of its own, against a page of a full batch", "<= 4 x", 4.0),
        ("a page of a large host, against one of a host of 1,000", "<= 1.3 x", 1.3),
        ("lease() with nothing due, while a paused job has due hosts", "<= 10 ms", 10.0),
        ("lease() of a batch, while a paused job has due hosts", "<= 10 ms", 10.0),
        ("housekeeping and status of a second, with many hosts", "<= 30 ms", 30.0),
        ("a large job cancelled: longest that others wait", "<= 2 s", 2.0),
        ("a large job resumed: longest that others wait", "<= 2 s", 2.0),
        ("a large job revisited: longest that others wait", "<= 2 s", 2.0),
    )
}
MUST["Embedded: a page of one host of 55,556, against one of 1,000, start-up taken off"] = ("<= 1.3 x", 1.3)
"""Measure: what it must be, in words and as a number."""
WAITS = ("lease", "record", "tidy", "recalled", "status", "sample", "block")
"""What others do while an order is carried out."""


def _measures(results: dict[str, Any]) -> dict[str, tuple[str, float]]:
    """What was measured, in words and as a number, by the keys of MUST."""
    found: dict[str, tuple[str, float]] = {}
    for dialect, title in (("postgresql", "PostgreSQL"), ("sqlite", "SQLite")):
        parts = results.get("frontier", {}).get(dialect, {})
        texts = [text for text in MUST if text.startswith(title)]
        for text, part in zip(texts[:2], ("alone", "host"), strict=True):
            if part in parts:
                first, last = parts[part][0], parts[part][-1]
                cost = f"{last['x']:.2f} x ({first['cpu_ms']:.2f} and {last['cpu_ms']:.2f} ms of CPU"
                found[text] = (f"{cost}, {last['what']})", last["x"])
        if "paused" in parts:
            one, _, nothing = parts["paused"][-3:]
            for text, row in ((texts[2], nothing), (texts[3], one)):
                spread = f"{row['cpu_ms']:.1f} of CPU, most {row['max_ms']:.0f}; {row['what']}"
                found[text] = (f"{row['median_ms']:.1f} ms ({spread})", row["median_ms"])
        if "housekeeping" in parts:
            row = parts["housekeeping"][-1]
            found[texts[4]] = (
                f"{row['median_ms']:.1f} ms ({row['cpu_ms']:.0f} of CPU; {row['what']})",
                row["median_ms"],
            )
        for text, row in zip(texts[5:8], parts.get("order", []), strict=False):
            waits = {name: row[f"{name}_ms"] / 1000 for name in WAITS}
            name = max(waits, key=lambda name: waits[name])
            over = f"{'over' if row['over'] else 'not over'} after {row['watched_ms'] / 1000:.0f} s"
            found[text] = (f"{waits[name]:.1f} s ({name}; {row['what']}: {over})", waits[name])
    sites = results.get("sites", {})
    if {"one", "small", "large"} <= sites.keys():
        one, small, large = (_cpu(sites[name]) for name in ("one", "small", "large"))
        each = [(cpu - one) / sites[name]["pages"] * 1000 for name, cpu in (("small", small), ("large", large))]
        ratio = each[1] / each[0]
        found[next(reversed(MUST))] = (f"{ratio:.2f} x ({each[0]:.2f} and {each[1]:.2f} ms of CPU)", ratio)
    return found


def _cpu(site: dict[str, Any]) -> float:
    """CPU seconds of the embedded crawl of a site: the median of its rounds."""
    return statistics.median(row["cpu"] for row in site["contestants"]["embedded"]["rounds"])


def _ratios(sites: dict[str, Any], names: tuple[str, ...], who: str, base: str) -> dict[str, float]:
    """How many times `base`'s pages per CPU second `who` has on each of the workloads where both were measured."""
    both = {name: sites[name]["contestants"] for name in names if name in sites}
    return {
        name: rows[who]["median"] / rows[base]["median"] for name, rows in both.items() if {who, base} <= rows.keys()
    }


def _promises(results: dict[str, Any]) -> str:
    """Goal by goal, reached or not."""
    rows: list[list[Any]] = []

    def goal(text: str, wanted: str, got: str, reached: bool) -> None:
        rows.append([text, wanted, got, "yes" if reached else "**no**"])

    for goals, names in ((GOALS, RACES), (HTTPS_GOALS, ("https",))):
        for text, who, base, times in goals:
            if ratios := _ratios(results.get("sites", {}), names, who, base):
                worst = min(ratios, key=lambda name: ratios[name])
                others = ", ".join(f"{name} {ratio:.1f}" for name, ratio in ratios.items() if name != worst)
                where = f"{worst}; {others}" if others else worst
                goal(text, f">= {times:g} x", f"{ratios[worst]:.1f} x ({where})", ratios[worst] >= times)
    if delay := results.get("delay"):
        row = delay["rows"][-1]
        text = f"{row['pages_a_second']:,} pages/s, {row['work_share']:.0%}, of which {row['cpu_share']:.0%} running"
        where = (
            f"one worker process, {delay['delay_ms']} ms away from {delay['hosts']} hosts: not held up by concurrency"
        )
        goal(where, f"runs, or waits for a core, >= {BUSY:.0%} of the time", text, row["work_share"] >= BUSY)
    if million := results.get("million"):
        minutes = million["wall"] / 60
        text = f"{million['pages']:,} pages, parsed, deduplicated and archived"
        exact = not any(million[name] for name in MISTAKES)
        found = f"{minutes:.1f} min{'' if exact else ', sets not exact'}"
        goal(text, "1,000,000 in < 25 min", found, exact and million["pages"] >= 1_000_000 and minutes < 25)
    if endurance := results.get("endurance"):
        sizes = [size for _, size in endurance["memory_mib"]]
        goal(
            "memory of a worker, 64 hosts at once", "<= 200 MB", f"{max(sizes) * 1.048576:.0f} MB", max(sizes) <= 190.7
        )
        half = len(sizes) // 2
        growth = max(sizes[half:]) / max(sizes[:half]) - 1
        text = f"peak of the second half {growth:+.1%}"
        goal(f"memory flat over {endurance['pages']:,} pages", "< +5 %", text, growth < 0.05)
    if sizes := results.get("frontier", {}).get("postgresql", {}).get("sizes"):
        first, last = sizes[-2:]
        text = f"{last['what']} known, against {first['what']}: CPU a page"
        goal(text, "<= 1.3 x", f"{last['x']:.2f} x", last["x"] <= 1.3)
    if seeding := results.get("seeding"):
        speed = seeding["per_second"]
        goal("seeding into the broker", ">= 20,000 URLs/s", f"{speed:,}/s", speed >= 20000)
    if shares := results.get("shares"):
        text = f"off by {shares['off']:.1%} at most in {len(shares['minutes'])} minutes"
        goal("shares of three jobs, in any minute", "within 10 % of the weights", text, shares["off"] <= 0.1)
        first = shares["first_lease"]
        goal("a new small job beside them: first lease", "<= 2 s", f"{first:.1f} s", first <= 2)
    if block := results.get("block"):
        text = f"{block['last_request']:.1f} s ({block['requests_a_second_before']:.0f} a second before)"
        goal("last request after `crawler block`, at full load", "<= 3 s", text, block["reached"])
    return _table(["goal", "wanted", "measured", "reached"], rows) if rows else ""
