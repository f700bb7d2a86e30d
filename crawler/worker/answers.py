"""From an answer to what became of its URL: a page, a redirect, a sitemap, a failure, or a reason to ask again."""

from __future__ import annotations

import functools
import hashlib
from typing import Any

from crawler import settings, urls
from crawler.messages import BackOff, Batch, Cause, Outcome, Report, Retry, Target, UrlResult
from crawler.worker import encoding, extract, fetch, parse, retry_after
from crawler.worker.archive import Archive, Earlier
from crawler.worker.fetch_errors import FetchError, RefusedError, UnwantedError, readable
from crawler.worker.found_links import FoundLinks
from crawler.worker.memory import LARGE_LINKS, Share
from crawler.worker.paced_client import PacedClient
from crawler.worker.sitemaps import MAX_BYTES as MAX_SITEMAP
from crawler.worker.sitemaps import SitemapReader

MAX_HOPS = 10
"""Redirects in a row before a chain is given up."""
MAX_NESTED = 3
"""Sitemap indexes that may lead to one another; the protocol knows one."""
MAX_TEXT = 300
"""Characters of a header that are kept."""


class NotArchivedError(Exception):
    """The disk did not take a page. Its URL goes back unfetched."""


class AnswerReader:
    """Asks for the URLs of one batch, and notes in its report what became of them."""

    def __init__(
        self,
        batch: Batch,
        client: PacedClient,
        links: FoundLinks,
        report: Report,
        share: Share,
        archive: Archive | None,
    ) -> None:
        self._job, self._client, self._links, self._report = batch.job, client, links, report
        self._share, self._archive = share, archive

    def visit(self, target: Target) -> bool:
        """Ask for a URL and note what became of it. False: no time is left to ask for it. Raises FetchError where no
        answer came, NotArchivedError, NoPlaceError."""
        if target.sitemap:
            return self._visit_sitemap(target)
        response = self._client.ask(
            target.url,
            max_body=self._job.max_body,
            wanted=self._job.content_types,
            headers=_conditions(target),
            growing=self._share.body_grows,
        )
        if response is None:
            return False
        if not self._is_settled(target, response):
            self._read_page(target, response)
        return True

    def failed(self, target: Target, error: FetchError) -> None:
        """Note that no usable answer came, and that this is the URL's own failure."""
        if isinstance(error, RefusedError):
            self.finish(target, "excluded", error.reason, error.cause)
        elif isinstance(error, UnwantedError):
            self.finish(target, "failed", error.reason, error.cause)
        else:
            self._report.retries.append(Retry(url=target.url, reason=error.reason, cause=error.cause))

    def finish(
        self,
        target: Target,
        state: Outcome,
        reason: str | None,
        cause: Cause | None,
        response: fetch.Response | None = None,
        **found: Any,
    ) -> None:
        """Note a URL's final state; `found`: more of UrlResult's fields."""
        if response is not None:
            found["status"] = response.status
            found["content_type"] = response.content_type[:MAX_TEXT] or None
            found["bytes"] = response.size
        asked_at = response.started_at if response else self._client.now()
        reason = reason and readable(reason[: MAX_TEXT + urls.MAX_LENGTH])
        self._report.results.append(
            UrlResult(url=target.url, state=state, reason=reason, cause=cause, fetched_at=asked_at, **found)
        )

    def _is_settled(self, target: Target, response: fetch.Response) -> bool:
        """Note what became of a URL whose answer brings no page. False: the answer may be one."""
        status = response.status
        if status >= 500 or status == 429:
            self._ask_again(target, response)
        elif response.location:
            self._redirect(target, response)
        elif status == 304 and _conditions(target):
            self.finish(target, "done", "not modified", Cause.UNCHANGED, response)
        elif not 200 <= status < 300:
            self.finish(target, "failed", f"HTTP {status}", Cause.HTTP, response)
        elif not target.sitemap and response.content_type not in self._job.content_types:
            reason = f"content type {response.content_type or 'not given'}"
            self.finish(target, "excluded", reason, Cause.CONTENT_TYPE, response)
        else:
            return False
        return True

    def _ask_again(self, target: Target, response: fetch.Response) -> None:
        """A failing page is its URL's own matter; only a host that asks for a rest gets one."""
        reason, cause = f"HTTP {response.status}", Cause.SERVER_ERROR
        if response.status == 429 or (response.status == 503 and response.retry_after is not None):
            cause = Cause.RATE_LIMITED
            seconds = retry_after.seconds(response, self._client.now())
            self._report.back_off = BackOff(reason=reason, cause=cause, seconds=seconds)
        self._report.retries.append(Retry(url=target.url, reason=reason, cause=cause))

    def _redirect(self, target: Target, response: fetch.Response) -> None:
        """Record a redirect and hand its goal to the frontier as a URL of its own: politeness stays exact."""
        problem = goal = None
        try:
            goal = urls.normalise(str(response.location), base=target.url)
        except urls.InvalidURLError as error:
            problem = f"redirect to an address that is not crawlable: {error}"
        if goal == target.url:
            problem = "redirect to itself"
        elif target.hops >= MAX_HOPS and not problem:
            problem = f"more than {MAX_HOPS} redirects in a row"
        if problem or not goal:
            self.finish(target, "failed", problem, Cause.BAD_REDIRECT, response)
            return
        self.finish(target, "excluded", f"redirect to {goal}", Cause.REDIRECT, response)
        self._links.add(
            goal,
            target.depth,
            target.url,
            hops=target.hops + 1,
            nested=target.nested,
            seed=target.seed,
            sitemap=target.sitemap,
            as_sent=True,
        )

    # --- pages --------------------------------------------------------------------------------------------------------

    def _read_page(self, target: Target, response: fetch.Response) -> None:
        job = self._job
        codec, mark = encoding.sniff(response.body, response.headers.get("content-type", ""))
        body = response.body[mark:] if mark else response.body
        page = body if codec == "utf-8" else body.decode(codec, "replace")
        now = self._client.now()
        document = self._document(target, response, page, codec, now)
        nofollow, noindex = parse.header_directives(response.header_lines, settings.PRODUCT, now)
        digest = hashlib.sha256(response.body).hexdigest()
        found: dict[str, Any] = {"digest": digest, "canonical": document.canonical}
        reason, cause = ("unchanged", Cause.UNCHANGED) if digest == target.digest else ("", None)
        if job.robots and (document.noindex or noindex):
            reason, cause = "noindex: not kept", Cause.NOINDEX
        else:
            # Before anything is noted of a page that may have to wait for room on the disk.
            found |= self._kept(target, response, digest)
            found |= self._described(response, page, document)
        before = self._links.left_out
        if not (job.robots and (document.nofollow or nofollow)):
            self._follow(target, document)
        if left_out := self._without(before):
            reason, cause = f"{reason}; {left_out}".removeprefix("; "), cause or Cause.TOO_LARGE
        self.finish(target, "done", reason or None, cause, response, **found)

    def _document(
        self, target: Target, response: fetch.Response, page: str | bytes, codec: str, now: float
    ) -> parse.Document:
        """What a page says, less links that the batch has noted. Raises NoPlaceError for one with so many links that it
        needs a place in memory."""
        refresh = fetch.as_utf_8(response.headers.get("refresh", ""))
        job, agent = self._job, settings.PRODUCT
        read = functools.partial(
            parse.parse,
            page,
            response.url,
            agent,
            job.follow,
            now,
            codec,
            obey=job.robots,
            refresh=refresh,
            batch=0 if job.extract else self._links.number,  # an extractor is shown all links
            depth=target.depth + 1,
        )
        document = read(most=LARGE_LINKS)
        if document.left_out:
            self._share.take()
            document = read()
        return document

    def _follow(self, target: Target, document: parse.Document) -> None:
        if self._links.add_page(document.links, target.depth + 1, target.url):
            parse.met(document.noted)
        self._links.left_out += document.left_out
        if document.refresh and document.refresh != target.url:
            self._refresh(target, document.refresh)

    def _refresh(self, target: Target, goal: str) -> None:
        """A page that leads on by itself is a redirect in all but name: its reader never chose to go one level deeper,
        and a seed like that names the site. But it is a page as well, so where a chain of redirects would end, a slide
        show goes on as links do."""
        if target.hops < MAX_HOPS:
            self._links.add(goal, target.depth, target.url, hops=target.hops + 1, seed=target.seed, as_sent=True)
        else:
            self._links.add(goal, target.depth + 1, target.url)

    def _described(self, response: fetch.Response, content: str | bytes, document: parse.Document) -> dict[str, Any]:
        """What the page says of itself, and what the job wants from it."""
        found: dict[str, Any] = {
            "title": document.title,
            "etag": _worth_keeping(response.headers.get("etag")),
            "last_modified": _worth_keeping(response.headers.get("last-modified")),
        }
        if self._job.extract:
            text = content if isinstance(content, str) else content.decode("utf-8", "replace")
            page = extract.Page(response.url, response.status, response.headers, text, document.links)
            if document.tree:
                page.tree = document.tree
            found["fields"], found["extract_error"] = extract.extract(self._job.extract, page)
        return found

    def _kept(self, target: Target, response: fetch.Response, digest: str) -> dict[str, Any]:
        """Archive a page, if the job wants that; where it is, as fields of UrlResult."""
        if self._archive is None:
            return {}
        archived = target.warc_file if digest == target.digest else None
        try:
            position = self._archive.write(
                self._job.name,
                response,
                response.request_headers,
                status_line=response.status_line,
                headers=response.header_lines,
                address=response.address,
                digest=digest,
                about={"depth": target.depth, "worker": self._report.worker, "release": self._report.release},
                earlier=Earlier(target.warc_date) if archived else None,
            )
        except OSError as error:
            raise NotArchivedError(error.strerror) from error
        if archived:  # where the body is
            return {"warc_file": archived, "warc_offset": target.warc_offset, "warc_date": target.warc_date}
        return {"warc_file": position.file, "warc_offset": position.offset, "warc_date": response.started_at}

    # --- sitemaps -----------------------------------------------------------------------------------------------------

    def _visit_sitemap(self, target: Target) -> bool:
        """As `visit`. A sitemap may be large: it is read while it arrives."""
        too_deep = target.nested >= MAX_NESTED

        def found(address: str, is_sitemap: bool) -> None:
            if not (is_sitemap and too_deep):
                nested = target.nested + 1 if is_sitemap else 0
                self._links.add_written(address, target.url, nested=nested, sitemap=is_sitemap)

        reader, before = SitemapReader(found), self._links.left_out
        response = self._client.ask(target.url, max_body=MAX_SITEMAP, headers=_conditions(target), into=reader.write)
        if response is None:
            return False
        if not self._is_settled(target, response):
            reader.close()
            reason = f"sitemap of {reader.addresses} URLs"
            if reader.is_index and too_deep:
                reason = f"sitemap index behind {MAX_NESTED} others: not followed"
            if left_out := self._without(before):
                reason = f"{reason}; {left_out}"
            self.finish(target, "excluded", reason, Cause.SITEMAP, response)
        return True

    def _without(self, before: int) -> str:
        """What to say of the links that had no room since FoundLinks.left_out was `before`."""
        left_out = self._links.left_out - before
        return f"{left_out} links had no room" if left_out else ""


def _conditions(target: Target) -> dict[str, str]:
    """Headers that ask for the body only if it has changed since an earlier visit (RFC 9110, section 13.1)."""
    conditions = {"If-None-Match": target.etag, "If-Modified-Since": target.last_modified}
    return {name: value for name, value in conditions.items() if value}


def _worth_keeping(header: str | None) -> str | None:
    """A validator as it was sent; None where it is too long to be sent back to anybody."""
    return header if header and len(header) <= MAX_TEXT else None
