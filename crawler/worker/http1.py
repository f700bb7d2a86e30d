"""HTTP/1.1 over gevent's sockets: one request, the head of its answer, and the framing of its body.

Source: RFC 9112. Where servers depart from it, as browsers deal with it: a bare LF ends a line, a header line that is
none is passed over, a length that is no number counts for nothing.
"""

from __future__ import annotations

import contextlib
import functools
import re
import ssl
from collections.abc import Iterator, Mapping

import gevent

from crawler import limits, urls
from crawler.worker import connect
from crawler.worker.clock import Deadline
from crawler.worker.egress import Egress
from crawler.worker.fetch_errors import (
    FetchError,
    HungUpError,
    MalformedError,
    StaleConnectionError,
    TimedOutError,
)
from crawler.worker.transport import Headers

MAX_LINE = 64 * 1024
"""Bytes of a header line, and of a line between chunks."""
MAX_HEADERS, MAX_TRAILERS, MAX_INTERIM = 100, 100, 20
MAX_HEAD = (MAX_HEADERS + 1) * MAX_LINE

_HEAD_END = re.compile(rb"\n\r?\n")
_STATUS_LINE = re.compile(r"HTTP/1\.(\d)[ \t]+([1-9]\d\d)(?:[ \t]+(.*))?\s*")
_HEADER_LINE = re.compile(r"^([!#$%&'*+.^_`|~0-9A-Za-z-]+)[ \t]*:(.*)$", re.MULTILINE)
_FOLD = re.compile(r"\n[ \t]+")
_LENGTH = re.compile(r"[0-9]{1,18}")
_CHUNK_SIZE = re.compile(rb"[ \t]*([0-9A-Fa-f]{1,16})[ \t]*(?:;|$)")


class Connections:
    """Those of one batch: one, kept alive, to each origin."""

    def __init__(self, context: ssl.SSLContext, egress: Egress) -> None:
        self._context, self._egress = context, egress
        self._idle: dict[str, _Stream] = {}
        self.opened = 0

    def send(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> _Answer:
        """See transport.Transport."""
        origin = urls.origin_of(url)
        lines = "".join([f"{name}: {_one_line(value)}\r\n" for name, value in headers.items()])
        request = f"GET {urls.path_of(url)} HTTP/1.1\r\nHost: {urls.host_of(url)}\r\n{lines}\r\n".encode("latin-1")
        stream = self._idle.pop(origin, None)
        kept = stream is not None and stream.is_idle()
        if stream is None or not kept:
            stream = self._open(origin)
        try:
            deadline.check_sending()
            stream.begin(request, deadline)
            return _Answer(self, origin, stream)
        except BaseException as error:
            stream.close()
            if kept and isinstance(error, HungUpError):
                raise StaleConnectionError(error.reason) from None
            raise

    def keep(self, origin: str, stream: _Stream) -> None:
        """Leave a connection to the next request."""
        self._idle[origin] = stream

    def close(self) -> None:
        for stream in self._idle.values():
            stream.close()
        self._idle.clear()

    def _open(self, origin: str) -> _Stream:
        context = self._context if origin.startswith("https:") else None
        self.opened += 1
        return _Stream(*urls.name_and_port_of(origin), context, self._egress)


@functools.lru_cache
def _one_line(value: str) -> str:
    """A header's value fit to be sent: no server's ETag may end the line, nor be what is not Latin-1."""
    return value.translate(_UNSENT).encode("latin-1", "replace").decode("latin-1")


_UNSENT = dict.fromkeys(map(ord, "\r\n\0"), " ")


class _Stream:
    """The bytes that come over a connection, in order. While data keeps arriving, reads never block, so gevent would
    run neither its timer nor other fetches: after every TURN reads the others have theirs."""

    SIZE, TURN = 64 * 1024, 3

    def __init__(self, name: str, port: int, context: ssl.SSLContext | None, egress: Egress) -> None:
        self._sock = connect.connect(name, port, context, egress)
        self._target = (context, name, port)
        self._sock.settimeout(limits.READ)
        try:
            self.address: str | None = str(self._sock.getpeername()[0])
        except OSError:
            self.address = None
        self._buffer, self._at, self._reads = b"", 0, 0
        """What was received, and how far it has been taken."""

    def begin(self, request: bytes, deadline: Deadline) -> None:
        self._deadline, self._reads = deadline, 0
        try:
            self._sock.sendall(request)
        except OSError as error:
            raise _broken(error) from None

    def is_idle(self) -> bool:
        """Whether a kept connection is open, and nothing came that nobody asked for. Closes it if not."""
        try:
            self._sock.settimeout(0)
            self._sock.recv(1)
        except (BlockingIOError, ssl.SSLWantReadError):
            self._sock.settimeout(limits.READ)
            return True
        except OSError:
            pass
        self.close()
        return False

    @property
    def is_spent(self) -> bool:
        """Whether all that was received has been taken."""
        return self._at == len(self._buffer)

    def close(self) -> None:
        self._sock.close()

    def remember_session(self) -> None:
        context, name, port = self._target
        if context is not None:
            connect.remember_session(self._sock, context, name, port)
            self._target = (None, name, port)

    def more(self) -> bool:
        """Receive what there is; False: the connection has ended."""
        self._reads += 1
        if self._reads % self.TURN == 0:
            gevent.sleep(0)
        self._deadline.check()
        try:
            data = self._sock.recv(self.SIZE)
        except OSError as error:
            raise _broken(error) from None
        self._buffer = self._buffer[self._at :] + data if self._at < len(self._buffer) else data
        self._at = 0
        return bool(data)

    def head(self) -> str:
        """An answer's status line and headers, without the empty line that ends them; more than MAX_HEAD bytes where
        they have no end."""
        seen = self._at
        while not (end := _HEAD_END.search(self._buffer, seen)):
            size = len(self._buffer) - self._at
            begun = self._buffer[self._at : self._at + 5]
            if not b"HTTP/".startswith(begun):
                raise MalformedError(f"no HTTP status line: {begun.decode('latin-1')!r}")
            if size > MAX_HEAD:
                return self._taken(size).decode("latin-1")
            if not self.more():
                raise HungUpError(
                    "answer cut off in its headers" if size else "server closed connection without response"
                )
            seen = max(size - 2, 0)
        head = self._buffer[self._at : end.start()].decode("latin-1")
        self._at = end.end()
        return head

    def rest(self) -> Iterator[bytes]:
        """All until the connection ends."""
        while not self.is_spent or self.more():
            if not self.is_spent:
                yield self._taken(len(self._buffer))

    def exactly(self, size: int) -> Iterator[bytes]:
        """The next `size` bytes."""
        left = size
        while left:
            if self.is_spent and not self.more():
                raise HungUpError(f"body cut off: {size - left} of {size} bytes came")
            piece = self._taken(left)
            left -= len(piece)
            yield piece

    def chunks(self) -> Iterator[bytes]:
        """A chunked body (RFC 9112, section 7.1). What of it was received together comes as one piece, however small
        its chunks are."""
        pieces: list[bytes] = []
        while True:
            if pieces and not self._has_line():
                yield b"".join(pieces)
                pieces.clear()
            size = _CHUNK_SIZE.match(self._line())
            if not size:
                raise HungUpError("body cut off: no chunk's size where one is due")
            left = int(size[1], 16)
            if not left:
                break
            while left:
                if self.is_spent:
                    if pieces:
                        yield b"".join(pieces)
                        pieces.clear()
                    if not self.more():
                        raise HungUpError("body cut off within a chunk")
                pieces.append(self._taken(left))
                left -= len(pieces[-1])
            if pieces and not self._has_line():
                yield b"".join(pieces)
                pieces.clear()
            if self._line():
                raise HungUpError("body cut off: a chunk longer than its size")
        if pieces:
            yield b"".join(pieces)
        self._pass_trailers()

    def _pass_trailers(self) -> None:
        """Up to the empty line; or to the connection's end, for the body is whole."""
        with contextlib.suppress(HungUpError):
            for _ in range(MAX_TRAILERS + 1):
                if not self._line():
                    return
            raise MalformedError(f"more than {MAX_TRAILERS} trailers")

    def _has_line(self) -> bool:
        return self._buffer.find(b"\n", self._at) >= 0

    def _line(self) -> bytes:
        """The next line, without its end."""
        seen = self._at
        while (end := self._buffer.find(b"\n", seen)) < 0:
            size = len(self._buffer) - self._at
            if size > MAX_LINE:
                raise MalformedError(f"line of more than {MAX_LINE} bytes")
            if not self.more():
                raise HungUpError("body cut off: its last chunk is missing")
            seen = size
        line = self._taken(end - self._at)
        self._at += 1
        return line.removesuffix(b"\r")

    def _taken(self, most: int) -> bytes:
        """Of what was received, up to `most` bytes."""
        start, self._at = self._at, min(self._at + most, len(self._buffer))
        return self._buffer[start : self._at]


class _Answer:
    """See transport.Answer."""

    body: Iterator[bytes]

    def __init__(self, connections: Connections, origin: str, stream: _Stream) -> None:
        self._connections, self._origin, self._stream = connections, origin, stream
        self.address = stream.address
        self._read_head()
        stream.remember_session()
        self._frame()

    def close(self) -> None:
        if not self._whole:
            self._stream.close()
        self.body = iter(())  # it holds the answer, so both, and all that was received, would wait for the collector

    def _read_head(self) -> None:
        """Status and headers of the final answer (RFC 9110, section 15.2: any number of interim ones may precede)."""
        for _ in range(MAX_INTERIM + 1):
            status_line, headers = _head_parts(self._stream.head())
            found = _STATUS_LINE.fullmatch(status_line)
            if not found:
                raise MalformedError(f"no HTTP status line: {status_line[:100]!r}")
            self.status = int(found[2])
            if self.status >= 200 or self.status == 101:  # with which HTTP ends
                break
        else:
            raise MalformedError(f"more than {MAX_INTERIM} interim answers")
        self._version = int(found[1])
        self.status_line = f"HTTP/1.{found[1]} {found[2]} {(found[3] or '').strip()}".rstrip()
        self.header_lines = [(name, value.strip(" \t")) for name, value in _HEADER_LINE.findall(headers)]
        self.headers = Headers(self.header_lines)

    def _frame(self) -> None:
        """How the body ends (RFC 9112, section 6.3), and whether another answer may follow it."""
        codings = _listed(self.headers.get("transfer-encoding"))
        chunked = "chunked" in codings
        self.length = None if chunked else _length(self.headers.get("content-length"))
        if self.status in (101, 204, 304):
            self.length, chunked = 0, False
        self.framed = chunked or self.length is not None
        options = _listed(self.headers.get("connection"))
        persistent = "close" not in options if self._version else "keep-alive" in options
        # A length beside chunks, or chunks in HTTP/1.0, may have misled whoever stands between (section 6.1).
        misled = bool(codings) and (codings != ["chunked"] or "content-length" in self.headers or not self._version)
        self._may_follow = self.framed and persistent and not misled and self.status != 101
        self._whole = False
        stream = self._stream
        self.body = self._read(
            stream.chunks() if chunked else stream.rest() if self.length is None else stream.exactly(self.length)
        )

    def _read(self, pieces: Iterator[bytes]) -> Iterator[bytes]:
        yield from pieces
        # What came without being asked for would pass for the next answer.
        self._whole = self._may_follow and self._stream.is_spent
        if self._whole:
            self._connections.keep(self._origin, self._stream)


def _head_parts(head: str) -> tuple[str, str]:
    """Status line and header lines, LF after each, those that were folded as one (RFC 9112, section 5.2)."""
    if head.count("\n") > MAX_HEADERS:
        raise MalformedError(f"more than {MAX_HEADERS} headers")
    if len(head) > MAX_LINE and max(map(len, head.split("\n"))) > MAX_LINE:
        raise MalformedError(f"header line of more than {MAX_LINE} bytes")
    head = head.replace("\r\n", "\n")
    if "\r" in head:
        head = head.replace("\r", " ")  # RFC 9112, section 2.2
    if "\n " in head or "\n\t" in head:
        head = _FOLD.sub(" ", head)
    status_line, _, lines = head.partition("\n")
    return status_line, lines


def _listed(header: str | None) -> list[str]:
    return [part.strip().lower() for part in header.split(",")] if header else []


def _length(header: str | None) -> int | None:
    """None: the server named none, or one that is no number. Raises MalformedError for two different ones."""
    if header is None:
        return None
    lengths = set(_listed(header))
    if len(lengths) > 1:
        raise MalformedError(f"different values of Content-Length: {header[:100]}")
    length = lengths.pop() if lengths else ""
    return int(length) if _LENGTH.fullmatch(length) else None


def _broken(error: OSError) -> FetchError:
    """What the end of a connection means."""
    if isinstance(error, TimeoutError):
        return TimedOutError(f"silent for {limits.READ:g} s")
    if isinstance(error, ssl.SSLError):
        return MalformedError(f"TLS: {error}")
    return HungUpError(f"Connection aborted: {error}")
