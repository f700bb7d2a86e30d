"""A site that does everything to a crawler that a site can do, and what should become of each of its URLs."""

from __future__ import annotations

import gzip
import time
import zlib
from http.server import BaseHTTPRequestHandler
from typing import Any

from website import HTML, Answer, Site

CALENDAR = 30
"""Months of the endless calendar that a job with this depth limit reaches."""


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
RAW = {
    "/silent": (b"", "failed", "closed connection without response"),
    "/nonsense": (b"\0\1\2 hello\r\n\r\n", "failed", ""),
    "/truncated": (HEAD + b"Content-Length: 100\r\n\r\n<title>cut", "failed", "IncompleteRead"),
    "/too-long": (HEAD + b"Content-Length: 2\r\n\r\n<title>more than it said", "done", ""),
    "/bad-length": (HEAD + b"Content-Length: many\r\n\r\n<title>x</title>", "done", ""),
    "/bad-chunks": (HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nbroken", "failed", ""),
    "/header-flood": (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n", "failed", "100 headers"),
    "/header-huge": (b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n", "failed", "header line"),
    "/http-1.0": (b"HTTP/1.0 200 OK\r\nContent-Type: text/html\r\n\r\n<title>old</title>", "done", ""),
    "/status-99999": (b"HTTP/1.1 99999 What\r\n\r\n", "failed", ""),
}
PAGES = {
    "/bomb": (Answer(gzip.compress(bytes(50_000_000)), 200, {**HTML, "Content-Encoding": "gzip"}), "failed", "larger"),
    "/not-gzip": (Answer("plain", 200, {**HTML, "Content-Encoding": "gzip"}), "failed", "decode"),
    "/deflate": (Answer(zlib.compress(b"<title>x"), 200, {**HTML, "Content-Encoding": "deflate"}), "done", ""),
    "/big": (Answer("x" * 2_000_000), "failed", "larger than 1000000 bytes"),
    "/wrong-charset": (
        Answer(b"<title>\xff\xfe\x80</title>", 200, {"Content-Type": "text/html; charset=utf-8"}),
        "done",
        "",
    ),
    "/no-charset-known": (Answer("<title>x", 200, {"Content-Type": "text/html; charset=klingon"}), "done", ""),
    "/nul": (Answer("<title>a\0b</title><a href='/\0'>"), "done", ""),
    "/deep": (Answer("<div>" * 50_000 + "<a href='/deep-link'>"), "done", ""),
    "/deep-link": (Answer("x"), "done", ""),
    "/no-content": (Answer("", 204), "excluded", "content type"),
    "/reset-content": (Answer("", 205), "done", ""),
    "/partial": (Answer("x", 206), "done", ""),
    "/unasked-304": (Answer("", 304), "failed", "HTTP 304"),
    "/teapot": (Answer("x", 418), "failed", "HTTP 418"),
    "/error": (Answer("x", 500), "failed", "HTTP 500"),
    "/image": (Answer(b"\x89PNG", 200, {"Content-Type": "image/png"}), "excluded", "content type image/png"),
    "/nothing-said": (Answer("x", 200, {}), "excluded", "content type not given"),
    "/to-itself": (Answer("", 302, {"Location": "/to-itself"}), "failed", "redirect to itself"),
    "/to-nowhere": (Answer("", 302, {"Location": "http://"}), "failed", "not crawlable"),
    "/to-a": (Answer("", 301, {"Location": "/to-b"}), "excluded", "redirect to"),
    "/to-b": (Answer("", 302, {"Location": "/to-a"}), "excluded", "redirect to"),
    "/a/a/a/a/": (Answer("x"), "excluded", "trap"),
    "/drip": (None, "failed", "took longer than"),
}
PAGES["/no-content"] = (Answer("", 204, {}), "excluded", "content type not given")


def furnish(site: Site) -> dict[str, tuple[str, str]]:
    """Give `site` its pages; what should become of each path: state, and a part of the reason."""
    expected: dict[str, tuple[str, str]] = {}
    for path, (data, state, reason) in RAW.items():
        site.raw[path] = write(data)
        expected[path] = (state, reason)
    for path, (answer, state, reason) in PAGES.items():
        if answer:
            site.pages[path] = answer
        expected[path] = (state, reason)
    site.raw["/drip"] = write(HEAD + b"\r\n<p>", rest=0.5, times=100)
    for month in range(CALENDAR + 2):
        site.pages[f"/calendar/{month}"] = Answer(f'<a href="/calendar/{month + 1}">next month</a>')
        expected[f"/calendar/{month}"] = ("done", "")
    del expected[f"/calendar/{CALENDAR + 1}"]
    expected[f"/calendar/{CALENDAR}"] = ("excluded", "depth")
    links = [path for path in expected if not path.startswith("/calendar/") and path != "/deep-link"]
    site.pages["/"] = Answer("".join(f'<a href="{path}">x</a>' for path in [*links, "/calendar/0"]))
    expected["/"] = ("done", "")
    expected["/%EF%BF%BD"] = ("failed", "HTTP 404")
    return expected


def check(expected: dict[str, tuple[str, str]], became: dict[str, dict[str, Any]]) -> None:
    """Compare what `furnish` expects with the ledger's rows by path."""
    wrong = {
        path: (became[path]["state"], became[path]["reason"]) if path in became else None
        for path, (state, reason) in expected.items()
        if path not in became or became[path]["state"] != state or reason not in (became[path]["reason"] or "")
    }
    assert not wrong, wrong
    assert set(became) == set(expected)
