"""Run as a program: our own HTTP client beside the library requests, given the same answers, made up at random.

    python -m gevent.monkey tests/unit/worker/differential.py SECONDS [ANSWERS [SEED]]

What they may differ in is one of RULES, with its reason; any other difference is printed, and ends the program with 1.
And whatever was sent beyond an answer's end, the next request over the same client brings what was sent for it.
"""

from __future__ import annotations

import gzip
import random
import re
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import brotli
from gevent.server import StreamServer

from crawler.worker.content_coding import zstd
from crawler.worker.egress import from_settings
from crawler.worker.fetch import Client
from crawler.worker.fetch_errors import FetchError

HERE = from_settings(["127.0.0.0/8"])

# --- answers ----------------------------------------------------------------------------------------------------------

PAGE = b"<!doctype html><title>page</title><p>" + b"text " * 50
CODINGS: dict[bytes, Callable[[bytes], bytes]] = {
    b"gzip": lambda data: gzip.compress(data, mtime=0),
    b"x-gzip": lambda data: gzip.compress(data, mtime=0),
    b"deflate": zlib.compress,
    b"Deflate": lambda data: zlib.compress(data)[2:-4],
    b"br": brotli.compress,
    b"zstd": zstd.compress,
    b"identity": bytes,
    b"": bytes,
    b"utf-8": bytes,
    b"lzma": bytes,
}
STATUS_LINES = (
    *(b"HTTP/1.1 200 OK", b"HTTP/1.1 200", b"HTTP/1.1 200 ", b"HTTP/1.1 201 All  is\twell", b"HTTP/1.0 200 OK"),
    *(b"HTTP/1.1  200   OK", b"HTTP/1.1\t200\tOK", b"HTTP/1.1 200 \xff\x80", b"HTTP/1.1 206 Part", b"HTTP/1.1 205 x"),
    *(b"HTTP/1.1 204 No", b"HTTP/1.1 304 Not", b"HTTP/1.1 302 Found", b"HTTP/1.1 404 No", b"HTTP/1.1 503 x"),
    *(b"HTTP/1.1 999 x", b"HTTP/1.1 099 x", b"HTTP/1.1 1000 x", b"HTTP/1.1 20 x", b"HTTP/1.1 +20 x", b"HTTP/1.1 2x0 x"),
    *(b"HTTP/2.0 200 OK", b"HTTP/1.9 200 OK", b"HTTP/0.9 200 OK", b"HTTP/1 200 OK", b"http/1.1 200 OK", b"ICY 200 OK"),
    *(b"HTTP/1.1", b"HTTP/1.1 200OK", b"HTTPS/1.1 200 OK", b"", b" HTTP/1.1 200 OK", b"HTTP/1.1 101 Switching"),
)
HEADERS = (
    *(b"Content-Type: text/html", b"content-type:text/html; charset=utf-8", b"Content-Type: image/png"),
    *(b"Content-Type: ", b"Content-Type: x", b"X-Content-Type-Options: nosniff", b"Connection: close"),
    *(b"Connection: keep-alive", b"Connection: Upgrade, close", b"Location: /caf\xc3\xa9", b"Location: /caf\xe9"),
    *(b"Location: /a b\0c", b"Location: ", b"Set-Cookie: a=b", b"Set-Cookie: c=d; e", b"X: a\x0bb\x0cc\x85d"),
    *(b'ETag: \xa0"x"\xa0', b"Server:  \t spaces \t ", b"X-Empty:", b"Retry-After: 5", b"Trailer: X", b"Upgrade: h2c"),
    *(b"Keep-Alive: timeout=5", b"X: \xe2\x80\xa8", b"Vary: *", b"x-UPPER: lower"),
)
ODD_LINES = (
    *(b"no colon at all", b": no name", b"Name : spaced", b"N\xffme: x", b"(x): y", b" folded", b"\tfolded", b"\0: \0"),
    *(b"From me: x", b"X: bare\rreturn", b"\rX: y", b"X\x0bY: z"),
)


def pick(rng: random.Random, *choices: Any, odd: float = 0.1) -> Any:
    """The first of `choices` most of the time."""
    return rng.choice(choices) if rng.random() < odd else choices[0]


def chunked(rng: random.Random, body: bytes, end: bytes) -> bytes:
    """`body` in chunks; some of them wrong."""
    made, at = b"", 0
    while at < len(body):
        piece = body[at : at + rng.choice((1, 2, 7, 100, 5000))]
        at += len(piece)
        size = b"%x" % len(piece)
        size = pick(rng, size, size.upper(), b"000" + size, b" " + size, size + b" ", odd=0.2)
        size = pick(rng, size, b"0x" + size, b"+" + size, b"-" + size, b"", b"zz", b"1_0", b"f" * 20, odd=0.02)
        extension = pick(rng, b"", b";a=b", b'; a="b;c"', b";" + b"x" * 1000, b" ;", odd=0.2)
        made += size + extension + end + piece + pick(rng, end, b"", b"x" + end, b"\n", odd=0.02)
    trailers = pick(rng, b"", b"X: y" + end, (b"X: y" + end) * rng.choice((99, 100, 101)), b"nonsense" + end, odd=0.2)
    return made + pick(rng, b"0", b"00", b"0;x", odd=0.2) + end + trailers + pick(rng, end, b"", b"\n", odd=0.1)


def head(rng: random.Random, length: int) -> tuple[list[bytes], str, bytes]:
    """Header lines, how the body is framed, and its content encodings."""
    lines = [rng.choice(HEADERS) for _ in range(rng.randrange(6))]
    framing = rng.choice(("length", "chunked", "close"))
    if framing == "chunked":
        chunks = pick(rng, b"chunked", b"Chunked", b" chunked ", b"gzip, chunked", b"chunked, chunked", b"identity")
        lines.append(b"Transfer-Encoding: " + chunks)
    if framing == "length" or rng.random() < 0.05:
        right = b"%d" % length
        wrong = (
            b"%d" % (length + 1),
            b"%d" % max(length - 1, 0),
            b"many",
            b"+" + right,
            b"-1",
            right + b"_0",
            b"9" * 25,
        )
        lines.append(b"Content-Length: " + pick(rng, right, b"0" + right, *wrong, right + b", " + right, b"1, 2", b""))
        if rng.random() < 0.05:
            lines.append(b"Content-Length: " + pick(rng, right, b"3", b"x", odd=0.5))
    for _ in range(pick(rng, 0, 1, 2)):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(ODD_LINES))
    rng.shuffle(lines)
    flood = pick(rng, 0, *(number - len(lines) for number in (98, 99, 100, 101)), odd=0.02)
    return lines + [b"X: y"] * flood, framing, b""


def answer(rng: random.Random) -> bytes:
    codings = [pick(rng, *CODINGS, odd=1.0) for _ in range(pick(rng, 0, 1, 2, 6, odd=0.4))]
    body = pick(rng, PAGE, b"", b"x", bytes(200_000), b"\xef\xbb\xbf<html>", b"\x89PNG", odd=0.3)
    for coding in codings:
        body = CODINGS[coding](body)
    body = pick(rng, body, body[:-1], body + b"garbage", b"plain", body + body, odd=0.1)
    lines, framing, _ = head(rng, len(body))
    if codings:
        lines.append(b"Content-Encoding: " + b", ".join(codings))
    if rng.random() < 0.01:
        lines.append(b"X-Long: " + b"x" * rng.choice((65_520, 65_526, 65_527, 65_528, 65_530, 65_540, 70_000)))
    end = pick(rng, b"\r\n", b"\n")
    interim = (b"HTTP/1.1 100 Continue" + end + end) * pick(rng, 0, 1, 2, 5)
    made = interim + pick(rng, *STATUS_LINES, odd=0.5) + end + b"".join(line + end for line in lines) + end
    made += chunked(rng, body, end) if framing == "chunked" else body
    made += pick(rng, b"", b"garbage", b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged", odd=0.05)
    return mutated(rng, made)


def mutated(rng: random.Random, made: bytes) -> bytes:
    """One answer in four with a few bytes changed, or cut off."""
    if rng.random() < 0.75 or not made:
        return made
    changed = bytearray(made)
    for _ in range(rng.choice((1, 1, 3))):
        at = rng.randrange(min(len(changed), rng.choice((40, 400, 1_000_000))) or 1)
        rng.choice(
            (
                lambda at=at: changed.__setitem__(slice(at, at + 1), bytes([rng.randrange(256)])),
                lambda at=at: changed.__setitem__(slice(at, at + 1), b""),
                lambda at=at: changed.__setitem__(
                    slice(at, at), rng.choice((b"\r", b"\n", b"\r\n", b" ", b"\0", b":", b"0"))
                ),
                lambda at=at: changed.__delitem__(slice(at, None)),
            )
        )()
    return bytes(changed)


# --- the server, and what came of it ----------------------------------------------------------------------------------

SECOND = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 6\r\n\r\nsecond"


class Server:
    """Sends `pieces`, one after the other, to whoever asks for anything but /second, and hangs up, or not."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.hangs_up = True
        self._server = StreamServer(("127.0.0.1", 0), self._serve)
        self._server.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _serve(self, connection: Any, _: object) -> None:
        stream = connection.makefile("rb")
        try:
            while line := stream.readline():
                while stream.readline().strip():
                    pass
                if line.startswith(b"GET /second"):
                    connection.sendall(SECOND)
                    continue
                for piece in self.pieces:
                    connection.sendall(piece)
                if self.hangs_up:
                    return
        except OSError:
            return
        finally:
            stream.close()


@dataclass
class Outcome:
    """What a client made of an answer."""

    error: type[FetchError] | None = None
    reason: str = ""
    answered: bool = True
    head: tuple[Any, ...] = ()
    lines: dict[str, list[str]] = field(default_factory=dict)
    size: int = 0
    body: bytes = b""
    """Its beginning."""
    digest: int = 0

    def says(self, *beginnings: str) -> bool:
        """Whether the error's reason begins so."""
        return self.reason.startswith(beginnings)


def outcome(server: Server, kind: Any) -> Outcome:
    with Client("x", kind=kind, egress=HERE) as client:
        try:
            response = client.get(f"{server.url}/", max_body=150_000, wanted=("text/html",))
        except FetchError as error:
            return Outcome(type(error), error.reason, error.answered)
    lines: dict[str, list[str]] = {}
    for name, value in response.header_lines:  # urllib3 puts repeated ones together, and keeps folds and final spaces
        lines.setdefault(name.lower(), []).append(re.sub(r"[ \t\r\n]+", " ", value).strip(" \t"))
    seen = (response.status, response.status_line, response.content_type, response.location)
    return Outcome(None, "", True, seen, lines, len(response.body), response.body[:50], hash(response.body))


# --- the rules --------------------------------------------------------------------------------------------------------

_INTERIM = re.compile(rb"(?:HTTP/1\.\d[ \t]+1(?!01)\d\d[^\n]*\n(?:(?!\r?\n)[^\n]*\n)*\r?\n)*")
_PLAIN_STATUS = re.compile(rb"HTTP/1\.\d[ \t]+[1-9]\d\d(?:[ \t\r]|$)")
_PLAIN_HEADER = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[^\r\0]*\r?")


@dataclass
class Case:
    """An answer, its final head by lines, and what came of it."""

    made: bytes
    own: Outcome
    requests: Outcome

    def __post_init__(self) -> None:
        rest = self.made[len(_INTERIM.match(self.made)[0]) :]
        end = re.search(rb"\n\r?\n", rest)
        self.status_line, *self.lines = (rest[: end.start()] if end else rest).split(b"\n")
        self.rest = rest[end.end() :] if end else b""

    def header(self, name: bytes) -> list[bytes]:
        return [value.strip() for key, _, value in (line.partition(b":") for line in self.lines) if key.lower() == name]

    @property
    def is_chunked(self) -> bool:
        return bool(self.header(b"transfer-encoding"))


def is_strange(line: bytes) -> bool:
    return not (_PLAIN_HEADER.fullmatch(line) or line[:1] in (b" ", b"\t"))


RULES: dict[str, Callable[[Case], Any]] = {
    # http.client takes what Python's int() and str.split() take: HTTP/0.9, "HTTP/1. +20", white space before it all.
    "a status line that is none": lambda case: (
        case.own.says("no HTTP status line") and not _PLAIN_STATUS.match(case.status_line)
    ),
    # We say the version as it was sent; for http.client there are 1.0 and 1.1.
    "HTTP/1.2 and later": lambda case: (
        re.match(rb"HTTP/1\.[2-9]", case.status_line)
        and (case.own.head[0] == case.requests.head[0] if case.own.head and case.requests.head else False)
    ),
    # For http.client the end of the connection ends the head; who knows which of its headers are missing?
    "a head cut off": lambda case: case.own.says("answer cut off in its headers"),
    # email.parser takes the first line that is no header for the end of the head. Browsers pass over it, as we do.
    "a header line that is none": lambda case: any(map(is_strange, case.lines)),
    # http.client takes what int() takes: +5, 5_0, any number of digits. For us that is no length.
    "a length that is no number": lambda case: any(
        not re.fullmatch(rb"\d{1,18}", part.strip())
        for value in case.header(b"content-length")
        for part in value.split(b",")
    ),
    # http.client passes over two bytes after a chunk, whatever they are, and takes "0x5", "+5" and "5_0" for sizes.
    "a chunk's size, or the end of one": lambda case: (
        case.is_chunked and case.own.says("body cut off: no chunk's size", "body cut off: a chunk longer")
    ),
    # http.client passes over two bytes after a chunk, we over a line's end: a bare LF is one, as for browsers. Then we
    # see what is in the chunks, which may be in no such encoding as the head says.
    "a chunk that ends with a bare LF": lambda case: (
        case.is_chunked
        and case.requests.says("body cut off")
        and (not case.own.error or case.own.says("could not decode"))
    ),
    # For http.client "0", "0;" and the end of the connection are the end of the body; the line may have gone on.
    "a last chunk's line cut off": lambda case: (
        case.own.says("body cut off: its last chunk is missing") and re.search(rb"\n[ 0]+(;[^\n]*)?\r?$", case.made)
    ),
    # RFC 9112, section 5.2: a bare CR in a header is a space. email.parser takes it for a line's end.
    "a bare CR": lambda case: any(b"\r" in line.removesuffix(b"\r") for line in (case.status_line, *case.lines)),
    # http.client counts the empty line as well.
    "exactly 100 headers": lambda case: len(case.lines) == 100 and "100 headers" in case.requests.reason,
    # We count the line's end as well, or not.
    "a header line of 64 KiB": lambda case: (
        any(65_530 <= len(line) <= 65_537 for line in case.lines)
        and "header line" in case.own.reason + case.requests.reason
    ),
    # For http.client no body has a length when it is "gzip, chunked", for us as for browsers that is chunked.
    "chunked among other transfer codings": lambda case: (
        any(b"chunked" in value.lower() and value.lower() != b"chunked" for value in case.header(b"transfer-encoding"))
        or len(case.header(b"transfer-encoding")) > 1
    ),
    # RFC 9112, section 6.3: a list of equal lengths is that length. For http.client it is none.
    "a list of equal lengths": lambda case: any(b"," in value for value in case.header(b"content-length")),
    # http.client compares what is folded, line's end and all.
    "a framing header that is folded": lambda case: any(
        line.lower().startswith((b"transfer-encoding:", b"content-length:")) and following[:1] in (b" ", b"\t")
        for line, following in zip(case.lines, case.lines[1:], strict=False)
    ),
    # http.client takes "chunked" with a space after it for another coding.
    "a space after chunked": lambda case: any(
        line.lower().startswith(b"transfer-encoding:") and re.search(rb"[ \t]\r?$", line) for line in case.lines
    ),
    # urllib3 reads chunks where there is no body, and finds none.
    "chunks where there is no body": lambda case: (
        case.is_chunked and case.own.head and case.own.head[0] in (101, 204, 304)
    ),
    # For us, what is folded belongs to the line before, be it the status line.
    "a fold after the status line": lambda case: case.lines and case.lines[0][:1] in (b" ", b"\t"),
    # http.client knows 100 Continue alone.
    "another interim answer": lambda case: (
        re.match(rb"HTTP/1\.\d[ \t]+1(?!0[01])\d\d", case.made)
        or (case.requests.head and case.requests.head[0] < 200 and case.requests.head[0] != 101)
    ),
    # http.client counts no trailers.
    "more than 100 trailers": lambda case: case.own.says("more than 100 trailers"),
}


def split(rng: random.Random, made: bytes) -> list[bytes]:
    """`made` as it may arrive."""
    cuts = sorted(rng.randrange(len(made) + 1) for _ in range(pick(rng, 0, 1, 3, odd=0.5)))
    return [made[a:b] for a, b in zip([0, *cuts], [*cuts, len(made)], strict=True) if a < b]


def rule(case: Case) -> str | None:
    """The name of the rule by which they differ; "" where they do not, None where no rule says so."""
    own, requests = case.own, case.requests
    if own == requests or (own.error and own.error is requests.error and own.answered == requests.answered):
        return ""
    return next((name for name, holds in RULES.items() if holds(case)), None)


def main(seconds: float, answers: int, seed: int) -> int:
    """Until `seconds` or `answers` are over; another `seed`, other answers."""
    began, server, first = time.monotonic(), Server(), seed
    used: Counter[str] = Counter()
    unruled = 0
    while time.monotonic() - began < seconds and seed - first < answers:
        rng = random.Random(seed)  # noqa: S311 - not for secrets
        made = answer(rng)
        server.pieces = split(rng, made)
        case = Case(made, outcome(server, "own"), outcome(server, "requests"))
        name = rule(case)
        if name is None:
            unruled += 1
            if unruled <= 20:
                print(f"seed {seed}: {made[:400]!r}\n  own {case.own}\n  requests {case.requests}")
        used[name or ("the same" if name == "" else "no rule")] += 1
        unruled += smuggled(server, rng, made)
        seed += 1
    print(f"{seed - first} answers from seed {first} on:", dict(used.most_common()))
    return int(unruled > 0)


def smuggled(server: Server, rng: random.Random, made: bytes) -> bool:
    """Whether what was sent for one request passes for the answer to the next, over a connection that stays open."""
    server.pieces, server.hangs_up = split(rng, made), False
    with Client("x", egress=HERE) as client:
        for path, deadline in (("/", 0.05), ("/second", 2.0), ("/second", 2.0)):
            try:
                response = client.get(server.url + path, max_body=150_000, deadline=deadline)
            except FetchError:
                continue
            if path == "/second" and response.body != b"second":
                print(f"the next request brought {response.body[:100]!r} after {made[:400]!r}")
                return True
    server.hangs_up = True
    return False


if __name__ == "__main__":
    given = [float(argument) for argument in sys.argv[1:]]
    sys.exit(main(given[0], int(given[1]) if given[1:] else sys.maxsize, int(given[2]) if given[2:] else 0))
