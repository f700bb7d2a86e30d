"""A small web site on loopback that answers as a test tells it to, and remembers what it was asked."""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NETWORKS = "127.0.0.0/8 ::1/128"
"""Where the sites are: for CRAWLER_ALLOW_NETWORKS."""
HTML = {"Content-Type": "text/html; charset=utf-8"}


@dataclass
class Answer:
    body: str | bytes = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=lambda: dict(HTML))


@dataclass
class Request:
    at: float
    path: str
    headers: Any


class Server(ThreadingHTTPServer):
    request_queue_size = 100

    def handle_error(self, *_: object) -> None:  # a crawler that hangs up in the middle of a page
        pass


class Site:
    """Pages by path. What has no page is 404; a page may be a function of the request's number for that path (from 1).
    A page may also be a function that is given the raw handler and writes what it likes."""

    def __init__(self, address: str = "127.0.0.1", port: int = 0) -> None:
        self.pages: dict[str, Answer | Callable[[int], Answer]] = {}
        self.raw: dict[str, Callable[[BaseHTTPRequestHandler], None]] = {}
        self.requests: list[Request] = []
        site = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                site.requests.append(Request(time.time(), self.path, self.headers))
                if self.path in site.raw:
                    site.raw[self.path](self)
                    self.close_connection = True
                    return
                page = site.pages.get(self.path, Answer("no such page", 404))
                if callable(page):
                    page = page(site.paths.count(self.path))
                body = page.body.encode() if isinstance(page.body, str) else page.body
                self.send_response(page.status)
                for name, value in page.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = Server((address, port), Handler)
        self.host = f"127.0.0.1:{self._server.server_port}"
        self.url = f"http://{self.host}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    @property
    def paths(self) -> list[str]:
        """What was asked for, in order."""
        return [request.path for request in self.requests]

    def tree(self, pages: int) -> None:
        """A binary tree of pages: / links to /1 and /2, /1 to /3 and /4, and so on, each also back to /."""
        for number in range(pages):
            children = [child for child in (2 * number + 1, 2 * number + 2) if child < pages]
            links = "".join(f'<a href="/{child}">{child}</a>' for child in children)
            self.pages[f"/{number or ''}"] = Answer(f"<title>Page {number}</title><a href='/'>home</a>{links}")

    def speak_tls(self, certificate: Path, key: Path) -> None:
        """From the next connection on."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
