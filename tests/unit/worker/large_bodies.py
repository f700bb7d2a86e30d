"""Run as a program: what a process needs for `HOSTS` hosts at once, each with a small sitemap or page that unpacks to
49 or 10 MB, or whose base makes 1.4 GB of its links. Prints its peak of resident memory, and what the work added to it,
in MiB.

    python -m gevent.monkey large_bodies.py blank|links|page|base HOSTS
"""

from __future__ import annotations

import gzip
import resource
import sys
import time
from typing import Any

import gevent
from gevent.event import Event
from gevent.server import StreamServer

from crawler.job import Job
from crawler.messages import Batch, Target, encode
from crawler.worker.batch import fetch_batch
from crawler.worker.egress import from_settings
from crawler.worker.fetch import Client
from crawler.worker.memory import PLACES_OF_PROCESS

HERE = from_settings(["127.0.0.0/8"])
BODIES = {
    "blank": lambda: b"<urlset>" + b" " * 49_000_000 + b"<loc>http://127.0.0.1/x</loc></urlset>",
    "links": lambda: b"".join(b"<loc>http://127.0.0.1/%d%b</loc>" % (number, b"a" * 900) for number in range(50_000)),
    "page": lambda: b"<html><p>" + b"x" * 9_990_000,
    "base": lambda: b"<base href='/%b/'>" % (b"w" * 1_900) + b"".join(b"<a href=%d>" % n for n in range(700_000)),
}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def main(kind: str, hosts: int) -> None:
    packed = gzip.compress(BODIES[kind](), 9)
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n"

    def serve(connection: Any, _: object) -> None:
        stream = connection.makefile("rb")
        while stream.readline():
            while stream.readline() != b"\r\n":
                pass
            connection.sendall(head % len(packed) + packed[:-100])
            gevent.sleep(1)  # so that all are there at the same time
            connection.sendall(packed[-100:])

    def crawl(host: str) -> None:
        job = Job(name="j", delay=0, robots=False, archive="none")
        target = Target(url=f"http://{host}/x", depth=0, sitemap=kind in ("blank", "links"))
        batch = Batch(lease="l", job=job, host=host, targets=[target], expires_at=time.time() + 300)
        while True:
            with Client("x", egress=HERE) as client, PLACES_OF_PROCESS.share() as share:
                report = fetch_batch(batch, client, Event(), worker="w", share=share)
                for part in report.parts(2_000_000):
                    encode(part)
                    gevent.sleep(0.01)  # as if it were sent
            if not report.unfetched:
                break
        assert report.results, report
        assert kind == "page" or report.links

    servers = [StreamServer(("127.0.0.1", 0), serve) for _ in range(hosts)]
    for server in servers:
        server.start()
    before = peak()
    gevent.joinall([gevent.spawn(crawl, f"127.0.0.1:{server.server_port}") for server in servers], raise_error=True)
    print(peak(), peak() - before)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
