"""What goes out on the wire, and what is made of what comes back, byte by byte (RFC 9110, RFC 9112)."""

from __future__ import annotations

import contextlib
import gzip
import socket
import threading
import time
import zlib
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import brotli
import gevent
import gevent.resolver.thread
import hostile
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from website import Answer, Site

from crawler import limits, urls
from crawler.messages import Cause
from crawler.worker import clock, content_coding
from crawler.worker.content_coding import zstd
from crawler.worker.fetch import Client, Response
from crawler.worker.fetch_errors import (
    ConnectError,
    DNSError,
    FetchError,
    HungUpError,
    MalformedError,
    TimedOutError,
    TooLargeError,
    UnknownCodingError,
    UnwantedError,
)

EMPTY = b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n"


class Wire:
    """A server that sends `answer` to whatever it is asked, and keeps what it was sent; and the client that asks it."""

    def __init__(self, kind: Any) -> None:
        self.kind = kind
        self.answer = EMPTY
        self.requests: list[bytes] = []
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._server.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with connection:
                stream = connection.makefile("rb")
                while request := b"".join(iter(stream.readline, b"\r\n")) if stream.peek(1) else b"":
                    self.requests.append(request)
                    connection.sendall(self.answer)
                    if self.answer is not EMPTY:
                        break
                stream.close()

    def get(self, path: str = "/", **options: object) -> Response:
        with Client("CrawlerFleet/test", kind=self.kind) as client:
            return client.get(self.url + path, **{"max_body": 10_000, **options})  # type: ignore[arg-type]

    def close(self) -> None:
        self._server.close()


@pytest.fixture(scope="module", params=["own", "requests"])
def kind(request: pytest.FixtureRequest) -> Any:
    """Each of the two clients."""
    return request.param


@pytest.fixture(scope="module")
def wire(kind: Any) -> Iterator[Wire]:
    running = Wire(kind)
    yield running
    running.close()


@pytest.fixture(scope="module")
def own() -> Iterator[Wire]:
    """For what only our own client can hold."""
    running = Wire("own")
    yield running
    running.close()


# --- what goes out ----------------------------------------------------------------------------------------------------


@hypothesis_settings(deadline=None, suppress_health_check=[HealthCheck.filter_too_much])
@given(st.lists(st.text(max_size=40) | st.text("%25eE2/.?[|]^`{}\\'\"<>#", max_size=20), min_size=1, max_size=5))
def test_a_url_is_asked_for_in_the_ledger_s_spelling(wire: Wire, hrefs: list[str]) -> None:
    wire.answer, wire.requests = EMPTY, []
    paths = []
    with Client("x", kind=wire.kind) as client:
        for href in hrefs:
            try:
                url = urls.normalise("/" + href.lstrip("/\\"), base=wire.url)
            except urls.InvalidURLError:
                continue
            paths.append(urls.path_of(url))
            client.get(url, max_body=10)
    sent = [request.partition(b"\r\n")[0].decode() for request in wire.requests]
    assert sent == [f"GET {path} HTTP/1.1" for path in paths]


@pytest.mark.parametrize("path", ["//private/x", "/a%7Cb?%5B%5D", "///", "/x//y", "/?", "/100%25"])
def test_a_path_goes_out_as_it_is(wire: Wire, path: str) -> None:
    wire.answer, wire.requests = EMPTY, []
    assert urls.normalise(wire.url + path) == wire.url + path
    wire.get(path)
    assert wire.requests[0].startswith(f"GET {path} HTTP/1.1\r\n".encode())


def test_a_response_tells_what_was_asked(wire: Wire) -> None:
    wire.answer, wire.requests = EMPTY, []
    response = wire.get(headers={"If-None-Match": '"1"'})
    sent = dict(line.split(": ", 1) for line in wire.requests[0].decode().splitlines()[1:])
    assert sent.pop("Host") in wire.url
    assert dict(response.request_headers) == sent
    assert sent["If-None-Match"] == '"1"'
    assert sent["User-Agent"] == "CrawlerFleet/test"


# --- what comes back --------------------------------------------------------------------------------------------------

EARLY = b"HTTP/1.1 103 Early Hints\r\nLink: </style.css>; rel=preload\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
PROCESSING = b"HTTP/1.1 102 Processing\r\nX: y\r\n\r\n"


@pytest.mark.parametrize("interim", [EARLY, CONTINUE, PROCESSING, EARLY + CONTINUE + EARLY, EARLY * 20])
def test_interim_answers_are_passed_over(own: Wire, interim: bytes) -> None:
    own.answer = interim + HEAD + b"Content-Length: 4\r\n\r\npage"
    response = own.get()
    assert (response.status, response.body, response.content_type) == (200, b"page", "text/html")
    assert "link" not in response.headers
    assert response.status_line == "HTTP/1.1 200 OK"


def test_endless_interim_answers_have_an_end(own: Wire) -> None:
    own.answer = EARLY * 1000 + HEAD + b"\r\npage"
    with pytest.raises(FetchError, match="more than 20 interim answers"):
        own.get()


def test_requests_takes_an_interim_answer_for_the_final_one_and_the_connection_with_it(site: Site) -> None:
    """Save 100 Continue (http.client). What follows on the connection must not pass for the next answer."""
    site.raw["/"] = hostile.write(EARLY + HEAD + b"Content-Length: 4\r\n\r\npage")
    site.raw["/continue"] = hostile.write(CONTINUE * 1000 + HEAD + b"Content-Length: 4\r\n\r\npage")
    site.pages["/next"] = Answer("next")
    with Client("x", kind="requests") as client:
        assert client.get(f"{site.url}/", max_body=100).status == 103
        assert client.get(f"{site.url}/next", max_body=100).body == b"next"
        assert client.get(f"{site.url}/continue", max_body=100).body == b"page"


def test_another_protocol_is_an_answer(wire: Wire) -> None:
    wire.answer = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    assert wire.get().status == 101


@pytest.mark.parametrize(
    ("raw", "location"),
    [
        ("/café".encode(), "/café"),
        ("/Å\u2028?q=日本".encode(), "/Å\u2028?q=日本"),
        ("/café".encode("latin-1"), "/café"),
        (b"/caf%C3%A9", "/caf%C3%A9"),
    ],
)
def test_a_raw_location_is_utf_8_where_it_can_be(wire: Wire, raw: bytes, location: str) -> None:
    wire.answer = b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\nLocation: " + raw + b"\r\n\r\n"
    assert wire.get().location == location


def test_headers_may_hold_any_byte(wire: Wire) -> None:
    odd = "é日".encode() + b"\xff\x85\x01"
    names = (b"Content-Type: text/html; charset=", b"X-Robots-Tag: ", b"ETag: ", b"Content-Encoding: \xa0", b"Date: ")
    wire.answer = b"HTTP/1.1 200 OK\r\n" + b"".join(name + odd + b"\r\n" for name in names[:3]) + b"\r\npage"
    response = wire.get(wanted=("text/html",))
    assert (response.body, response.content_type) == (b"page", "text/html")
    wire.get(headers={"If-None-Match": response.headers["etag"]})
    assert b"If-None-Match: " + odd in wire.requests[-1]


def test_what_the_client_says_of_itself_and_takes(wire: Wire) -> None:
    wire.answer, wire.requests = EMPTY, []
    wire.get("/x?y")
    lines = wire.requests[0].decode().splitlines()
    assert lines[0] == "GET /x?y HTTP/1.1"
    assert dict(line.split(": ", 1) for line in lines[1:]) == {
        "Host": wire.url.removeprefix("http://"),
        "User-Agent": "CrawlerFleet/test",
        "Accept": "text/html,application/xhtml+xml,*/*;q=0.5",
        "Accept-Encoding": "gzip, deflate, br, zstd",
    }


@pytest.mark.parametrize("framing", ["close", "length", "chunked"])
def test_a_body_may_be_exactly_as_large_as_allowed(wire: Wire, framing: str) -> None:
    wire.answer = encoded("gzip", gzip.compress(b"x" * 5_000), framing)
    response = wire.get(max_body=5_000)
    assert (len(response.body), response.size) == (5_000, 5_000)
    with pytest.raises(TooLargeError, match="larger than 4999 bytes"):
        wire.get(max_body=4_999)
    response = wire.get(max_body=4_999, truncate=True)
    assert (len(response.body), response.size) == (4_999, 4_999)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_redirects(wire: Wire, status: int) -> None:
    wire.answer = b"HTTP/1.1 %d Moved\r\nContent-Length: 0\r\nLocation: /x\r\n\r\n" % status
    assert wire.get().location == "/x"


@pytest.mark.parametrize("status", [200, 201, 300, 304, 305, 404])
def test_a_location_without_a_redirect_leads_nowhere(wire: Wire, status: int) -> None:
    wire.answer = b"HTTP/1.1 %d OK\r\nContent-Length: 0\r\nLocation: /x\r\n\r\n" % status
    assert wire.get().location is None


def test_trailers_are_passed_over(wire: Wire) -> None:
    wire.answer = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"X: y\r\n" * 100 + b"\r\n"
    assert wire.get().body == b"x"


def test_trailers_have_an_end(own: Wire) -> None:
    own.answer = HEAD + b"Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"X: y\r\n" * 101 + b"\r\n"
    with pytest.raises(MalformedError, match="more than 100 trailers"):
        own.get()


@pytest.mark.parametrize("coding", ["gzip", "br", "zstd"])
def test_a_body_may_go_elsewhere_piece_by_piece(wire: Wire, coding: str) -> None:
    packed = {"gzip": gzip.compress, "br": brotli.compress, "zstd": zstd.compress}[coding](b"x" * 1_000_000)
    wire.answer = encoded(coding, packed)
    pieces: list[bytes] = []
    response = wire.get(max_body=2_000_000, into=lambda piece: pieces.append(piece) or True)
    assert (response.body, response.size, b"".join(pieces)) == (b"", 1_000_000, b"x" * 1_000_000)
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= content_coding.PIECE
    response = wire.get(max_body=2_000_000, into=lambda _: False)
    assert response.size <= content_coding.PIECE
    grown: list[int] = []
    wire.get(max_body=2_000_000, growing=grown.append)
    assert grown == sorted(grown)
    assert grown[-1] == 1_000_000


CHUNKED = HEAD + b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (HEAD + b"Content-Length: 4\r\nContent-Length: 4\r\n\r\npage", b"page"),
        (HEAD + b"Content-Length: 4, 4\r\n\r\npage", b"page"),
        (HEAD + b"Content-Length: 3\r\nContent-Length: 4\r\n\r\npage", None),
        (HEAD + b"Content-Length: 3, 4\r\n\r\npage", None),
        (HEAD + b"Content-Length: " + b"9" * 5000 + b"\r\n\r\npage", b"page"),
        (HEAD + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n4\r\npage\r\n0\r\n\r\n", b"page"),
        (HEAD.replace(b"1.1", b"1.0") + b"\r\npage", b"page"),
        (HEAD.replace(b" OK", b"") + b"Content-Length: 4\r\n\r\npage", b"page"),
        (HEAD.replace(b"\r", b"") + b"Content-Length: 4\n\npage", b"page"),
        (HEAD + b"X: a\r\n b\r\nContent-Length:\r\n 4\r\n\r\npage", b"page"),
        (HEAD.replace(b"200", b"204") + b"Content-Length: 4\r\n\r\npage", b""),
        (CHUNKED + b"4;" + b"x" * 60_000 + b"\r\npage\r\n0\r\n\r\n", b"page"),
        (CHUNKED + b"".join(b"1\r\n%c\r\n" % letter for letter in b"page" * 2000) + b"0\r\n\r\n", b"page" * 2000),
        (CHUNKED + b"4\r\npage\r\n0\r\n", b"page"),
        (CHUNKED + b"4\r\npage\r\n", None),
        (CHUNKED + b"f" * 17 + b"\r\npage", None),
        (CHUNKED + b"4;" + b"x" * 200_000, None),
    ],
)
def test_framing(wire: Wire, answer: bytes, body: bytes | None) -> None:
    """RFC 9112, sections 5, 6 and 7; where `body` is None, no page may come of it."""
    wire.answer = answer
    if body is None:
        with pytest.raises(FetchError):
            wire.get()
    else:
        assert wire.get().body == body


FORGED = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nforged"


@pytest.mark.parametrize("rest", [0.0, 0.05])
@pytest.mark.parametrize(
    "answer",
    [
        HEAD + b"Content-Length: 4\r\n\r\npage",
        CHUNKED + b"4\r\npage\r\n0\r\n\r\n",
        HEAD.replace(b"200", b"304") + b"\r\n",
        HEAD.replace(b"200", b"404") + b"Content-Length: 4\r\n\r\npage",
    ],
)
def test_what_is_sent_beyond_its_end_is_no_answer(site: Site, kind: Any, answer: bytes, rest: float) -> None:
    """Neither if it comes with the answer, nor if it comes before the next request. http.client drops the former."""
    if kind == "requests" and not rest:
        pytest.skip("http.client's buffer is dropped with its answer; nobody sees what was in it")

    def page(handler: Any) -> None:
        handler.wfile.write(answer + (b"" if rest else FORGED))
        time.sleep(rest)
        handler.wfile.write(FORGED)
        handler.rfile.readline()

    site.raw["/"], site.pages["/next"] = page, Answer("next")
    with Client("x", kind=kind) as client:
        client.get(f"{site.url}/", max_body=100)
        time.sleep(2 * rest)
        assert client.get(f"{site.url}/next", max_body=100).body == b"next"


def test_a_small_unwanted_body_does_not_cost_the_connection(site: Site, kind: Any) -> None:
    site.pages["/404"] = Answer("x" * 1000, 404)
    with Client("x", kind=kind) as client:
        for path in ("/404", "/404", "/404"):
            assert client.get(site.url + path, max_body=10).body == b""
        assert client._transport.opened == 1


# --- no answer --------------------------------------------------------------------------------------------------------


def cause_of(kind: Any, url: str, **options: Any) -> tuple[type[FetchError], Cause, bool]:
    with Client("x", kind=kind) as client, pytest.raises(FetchError) as failed:
        client.get(url, max_body=1000, **options)
    return type(failed.value), failed.value.cause, failed.value.answered


def test_a_port_that_takes_no_connection_in_time(kind: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CONNECT", 0.3)
    with contextlib.ExitStack() as stack:
        full = stack.enter_context(socket.socket())
        full.bind(("127.0.0.1", 0))
        full.listen(0)
        for _ in range(4):  # until its queue is full
            waiting = stack.enter_context(socket.socket())
            waiting.setblocking(False)
            waiting.connect_ex(full.getsockname())
        url = f"http://127.0.0.1:{full.getsockname()[1]}/"
        assert cause_of(kind, url) == (ConnectError, Cause.CONNECT, False)


def test_why_there_is_no_answer(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    wire.answer = b""
    assert cause_of(wire.kind, wire.url + "/") == (HungUpError, Cause.HUNG_UP, False)
    wire.answer = b"nonsense\r\n\r\n"
    assert cause_of(wire.kind, wire.url + "/") == (MalformedError, Cause.MALFORMED, False)
    wire.answer = HEAD + b"Content-Length: 5\r\n\r\nx"
    assert cause_of(wire.kind, wire.url + "/") == (HungUpError, Cause.HUNG_UP, True)
    wire.answer = HEAD + b"Content-Encoding: compress\r\n\r\nx"
    assert cause_of(wire.kind, wire.url + "/") == (UnknownCodingError, Cause.MALFORMED, True)
    assert cause_of(wire.kind, "http://nowhere.invalid/") == (DNSError, Cause.DNS, False)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        monkeypatch.setattr(limits, "READ", 0.2)
        assert cause_of(wire.kind, url) == (TimedOutError, Cause.TIMEOUT, False)
        monkeypatch.undo()


def test_a_body_that_drips_ends_with_the_deadline(site: Site, kind: Any) -> None:
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n"
    site.raw["/"] = hostile.write(head, rest=0.05, times=1000)
    began = time.monotonic()
    assert cause_of(kind, f"{site.url}/", deadline=0.5) == (TimedOutError, Cause.TIMEOUT, True)
    assert time.monotonic() - began < 5


# --- encoded bodies ---------------------------------------------------------------------------------------------------

PAGE = b"<title>page</title>" + bytes(range(256)) * 8
GZIP = gzip.compress(PAGE)
RAW_DEFLATE = zlib.compress(PAGE)[2:-4]
BROTLI = brotli.compress(PAGE)
ZSTD = zstd.compress(PAGE)
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\0\0\0abc"


def encoded(coding: str, body: bytes, framing: str = "close") -> bytes:
    head = HEAD + f"Content-Encoding: {coding}\r\n".encode()
    if framing == "length":
        return head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if framing == "chunked":
        return head + b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head + b"\r\n" + body


@pytest.mark.parametrize("framing", ["close", "length", "chunked"])
@pytest.mark.parametrize(
    ("coding", "body", "page"),
    [
        ("gzip", GZIP, PAGE),
        ("X-GZip", GZIP, PAGE),
        ("deflate", zlib.compress(PAGE), PAGE),
        ("deflate", RAW_DEFLATE, PAGE),
        ("gzip, gzip", gzip.compress(GZIP), PAGE),
        ("deflate, gzip", gzip.compress(zlib.compress(PAGE)), PAGE),
        ("gzip", GZIP + GZIP, PAGE + PAGE),  # members follow one another (RFC 1952, 2.2)
        ("gzip", GZIP + b"\0" * 100, PAGE),  # what follows is no matter, as with gzip itself
        ("gzip", GZIP + b"garbage", PAGE),
        ("gzip", GZIP + b"g", PAGE),
        ("gzip", b"", b""),
        ("br", BROTLI, PAGE),
        ("BR", brotli.compress(b""), b""),
        ("gzip, br", brotli.compress(GZIP), PAGE),
        ("zstd", ZSTD, PAGE),
        ("br, zstd", zstd.compress(BROTLI), PAGE),
        ("zstd", ZSTD + ZSTD, PAGE + PAGE),  # frames follow one another (RFC 8878, 3.1)
        ("zstd", SKIPPABLE + ZSTD + SKIPPABLE + ZSTD, PAGE + PAGE),
        ("zstd", ZSTD + b"x", PAGE),
        ("zstd", ZSTD + b"garbage", PAGE),
        ("identity", PAGE, PAGE),
        ("", PAGE, PAGE),
        ("utf-8", PAGE, PAGE),  # a mistake that browsers pass over
    ],
)
def test_codings_are_undone(wire: Wire, coding: str, body: bytes, page: bytes, framing: str) -> None:
    wire.answer = encoded(coding, body, framing)
    assert wire.get().body == page


@pytest.mark.parametrize("coding", ["lzma", "compress", "gzip, compress", "compress, gzip", "LZMA", "x" * 100])
def test_codings_nobody_asked_for_are_no_page(wire: Wire, coding: str) -> None:
    wire.answer = encoded(coding, b"\x0b\x02\x80<title>hi</title>\x03")
    with pytest.raises(FetchError, match=r"^content encoding '(lzma|compress|x{50})'") as failed:
        wire.get()
    assert isinstance(failed.value, UnwantedError)
    assert wire.get(wanted=("text/plain",)).body == b""  # a body that is not read is no trouble


@pytest.mark.parametrize(
    ("coding", "whole"),
    [
        ("gzip", GZIP),
        ("deflate", zlib.compress(PAGE)),
        ("deflate", RAW_DEFLATE),
        ("gzip, gzip", gzip.compress(GZIP)),
        ("gzip, gzip", gzip.compress(GZIP[:-20])),
        ("gzip", GZIP + GZIP),
        ("br", BROTLI),
        ("zstd", ZSTD),
        ("gzip, zstd", zstd.compress(GZIP)),
    ],
)
def test_a_body_cut_off_with_its_connection_is_no_page(wire: Wire, coding: str, whole: bytes) -> None:
    for cut in (1, 9, len(GZIP) // 2):
        wire.answer = encoded(coding, whole[:-cut])
        with pytest.raises(FetchError, match="cut off") as failed:
            wire.get()
        assert failed.value.cause == Cause.HUNG_UP


def test_of_a_cut_body_the_part_that_was_wanted_is_taken(wire: Wire) -> None:
    wire.answer = encoded("gzip", GZIP[:-1])
    assert wire.get(max_body=100, truncate=True).body == PAGE[:100]


# --- host names -------------------------------------------------------------------------------------------------------


def test_dead_names_do_not_stall_the_living(monkeypatch: pytest.MonkeyPatch) -> None:
    """While thirty look-ups hang, another gets its answer."""
    over = threading.Event()

    def getaddrinfo(host: str, *_: object) -> list[object]:
        if host.startswith("dead"):
            over.wait(60)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("192.0.2.1", 80))]

    real = gevent.resolver.thread._socket
    monkeypatch.setattr(
        gevent.resolver.thread, "_socket", SimpleNamespace(**{**vars(real), "getaddrinfo": getaddrinfo})
    )
    resolve = gevent.get_hub().resolver.getaddrinfo
    with Client("x"):
        dead = [gevent.spawn(resolve, f"dead{number}.test", 80) for number in range(30)]
        try:
            gevent.sleep(0)
            with gevent.Timeout(10):
                assert resolve("living.test", 80)
            assert not any(greenlet.ready() for greenlet in dead)
        finally:
            over.set()
            gevent.joinall(dead)


def test_nothing_is_sent_over_a_connection_that_came_too_late(
    site: Site, kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process was stopped, or its machine suspended, while it connected."""
    seconds = iter([0.0, limits.FETCH + 1, 100.0, 100.0 + limits.FETCH - 1])
    monkeypatch.setattr(clock, "since_boot", lambda: next(seconds))
    site.pages["/"] = Answer("")
    with Client("test", kind=kind) as client:
        with pytest.raises(FetchError, match="took longer"):
            client.get(f"{site.url}/", max_body=100)
        assert site.paths == []
        assert client.get(f"{site.url}/", max_body=100).status == 200
