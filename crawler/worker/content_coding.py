"""Content-Encoding undone piece by piece: a compressed body never takes more memory than the pieces asked for, and the
window of its coding. It is known whether the compressed data had come to its end: a body that is cut off with its
connection would else pass for whole.

Source: RFC 9110, section 8.4.1; RFC 1950 (zlib), 1951 (deflate), 1952 (gzip), 7932 (br), 8878 and 9659 (zstd)
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from typing import Any, Protocol

import brotli
from isal import igzip_lib, isal_zlib

from crawler.worker.fetch_errors import MalformedError, UnknownCodingError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

PIECE = 64 * 1024
"""Bytes that a decoder yields at once, at most."""
MAX_CODINGS = 5
"""Of one body: servers apply one, seldom two."""

_DECODED = {"gzip", "x-gzip", "deflate", "br", "zstd"}
# What servers write into Content-Encoding that encodes nothing; browsers read such pages.
_NO_CODINGS = {"", "identity", "none", "binary", "8bit", "utf-8", "utf8"}
_GZIP, _ZLIB, _RAW = 31, 15, -15
"""zlib's wbits."""
_BROTLI_PIECE = 32_000
"""What brotli is asked for: it goes on to the end of a buffer, and the first one that reaches it has 32,752 bytes."""
_ZSTD: dict[int, int] = {zstd.DecompressionParameter.window_log_max: 23}
"""8 MiB, the largest window that a server may use (RFC 9659)."""


class _NoMemberError(Exception):
    """Data that no member begins with."""


_ERRORS: Any = (igzip_lib.IsalError, brotli.error, zstd.ZstdError, _NoMemberError)


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
    """Undoes one coding. gzip may have several members (RFC 1952, section 2.2), zstd several frames (RFC 8878, section
    3.1). What follows the compressed data is passed over, as browsers and gzip itself do, save for br, whose library
    refuses it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._members = name not in ("deflate", "br")
        self._member: _Member | None = None
        self._done = 0
        """Members read to their end."""

    @property
    def whole(self) -> bool:
        """Whether the data did not stop in the middle."""
        return self._member is None

    def decode(self, chunks: Iterable[bytes]) -> Iterator[bytes]:
        """The decoded pieces of `chunks`. Raises MalformedError if they are not in this coding."""
        start = b""
        for chunk in chunks:
            if self._done and not self._members:
                continue
            data = start + chunk
            if self._name == "deflate" and self._member is None and len(data) < 2:
                start = data  # two bytes tell whether it begins with zlib's header
                continue
            start = b""
            try:
                yield from self._undo(data)
            except _ERRORS as error:
                if not self._done:
                    raise MalformedError(f"could not decode its content encoding {self._name!r}: {error}") from None
                self._member, self._members = None, False  # what follows the last member is none

    def _undo(self, data: bytes) -> Iterator[bytes]:
        while data:
            if self._member is None:
                kind = _MEMBERS[self._name]
                if not kind.may_begin(data):
                    raise _NoMemberError("its beginning is not that of this coding")
                self._member = kind(data)
            yield from self._member.pieces(data)
            data = b""
            if self._member.eof:
                self._done += 1
                data = self._member.unused if self._members else b""
                self._member = None


class _Member(Protocol):
    """One stretch of compressed data, which knows its end."""

    def __init__(self, data: bytes) -> None:
        """`data`: its beginning, which `pieces` is given as well."""

    @staticmethod
    def may_begin(data: bytes) -> bool:
        """Whether a member may begin with `data`, which the libraries do not tell before they have a whole header."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused(self) -> bytes:
        """What followed its end."""

    def pieces(self, data: bytes) -> Iterator[bytes]:
        """What the next `data` adds, in pieces of at most PIECE bytes."""


class _Gzip:
    wbits = _GZIP

    @staticmethod
    def may_begin(data: bytes) -> bool:
        return b"\x1f\x8b\x08".startswith(data[:3])

    def __init__(self, _: bytes) -> None:
        self._inflater = isal_zlib.decompressobj(self.wbits)

    @property
    def eof(self) -> bool:
        return self._inflater.eof

    @property
    def unused(self) -> bytes:
        return self._inflater.unused_data

    def pieces(self, data: bytes) -> Iterator[bytes]:
        piece = self._inflater.decompress(data, PIECE)
        if piece:
            yield piece
        while len(piece) == PIECE and not self._inflater.eof:  # there may be more, be all of `data` taken or not
            piece = self._inflater.decompress(self._inflater.unconsumed_tail, PIECE)
            if piece:
                yield piece


class _Deflate(_Gzip):
    """ "deflate" means zlib (RFC 9110, section 8.4.1.2); some servers leave its header out."""

    @staticmethod
    def may_begin(_: bytes) -> bool:
        return True

    def __init__(self, data: bytes) -> None:
        self.wbits = _ZLIB if data[0] & 0x0F == 8 and (data[0] << 8 | data[1]) % 31 == 0 else _RAW
        super().__init__(data)


class _Brotli:
    unused = b""

    @staticmethod
    def may_begin(_: bytes) -> bool:
        return True

    def __init__(self, _: bytes) -> None:
        self._decompressor = brotli.Decompressor()

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.is_finished())

    def pieces(self, data: bytes) -> Iterator[bytes]:
        piece = self._decompressor.process(data, output_buffer_limit=_BROTLI_PIECE)
        if piece:
            yield piece
        while not self.eof and (piece or not self._decompressor.can_accept_more_data()):
            piece = self._decompressor.process(b"", output_buffer_limit=_BROTLI_PIECE)
            if piece:
                yield piece


class _Zstd:
    @staticmethod
    def may_begin(data: bytes) -> bool:
        skippable = 0x50 <= data[0] <= 0x5F and b"\x2a\x4d\x18".startswith(data[1:4])
        return skippable or b"\x28\xb5\x2f\xfd".startswith(data[:4])

    def __init__(self, _: bytes) -> None:
        self._decompressor: Any = zstd.ZstdDecompressor(options=_ZSTD)

    @property
    def eof(self) -> bool:
        return bool(self._decompressor.eof)

    @property
    def unused(self) -> bytes:
        return bytes(self._decompressor.unused_data)

    def pieces(self, data: bytes) -> Iterator[bytes]:
        piece = self._decompressor.decompress(data, PIECE)
        if piece:
            yield piece
        while not self._decompressor.needs_input and not self._decompressor.eof:
            yield self._decompressor.decompress(b"", PIECE)


_MEMBERS: dict[str, type[_Member]] = {
    "gzip": _Gzip,
    "x-gzip": _Gzip,
    "deflate": _Deflate,
    "br": _Brotli,
    "zstd": _Zstd,
}
