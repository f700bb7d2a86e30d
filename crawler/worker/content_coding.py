"""Content-Encoding undone piece by piece: a compressed body never takes more memory than the pieces asked for.

urllib3 undoes them as well, but does not tell whether the compressed data had come to its end: a body that is cut off
with its connection would pass for whole.

Source: RFC 9110, section 8.4.1; RFC 1950 (zlib), 1951 (deflate), 1952 (gzip)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Iterator
from typing import Any

from crawler.worker.fetch_errors import MalformedError, UnknownCodingError

PIECE = 64 * 1024
"""Bytes that a decoder yields at once, at most."""
MAX_CODINGS = 5
"""Of one body: servers apply one, seldom two."""

_DECODED = {"gzip", "x-gzip", "deflate"}
# What servers write into Content-Encoding that encodes nothing; browsers read such pages.
_NO_CODINGS = {"", "identity", "none", "binary", "8bit", "utf-8", "utf8"}
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""zlib's wbits."""


def decoders(header: str) -> list[Decoder]:
    """What undoes a Content-Encoding, in the order in which it has to be undone. Raises UnknownCodingError for one that
    was not asked for, MalformedError for more than MAX_CODINGS."""
    if not header:
        return []
    names = [name.strip().lower() for name in header.split(",")]
    if unknown := set(names) - _DECODED - _NO_CODINGS:
        raise UnknownCodingError(f"content encoding {min(unknown)[:50]!r}, which was not asked for")
    applied = [name for name in names if name in _DECODED]
    if len(applied) > MAX_CODINGS:
        raise MalformedError(f"more than {MAX_CODINGS} content encodings")
    return [Decoder(name) for name in reversed(applied)]


class Decoder:
    """Undoes one coding. gzip may have several members (RFC 1952, section 2.2). What follows the compressed data is
    passed over, as browsers and gzip itself do."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members = name != "deflate"
        self._inflater: Any = None  # of zlib.decompressobj
        self._done = 0
        """Members read to their end."""

    @property
    def whole(self) -> bool:
        """Whether the data did not stop in the middle."""
        return self._inflater is None

    def decode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The decoded pieces of `chunks`. Raises MalformedError if they are not in this coding."""
        start = b""
        for chunk in chunks:
            if self._done and not self._members:
                continue
            data = start + chunk
            if self._name == "deflate" and self._inflater is None and len(data) < 2:
                start = data  # two bytes tell whether it begins with zlib's header
                continue
            start = b""
            try:
                yield from self._inflate(data)
            except zlib.error as error:
                if not self._done:
                    raise MalformedError(f"could not decode its content encoding {self._name!r}: {error}") from None
                self._inflater, self._members = None, False  # what follows the last member is none

    def _inflate(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._inflater is None:
                self._inflater = zlib.decompressobj(self._window(data))
            piece = self._inflater.decompress(data, PIECE)
            if piece:
                yield piece
            while len(piece) == PIECE and not self._inflater.eof:  # there may be more, be all of `data` taken or not
                piece = self._inflater.decompress(self._inflater.unconsumed_tail, PIECE)
                if piece:
                    yield piece
            data = b""
            if self._inflater.eof:
                self._done += 1
                data = self._inflater.unused_data if self._members else b""
                self._inflater = None

    def _window(self, data: bytes) -> int:
        if self._name != "deflate":
            return _GZIP
        # "deflate" means zlib (RFC 9110, section 8.4.1.2); some servers leave its header out.
        return _ZLIB if data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0 else _RAW
