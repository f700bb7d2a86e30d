"""What a crawler wants of an HTML page, read in one pass by native code (scanner.cpp)."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

IFRAME, NEXT, OBEY, OTHER_ENCODING = 1, 2, 4, 8
"""What `scan` is told: to follow <iframe>; <link rel=next>; to skip links with rel=nofollow; that the page's text was
not in UTF-8, so that links with letters beyond ASCII are to be returned as they are written, after "\\1"."""
_library = ctypes.CDLL(os.environ.get("CRAWLER_SCANNER") or str(Path(__file__).with_name("scanner.so")))
_scan = _library.crawler_scanner_scan
_scan.restype = ctypes.c_size_t
_scan.argtypes = [
    *(ctypes.c_char_p, ctypes.c_size_t) * 3,
    ctypes.c_uint,
    ctypes.c_size_t,
    ctypes.POINTER(ctypes.c_void_p),
]
_library.crawler_scanner_key.restype = None
_library.crawler_scanner_key.argtypes = [ctypes.c_uint64, ctypes.c_uint64]
_library.crawler_scanner_key(*(int.from_bytes(os.urandom(8), "little") for _ in range(2)))


def scan(page: bytes, url: str, agent: str, flags: int, most: int) -> tuple[str, str, str, list[str], list[str], int]:
    """(title as written, base, canonical address, metas, links, how many more links) of a page in UTF-8; empty where
    there is none.

    `url` is where the page came from, `agent` a product token in lower case. Each of `metas` is "r" and what is said to
    robots, or "f" and a refresh. Addresses are spelled as crawler.urls.normalise does; links are in the page's order,
    and may repeat, until they have more than `most` bytes together.
    """
    name, token, answer = url.encode(), agent.encode(), ctypes.c_void_p()
    size = _scan(page, len(page), name, len(name), token, len(token), flags, most, ctypes.byref(answer))
    said = ctypes.string_at(answer, size).decode("utf-8", "replace")
    _library.crawler_scanner_forget()
    title, base, canonical, count, *rest, left_out, _ = said.split("\0")
    metas = int(count)
    return title, base, canonical, rest[:metas], rest[metas:], int(left_out)
