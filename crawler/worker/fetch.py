"""One HTTP request, bounded in every direction: time, header and body size, redirects. requests, used lean.

A prepared request goes straight into the adapter: no environment look-ups, no cookies, no redirects followed; this
costs a third less CPU than `Session.get`. Under gevent the deadline interrupts a server that drips; without it, it is
checked between chunks.
"""

from __future__ import annotations

import http.client
import io
import logging
import re
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import gevent
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import DecodeError, HTTPError, MaxRetryError, NewConnectionError, ProtocolError
from urllib3.response import GzipDecoderState

from crawler import limits, urls

logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns, at length, of headers that are none
CHUNK = 64 * 1024
LOOKUPS = 100
"""Host names looked up at the same time. A dead name occupies a thread for as long as its DNS servers are silent, well
after we gave it up; of gevent's ten threads none would be left for the living."""

_DECODED = {"gzip", "x-gzip", "deflate"}
# What servers write into Content-Encoding that encodes nothing; browsers read such pages.
_NO_CODINGS = {"", "identity", "none", "binary", "8bit", "utf-8", "utf8"}


def readable(text: str) -> str:
    """What a server said, fit for a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text.strip())


class FetchError(Exception):
    """No usable answer came. `reason` is for people; `host_down`: the host itself did not answer; `final`: another try
    would end the same; `stale`: the server closed a kept connection just as it was used, which says nothing of the URL
    (RFC 9112, section 9.3.1)."""

    def __init__(self, reason: str, *, host_down: bool = False, final: bool = False, stale: bool = False) -> None:
        super().__init__(reason)
        self.stale = stale
        self.reason = readable(reason)
        self.host_down = host_down
        self.final = final


@dataclass
class Response:
    """What came back."""

    url: str
    status: int
    headers: CaseInsensitiveDict[str]
    body: bytes = b""
    """Decompressed; empty where the body was not wanted."""
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
        """The media type alone, lower case; empty where the server named none."""
        return self.headers.get("content-type", "").partition(";")[0].strip().lower()

    @property
    def location(self) -> str | None:
        """Where a redirect leads, as written; its bytes read as UTF-8, like browsers do, where they are that."""
        written = self.headers.get("location") if self.status in (301, 302, 303, 307, 308) else None
        try:
            return written and written.encode("latin-1").decode()
        except UnicodeError:
            return written

    @property
    def retry_after(self) -> str | None:
        return self.headers.get("retry-after")


class _SocketReader(io.RawIOBase):
    """Socket reader that enforces limits.FETCH. While data keeps arriving, reads never block, so gevent would run
    neither its timer nor other fetches; yield every TURN reads."""

    SIZE, TURN = 32 * 1024, 4
    """Bytes read at once, and reads between two turns of the others."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._ends = time.monotonic() + limits.FETCH
        self._reads = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._reads += 1
        if self._reads % self.TURN == 0:
            gevent.sleep(0)
        if time.monotonic() > self._ends:
            raise FetchError(f"took longer than {limits.FETCH:g} s")
        read: int | None = self._stream.readinto(buffer)
        return read

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer with an end. http.client passes over 100 Continue, any number of times, and takes every other interim
    answer, such as 103 Early Hints, for the final one (RFC 9110, section 15.2); and it reads any number of trailers."""

    MAX_INTERIM = 20
    MAX_TRAILERS = 100

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.fp: Any = io.BufferedReader(_SocketReader(self.fp.detach()), _SocketReader.SIZE)

    def _read_status(self) -> tuple[str, int, str]:
        for _ in range(self.MAX_INTERIM + 1):
            version, status, reason = super()._read_status()  # type: ignore[misc]  # typeshed leaves it out
            if not 100 <= status < 200 or status == http.HTTPStatus.SWITCHING_PROTOCOLS:  # final: HTTP ends with it
                return version, status, reason
            http.client.parse_headers(self.fp)
        raise http.client.HTTPException(f"more than {self.MAX_INTERIM} interim answers")

    def _read_and_discard_trailer(self) -> None:
        for _ in range(self.MAX_TRAILERS):
            if self.fp.readline(65536) in (b"\r\n", b"\n", b""):
                return
        raise http.client.HTTPException(f"more than {self.MAX_TRAILERS} trailers")


class _HTTPConnection(HTTPConnection):
    response_class = _Answer


class _HTTPSConnection(HTTPSConnection):
    response_class = _Answer


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    """requests' adapter without what only other uses need: proxies, cookies, certificates by request, and pools found
    anew for each request. URLs are normalised. One shared TLS context: loading the CA bundle anew costs 15 ms."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._context = context
        self._pools: dict[str, HTTPConnectionPool] = {}
        super().__init__(pool_connections=4, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def cert_verify(self, conn: Any, *_: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # the CA certificates are in the context already

    def connections(self, url: str) -> int:
        """How many were opened so far for the origin of `url`."""
        pool = self._pools.get(urls.origin_of(url))
        return pool.num_connections if pool else 0

    def get_connection_with_tls_context(self, request: Any, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        origin = urls.origin_of(request.url)
        if origin not in self._pools:
            pool: Any = super().get_connection_with_tls_context(request, *args, **kwargs)
            self._pools[origin] = pool
        return self._pools[origin]

    def request_url(self, request: Any, _: Any) -> str:
        return urls.path_of(request.url)

    def build_response(self, _: Any, raw: Any) -> requests.Response:
        response = requests.Response()
        response.status_code, response.headers, response.raw = raw.status, CaseInsensitiveDict(raw.headers), raw
        return response


@dataclass
class Client:
    """Connections to one host for the time of a batch. Close it, or use it in `with`."""

    user_agent: str
    context: ssl.SSLContext = field(default_factory=lambda: tls_context())

    def __post_init__(self) -> None:
        lookups = gevent.get_hub().threadpool
        lookups.maxsize = max(lookups.maxsize, LOOKUPS)
        self._adapter = _Adapter(self.context)
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
        headers: dict[str, str] | None = None,
        deadline: float | None = None,
    ) -> Response:
        """Fetch `url`, with `headers` besides our own. The body is read only if its media type is in `wanted` (empty:
        any) and the status is 2xx.

        Raises FetchError when there is no complete answer within `deadline` seconds (limits.FETCH), or the body,
        decompressed, is larger than `max_body` bytes; with `truncate` its first `max_body` bytes are the body.
        """
        deadline = limits.FETCH if deadline is None else deadline
        request = requests.PreparedRequest()
        request.method, request.url, request.headers, request.hooks = "GET", url, self._headers, {}
        if headers:
            request.headers = CaseInsensitiveDict({**self._headers, **headers})
        started_at, clock = time.time(), time.monotonic()
        opened = self._adapter.connections(url)
        timer = gevent.Timeout(deadline)
        timer.start()
        try:
            return self._get(request, max_body, wanted, truncate, started_at, clock, deadline)
        except gevent.Timeout as expired:
            if expired is not timer:
                raise
            raise FetchError(f"took longer than {deadline:g} s") from None
        except requests.exceptions.SSLError as error:
            raise FetchError(f"TLS: {_innermost(error)}") from None
        except requests.exceptions.ConnectTimeout:
            raise FetchError(f"no connection within {limits.CONNECT:g} s", host_down=True) from None
        except requests.exceptions.ConnectionError as error:
            stale = opened > 0 and opened == self._adapter.connections(url) and _hung_up(error)
            raise FetchError(_innermost(error), host_down=_never_connected(error), stale=stale) from None
        except requests.exceptions.ReadTimeout:
            raise FetchError(f"silent for {limits.READ:g} s") from None
        except FetchError:
            raise
        except Exception as error:  # what the libraries raise for what a server may send is more than they tell
            raise FetchError(_innermost(error)) from None
        finally:
            timer.close()

    def _get(
        self,
        request: requests.PreparedRequest,
        max_body: int,
        wanted: tuple[str, ...],
        truncate: bool,
        started_at: float,
        clock: float,
        deadline: float,
    ) -> Response:
        answer = self._adapter.send(request, stream=True, timeout=(limits.CONNECT, limits.READ), verify=True)
        response = Response(
            str(request.url),
            answer.status_code,
            answer.headers,
            started_at=started_at,
            status_line=f"HTTP/{answer.raw.version / 10:.1f} {answer.status_code} {answer.raw.reason or ''}".rstrip(),
            header_lines=list(answer.raw.headers.items()),
            address=_peer(answer),
            request_headers=request.headers,
        )
        if 200 <= response.status < 300 and (not wanted or response.content_type in wanted):
            if unknown := _encodings(answer) - _DECODED - _NO_CODINGS:
                answer.raw.close()
                raise FetchError(f"content encoding {min(unknown)[:50]!r}, which was not asked for", final=True)
            framed = answer.raw.chunked or answer.raw.length_remaining is not None
            body = bytearray()
            try:
                while chunk := answer.raw.read1(CHUNK, decode_content=True):
                    body += chunk
                    if len(body) > max_body:
                        if truncate:
                            break
                        raise FetchError(f"body larger than {max_body} bytes", final=True)
                    if time.monotonic() - clock > deadline:
                        raise FetchError(f"took longer than {deadline:g} s")
                if not framed and len(body) <= max_body and _ends_early(answer):
                    raise FetchError("body cut off: its compressed data has no end")
            except (FetchError, HTTPError, DecodeError, OSError):
                answer.raw.close()  # half-read: not to be used again
                raise
            response.body = bytes(body[:max_body])
            if len(body) > max_body:
                answer.raw.close()
            else:
                answer.raw.release_conn()
        else:
            _discard(answer)
        response.seconds = time.monotonic() - clock
        return response


def _peer(answer: requests.Response) -> str | None:
    """Before the body is read: with its last byte the connection goes back to its pool."""
    sock = getattr(answer.raw.connection, "sock", None)
    try:
        return str(sock.getpeername()[0]) if sock else None
    except OSError:
        return None


def _encodings(answer: requests.Response) -> set[str]:
    return {name.strip().lower() for name in answer.headers.get("content-encoding", "").split(",")}


def _ends_early(answer: requests.Response) -> bool:
    """Whether a body that ended with its connection stops amidst its gzip or deflate data. Only the decoder knows, and
    urllib3 does not ask it; nor does it show it, hence the private names. What follows the data is no matter."""
    decoder = getattr(answer.raw, "_decoder", None)
    stages = getattr(decoder, "_decoders", [decoder])
    return bool(answer.raw.tell()) and not all(
        getattr(getattr(stage, "_obj", None), "eof", True)
        or getattr(stage, "_state", None) == GzipDecoderState.SWALLOW_DATA
        for stage in stages
    )


def _discard(answer: requests.Response) -> None:
    """Keep the connection if the rest of the body is small enough to read; give it up otherwise."""
    length = answer.headers.get("content-length", "")
    if length.isdigit() and int(length) <= CHUNK:
        answer.raw.drain_conn()
        answer.raw.release_conn()
    else:
        answer.raw.close()


def _hung_up(error: requests.exceptions.ConnectionError) -> bool:
    outer = error.args[0] if error.args else None
    return isinstance(outer, ProtocolError) and isinstance(outer.args[-1], ConnectionError)


def _never_connected(error: requests.exceptions.ConnectionError) -> bool:
    """Whether the host could not be found or reached, rather than hung up on us."""
    outer = error.args[0] if error.args else None
    return isinstance(outer, MaxRetryError) and isinstance(outer.reason, NewConnectionError)


def _innermost(error: BaseException) -> str:
    """The part of a nested requests/urllib3 error that says what happened."""
    said: list[str] = []
    while True:
        inner = next(
            (part for part in (getattr(error, "reason", None), *error.args) if isinstance(part, BaseException)), None
        )
        text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
        if inner is None:
            said.append(text or str(error) or type(error).__name__)
            break
        if text and not isinstance(error, MaxRetryError):
            said.append(text.rstrip("."))
        error = inner
    # "<urllib3.connection.HTTPConnection object at 0x...>: Failed to establish a new connection: ..."
    return re.sub(r"<[^<>]*>:? ?|\w*Connection\([^()]*\): ", "", ": ".join(said))[:300]


_CONTEXT: ssl.SSLContext | None = None


def tls_context() -> ssl.SSLContext:
    """The process's TLS client context: the system's CA certificates, TLS 1.2 or later."""
    global _CONTEXT
    if _CONTEXT is None:
        _CONTEXT = ssl.create_default_context()
    return _CONTEXT
