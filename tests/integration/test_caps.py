"""Many names on one server, measured there: how many requests are in flight, and how long it rests between them."""

from __future__ import annotations

import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest
from conftest import Processes, eventually
from website import Server

from crawler.frontier import status
from crawler.frontier.ledger import Ledger

Outcome = Callable[[str], dict[str, int]]
NAMES, PAGES = 50, 4
BATCHES, DELAY = 2, 0.2
HERE = Path(__file__).parent / "names_here"


class ManyNames:
    """One server that answers for any name with PAGES pages, each linking to all others; and takes a while for it."""

    def __init__(self) -> None:
        self.spans: list[tuple[float, float, str]] = []
        """Of each request: when it arrived, when its answer was sent, and for which URL."""
        lock = threading.Lock()
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                arrived = time.time()
                time.sleep(random.uniform(0.01, 0.1))  # noqa: S311
                links = "".join(f'<a href="/{number}">{number}</a>' for number in range(PAGES))
                body = b"" if self.path == "/robots.txt" else links.encode()
                self.send_response(200 if body else 404)
                self.send_header("Content-Type", "text/html")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                with lock:
                    site.spans.append((arrived, time.time(), f"http://{self.headers['Host']}{self.path}"))
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def most_at_once(self) -> int:
        """Requests in flight at the busiest moment."""
        changes = sorted([(began, 1) for began, _, _ in self.spans] + [(ended, -1) for _, ended, _ in self.spans])
        most = now = 0
        for _, change in changes:
            now += change
            most = max(most, now)
        return most

    def shortest(self, number: int) -> float:
        """The shortest time in which `number` requests and one more began."""
        began = sorted(span[0] for span in self.spans)
        return min(later - earlier for earlier, later in zip(began, began[number:], strict=False))

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def server() -> Iterator[ManyNames]:
    running = ManyNames()
    yield running
    running.close()


@pytest.mark.timeout(300)
@pytest.mark.parametrize("kind", ["address", "domain"])
def test_fifty_names_on_one_server_are_one_server_under_kills(
    processes: Processes, ledger: Ledger, server: ManyNames, outcome: Outcome, kind: str
) -> None:
    """By their address, although each is a domain of its own; and by their domain."""
    for name in list(processes.running):
        processes.stop(name)
    other = "domain" if kind == "address" else "address"
    processes.settings = {
        f"CRAWLER_{kind.upper()}_BATCHES": str(BATCHES),
        f"CRAWLER_{kind.upper()}_DELAY": str(DELAY),
        f"CRAWLER_{other.upper()}_BATCHES": "0",
        "CRAWLER_CAPS_LOOPBACK": "1",
        "PYTHONPATH": str(HERE),
    }
    for number in (1, 2):
        processes.worker(number)
        processes.recorder(number)
    processes.scheduler()
    below = "" if kind == "address" else ".example"
    sites = [f"http://n{number}{below}.test:{server.port}" for number in range(NAMES)]
    processes.seed(*(f"{site}/0" for site in sites), "--name", "names", "--delay", "0")

    def done(pages: int) -> Callable[[], bool]:
        return lambda: any(job["counts"]["done"] >= pages for job in status.snapshots(ledger, 0))

    for number, pages in enumerate((10, 50, 90, 130), start=3):
        eventually(done(pages))
        processes.stop(f"worker-{number - 2}", signal.SIGKILL)
        processes.worker(number)
        if number == 4:
            processes.stop("scheduler", signal.SIGKILL)
            processes.scheduler()
        if number == 5:
            processes.stop("recorder-1", signal.SIGKILL)
            processes.recorder(3)
    assert outcome("names")["done"] == NAMES * PAGES
    urls = [url for _, _, url in server.spans]
    assert set(urls) == {f"{site}/{page}" for site in sites for page in ("robots.txt", *range(PAGES))}
    print(f"{kind}: {len(urls)} requests, {server.most_at_once()} at once, shortest {server.shortest(BATCHES):.4f} s")
    assert server.most_at_once() <= BATCHES
    assert server.shortest(BATCHES) >= DELAY
