"""Draws sites to crawl at random from Debian's documentation packages, so that none is chosen for its results.

    python bench/corpus.py --seed 20261124 --sites 3 --least 50       prints each site's pages

Names that end in -doc are shuffled by the seed; the first that have HTML with an index, and enough pages that links
lead to, are taken, and kept in .cache/bench/corpus. The same seed and package lists give the same sites.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".cache" / "bench" / "corpus"
SIZE = 20_000_000
"""Bytes of a package's file, above which it is passed over."""
LARGE_SIZE = 200_000_000
"""The same, for large sites."""
TRIED = 300
"""Packages looked into at most, before giving up."""

sys.path.insert(0, str(ROOT / "tests" / "fleet"))
import site_walk


class Site(NamedTuple):
    """A documentation package as a site."""

    host: str
    package: str
    pages: int
    """That links lead to from its front page, counted by a walk that shares no code with any contestant."""


def draw(seed: int, sites: int, least: int, most: int, size: int = SIZE, installed: int = 0) -> list[Site]:
    """`sites` packages by `seed`, each with `least` to `most` pages, of files up to `size` bytes that take `installed`
    KiB at least. Prints what is taken, and why others are not."""
    (FOLDER / "sites").mkdir(parents=True, exist_ok=True)
    (FOLDER / "robots").mkdir(exist_ok=True)
    names = _names(size, installed)
    random.Random(seed).shuffle(names)  # noqa: S311
    print(f"corpus: seed {seed}, {len(names)} documentation packages up to {size:,} bytes", file=sys.stderr)
    found: list[Site] = []
    for package in names[:TRIED]:
        site = _site(package)
        taken = site is not None and least <= site.pages <= most
        print(
            f"corpus: {package}: {site.pages if site else 'no'} pages{'' if taken else ', not taken'}", file=sys.stderr
        )
        if site is not None and taken:
            found.append(site)
            if len(found) == sites:
                return found
    raise SystemExit(
        f"corpus: {len(found)} of {sites} sites with {least} to {most} pages in {TRIED} packages: other limits?"
    )


def draw_large(seed: int, least: int, installed: int) -> tuple[str, list[Site], list[str]]:
    """Three packages by `seed`, each with `least` pages or more, as folders of one host with a front page that links to
    them: the host, the packages, and the URLs of all its pages."""
    sites = draw(seed, 3, least, 10**9, LARGE_SIZE, installed)
    label = f"large-{hashlib.sha256(' '.join(site.package for site in sites).encode()).hexdigest()[:8]}"
    host, joined = f"{label}.corpus.test", FOLDER / "sites" / label
    joined.mkdir(exist_ok=True)
    for site in sites:
        link = joined / site.package
        link.unlink(missing_ok=True)
        root = (FOLDER / "sites" / site.host.removesuffix(".corpus.test")).resolve()
        link.symlink_to(Path("..") / ".." / root.relative_to(FOLDER.resolve()))
    links = " ".join(f"<a href={site.package}/>{site.package}</a>" for site in sites)
    (joined / "index.html").write_text(f"<title>three packages</title>{links}")
    return host, sites, _walk(host, joined)


def _names(size: int, installed: int = 0) -> list[str]:
    """The documentation packages that apt knows here, in the order of their names."""
    known = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, text=True, check=True).stdout
    names = set()
    for paragraph in known.split("\n\n"):
        fields = dict(re.findall(r"^(Package|Size|Installed-Size): (\S+)$", paragraph, re.MULTILINE))
        small, large = (int(fields.get(name, 0)) for name in ("Size", "Installed-Size"))
        if fields.get("Package", "").endswith("-doc") and 0 < small <= size and large >= installed:
            names.add(fields["Package"])
    return sorted(names)


def _site(package: str) -> Site | None:
    """The package as a site; None if it has no HTML with an index. Walked once for each state of the walk's code."""
    label = re.sub("[^a-z0-9-]", "-", package)
    host, unpacked = f"{label}.corpus.test", FOLDER / "packages" / package
    code = Path(__file__).read_bytes() + Path(site_walk.__file__).read_bytes()
    noted = FOLDER / f"{package}-{hashlib.sha256(code).hexdigest()[:8]}.json"
    if not noted.exists():
        if not unpacked.exists():
            _unpack(package, unpacked)
        pages = 0
        if root := next(_roots(unpacked), None):
            link = FOLDER / "sites" / label
            link.unlink(missing_ok=True)
            link.symlink_to(Path("..") / root.relative_to(FOLDER))
            pages = len(_walk(host, root))
        noted.write_text(json.dumps(pages))
    pages = json.loads(noted.read_text())
    return Site(host, package, pages) if pages else None


def _unpack(package: str, target: Path) -> None:
    """Fetch a package and unpack it; what has no HTML is not kept."""
    partial = target.with_name(f"{package}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    subprocess.run(["apt-get", "download", "--quiet=2", package], cwd=partial, check=True, capture_output=True)
    (file,) = partial.glob("*.deb")
    subprocess.run(["dpkg-deb", "--extract", file, partial], check=True)
    file.unlink()
    if next(_roots(partial), None) is None:
        shutil.rmtree(partial)
        partial.mkdir()
    partial.rename(target)


def _roots(unpacked: Path) -> Iterator[Path]:
    """Folders with an index.html, those with the most HTML below first, then the uppermost."""
    indexes = [file.parent for file in unpacked.rglob("index.html") if file.is_file()]
    size = {folder: sum(1 for file in folder.rglob("*.html")) for folder in indexes}
    yield from sorted(size, key=lambda folder: (-size[folder], len(folder.parts), str(folder)))


class Links(site_walk.Links):
    """With the pages in frames, which the fixed documentation does not have, and older javadoc does."""

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attributes)
        if tag == "frame" and (src := dict(attributes).get("src")):
            self.hrefs.append(src.strip())


def _walk(host: str, root: Path) -> list[str]:
    site_walk.WEB, site_walk.Links = FOLDER, Links
    (FOLDER / "robots" / f"{host}.txt").write_text("")  # nginx has none for these hosts
    pages: list[str] = site_walk.walk(host, root)
    return pages


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--sites", type=int, default=3)
    parser.add_argument("--least", type=int, default=50, help="pages of a site")
    parser.add_argument("--most", type=int, default=10**9)
    parser.add_argument("--size", type=int, default=SIZE, help="bytes of a package's file, at most")
    options = parser.parse_args()
    for site in draw(options.seed, options.sites, options.least, options.most, options.size):
        print(site.host, site.package, site.pages)


if __name__ == "__main__":
    main()
