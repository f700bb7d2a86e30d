"""Looks each page up in the WARC files of a folder, where the ledger says that it is.

    … | python bench/archived.py FOLDER      rows FILE, OFFSET, URL from standard input, separated by tabs

Prints {"records": …, "wrong": …, "shown": […]}: how many positions were looked at; how many of them are not the
response (or revisit) of their URL, or are another page's already; and some of these. It shares no code with the
archive's writer, and runs on the worker's host. A file that still grows is read as well.
"""

from __future__ import annotations

import itertools
import json
import sys
import zlib
from collections.abc import Iterable
from pathlib import Path

HEAD = 4096
"""Bytes of a record read: its headers come first."""


def wrong(folder: Path, rows: Iterable[tuple[str, int, str]]) -> tuple[int, list[str]]:
    """How many `rows` (file, offset, URL) there are, and those that are no archived page."""
    seen: set[tuple[str, int]] = set()
    bad = []
    for name, of_file in itertools.groupby(rows, key=lambda row: row[0]):
        path = folder / name
        with (path if path.exists() else path.with_name(f"{name}.open")).open("rb") as file:
            for _, offset, url in of_file:
                file.seek(offset)
                if (name, offset) in seen or not _is_page(file.read(HEAD), url):
                    bad.append(f"{name} {offset} {url}")
                seen.add((name, offset))
    return len(seen), bad


def _is_page(member: bytes, url: str) -> bool:
    """Whether a gzip member begins with the record of an answer from `url`."""
    try:
        text = zlib.decompressobj(31).decompress(member, HEAD)
    except zlib.error:
        return False
    head, _, _ = text.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    fields = dict(line.split(b": ", 1) for line in lines[1:] if b": " in line)
    is_answer = fields.get(b"WARC-Type") in (b"response", b"revisit")
    return lines[0].startswith(b"WARC/") and is_answer and fields.get(b"WARC-Target-URI") == url.encode()


def main() -> None:
    rows = (line.rstrip("\n").split("\t") for line in sys.stdin)
    records, bad = wrong(Path(sys.argv[1]), ((file, int(offset), url) for file, offset, url in rows))
    json.dump({"records": records, "wrong": len(bad), "shown": bad[:20]}, sys.stdout)


if __name__ == "__main__":
    main()
