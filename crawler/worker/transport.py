"""requests' adapter, used lean and bounded: connections of one batch, and answers that have an end.

A prepared request goes straight into the adapter: no environment look-ups, no cookies, no redirects followed; this
costs a third less CPU than `Session.get`.
"""

from __future__ import annotations

import http.client
import io
import logging
import ssl
import time
from typing import Any

import gevent
import requests
from requests.adapters import HTTPAdapter
from requests.structures import CaseInsensitiveDict
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

from crawler import limits, urls
from crawler.worker.clock import since_boot
from crawler.worker.fetch_errors import TimedOutError

logging.getLogger("urllib3").setLevel(logging.ERROR)  # it warns, at length, of headers that are none


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
            raise TimedOutError(f"took longer than {limits.FETCH:g} s")
        read: int | None = self._stream.readinto(buffer)
        return read

    def close(self) -> None:
        self._stream.close()
        super().close()


class _Answer(http.client.HTTPResponse):
    """An answer with an end. http.client passes over 100 Continue, any number of times, and takes every other interim
    answer, such as 103 Early Hints, for the final one (RFC 9110, section 15.2); and it reads any number of trailers.

    The two methods are private in http.client. Should they move, the tests of interim answers and of trailers in
    tests/unit/worker/test_fetch.py fail.
    """

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


class _Punctual(HTTPConnection):
    """A connection over which nothing is sent that should have been over by then: the process may have been stopped, or
    its machine suspended, since the request was allowed."""

    def connect(self) -> None:
        began = since_boot()
        super().connect()
        if since_boot() - began > limits.FETCH:
            raise TimedOutError(f"took longer than {limits.FETCH:g} s")


class _HTTPConnection(_Punctual):
    response_class = _Answer


class _HTTPSConnection(_Punctual, HTTPSConnection):
    response_class = _Answer


class _HTTPPool(HTTPConnectionPool):
    ConnectionCls = _HTTPConnection


class _HTTPSPool(HTTPSConnectionPool):
    ConnectionCls = _HTTPSConnection


class Adapter(HTTPAdapter):
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


_CONTEXT: ssl.SSLContext | None = None


def tls_context() -> ssl.SSLContext:
    """The process's TLS client context: the system's CA certificates, TLS 1.2 or later."""
    global _CONTEXT
    if _CONTEXT is None:
        _CONTEXT = ssl.create_default_context()
    return _CONTEXT
