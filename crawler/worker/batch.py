"""A worker's whole job: fetch one batch of one host, politely, and report what became of every URL in it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from crawler import settings, urls
from crawler.known_links import KnownLinks
from crawler.messages import BackOff, Batch, Cause, Report, Target
from crawler.worker import memory
from crawler.worker.answers import AnswerReader, NotArchivedError
from crawler.worker.archive import Archive
from crawler.worker.fetch_errors import FetchError, SilentError, UnreachableError
from crawler.worker.found_links import FoundLinks
from crawler.worker.memory import NoPlaceError, Share
from crawler.worker.origin_rules import OriginRules
from crawler.worker.paced_client import Client, PacedClient, Stop

MAX_SILENT = 3
"""URLs in a row without a whole answer after which another part of the site is asked."""

log = logging.getLogger(__name__)


def fetch_batch(
    batch: Batch,
    client: Client,
    stop: Stop,
    *,
    worker: str,
    redelivered: bool = False,
    known_links: KnownLinks | None = None,
    archive: Archive | None = None,
    share: Share | None = None,
    now: Callable[[], float] = time.time,
) -> Report:
    """Fetch the URLs of `batch` in their order, keeping the host's delay and robots.txt, until all are done, time is up
    (limits.BATCH, the lease), the host wants a rest, or `stop` is set. Never raises for anything a server does.

    `redelivered`: another worker was lost with this batch, perhaps after it had reported. Only the frontier knows, so
    all goes back to it. Links that `known_links` covers are left out of the report. `share`: of the process's memory
    (memory.py), for the caller to leave when the report is sent; without it, it is left with the return.
    """
    if share is None:
        with memory.PLACES_OF_PROCESS.share() as share:
            return fetch_batch(
                batch,
                client,
                stop,
                worker=worker,
                redelivered=redelivered,
                known_links=known_links,
                archive=archive,
                share=share,
                now=now,
            )
    known_links = None if batch.lost_before else known_links
    run = BatchRun(batch, client, stop, worker, archive, share, now, known_links)
    run.report.redelivered = redelivered
    if not redelivered:
        run.fetch()
    return run.finished()


class BatchRun:
    """One batch from its first request to its report."""

    def __init__(
        self,
        batch: Batch,
        client: Client,
        stop: Stop,
        worker: str,
        archive: Archive | None,
        share: Share,
        now: Callable[[], float],
        known_links: KnownLinks | None,
    ) -> None:
        self._batch, self._share = batch, share
        self.report = Report(
            lease=batch.lease, job=batch.job.name, host=batch.host, worker=worker, release=settings.release(), delay=0
        )
        archive = archive if batch.job.archive == "warc" else None
        self._client = PacedClient(client, batch, self.report, stop, now, archive)
        self._links = FoundLinks(batch.job, share.links_grow, known_links)
        self._rules = OriginRules(batch, self._client, self._links, self.report) if batch.job.robots else None
        self._answers = AnswerReader(batch, self._client, self._links, self.report, share, archive)
        self._todo = list(batch.targets)
        self._set_aside: list[Target] = []
        """What goes back unfetched although the batch went on."""
        self._silent: list[Target] = []
        """The URLs in a row without a whole answer."""
        self._over = False
        """Nothing more is to be asked; what is still to do goes back unfetched."""

    def fetch(self) -> None:
        """Deal with one URL after the other."""
        while self._todo and not self._over:
            self._deal_with(self._todo[0])
            if self._links.size > memory.LARGE_LINKS:
                break  # and keep the place in memory, if there is one, until the report is sent
            self._share.leave()

    def finished(self) -> Report:
        """The report."""
        report = self.report
        unfetched = {target.url for target in (*self._todo, *self._set_aside)}
        report.unfetched = [target.url for target in self._batch.targets if target.url in unfetched]
        report.links = self._links.all()
        report.delay = self._client.delay
        return report

    def _deal_with(self, target: Target) -> None:
        try:
            self._visit(target)
            self._silent.clear()
        except UnreachableError as error:
            # True of one port, one certificate, or of the whole host?
            if self._is_alive([target]):
                self._own_failure(target, error)
            else:
                self._rest(error)
        except SilentError as error:
            self._own_failure(target, error)
            self._silent.append(target)
            if len(self._silent) >= MAX_SILENT:
                if not self._is_alive(self._silent):
                    self._rest(error)
                self._silent.clear()

    def _visit(self, target: Target) -> None:
        """Ask for one URL, if its robots.txt allows that, and note what became of it; or end the batch.

        Raises UnreachableError and SilentError, which may say more of the host than of the URL. Whatever we did not
        foresee costs this one URL, and not its whole batch again and again.
        """
        try:
            if not self._is_allowed(target) or not self._was_asked(target):
                return
        except (UnreachableError, SilentError):
            raise
        except FetchError as error:
            self._answers.failed(target, error)
        except Exception as error:
            log.exception("%s", target.url)
            reason = f"error in the crawler: {type(error).__name__}: {error}"[:300]
            self._answers.finish(target, "failed", reason, Cause.CRAWLER_ERROR)
        self._todo.remove(target)
        back_off = self.report.back_off
        self._over = back_off is not None and back_off.cause == Cause.RATE_LIMITED

    def _was_asked(self, target: Target) -> bool:
        """False: there was no time or no room for it, so that the batch ends."""
        try:
            self._over = not self._answers.visit(target)
        except NotArchivedError as error:
            log.error("%s: not archived, so not done: %s", target.url, error)
            self._over = True
        except NoPlaceError:
            log.warning("%s: too many large pages and sitemaps at once, so not done", target.url)
            self._over = True
        return not self._over

    def _is_allowed(self, target: Target) -> bool:
        """False: robots.txt does not allow it, which is noted; or is not there, so that its origin is set aside."""
        if self._rules is None:
            return True
        rules = self._rules.of(target.url)
        if rules is None:
            self._over = True
        elif rules.unreachable:
            self._set_aside_origin(target)
        elif not rules.allows(target.url):
            self._answers.finish(target, "excluded", "robots.txt", Cause.ROBOTS)
            self._todo.remove(target)
        else:
            return True
        return False

    def _set_aside_origin(self, target: Target) -> None:
        """The robots.txt of one origin cannot be had, and back_off says so. What else is here of the host, such as http
        beside a broken https, has a robots.txt of its own; but a host that named a time is left alone."""
        back_off = self.report.back_off
        self._over = back_off is not None and back_off.seconds is not None
        origin = urls.origin_of(target.url)
        self._set_aside += [other for other in self._todo if urls.origin_of(other.url) == origin]
        self._todo = [other for other in self._todo if urls.origin_of(other.url) != origin]

    def _is_alive(self, failed: list[Target]) -> bool:
        """Ask one more URL, if there is one of another part of the site than those that failed: any HTTP answer shows
        that the host is alive. A URL that brings none stays to be fetched another time."""
        answers, requests = self._client.answers, len(self.report.requests)
        while not self._over and len(self.report.requests) == requests and (probe := self._another_than(failed)):
            try:
                self._visit(probe)
            except (UnreachableError, SilentError) as error:
                if error.answered:
                    self._own_failure(probe, error)
        return self._client.answers > answers

    def _another_than(self, failed: list[Target]) -> Target | None:
        """A URL to ask: if there is one, of another origin, or else with another first path segment."""
        origins, parts = {urls.origin_of(target.url) for target in failed}, {_part(target) for target in failed}

        def likeness(target: Target) -> int:
            return (urls.origin_of(target.url) in origins) + (_part(target) in parts)

        return min((target for target in self._todo if target not in failed), key=likeness, default=None)

    def _own_failure(self, target: Target, error: FetchError) -> None:
        self._answers.failed(target, error)
        self._todo.remove(target)

    def _rest(self, error: FetchError) -> None:
        """The host is down: it gets a rest. The URLs asked for that have not been noted go back unfetched."""
        self.report.back_off = self.report.back_off or BackOff(reason=error.reason, cause=error.cause)
        self._over = True


def _part(target: Target) -> tuple[str, str]:
    """The part of a site that a URL belongs to: its origin and first path segment."""
    return urls.origin_of(target.url), urls.path_of(target.url).split("/")[1].partition("?")[0]
