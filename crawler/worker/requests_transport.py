"""The library requests as a transport: the second client, for jobs that ask for it (Job.client).

Its adapter is used lean: a prepared request goes straight into it, without cookies, environment look-ups and redirects
followed. Every limit of time and size holds, for it is kept around the library: at the socket, and in fetch.py. What
http.client reads by itself cannot be counted from outside, and is bounded by the deadline alone: interim answers and
trailers. Of the interim answers it knows 100 Continue; another, such as 103 Early Hints, it takes for the final answer.
What a server sends beyond its answer's end is noticed
only where it arrives by itself. There is no resumption of TLS sessions. Sockets are connect.py's, so that an address is
judged, and the judged one is connected to; TLS and the name that it verifies are the library's. No proxy is used.
"""

from __future__ import annotations

import contextvars
import http.client
import io
import logging
import re
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import gevent
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import MaxRetryError, ProtocolError, ReadTimeoutError

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
    TLSError,
)
from crawler.worker.transport import Headers

logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns, at length, of headers that are none

CHUNK = 64 * 1024
"""Bytes of a body that are read at once."""

_deadline: contextvars.ContextVar[Deadline] = contextvars.ContextVar("deadline")
"""That of the request which this greenlet sends; connections outlive requests."""


class RequestsTransport:
    """See transport.Transport."""

    def __init__(self, context: ssl.SSLContext, egress: Egress) -> None:
        self._adapter = _Adapter(context, egress)

    @property
    def opened(self) -> int:
        """Connections opened so far."""
        return sum(pool.num_connections for pool in self._adapter.pools.values())

    def send(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> _Answer:
        request = requests.PreparedRequest()
        request.method, request.url, request.hooks = "GET", url, {}
        request.headers = CaseInsensitiveDict(headers)
        _deadline.set(deadline)
        origin = urls.origin_of(url)
        opened = self._adapter.connections(origin)
        try:
            answer = self._adapter.send(request, stream=True, timeout=(limits.CONNECT, limits.READ), verify=True)
        except FetchError:
            raise
        except Exception as error:
            kept = opened > 0 and opened == self._adapter.connections(origin)
            raise _from_library(error, kept_connection=kept) from None
        return _Answer(answer.raw)

    def close(self) -> None:
        self._adapter.close()


class _Answer:
    """See transport.Answer."""

    body: Iterator[bytes]

    def __init__(self, raw: Any) -> None:
        self._raw = raw
        self.status = raw.status
        self.status_line = f"HTTP/{raw.version / 10:.1f} {raw.status} {raw.reason or ''}".rstrip()
        self.header_lines = list(raw.headers.items())
        self.headers = Headers(self.header_lines)
        self.length = None if raw.chunked else raw.length_remaining
        self.framed = raw.chunked or self.length is not None
        self._connection = raw.connection
        sock = getattr(raw.connection, "sock", None)
        try:
            self.address = str(sock.getpeername()[0]) if sock else None
        except OSError:
            self.address = None
        self._whole = False
        self.body = self._read()

    def close(self) -> None:
        if not self._whole:
            self._raw.close()
            if self._connection:
                self._connection.close()  # where the answer has let go of it already
        self.body = iter(())  # as in http1

    def _read(self) -> Iterator[bytes]:
        while True:
            try:
                chunk = self._raw.read1(CHUNK, decode_content=False)
            except FetchError:
                raise
            except Exception as error:
                raise _from_library(error, kept_connection=False) from None
            if not chunk:
                break
            yield chunk
        if self.status >= 200:  # after what is none of the final answers, the final one is still to come
            self._whole = True
            self._raw.release_conn()


class _Socket:
    """A socket the reader of which is a _SocketReader."""

    def __init__(self, sock: Any) -> None:
        self._sock = sock

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def makefile(self, *_: Any, **__: Any) -> io.BufferedReader:
        return io.BufferedReader(_SocketReader(self._sock.makefile("rb", buffering=0)), _SocketReader.SIZE)


class _SocketReader(io.RawIOBase):
    """Socket reader that enforces the deadline. While data keeps arriving, reads never block, so gevent would run
    neither its timer nor other fetches; yield every TURN reads."""

    SIZE, TURN = 32 * 1024, 4
    """Bytes read at once, and reads between two turns of the others."""

    def __init__(self, stream: Any) -> None:
        self._stream, self._deadline = stream, _deadline.get()
        self._reads = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._reads += 1
        if self._reads % self.TURN == 0:
            gevent.sleep(0)
        self._deadline.check()
        read: int | None = self._stream.readinto(buffer)
        return read

    def close(self) -> None:
        self._stream.close()
        super().close()


class _HTTPConnection(HTTPConnection):
    """One to an address that was judged, over which nothing is sent too late, and whose answers are read through
    _SocketReader."""

    def __init__(self, *args: Any, egress: Egress, **options: Any) -> None:
        super().__init__(*args, **options)
        self._egress = egress

    def _new_conn(self) -> Any:
        return connect.open_socket(self.host, self.port, self._egress)

    def connect(self) -> None:
        super().connect()
        _deadline.get().check_sending()
        self.sock: Any = _Socket(self.sock)


class _HTTPSConnection(_HTTPConnection, HTTPSConnection):
    """Likewise."""


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class _Adapter(HTTPAdapter):
    """requests' adapter without what only other uses need: cookies, certificates by request, and pools found anew for
    each request. URLs are normalised."""

    def __init__(self, context: ssl.SSLContext, egress: Egress) -> None:
        self._context, self._egress = context, egress
        self.pools: dict[str, HTTPConnectionPool] = {}
        """By origin."""
        super().__init__(pool_connections=4, pool_maxsize=1)

    def init_poolmanager(self, *args: Any, **kwargs: Any) -> None:
        super().init_poolmanager(*args, ssl_context=self._context, **kwargs)
        self.poolmanager.pool_classes_by_scheme = {"http": _HTTPPool, "https": _HTTPSPool}

    def cert_verify(self, conn: Any, *_: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # the CA certificates are in the context already

    def connections(self, origin: str) -> int:
        """How many were opened so far."""
        pool = self.pools.get(origin)
        return pool.num_connections if pool else 0

    def get_connection_with_tls_context(self, request: Any, *args: Any, **kwargs: Any) -> HTTPConnectionPool:
        origin = urls.origin_of(request.url)
        if origin not in self.pools:
            pool: Any = super().get_connection_with_tls_context(request, *args, **kwargs)
            pool.conn_kw["egress"] = self._egress
            self.pools[origin] = pool
        return self.pools[origin]

    def request_url(self, request: Any, _: Any) -> str:
        return urls.path_of(request.url)

    def build_response(self, _: Any, raw: Any) -> requests.Response:
        response = requests.Response()
        response.raw = raw
        return response


def _from_library(error: Exception, *, kept_connection: bool) -> FetchError:
    """What an exception of requests, urllib3 or http.client means. They raise more than their documentation tells: what
    is not known here counts as a malformed answer.

    `kept_connection`: the request went over a connection that had served an earlier one.
    """
    if isinstance(error, requests.exceptions.SSLError):
        return TLSError(f"TLS: {_innermost(error)}")
    if isinstance(error, requests.exceptions.ReadTimeout | ReadTimeoutError):
        return TimedOutError(f"silent for {limits.READ:g} s")
    cut = next((part for part in error.args if isinstance(part, http.client.IncompleteRead)), None)
    reason = f"body cut off: {cut}" if cut else _innermost(error)
    inner = error.args[0] if isinstance(error, requests.exceptions.ConnectionError) and error.args else error
    if _hung_up(inner):
        before_the_answer = inner is not error
        return StaleConnectionError(reason) if kept_connection and before_the_answer else HungUpError(reason)
    return MalformedError(reason)


def _hung_up(error: BaseException) -> bool:
    """Whether the connection ended before the answer did."""
    if isinstance(error, ProtocolError):
        return any(isinstance(part, ConnectionError | http.client.IncompleteRead) for part in error.args)
    return isinstance(error, ConnectionError)


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
