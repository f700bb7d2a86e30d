"""The host's delay, the batch's time and the order to stop, kept before every request of a batch."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Protocol

from crawler import limits
from crawler.messages import Batch, Report, Request
from crawler.worker import fetch
from crawler.worker.archive import Archive
from crawler.worker.fetch_errors import FetchError, RefusedError, StaleConnectionError


class Stop(Protocol):
    """Told to finish early: threading.Event does."""

    def is_set(self) -> bool: ...

    def wait(self, timeout: float) -> bool: ...


class Client(Protocol):
    """fetch.Client, or what stands in for it."""

    @property
    def get(self) -> Callable[..., fetch.Response]: ...


class PacedClient:
    """All requests of one batch go through here: each in its time, and each noted in the report."""

    def __init__(
        self,
        client: Client,
        batch: Batch,
        report: Report,
        stop: Stop,
        now: Callable[[], float],
        archive: Archive | None,
    ) -> None:
        """`archive`: requests nothing for which that has no room."""
        self._client, self._report, self._stop, self._archive = client, report, stop, archive
        self._expires_at = batch.expires_at
        self._began = now()
        self._last_request: float | None = None
        self.now = now
        self.delay = max(batch.job.delay, batch.delay)
        """Seconds between two requests to this host, as far as is known by now."""
        self.answers = 0
        """Requests to which the host gave an HTTP answer: it is alive."""

    def may_ask(self, budget: float = limits.BATCH, longest: float = math.inf) -> bool:
        """Wait until the host's delay has passed, or `longest` seconds. False: no time is left, or we were told to
        stop."""
        now = self.now()
        wait = 0.0 if self._last_request is None else self._last_request + min(self.delay, longest) - now
        resumes = now + max(wait, 0)
        if self._stop.is_set() or resumes > self._expires_at or (self._archive and not self._archive.has_room()):
            return False
        if self._last_request is not None and resumes - self._began > budget:
            return False
        if wait > 0:
            self._stop.wait(wait)
        return not self._stop.is_set()

    def ask(self, url: str, **options: Any) -> fetch.Response | None:
        """The answer to a request in its time; None: no time is left for it. Raises FetchError."""
        if not self.may_ask():
            return None
        try:
            return self.ask_now(url, **options)
        except StaleConnectionError:
            return self.ask_now(url, **options) if self.may_ask() else None

    def ask_now(self, url: str, **options: Any) -> fetch.Response:
        """Fetch, and note it: the delay is counted from the moment the host was done with us. Where we do not connect
        to, nobody was asked."""
        asked_at, is_request = self.now(), True
        entry = Request(url=url, at=asked_at, seconds=0)
        try:
            response = self._client.get(url, **options)
            entry.status = response.status
            self.answers += 1
            return response
        except FetchError as error:
            entry.reason = error.reason
            self.answers += error.answered
            is_request = not isinstance(error, RefusedError)
            raise
        finally:
            if is_request:
                self._last_request = self.now()
                entry.seconds = round(self._last_request - asked_at, 4)
                self._report.requests.append(entry)
