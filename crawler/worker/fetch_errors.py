"""Why a request brought no usable answer: one class for each way of dealing with it, each with its cause."""

from __future__ import annotations

import http.client
import re

import requests
from urllib3.exceptions import (
    MaxRetryError,
    NameResolutionError,
    NewConnectionError,
    ProtocolError,
    ReadTimeoutError,
)

from crawler import limits
from crawler.messages import Cause


def readable(text: str) -> str:
    """What a server said, fit for a terminal."""
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text.strip())


class FetchError(Exception):
    """No usable answer came. `reason` is for people, `cause` is what the code decides by."""

    cause = Cause.MALFORMED
    answered = False
    """Whether status and headers of an HTTP answer had arrived: the host is alive, whatever became of the body."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = readable(reason)


class UnreachableError(FetchError):
    """The host could not be found or reached. This may be true of one port, or one name, of a site that is alive."""


class DNSError(UnreachableError):
    cause = Cause.DNS


class ConnectError(UnreachableError):
    cause = Cause.CONNECT


class TLSError(UnreachableError):
    cause = Cause.TLS


class SilentError(FetchError):
    """The host was reached and did not give a whole answer."""


class TimedOutError(SilentError):
    cause = Cause.TIMEOUT


class HungUpError(SilentError):
    cause = Cause.HUNG_UP


class StaleConnectionError(HungUpError):
    """The server closed a kept connection just as it was used, which says nothing of the URL (RFC 9112, section
    9.3.1)."""


class MalformedError(FetchError):
    """What came is not HTTP, or its body is not in the encoding that its headers name."""


class UnwantedError(FetchError):
    """The answer is one that we do not take; another request would bring the same."""


class TooLargeError(UnwantedError):
    cause = Cause.TOO_LARGE


class UnknownCodingError(UnwantedError):
    """A content encoding that was not asked for."""


def from_library(error: Exception, *, kept_connection: bool) -> FetchError:
    """What an exception of requests, urllib3 or http.client means. They raise more than their documentation tells: what
    is not known here counts as a malformed answer.

    `kept_connection`: the request went over a connection that had served an earlier one.
    """
    if isinstance(error, requests.exceptions.SSLError):
        return TLSError(f"TLS: {_innermost(error)}")
    if isinstance(error, requests.exceptions.ConnectTimeout):
        return ConnectError(f"no connection within {limits.CONNECT:g} s")
    if isinstance(error, requests.exceptions.ReadTimeout | ReadTimeoutError):
        return TimedOutError(f"silent for {limits.READ:g} s")
    reason = _innermost(error)
    inner = error.args[0] if isinstance(error, requests.exceptions.ConnectionError) and error.args else error
    if isinstance(inner, MaxRetryError) and isinstance(inner.reason, NewConnectionError):
        return DNSError(reason) if isinstance(inner.reason, NameResolutionError) else ConnectError(reason)
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
