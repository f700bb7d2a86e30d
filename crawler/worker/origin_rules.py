"""The robots.txt of every origin that a batch touches: as it came with the batch, or fetched anew."""

from __future__ import annotations

import math

from crawler import settings, urls
from crawler.messages import BackOff, Batch, Cause, Report, RobotsFile
from crawler.worker import retry_after, robots
from crawler.worker.fetch import Response
from crawler.worker.fetch_errors import FetchError, RefusedError
from crawler.worker.found_links import FoundLinks
from crawler.worker.paced_client import PacedClient

MAX_HOP_REST = 20.0
"""Seconds waited at most between the redirects of one robots.txt, or a batch could outlast the task's time limit."""

_CACHE = robots.RulesCache()
"""This process's."""


class OriginRules:
    """What the host's robots.txt files allow. Those that are fetched go into the report; a failure is its back-off."""

    def __init__(self, batch: Batch, client: PacedClient, links: FoundLinks, report: Report) -> None:
        self._batch, self._client, self._links, self._report = batch, client, links, report
        self._rules: dict[str, robots.Rules] = {}
        self._refused: dict[str, RefusedError] = {}
        """Origins whose robots.txt is at an address, or a port, that we do not connect to."""
        for origin, file in batch.robots.items():  # all of them count for the delay, whichever is asked
            self._take(origin, file)

    def of(self, url: str) -> robots.Rules | None:
        """The rules of `url`'s origin, fetched if no fresh copy came with the batch. None: no time to fetch them.
        Raises RefusedError where they are, or redirect to, where we do not connect: nobody can say what is allowed."""
        origin = urls.origin_of(url)
        if not self._is_known(origin):
            if origin in self._refused:
                raise self._refused[origin].with_traceback(None)
            file = self._fetch(origin)
            if file is None:
                return None
            self._report.robots[origin] = file
            self._take(origin, file)
        return self._rules[origin]

    def _is_known(self, origin: str) -> bool:
        if origin in self._report.robots:
            return True
        brought = self._batch.robots.get(origin)
        return brought is not None and robots.is_fresh(brought, self._client.now())

    def _take(self, origin: str, file: RobotsFile) -> None:
        rules = self._rules[origin] = _CACHE.get(file, settings.PRODUCT)
        self._client.delay = max(self._client.delay, rules.crawl_delay)
        if self._batch.job.sitemaps:
            for address in rules.sitemaps:
                self._links.add_written(address, f"{origin}/robots.txt", sitemap=True)

    def _fetch(self, origin: str) -> RobotsFile | None:
        """The answer to /robots.txt, redirects followed; those to other hosts as well (RFC 9309, section 2.3.1.2),
        though it is not their turn. None: no time for it."""
        url = f"{origin}/robots.txt"
        for hop in range(1 + robots.MAX_REDIRECTS):
            # A batch too short for all redirects would begin with the first of them again and again.
            in_time = self._client.may_ask(math.inf, MAX_HOP_REST) if hop else self._client.may_ask()
            if not in_time:
                return None
            try:
                response = self._client.ask_now(url, max_body=robots.MAX_BYTES, truncate=True)
            except RefusedError as error:
                reason = f"robots.txt: {error.reason}" if hop else error.reason
                self._refused[origin] = RefusedError(reason, error.cause)
                raise self._refused[origin] from None
            except FetchError as error:
                return self._unreachable(f"robots.txt: {error.reason}")
            if not response.location:
                return self._read(response)
            try:
                url = urls.normalise(response.location, base=url)
            except urls.InvalidURLError:
                break
            if urls.host_of(url) in self._batch.blocked:
                return self._unreachable(f"robots.txt redirects to a blocked host: {urls.host_of(url)}")
        return RobotsFile(fetched_at=self._client.now(), status=404)  # as if there were none (RFC 9309, 2.3.1.2)

    def _unreachable(self, reason: str, seconds: float | None = None, status: int = 0) -> RobotsFile:
        self._report.back_off = BackOff(reason=reason, cause=Cause.ROBOTS_UNREACHABLE, seconds=seconds)
        return RobotsFile(fetched_at=self._client.now(), status=status)

    def _read(self, response: Response) -> RobotsFile:
        now, status = self._client.now(), response.status
        if status == 429 or status >= 500:
            # 429 says "later", not "everything is allowed" as other 4xx do.
            seconds = retry_after.seconds(response, now)
            return self._unreachable(f"robots.txt: HTTP {status}", seconds, 503 if status == 429 else status)
        body = response.body.decode("utf-8", "replace").replace("\0", "\ufffd")
        return RobotsFile(fetched_at=now, status=status, body=body)
