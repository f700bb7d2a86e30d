"""Sitemaps, read piece by piece: index, URL list or plain text, gzipped or not.

Source: https://www.sitemaps.org/protocol.html
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable

from crawler.worker.content_coding import Decoder
from crawler.worker.fetch_errors import MalformedError

MAX_BYTES = 50 * 1024 * 1024
"""The protocol's limit for one file, uncompressed."""
MAX_URLS = 50_000
"""The protocol's limit for one file."""

MAX_ADDRESS = 20_000
"""Bytes between the tags; no address that long is crawled, however much of it is white space."""
_GZIP = b"\x1f\x8b"
_HEAD = 10_000
"""Bytes at the beginning that tell what kind of sitemap it is."""
_READ_AT_ONCE = 256 * 1024
"""Bytes collected before they are searched: what is left of one search is searched again with the next."""

# One tag at a time, of bounded length: a pattern for the pair would take the square of the file's length for a file of
# tags that are never closed.
_TAG = re.compile(rb"<(/?)(?:\w{1,50}:)?loc\b[^<>]{0,200}>")
_LONGEST_TAG = 300
_LINE = re.compile(rb"[^\r\n]+")
_INDEX = re.compile(rb"<(?:\w{1,50}:)?sitemapindex\b")


class SitemapReader:
    """Reads a sitemap that arrives in pieces of any size, and never holds more of it than _READ_AT_ONCE.

    By pattern, not by an XML parser: many sitemaps are not well-formed, and nothing in them needs more.
    """

    def __init__(self, found: Callable[[str, bool], None]) -> None:
        """`found` is given each address as written there, and whether it is a sitemap itself."""
        self._found = found
        self.is_index = False
        self.addresses = 0
        """How many were found so far."""
        self._start, self._begun = b"", False
        self._size = 0
        self._inflater: Decoder | None = None
        self._is_xml: bool | None = None
        self._data = bytearray()
        """What is still to be searched."""
        self._in_address = False
        """Whether `_data` begins within <loc>."""

    def write(self, piece: bytes) -> bool:
        """Read on. False: nothing more is wanted."""
        if not self._begun:
            self._start += piece
            if len(self._start) < len(_GZIP):
                return True
            self._begun, piece = True, self._start
            if piece.startswith(_GZIP):
                self._inflater = Decoder("gzip")
        if self._inflater is None:
            return self._plain(piece)
        try:
            return all(self._plain(part) for part in self._inflater.decode([piece]))
        except MalformedError:  # what was readable counts
            return False

    def close(self) -> None:
        """The sitemap is at its end."""
        if not self._begun:
            self._plain(self._start)
        self._search(at_end=True)

    def _plain(self, piece: bytes) -> bool:
        self._size += len(piece)
        self._data += piece
        if len(self._data) >= _READ_AT_ONCE:
            self._search()
        return self._size < MAX_BYTES and self.addresses < MAX_URLS

    def _search(self, at_end: bool = False) -> None:
        if self._is_xml is None:
            self._is_xml = b"<" in self._data[:1000]
            self.is_index = self._is_xml and _INDEX.search(self._data[:_HEAD]) is not None
        if self._is_xml:
            self._search_tags()
        else:
            self._search_lines(at_end)

    def _search_tags(self) -> None:
        data = bytes(self._data)
        begin = 0 if self._in_address else None
        searched = 0
        for tag in _TAG.finditer(data):
            searched = tag.end()
            if not tag[1]:
                begin = tag.end()
            elif begin is not None:
                if tag.start() - begin <= MAX_ADDRESS:
                    self._note(html.unescape(_text(data[begin : tag.start()])).strip())
                begin = None
        # What may be the beginning of a tag, or of an address, is searched again with what follows it.
        keep = max(searched, len(data) - _LONGEST_TAG)
        self._in_address = begin is not None and len(data) - begin <= MAX_ADDRESS
        if self._in_address and begin is not None:
            keep = min(keep, begin)
        self._data = bytearray(data[keep:])

    def _search_lines(self, at_end: bool) -> None:
        data = bytes(self._data)
        whole = len(data) if at_end else 1 + max(data.rfind(b"\n"), data.rfind(b"\r"))
        for line in _LINE.finditer(data, 0, whole):
            if len(line[0]) <= MAX_ADDRESS and (address := line[0].decode("utf-8-sig", "replace").strip()):
                self._note(address)
        # A line that is too long stays too long, however much of it is kept.
        self._data = bytearray(data[whole : whole + MAX_ADDRESS + 1])

    def _note(self, address: str) -> None:
        if self.addresses < MAX_URLS:
            self.addresses += 1
            self._found(address, self.is_index)


def _text(between: bytes) -> str:
    return between.strip().removeprefix(b"<![CDATA[").removesuffix(b"]]>").decode("utf-8", "replace")
