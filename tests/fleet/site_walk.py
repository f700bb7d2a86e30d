"""How many pages each site of a fleet's web host has, counted from the files on its disk.

    python tests/fleet/site_walk.py [--fleet demo]        prints {"python.test": 517, ...}
    python tests/fleet/site_walk.py --check summary.json  compares with what 'seed.py --summary' wrote

The count a crawl is measured against must not come from the crawler: this walk shares no code with it. It needs only
the standard library, since it runs on the web host, where the files and their links are what nginx serves.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin, urlsplit
from urllib.robotparser import RobotFileParser

WEB = Path("/srv/web")  # molecule/images/web
HTML = {".html", ".htm", ".shtml", ".xhtml"}  # what nginx's mime.types sends as text/html or application/xhtml+xml


class Links(HTMLParser):
    """The links of one page that a polite crawler may follow, as written."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.base = ""
        self.hrefs: list[str] = []
        self.nofollow = False
        self.feed(html)
        if self.nofollow:
            self.hrefs.clear()

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attributes}
        if tag == "base" and not self.base:
            self.base = given.get("href", "")
        elif tag == "meta" and given.get("name", "").lower() == "robots":
            self.nofollow |= bool(re.search(r"\b(nofollow|none)\b", given.get("content", "").lower()))
        elif tag in ("a", "area") and "href" in given and "nofollow" not in given.get("rel", "").lower().split():
            self.hrefs.append(given["href"].strip())


def walk(site: str, root: Path) -> list[str]:
    """The URLs of the pages of `site`, whose files are in `root`, that links lead to from its front page."""
    robots = RobotFileParser()
    robots.parse((WEB / "robots" / f"{site}.txt").read_text().splitlines())
    pages, seen, todo = [], set(), [f"http://{site}/"]
    while todo:
        url = todo.pop()
        if url in seen or not robots.can_fetch("*", url):
            continue
        seen.add(url)
        file = root / unquote(urlsplit(url).path).lstrip("/")
        if file.is_dir() and not url.endswith("/"):
            todo.append(url + "/")  # nginx redirects there
            continue
        if file.is_dir():
            file /= "index.html"
        if not file.is_file() or file.suffix not in HTML:
            continue
        pages.append(url)
        links = Links(file.read_text(errors="replace"))
        for href in links.hrefs:
            target = urldefrag(urljoin(urljoin(url, links.base), href)).url
            if urlsplit(target).scheme == "http" and urlsplit(target).netloc == site:
                todo.append(target if urlsplit(target).path else target + "/")
    return sorted(pages)


def walk_here() -> dict[str, list[str]]:
    """Walk every site of this host."""
    sites = dict(re.findall(r"^\s*(\S+\.test)\s+(/\S+);", (WEB / "sites.conf").read_text(), flags=re.MULTILINE))
    with ProcessPoolExecutor() as pool:
        return dict(zip(sites, pool.map(walk, sites, map(Path, sites.values())), strict=True))


def pages_of(fleet: str, host: str = "web1") -> dict[str, list[str]]:
    """The pages of every site of the fleet's web host. Walked once for each state of its files, then remembered."""
    folder = Path(__file__).resolve().parents[2] / ".cache" / "fleet"
    ssh = ["ssh", "-F", str(folder / fleet / "ssh_config"), host]
    program = Path(__file__).read_bytes()
    packages = subprocess.run([*ssh, "dpkg-query -W; cat /srv/web/*.* /srv/web/*/*"], check=True, capture_output=True)
    remembered = folder / f"sites-{hashlib.sha256(program + packages.stdout).hexdigest()[:12]}.json"
    if not remembered.exists():
        walked = subprocess.run([*ssh, "python3 - --here"], input=program, check=True, capture_output=True)
        partial = folder / f"{remembered.name}.{fleet}"  # two fleets may be tested at the same time
        partial.write_bytes(walked.stdout)
        partial.rename(remembered)
    sites: dict[str, list[str]] = json.loads(remembered.read_text())
    return sites


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--fleet", default="demo")
    parser.add_argument("--check", type=Path, metavar="SUMMARY")
    parser.add_argument("--here", action="store_true", help="walk this host's own files, print the URLs")
    options = parser.parse_args()
    if options.here:
        json.dump(walk_here(), sys.stdout)
        return 0
    expected = {site: len(urls) for site, urls in pages_of(options.fleet).items()}
    if not options.check:
        print(json.dumps(expected))
        return 0
    summary = json.loads(options.check.read_text())
    crawled = {site["host"]: site["done"] for site in summary["sites"]}
    for site in sorted(expected.keys() | crawled.keys()):
        if crawled.get(site, 0) != expected.get(site, 0):
            print(f"{site}: {crawled.get(site, 0)} pages crawled, {expected.get(site, 0)} linked", file=sys.stderr)
    counts = summary["counts"]
    lost = sum(max(0, count - crawled.get(site, 0)) for site, count in expected.items())
    lost += counts["discovered"] - counts["done"] - counts["failed"] - counts["excluded"]
    print(
        f"{options.fleet}: {counts['done']} pages from {len(crawled)} sites, "
        f"{len(summary['workers'])} workers, {lost} lost"
    )
    return int(crawled != expected or lost != 0)


if __name__ == "__main__":
    sys.exit(main())
