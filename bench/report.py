"""From results to docs/performance.md (between its markers), docs/performance.json and docs/performance.png."""

from __future__ import annotations

import json
import os
import platform
import re
import subprocess
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- written by bench/run.py: begin -->", "<!-- written by bench/run.py: end -->"
GOALS = (("alone", "our worker alone", 7.0), ("system", "our whole system", 3.0))
"""Times Scrapy's pages per CPU second that each has to reach."""
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
    subprocess.run([tools / "python", PLOT, docs / "performance.json", docs / "performance.png"], check=True)
    page = docs / "performance.md"
    text = page.read_text() if page.exists() else f"# Performance\n\n{BEGIN}\n{END}\n"
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    page.write_text(f"{before}{BEGIN}\n{measured(results)}{END}{after}")


def measured(results: dict[str, Any]) -> str:
    """The part of the page that the numbers write."""
    parts = [", ".join(f"{name} {value}" for name, value in results["machine"].items()) + ".\n"]
    if "contestants" in results:
        parts += [_race(results["contestants"]), _where(results["contestants"])]
        parts.append("![Pages per CPU second](performance.png)\n")
    if "frontier" in results:
        parts.append(_frontier(results["frontier"]["sizes"]))
    parts.append(_promises(results))
    return "\n".join(parts)


def _table(head: list[str], rows: list[list[Any]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(str(cell) for cell in line) + " |\n" for line in lines)


def _race(contestants: dict[str, Any]) -> str:
    base = {name: contestants[name]["median"] for name in ("scrapy", "bare") if name in contestants}
    rows = []
    for row in sorted(contestants.values(), key=lambda row: -row["median"]):
        ratios = [f"{row['median'] / speed:.1f}" for speed in base.values()]
        speeds = [row["median"], row["min"], row["max"]]
        rows.append([row["title"], *speeds, *ratios, len(row["rounds"]), f"{row['rounds'][0]['pages']:,}"])
    times = {"scrapy": "x Scrapy", "bare": "x Scrapy by hand"}
    head = ["pages per CPU second", "median", "min", "max", *(times[name] for name in base), "rounds", "pages a round"]
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


def _pairs(sizes: list[dict[str, Any]]) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """(the small ledger, a larger one) as they were driven in turns."""
    return list(zip(sizes[::2], sizes[1::2], strict=True))


def _frontier(sizes: list[dict[str, Any]]) -> str:
    parts = ("cpu_ms", "client_ms", "database_ms", "lease_ms", "record_ms")
    rows = [
        [f"{row['urls']:,}", *(f"{row[part]:.2f}" for part in parts), f"{row['cpu_ms'] / small['cpu_ms']:.2f}"]
        for small, large in _pairs(sizes)
        for row in (small, large)
    ]
    head = ["URLs known, two by two in turns", "CPU ms a page", "client", "PostgreSQL", "wall ms: lease", "record", "x"]
    return _table(head, rows)


def _promises(results: dict[str, Any]) -> str:
    """Goal by goal, reached or not."""
    rows: list[list[Any]] = []

    def goal(text: str, wanted: str, got: str, reached: bool) -> None:
        rows.append([text, wanted, got, "yes" if reached else "**no**"])

    contestants = results.get("contestants", {})
    for base, title in (("scrapy", "Scrapy"), ("bare", "Scrapy with links and dedup by hand")):
        for name, who, times in GOALS:
            if name in contestants and base in contestants:
                ratio = contestants[name]["median"] / contestants[base]["median"]
                goal(f"{who}, against {title}", f">= {times:g} x", f"{ratio:.1f} x", ratio >= times)
    if endurance := results.get("endurance"):
        sizes = [size for _, size in endurance["memory_mib"]]
        goal("memory of a worker, 64 hosts at once", "< 250 MB", f"{max(sizes) * 1.048576:.0f} MB", max(sizes) < 238)
        half = len(sizes) // 2
        growth = max(sizes[half:]) / max(sizes[:half]) - 1
        text = f"peak of the second half {growth:+.1%}"
        goal(f"memory flat over {endurance['pages']:,} pages", "< +5 %", text, growth < 0.05)
    if frontier := results.get("frontier"):
        first, last = _pairs(frontier["sizes"])[-1]
        ratio = last["cpu_ms"] / first["cpu_ms"]
        text = f"{last['urls']:,} URLs known, against {first['urls']:,}: CPU a page"
        goal(text, "<= 1.3 x", f"{ratio:.2f} x", ratio <= 1.3)
    if seeding := results.get("seeding"):
        speed = seeding["per_second"]
        goal("seeding into the broker", ">= 20,000 URLs/s", f"{speed:,}/s", speed >= 20000)
    return _table(["goal", "wanted", "measured", "reached"], rows) if rows else ""
