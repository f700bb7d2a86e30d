"""Why a request brought no usable answer: one class for each way of dealing with it, each with its cause."""

from __future__ import annotations

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


class RefusedError(FetchError):
    """Our own rules do not let us connect there (egress.py): nobody was asked, and nothing is wrong with the host."""

    def __init__(self, reason: str, cause: Cause) -> None:
        super().__init__(reason)
        self.cause = cause


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
