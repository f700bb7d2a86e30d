"""What a crawler wants of an HTML page, read in one pass by native code (scanner.cpp)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

IFRAME, NEXT, OBEY, OTHER_ENCODING = 1, 2, 4, 8
"""What `scan` is told: to follow <iframe>; <link rel=next>; to skip links with rel=nofollow; that the page's text was
not in UTF-8, so that links with letters beyond ASCII are to be returned as they are written, after "\\1"."""
_library = ctypes.CDLL(os.environ.get("CRAWLER_SCANNER") or str(Path(__file__).with_name("scanner.so")))


class _Answer(ctypes.Structure):
    _fields_ = (
        ("text", ctypes.c_void_p),
        ("text_size", ctypes.c_size_t),
        ("noted", ctypes.c_void_p),
        ("noted_size", ctypes.c_size_t),
    )


_scan, _met, _forget = _library.crawler_scanner_scan, _library.crawler_scanner_met, _library.crawler_scanner_forget
_scan.restype = _met.restype = _forget.restype = None
_scan.argtypes = [
    *(ctypes.c_char_p, ctypes.c_size_t) * 3,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.c_uint64,
    ctypes.c_uint32,
    ctypes.POINTER(_Answer),
]
_met.argtypes = [ctypes.c_char_p, ctypes.c_size_t]
_library.crawler_scanner_key.restype = None
_library.crawler_scanner_key.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
_library.crawler_scanner_key(*(int.from_bytes(os.urandom(8), "little") for _ in range(2)))


def scan(
    page: bytes, url: str, agent: str, flags: int, most: int, batch: int = 0, depth: int = 0
) -> tuple[str, str, str, list[str], list[str], int, bytes]:
    """(title as written, base, canonical address, metas, links, how many more links, those links for `met`) of a page
    in UTF-8; empty where there is none.

    `url` is where the page came from, `agent` a product token in lower case. Each of `metas` is "r" and what is said to
    robots, or "f" and a refresh. Addresses are spelled as crawler.urls.normalise does; links are in the page's order,
    and may repeat, until they have more than `most` bytes together. Those that `batch` (a number that no other one has
    in this process; 0: none) has met at `depth` or nearer to a seed count for `most`, and are left out.
    """
    name, token, answer = url.encode(), agent.encode(), _Answer()
    _scan(page, len(page), name, len(name), token, len(token), flags, most, batch, depth, ctypes.byref(answer))
    said = ctypes.string_at(answer.text, answer.text_size).decode("utf-8", "replace")
    noted = ctypes.string_at(answer.noted, answer.noted_size) if answer.noted_size else b""
    _forget()
    title, base, canonical, count, *rest, left_out, _ = said.split("\0")
    metas = int(count)
    return title, base, canonical, rest[:metas], rest[metas:], int(left_out), noted


def met(noted: bytes) -> None:
    """The links that a scan returned need no other look from pages of the same batch that are as far from a seed, or
    farther. Some of them may be forgotten."""
    _met(noted, len(noted))
