"""A site that does everything to a crawler that a site can do, and what should become of each of its URLs.

    python3 tests/unit/hostile.py PORT...    serves one such site on each of these ports, on all addresses

Only the standard library is needed, as for website.py beside it: tests/fleet runs both on the fleet's web host.
"""

from __future__ import annotations

import base64
import gzip
import sys
import threading
import time
import zlib
from http.server import BaseHTTPRequestHandler
from typing import Any

from website import HTML, Answer, Site

CALENDAR = 30
"""Months of the endless calendar that a job with this depth limit reaches."""
CHAIN = 30
"""Redirects in a row; 10 of them are followed."""
JOB = {"delay": 0, "depth": CALENDAR, "max_body": 1_000_000, "max_attempts": 1}
"""What the job must say for things to become of the URLs as is told here."""


def write(data: bytes, rest: float = 0.0, times: int = 1):  # type: ignore[no-untyped-def]
    """A page that sends `data`, again and again with a pause between."""

    def page(handler: BaseHTTPRequestHandler) -> None:
        for _ in range(times):
            try:
                handler.wfile.write(data)
                handler.wfile.flush()
            except OSError:  # the crawler has had enough
                return
            time.sleep(rest)

    return page


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"
CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"
LOST = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: "
RAW = {
    "/silent": (b"", "failed", "closed connection without response"),
    "/nonsense": (b"\0\1\2 hello\r\n\r\n", "failed", ""),
    "/http-0.9": (b"<title>older than headers</title>", "failed", ""),
    "/truncated": (HEAD + b"Content-Length: 100\r\n\r\n<title>cut", "failed", "cut off"),
    "/too-long": (HEAD + b"Content-Length: 2\r\n\r\n<title>more than it said", "done", ""),
    "/bad-length": (HEAD + b"Content-Length: many\r\n\r\n<title>x</title>", "done", ""),
    "/two-lengths": (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd", "failed", "Content-Length"),
    "/endless-length": (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\nx", "done", ""),
    "/bad-chunks": (CHUNKED + b"zz\r\nbroken", "failed", ""),
    "/endless-chunk-size": (CHUNKED + b"1" * 100_000, "failed", ""),
    "/trailers": (CHUNKED + b"5\r\nhello\r\n0\r\nX-Trailer: y\r\nLocation: /nowhere\r\n\r\n", "done", ""),
    "/header-flood": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "failed", "100 headers"),
    "/header-huge": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "failed", "header line"),
    "/header-folded": (HEAD + b"X: a\r\n b\r\n\tc\r\nno colon at all\r\nX\xff\0: \xff\0\r\n\r\nx", "done", ""),
    "/type-huge": (b"HTTP/1.1 200 OK\r\nContent-Type: " + b"x" * 60_000 + b"\r\n\r\n", "excluded", "content type xxx"),
    "/cookies": (HEAD + (b"Set-Cookie: a=b; expires=" + b" " * 60_000 + b"\r\n") * 90 + b"\r\nx", "done", ""),
    "/etag-huge": (HEAD + b"ETag: " + b"e" * 60_000 + b"\r\nLast-Modified: \xb2\r\n\r\nx", "done", ""),
    "/http-1.0": (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<title>old</title>", "done", ""),
    "/status-99999": (b"HTTP/1.1 99999 What\r\n\r\n", "failed", ""),
    "/to-space": (LOST + b"/g o a l\r\n\r\n", "excluded", "redirect to"),
    "/to-bytes": (LOST + b"/caf\xc3\xa9\r\n\r\n", "excluded", "/caf%C3%A9"),
    "/to-latin": (LOST + b"/caf\xe9\r\n\r\n", "excluded", "/caf%C3%A9"),
    "/to-folded": (LOST + b"/fol\r\n ded\r\n\r\n", "excluded", "redirect to"),
    "/to-nul": (LOST + b"/n\0ul\r\n\r\n", "excluded", "/n%00ul"),
}
GOALS = {"/g%20o%20a%20l": "404", "/caf%C3%A9": "404", "/fol%20ded": "404", "/n%00ul": "404"}


def packed(encoding: str, data: bytes) -> Answer:
    return Answer(data, 200, {**HTML, "Content-Encoding": encoding})


def page(text: str, **headers: str) -> Answer:
    return Answer(text, 200, {**HTML, **{name.replace("_", "-"): value for name, value in headers.items()}})


def typed(content_type: str) -> Answer:
    return Answer(b"<title>\xff\xfe\x80</title>", 200, {"Content-Type": content_type})


# The standard library has neither br nor zstd: 50 MB of zeros in 80 bytes by the brotli program, and zstd blocks of one
# repeated byte (RFC 8878, section 3.1.1.2), 400 of 128 KiB, in a frame whose window is 2 MiB, or 128 MiB.
BOMB_BR = base64.b64decode(
    "y///P/gnAOKxQCD3/o///3/wTwDEYRGA7v0f////4J8AiMMCAN37P/7//8E/ARCHBQC693/8//+DfwIgDgsAdO//8g9eD/8EQBwWAOig6wE="
)
BLOCKS = b"\x02\x00\x10\0" * 399 + b"\x03\x00\x10\0"
BOMB_ZSTD, WIDE_ZSTD = (b"\x28\xb5\x2f\xfd\0" + window + BLOCKS for window in (b"\x58", b"\x88"))
NO_BR_YET = 1796077416
"""A time in gzip's header that makes it the beginning of a br stream, of which nothing comes. One in five does."""
OPEN = "".join(f"<b id={number}>" for number in range(2_000))
PAGES = {
    "/bomb": (packed("gzip", gzip.compress(bytes(50_000_000))), "failed", "larger"),
    "/bomb-in-bomb": (packed("gzip, gzip", gzip.compress(gzip.compress(bytes(200_000_000)))), "failed", "larger"),
    "/not-gzip": (packed("gzip", b"plain"), "failed", "decode"),
    "/many-encodings": (packed(", ".join(["gzip"] * 50), b"x"), "failed", ""),
    "/deflate": (packed("deflate", zlib.compress(b"<title>x")), "done", ""),
    "/gzip-as-deflate": (packed("deflate", gzip.compress(b"<title>x")), "failed", "decode"),
    "/gzip-as-br": (packed("br", gzip.compress(b"<title>x", mtime=0)), "failed", "decode"),
    "/gzip-as-br-cut": (packed("br", gzip.compress(b"<title>x", mtime=NO_BR_YET)), "failed", "decode"),
    "/gzip-as-zstd": (packed("zstd", gzip.compress(b"<title>x", mtime=0)), "failed", "decode"),
    "/unknown-encoding": (packed("lzma", b"x"), "failed", "content encoding 'lzma'"),
    "/bomb-br": (packed("br", BOMB_BR), "failed", "larger"),
    "/bomb-zstd": (packed("zstd", BOMB_ZSTD), "failed", "larger"),
    "/bomb-br-in-gzip": (packed("br, gzip", gzip.compress(BOMB_BR)), "failed", "larger"),
    "/wide-zstd": (packed("zstd", WIDE_ZSTD), "failed", "decode"),
    "/big": (Answer("x" * 2_000_000), "failed", "larger than 1000000 bytes"),
    "/wrong-charset": (typed("text/html; charset=utf-8"), "done", ""),
    "/charset-unknown": (typed("text/html; charset=klingon"), "done", ""),
    "/charset-idna": (typed("text/html; charset=idna"), "done", ""),
    "/charset-undefined": (typed("text/html; charset=undefined"), "done", ""),
    "/charset-long": (typed("text/html; charset=" + "x" * 50_000), "done", ""),
    "/nul": (Answer("<title>a\0b</title><a href='/\0'>"), "done", ""),
    "/title": (Answer("<title>" + "x" * 900_000), "done", ""),
    "/metas": (Answer('<meta name="robots" content="all, , ,">' * 10_000), "done", ""),
    "/base": (Answer("<base href='http://['><base href='//'><base href='javascript:x'><a href='/x'>"), "done", ""),
    "/x": (Answer("x"), "done", ""),
    "/deep": (Answer("<div>" * 150_000 + "<a href='/deep-link'>"), "done", ""),
    "/deep-link": (Answer("x"), "done", ""),
    "/reopened": (Answer(f"<p>{OPEN}</p>" + "<p>x</p>" * 10_000), "done", ""),
    "/attributes": (Answer("<p " + " ".join(f"a{number}=1" for number in range(100_000)) + ">"), "done", ""),
    "/links": (Answer("".join(f"<a href=/x?cfid={number}>" for number in range(45_000))), "done", ""),
    "/long-links": (
        Answer(f"<a href='/{'y' * 10_000}'><a href='http://{'h.' * 400}test/'><a href='http://{'%41' * 300_000}'>"),
        "done",
        "",
    ),
    "/wide": (
        Answer(f"<base href='/wide/wide/wide/wide/{'w' * 1800}/'>" + "".join(f"<a href={n}>" for n in range(20_000))),
        "done",
        "had no room",
    ),
    "/refresh": (page("x", Refresh="0; url=/nowhere", Link="</nowhere>; rel=next"), "done", ""),
    "/no-content": (Answer("", 204, {}), "excluded", "content type not given"),
    "/203": (Answer("x", 203), "done", ""),
    "/reset-content": (Answer("", 205), "done", ""),
    "/partial": (Answer("x", 206), "done", ""),
    "/207": (Answer("x", 207), "done", ""),
    "/226": (Answer("x", 226), "done", ""),
    "/299": (Answer("x", 299), "done", ""),
    "/300": (Answer("x", 300), "failed", "HTTP 300"),
    "/unasked-304": (Answer("", 304), "failed", "HTTP 304"),
    "/teapot": (Answer("x", 418), "failed", "HTTP 418"),
    "/error": (Answer("x", 500), "failed", "HTTP 500"),
    "/image": (Answer(b"\x89PNG", 200, {"Content-Type": "image/png"}), "excluded", "content type image/png"),
    "/nothing-said": (Answer("x", 200, {}), "excluded", "content type not given"),
    "/to-itself": (Answer("", 302, {"Location": "/to-itself"}), "failed", "redirect to itself"),
    "/to-nowhere": (Answer("", 302, {"Location": "http://"}), "failed", "not crawlable"),
    "/to-far": (Answer("", 302, {"Location": "/" + "z" * 10_000}), "failed", "longer than"),
    "/to-a": (Answer("", 301, {"Location": "/to-b"}), "excluded", "redirect to"),
    "/to-b": (Answer("", 302, {"Location": "/to-a"}), "excluded", "redirect to"),
    "/a/a/a/a/": (Answer("x"), "excluded", "trap"),
}
SLOW = {
    "/drip": (write(HEAD + b"\r\n<p>", rest=0.5, times=100), "failed", "took longer than"),
    "/drip-headers": (write(b"HTTP/1.1 200 OK\r\nX", rest=0.5, times=100), "failed", "took longer than"),
    "/interim": (write(b"HTTP/1.1 100 Continue\r\n\r\n" * 3000, times=1_000_000), "failed", "interim answers"),
    "/endless-trailers": (
        write(CHUNKED + b"0\r\n" + b"X: y\r\n" * 20_000, times=1_000_000),
        "failed",
        "more than 100 trailers",
    ),
}
"""Those that end only when the crawler has had enough."""
CAUSES = {
    "hung_up": ("/silent", "/truncated", "/bad-chunks"),
    "malformed": (
        *("/nonsense", "/http-0.9", "/two-lengths", "/endless-chunk-size", "/header-flood", "/header-huge"),
        *("/status-99999", "/not-gzip", "/many-encodings", "/gzip-as-deflate", "/gzip-as-br", "/gzip-as-zstd"),
        "/gzip-as-br-cut",
        *("/unknown-encoding", "/wide-zstd"),
        *("/interim", "/endless-trailers"),
    ),
    "timeout": ("/drip", "/drip-headers"),
    "too_large": (*("/bomb", "/bomb-in-bomb", "/bomb-br", "/bomb-zstd", "/bomb-br-in-gzip", "/big", "/wide"),),
    "content_type": ("/type-huge", "/no-content", "/image", "/nothing-said"),
    "redirect": ("/to-space", "/to-bytes", "/to-latin", "/to-folded", "/to-nul", "/to-a", "/to-b"),
    "bad_redirect": ("/to-itself", "/to-nowhere", "/to-far", "/hop/10"),
    "http": ("/300", "/unasked-304", "/teapot"),
    "server_error": ("/error",),
    "trap": ("/a/a/a/a/",),
    "depth": (f"/calendar/{CALENDAR}",),
}
"""What the code is told of each URL that is no plain page. Of those without an entry: `redirect` for a hop, `http` for
what is not there, none for a page."""
REQUESTS = {
    "/interim": ("failed", "took longer than", "timeout"),
    "/endless-trailers": ("done", "", None),  # 20,000 and an empty line
}
"""What becomes of them with requests as client, which cannot count what they send (requests_transport.py)."""
CAUSE = {path: cause for cause, paths in CAUSES.items() for path in paths}
FOUND = dict.fromkeys(("/%EF%BF%BD", "/nowhere", *GOALS), ("failed", "HTTP 404", "http"))
"""What is not linked from the front page but found on the way, and is not there."""
HEAVY = (
    *("/bomb", "/bomb-in-bomb", "/bomb-br", "/bomb-zstd", "/bomb-br-in-gzip", "/big"),
    *("/title", "/metas", "/deep", "/reopened", "/attributes", "/links", "/wide"),
)
"""Those that take memory from who is not careful."""
CUT = "/wide/wide/wide/wide/"
"""Below it: the traps of which only some had room."""


def furnish(site: Site) -> dict[str, tuple[str, str, str | None]]:
    """Give `site` its pages; what should become of each path: state, a part of the reason, and the cause."""
    expected: dict[str, tuple[str, str]] = {}
    for path, (data, state, reason) in RAW.items():
        site.raw[path] = write(data)
        expected[path] = (state, reason)
    for path, (answer, state, reason) in PAGES.items():
        site.pages[path] = answer
        expected[path] = (state, reason)
    for path, (answering, state, reason) in SLOW.items():
        site.raw[path] = answering
        expected[path] = (state, reason)
    links = [path for path in expected if path not in ("/deep-link", "/x")]
    for month in range(CALENDAR + 2):
        site.pages[f"/calendar/{month}"] = Answer(f'<a href="/calendar/{month + 1}">next month</a>')
        expected[f"/calendar/{month}"] = ("done", "")
    del expected[f"/calendar/{CALENDAR + 1}"]
    expected[f"/calendar/{CALENDAR}"] = ("excluded", "depth")
    for hop in range(CHAIN):
        site.pages[f"/hop/{hop}"] = Answer("", 302, {"Location": f"/hop/{hop + 1}"})
        expected[f"/hop/{hop}"] = ("excluded", "redirect to")
    for hop in range(11, CHAIN):
        del expected[f"/hop/{hop}"]
    expected["/hop/10"] = ("failed", "more than 10 redirects")
    site.pages["/"] = Answer("".join(f'<a href="{path}">x</a>' for path in [*links, "/calendar/0", "/hop/0"]))
    hops = dict.fromkeys((f"/hop/{hop}" for hop in range(10)), "redirect")
    judged = {path: (*outcome, CAUSE.get(path, hops.get(path))) for path, outcome in expected.items()}
    return {**judged, "/": ("done", "", None), **FOUND}


def check(expected: dict[str, tuple[str, str, str | None]], became: dict[str, dict[str, Any]]) -> None:
    """Compare what `furnish` expects with the ledger's rows by path."""
    cut = {path: row for path, row in became.items() if path.startswith(CUT)}
    assert 1_000 < len(cut) < 20_000
    assert all((row["state"], row["cause"]) == ("excluded", "trap") for row in cut.values())
    became = {path: row for path, row in became.items() if path not in cut}
    wrong = {
        path: tuple(became[path][name] for name in ("state", "cause", "reason")) if path in became else None
        for path, (state, reason, cause) in expected.items()
        if path not in became
        or (became[path]["state"], became[path]["cause"]) != (state, cause)
        or reason not in (became[path]["reason"] or "")
    }
    assert not wrong, wrong
    assert set(became) == set(expected)
    unreadable = {
        path: row["reason"]
        for path, row in became.items()
        if row["state"] != "done" and not (3 < len(row["reason"] or "") < 2_400 and row["reason"].isprintable())
    }
    assert not unreadable, unreadable


def main() -> None:
    for port in sys.argv[1:]:
        furnish(Site("0.0.0.0", int(port)))  # noqa: S104 - for a network of containers
    threading.Event().wait()


if __name__ == "__main__":
    main()
