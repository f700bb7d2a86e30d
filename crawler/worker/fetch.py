"""One HTTP request, bounded in every direction: time, header and body size, redirects.

Under gevent the deadline interrupts a server that drips; without it, it is checked between pieces of the body.
"""

from __future__ import annotations

import itertools
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import gevent
import requests
from requests.structures import CaseInsensitiveDict

from crawler import limits
from crawler.worker import content_coding, fetch_errors, sniff
from crawler.worker.fetch_errors import FetchError, HungUpError, TimedOutError, TooLargeError
from crawler.worker.transport import Adapter, tls_context

CHUNK = 64 * 1024
"""Bytes of a body that are read at once; an unwanted body is read to its end if it is not longer."""
LOOKUPS = 100
"""Host names looked up at the same time. A failing DNS lookup holds its thread past our deadline; with gevent's default
of ten threads, ten dead names would block all lookups."""


@dataclass
class Response:
    """What came back."""

    url: str
    status: int
    headers: CaseInsensitiveDict[str]
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
        return written and as_utf_8(written)

    @property
    def retry_after(self) -> str | None:
        return self.headers.get("retry-after")


def as_utf_8(header: str) -> str:
    """A header's value, which http.client reads as Latin-1, as UTF-8 where its bytes are that."""
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
    deadline: float
    ends: float
    """By time.monotonic, `deadline` seconds after the request began."""


@dataclass
class Client:
    """Connections to one host for the time of a batch. Close it, or use it in `with`."""

    user_agent: str
    context: ssl.SSLContext = field(default_factory=tls_context)

    def __post_init__(self) -> None:
        lookups = gevent.get_hub().threadpool
        lookups.maxsize = max(lookups.maxsize, LOOKUPS)
        self._adapter = Adapter(self.context)
        self._headers = CaseInsensitiveDict(
            {
                "User-Agent": self.user_agent,
                "Accept": "text/html,application/xhtml+xml,*/*;q=0.5",
                "Accept-Encoding": "gzip, deflate",
            }
        )

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self._adapter.close()

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
        deadline = limits.FETCH if deadline is None else deadline
        request = requests.PreparedRequest()
        request.method, request.url, request.headers, request.hooks = "GET", url, self._headers, {}
        if headers:
            request.headers = CaseInsensitiveDict({**self._headers, **headers})
        response = Response(url, 0, CaseInsensitiveDict(), started_at=time.time(), request_headers=request.headers)
        clock = time.monotonic()
        timer = gevent.Timeout(deadline)
        timer.start()
        try:
            answer = self._send(request)
            _note_head(response, answer)
            _read(answer, response, _Wanted(wanted, max_body, truncate, into, growing, deadline, clock + deadline))
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
            error: FetchError = TimedOutError(f"took longer than {deadline:g} s")
        except FetchError as raised:
            error = raised
        else:
            response.seconds = time.monotonic() - clock
            return response
        finally:
            timer.close()
        error.answered = response.status > 0
        raise error from None

    def _send(self, request: requests.PreparedRequest) -> requests.Response:
        """The answer, its body still to be read."""
        opened = self._adapter.connections(str(request.url))
        try:
            return self._adapter.send(request, stream=True, timeout=(limits.CONNECT, limits.READ), verify=True)
        except FetchError:
            raise
        except Exception as error:
            kept = opened > 0 and opened == self._adapter.connections(str(request.url))
            raise fetch_errors.from_library(error, kept_connection=kept) from None


def _note_head(response: Response, answer: requests.Response) -> None:
    """Status, headers and the server's address; before the body is read, for with its last byte the connection goes
    back to its pool."""
    raw = answer.raw
    response.status, response.headers = answer.status_code, answer.headers
    response.status_line = f"HTTP/{raw.version / 10:.1f} {answer.status_code} {raw.reason or ''}".rstrip()
    response.header_lines = list(raw.headers.items())
    sock = getattr(raw.connection, "sock", None)
    try:
        response.address = str(sock.getpeername()[0]) if sock else None
    except OSError:
        response.address = None


def _read(answer: requests.Response, response: Response, wanted: _Wanted) -> None:
    """Read the body, if it is wanted, into `response`; leave the connection to the next request where that is cheap."""
    try:
        if not 200 <= response.status < 300 or not _may_be_wanted(response, wanted):
            _discard(answer)
        elif _take_body(answer, response, wanted):
            answer.raw.release_conn()
        else:
            answer.raw.close()
    except BaseException:
        answer.raw.close()  # half-read: not to be used again
        raise


def _may_be_wanted(response: Response, wanted: _Wanted) -> bool:
    return not wanted.types or response.content_type in wanted.types or _is_to_be_sniffed(response, wanted)


def _is_to_be_sniffed(response: Response, wanted: _Wanted) -> bool:
    return "text/html" in wanted.types and sniff.is_unknown(response.headers, response.content_type)


def _take_body(answer: requests.Response, response: Response, wanted: _Wanted) -> bool:
    """False if the body was not read to its end."""
    framed = answer.raw.chunked or answer.raw.length_remaining is not None
    decoders = content_coding.decoders(response.headers.get("content-encoding", ""))
    pieces = _pieces(answer, decoders)
    if wanted.types and response.content_type not in wanted.types:
        header, pieces = _ahead(pieces, sniff.HEADER)
        if not sniff.is_html(header):
            return False
        response.sniffed_type = "text/html"
    body = bytearray()
    for piece in pieces:
        response.size += len(piece)
        if response.size > wanted.max_body and not wanted.truncate:
            raise TooLargeError(f"body larger than {wanted.max_body} bytes")
        if time.monotonic() > wanted.ends:
            raise TimedOutError(f"took longer than {wanted.deadline:g} s")
        if wanted.growing:
            wanted.growing(response.size)
        if wanted.into is None:
            body += piece
        elif not wanted.into(piece):
            return False
        if response.size > wanted.max_body:
            del body[wanted.max_body :]
            break
    response.body = bytes(body)
    if response.size > wanted.max_body:
        response.size = wanted.max_body
        return False
    if not framed and not all(decoder.whole for decoder in decoders):
        raise HungUpError("body cut off: its compressed data has no end")
    return True


def _pieces(answer: requests.Response, decoders: list[content_coding.Decoder]) -> Iterator[bytes]:
    pieces = _chunks(answer)
    for decoder in decoders:
        pieces = decoder.decode(pieces)
    return pieces


def _chunks(answer: requests.Response) -> Iterator[bytes]:
    """The body as it was sent."""
    while True:
        try:
            chunk = answer.raw.read1(CHUNK, decode_content=False)
        except FetchError:
            raise
        except Exception as error:
            raise fetch_errors.from_library(error, kept_connection=False) from None
        if not chunk:
            return
        yield chunk


def _ahead(pieces: Iterator[bytes], size: int) -> tuple[bytes, Iterator[bytes]]:
    """The first `size` bytes, if there are so many, and all pieces as if nothing had been taken."""
    taken = b""
    while len(taken) < size and (piece := next(pieces, b"")):
        taken += piece
    return taken[:size], itertools.chain([taken] if taken else [], pieces)


def _discard(answer: requests.Response) -> None:
    """Keep the connection if the rest of the body is small enough to read; give it up otherwise."""
    length = answer.headers.get("content-length", "")
    if length.isdigit() and int(length) <= CHUNK:
        answer.raw.drain_conn()
        answer.raw.release_conn()
    else:
        answer.raw.close()
