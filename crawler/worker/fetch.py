"""One HTTP request, bounded in every direction: time, header and body size, redirects.

What travels over the network is a transport's (transport.py); here is what is wanted of an answer, and its budgets.
The deadline interrupts a server that drips, and is checked between the pieces of a body that never ceases to arrive.
"""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal

import gevent

from crawler import limits
from crawler.worker import content_coding, sniff
from crawler.worker.clock import Deadline
from crawler.worker.connect import LOOKUPS, tls_context
from crawler.worker.egress import Egress, of_process
from crawler.worker.fetch_errors import FetchError, HungUpError, MalformedError, TooLargeError
from crawler.worker.http1 import Connections
from crawler.worker.transport import Answer, Headers, Transport

CHUNK = 64 * 1024
"""Bytes of an unwanted body that are read, so that its connection can be kept."""


@dataclass
class Response:
    """What came back."""

    url: str
    status: int
    headers: Headers
    body: bytes = b""
    """Decompressed; empty where the body was not wanted, or went elsewhere piece by piece."""
    size: int = 0
    """Bytes of the body that were read, after decompression."""
    sniffed_type: str = ""
    """The media type found out from the body, where the server named none."""
    started_at: float = 0.0
    """Seconds since the epoch."""
    seconds: float = 0.0
    status_line: str = ""
    """As the server sent it, such as "HTTP/1.1 200 OK"."""
    header_lines: list[tuple[str, str]] = field(default_factory=list)
    """As the server sent them: in its order, repeated ones each by itself."""
    address: str | None = None
    """The server's IP address, where it is known."""
    request_headers: Mapping[str, str] = field(default_factory=dict)
    """What the request said, besides Host."""

    @property
    def content_type(self) -> str:
        """The media type alone, lower case; empty where the server named none and the body does not tell."""
        return self.sniffed_type or self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def location(self) -> str | None:
        """Where a redirect leads, as written; its bytes read as UTF-8, like browsers do, where they are that."""
        written = self.headers.get("location") if self.status in (301, 302, 303, 307, 308) else None
        return as_utf_8(written) if written else None

    @property
    def retry_after(self) -> str | None:
        return self.headers.get("retry-after")


def as_utf_8(header: str) -> str:
    """A header's value, which is read as Latin-1, as UTF-8 where its bytes are that."""
    try:
        return header.encode("latin-1").decode()
    except UnicodeError:
        return header


@dataclass(frozen=True)
class _Wanted:
    """What of an answer's body is taken."""

    types: tuple[str, ...]
    max_body: int
    truncate: bool
    into: Callable[[bytes], bool] | None
    growing: Callable[[int], None] | None
    deadline: Deadline


@dataclass
class Client:
    """Connections to one host for the time of a batch. Close it, or use it in `with`."""

    user_agent: str
    context: ssl.SSLContext = field(default_factory=tls_context)
    kind: Literal["own", "requests"] = "own"
    """Which transport: see Job.client."""
    egress: Egress = field(default_factory=of_process)
    """Where it may connect to."""

    def __post_init__(self) -> None:
        lookups = gevent.get_hub().threadpool
        lookups.maxsize = max(lookups.maxsize, LOOKUPS)
        self._transport = _transport(self.kind, self.context, self.egress)
        self._headers = {
            "User-Agent": self.user_agent,
            "Accept": "text/html,application/xhtml+xml,*/*;q=0.5",
            "Accept-Encoding": "gzip, deflate, br, zstd",
        }

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._transport.close()

    def get(
        self,
        url: str,
        *,
        max_body: int,
        wanted: tuple[str, ...] = (),
        truncate: bool = False,
        into: Callable[[bytes], bool] | None = None,
        growing: Callable[[int], None] | None = None,
        headers: dict[str, str] | None = None,
        deadline: float | None = None,
    ) -> Response:
        """Fetch `url`, with `headers` besides our own. The body is read only if its media type is in `wanted` (empty:
        any) and the status is 2xx; a body without a media type is HTML if it begins like HTML (sniff.py).

        `into` is given the body piece by piece instead of Response.body, until it returns False. `growing` is told the
        body's size while it grows, and may raise.

        Raises FetchError when there is no complete answer within `deadline` seconds (limits.FETCH), or the body,
        decompressed, is larger than `max_body` bytes; with `truncate` its first `max_body` bytes are the body.
        """
        seconds = limits.FETCH if deadline is None else deadline
        asked = {**self._headers, **headers} if headers else self._headers
        response = Response(url, 0, _NO_HEADERS, started_at=time.time(), request_headers=asked)
        clock = time.monotonic()
        wanted_of_it = _Wanted(wanted, max_body, truncate, into, growing, Deadline(seconds))
        timer = gevent.Timeout(seconds)
        timer.start()
        try:
            answer = self._transport.send(url, asked, wanted_of_it.deadline)
            try:
                response.status, response.headers = answer.status, answer.headers
                response.status_line, response.header_lines = answer.status_line, answer.header_lines
                response.address = answer.address
                _read(answer, response, wanted_of_it)
            finally:
                answer.close()
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
            error: FetchError = wanted_of_it.deadline.missed()
        except FetchError as raised:
            error = raised
        else:
            response.seconds = time.monotonic() - clock
            return response
        finally:
            timer.close()
        error.answered = response.status > 0
        try:
            raise error from None
        finally:
            del error  # its traceback holds this frame, and with it the body


_NO_HEADERS = Headers()


def _transport(kind: str, context: ssl.SSLContext, egress: Egress) -> Transport:
    if kind == "requests":
        from crawler.worker.requests_transport import RequestsTransport  # 15 MB of memory, for the jobs that want it

        return RequestsTransport(context, egress)
    return Connections(context, egress)


def _read(answer: Answer, response: Response, wanted: _Wanted) -> None:
    """Read the body into `response`, if it is wanted; or to its end, if it is small, which leaves the connection to the
    next request."""
    if 200 <= response.status < 300 and _may_be_wanted(response, wanted):
        _take_body(answer, response, wanted)
    elif answer.length is not None and answer.length <= CHUNK:
        for _ in answer.body:
            pass


def _may_be_wanted(response: Response, wanted: _Wanted) -> bool:
    return not wanted.types or response.content_type in wanted.types or _is_to_be_sniffed(response, wanted)


def _is_to_be_sniffed(response: Response, wanted: _Wanted) -> bool:
    return "text/html" in wanted.types and sniff.is_unknown(response.headers, response.content_type)


def _take_body(answer: Answer, response: Response, wanted: _Wanted) -> None:
    decoders = content_coding.decoders(response.headers.get("content-encoding", ""))
    pieces = answer.body
    for decoder in decoders:
        pieces = decoder.decode(pieces)
    if wanted.types and response.content_type not in wanted.types:
        header, pieces = _ahead(pieces, sniff.HEADER)
        if not sniff.is_html(header):
            return
        response.sniffed_type = "text/html"
    body: bytes | bytearray = b""
    for piece in pieces:
        response.size += len(piece)
        if response.size > wanted.max_body and not wanted.truncate:
            raise TooLargeError(f"body larger than {wanted.max_body} bytes")
        wanted.deadline.check()
        if wanted.growing:
            wanted.growing(response.size)
        if wanted.into is None:
            if body and isinstance(body, bytes):  # one piece needs no copy
                body = bytearray(body)
            body += piece
        elif not wanted.into(piece):
            return
        if response.size > wanted.max_body:
            break
    response.body = bytes(body[: wanted.max_body])
    if response.size > wanted.max_body:
        response.size = wanted.max_body
    elif not all(decoder.whole for decoder in decoders):
        if not answer.framed:
            raise HungUpError("body cut off: its compressed data has no end")
        if not response.size:  # as with one in five bodies that are said to be br and are gzip
            raise MalformedError("could not decode its content encoding: nothing came of it")


def _ahead(pieces: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes, if there are so many, and all pieces as if nothing had been taken."""
    taken = b""
    while len(taken) < size and (piece := next(pieces, b"")):
        taken += piece
    return taken[:size], itertools.chain([taken] if taken else [], pieces)
