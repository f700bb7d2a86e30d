"""What a request goes out by, and what comes back before its body is read: the interface of the two clients.

http1.py is our own client, requests_transport.py the library requests. What is common to both (what is wanted of an
answer, its budgets, its content encodings) is in fetch.py.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol, overload

from crawler.worker.clock import Deadline


class Headers(dict[str, str]):
    """An answer's headers by name, in any case; the values of a repeated one are joined (RFC 9110, section 5.3)."""

    def __init__(self, lines: Iterable[tuple[str, str]] = ()) -> None:
        joined: dict[str, str] = {}
        for name, value in lines:
            name = name.lower()
            joined[name] = f"{joined[name]}, {value}" if name in joined else value
        super().__init__(joined)

    def __getitem__(self, name: str) -> str:
        return super().__getitem__(name.lower())

    def __contains__(self, name: object) -> bool:
        return super().__contains__(str(name).lower())

    @overload  # type: ignore[override]  # of other defaults
    def get(self, name: str) -> str | None: ...

    @overload
    def get(self, name: str, default: str) -> str: ...

    def get(self, name: str, default: str | None = None) -> str | None:
        return super().get(name.lower(), default)


class Answer(Protocol):
    """Status and headers, which have arrived; and the body, which has not."""

    status: int
    status_line: str
    """As the server sent it, such as "HTTP/1.1 200 OK"."""
    header_lines: list[tuple[str, str]]
    """As the server sent them: in its order, repeated ones each by itself; read as Latin-1."""
    headers: Headers
    address: str | None
    """The server's IP address, where it is known."""
    length: int | None
    """Bytes of the body that the server announced."""
    framed: bool
    """Whether the body has an end besides that of the connection."""
    body: Iterator[bytes]
    """The body piece by piece, as it was sent, content encodings and all. Raises FetchError."""

    def close(self) -> None:
        """Done with it. A connection whose body was not read to its end is given up."""


class Transport(Protocol):
    """Connections to a few origins."""

    def send(self, url: str, headers: Mapping[str, str], deadline: Deadline) -> Answer:
        """GET a normalised `url`, with `headers` besides Host. Raises FetchError."""

    def close(self) -> None: ...
