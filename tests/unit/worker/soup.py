"""Token soup: HTML that nobody would write, by seed, to hold the scanner and lexbor to the same results.

    python tests/unit/worker/soup.py [--documents 20000] [--seed 1]     soup
    python tests/unit/worker/soup.py --broken SECONDS                   broken bytes: the scanner must survive
    python tests/unit/worker/soup.py FOLDER...                          the HTML files there, and both's CPU time

Prints every difference. Exit status: 1 if there is one that is not named in NAMED.
"""

from __future__ import annotations

import argparse
import random
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crawler.worker import encoding, parse

URL = "http://example.org/dir/page"
# ruff: noqa: E501, SIM905 - lists of words

NAMES = (
    "a area base link meta title frame frameset iframe svg math template noscript select option optgroup table tr td th tbody"
    " thead tfoot caption colgroup col p div span b i em font nobr ul ol li dl dt dd h1 h2 button form input textarea script"
    " style xmp noembed noframes pre object marquee applet head body html foreignObject desc mi mo mtext annotation-xml"
    " mglyph br hr img image embed keygen section address ruby rt details x-y g path center listing search dialog fieldset"
).split()
WEIGHTS = {"a": 12, "svg": 3, "math": 2, "template": 2, "title": 2, "table": 3, "td": 2, "tr": 2}
VALUES = (
    *(
        "x",
        "y?z",
        "#f",
        "x#f",
        "",
        " /a ",
        "//other.test/",
        "http://h.test./p",
        "http://u@h.test/",
        "javascript:x",
        "../..",
        "?q",
    ),
    *(
        "&copy=1",
        "&copy;",
        "&notit;",
        "&amp;x",
        "&ampx",
        "&#x41;",
        "&#65",
        "&#0;",
        "&#x80;",
        "&#xd800;",
        "&#x110000;",
        "&#",
        "&",
    ),
    *(
        "a\0b",
        "é?é",
        "a\nb",
        "\tc",
        "%7e%zz%2f",
        "a|b[c]",
        "\\\\h\\p",
        "&nGt;",
        "&lt",
        "&lt;",
        "a&#35;b",
        "\ufffd",
        "\U0001f600",
    ),
    *(
        "nofollow",
        "NOFOLLOW ugc",
        "canonical",
        "next",
        "robots",
        "noindex,nofollow",
        "0;url=/r",
        "refresh",
        "text/html",
        "hidden",
    ),
)
ATTRIBUTES = "href src rel name content http-equiv encoding type color x href HREF".split()
PIECES = (
    *(
        "text",
        " ",
        "\n",
        "<!-- x",
        "-->",
        "<!-->",
        "<!--->",
        "--!>",
        "<!doctype html>",
        "<!x>",
        "<?x>",
        "</>",
        "</ x>",
        "<",
        "</",
    ),
    *(
        "<![CDATA[",
        "]]>",
        "<script><!--",
        "<script>",
        "</script>",
        "<!--<script>",
        "'",
        '"',
        ">",
        "/>",
        "&amp;",
        "\0",
        "<a",
        "<1>",
    ),
    *(
        "</p>",
        "</br>",
        "<plaintext>",
        "</template>",
        "</svg>",
        "</select>",
        "</table>",
        "</head>",
        "</body>",
        "</title>",
    ),
)


def documents(seed: int, number: int) -> Iterator[str]:
    """So many documents of some two to sixty tokens."""
    names = [name for name in NAMES for _ in range(WEIGHTS.get(name, 1))]
    draw = random.Random(seed)  # noqa: S311 - the same ones for the same seed
    for _ in range(number):
        kinds = draw.sample(names, draw.randint(2, 12))
        kinds.append("a")
        yield "".join(_token(draw, kinds) for _ in range(draw.randint(2, 60)))


def _token(draw: random.Random, kinds: list[str]) -> str:
    chance = draw.random()
    if chance < 0.15:
        return draw.choice(PIECES)
    name = draw.choice(kinds)
    if draw.random() < 0.03:
        name = name.upper()
    if chance < 0.4:
        return f"</{name}>"
    attributes = "".join(_attribute(draw) for _ in range(draw.choice((0, 1, 1, 1, 2, 3))))
    if name in ("a", "area", "base", "link") and draw.random() < 0.8:
        attributes += f" href=l{draw.randint(0, 99)}"
    return f"<{name}{attributes}{'/' if draw.random() < 0.1 else ''}>"


def _attribute(draw: random.Random) -> str:
    value = draw.choice(VALUES)
    quote = draw.choice(('"', "'", ""))
    return f"{draw.choice((' ', ' ', ' ', '/', ''))}{draw.choice(ATTRIBUTES)}={quote}{value}{quote}"


def results(document: str | bytes, **options: Any) -> dict[str, Any]:
    """What the parser in use finds. Links are a set: tables put what is out of place before themselves."""
    found = parse.parse(document, URL, "x", ["iframe", "next"], **options)
    said = {name: getattr(found, name) for name in ("title", "canonical", "noindex", "nofollow", "refresh")}
    return {**said, "links": set(found.links)}


NAMED = {
    "formatting opened again": re.compile(
        r"<(a|b|big|code|em|font|i|nobr|s|small|strike|strong|tt|u)[\s/>].*<(svg|math|template|/template)[\s/>]",
        re.I | re.S,
    ),
    "frames after a template": re.compile(r"<template[\s/>].*<frameset", re.I | re.S),
    "columns in a template": re.compile(r"<template[\s/>].*<col[\s/>]", re.I | re.S),
}
"""Why the scanner may differ, and what the smallest such documents have in common.

* A formatting element that was left open (<a>, <b>) is opened again by what follows. In the tree that is a second
  element: one that leaves a template with what is after it, or whose end tag closes a drawing in it. The scanner keeps no
  list of them.
* After a <template> no <frameset> takes the body's place. lexbor lets it where the template stood in the head.
* A template that begins with <col> ignores all but columns. To the scanner its contents are hidden like any template's.
"""


def name_of(least: str) -> str | None:
    """The name of the reason why the scanner may differ on a document that `shrunk` returned."""
    return next((name for name, looks in NAMED.items() if looks.search(least)), None)


def difference(document: str | bytes, obey: bool = True) -> dict[str, Any]:
    """What scanner and lexbor find different: (scanner's, lexbor's) by field."""
    scanned = results(document, obey=obey)
    scanner, parse.scanner = parse.scanner, None
    try:
        searched = results(document, obey=obey)
    finally:
        parse.scanner = scanner
    return {name: (scanned[name], searched[name]) for name in scanned if scanned[name] != searched[name]}


def shrunk(document: str) -> str:
    """A part of the document in which they still differ, about as small as possible."""
    size = len(document) // 2
    while size:
        at = 0
        while at < len(document):
            shorter = document[:at] + document[at + size :]
            if difference(shorter, obey=False):
                document = shorter
            else:
                at += size
        size //= 2
    return document


def compare_soup(seed: int, number: int) -> int:
    """Print every difference and a count of each reason; how many have none."""
    reasons: Counter[str] = Counter()
    for document in documents(seed, number):
        if difference(document, obey=False):
            least = shrunk(document)
            reason = name_of(least) or "NOT NAMED"
            reasons[reason] += 1
            print(f"{reason}: {least!r} {difference(least, obey=False)}")
    print(f"{reasons.total()} of {number} documents of seed {seed} differ: {dict(reasons)}")
    return reasons["NOT NAMED"]


def survive(seconds: float, seed: int) -> int:
    """Give the scanner pages with bytes changed, moved and missing; how many it read."""
    draw = random.Random(seed)  # noqa: S311 - the same ones for the same seed
    read, end = 0, time.monotonic() + seconds
    for document in documents(seed, sys.maxsize):
        page = bytearray(document.encode() * draw.choice((1, 1, 1, 3, 40)))
        for _ in range(draw.randint(0, 8)):
            at, size = draw.randrange(len(page) or 1), draw.choice((1, 1, 2, 5, 40))
            page[at : at + size] = draw.choice(
                (b"", draw.randbytes(size), page[-size:], b"<" * size, b"\0", b"&#" * size)
            )
        follow = ["iframe", "next"][: draw.randint(0, 2)]
        codec = draw.choice(("utf-8", "utf-8", "cp1252", "shift_jis"))
        url, obey, batch, depth = draw.choice((URL, "http://x/")), draw.random() < 0.3, read // 50, draw.randint(0, 3)
        document = parse.parse(bytes(page), url, "x", follow, codec=codec, obey=obey, batch=batch, depth=depth)
        parse.met(document.noted)
        read += 1
        if time.monotonic() > end:
            break
    print(f"the scanner read {read} broken pages of seed {seed}")
    return read


def compare_files(folders: list[Path], most: int) -> int:
    """Print every file on which the parsers differ, and the CPU time of both; how many differ."""
    paths = sorted({path for folder in folders for path in folder.rglob("*.htm*") if path.is_file()})
    random.Random(1).shuffle(paths)  # noqa: S311 - the same ones each time
    spent = {"scanner": 0.0, "lexbor": 0.0}
    differ = size = 0
    scanner = parse.scanner
    for path in (paths := paths[:most]):
        codec, mark = encoding.sniff(body := path.read_bytes(), "text/html")
        page = body[mark:] if codec == "utf-8" else body[mark:].decode(codec, "replace").encode()
        found = {}
        for name in spent:
            parse.scanner = scanner if name == "scanner" else None
            began = time.process_time()
            found[name] = results(page, codec=codec)
            spent[name] += time.process_time() - began
        parse.scanner = scanner
        size += len(body)
        if found["scanner"] != found["lexbor"]:
            differ += 1
            fields = [name for name in found["scanner"] if found["scanner"][name] != found["lexbor"][name]]
            print(path, {name: (found["scanner"][name], found["lexbor"][name]) for name in fields if name != "links"})
            print(found["scanner"]["links"] ^ found["lexbor"]["links"])
    each = {name: f"{seconds / len(paths) * 1e6:.0f} µs" for name, seconds in spent.items()}
    print(f"{differ} of {len(paths)} pages differ, {size / len(paths):.0f} bytes on average; CPU time a page: {each}")
    return differ


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="*")
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--broken", type=float, metavar="SECONDS")
    chosen = parser.parse_args()
    if parse.scanner is None:
        parser.error("the scanner is not installed")
    if chosen.broken:
        return not survive(chosen.broken, chosen.seed)
    if chosen.folders:
        return bool(compare_files(chosen.folders, chosen.documents))
    return bool(compare_soup(chosen.seed, chosen.documents))


if __name__ == "__main__":
    sys.exit(main())
