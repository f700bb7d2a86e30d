"""Record: take batches' reports into the ledger. Works on sets: a fixed number of statements and one commit, however
many reports there are."""

from __future__ import annotations

import json
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa
from msgspec.structs import asdict
from sqlalchemy.engine import Connection

from crawler import urls as url_rules
from crawler.frontier import budgets, lease, links, machines, moves, politeness, proof, sweeps, traps
from crawler.frontier.ledger import NOW, Ledger, UnreadableJobError, job_of
from crawler.frontier.schema import host_queues, jobs, leases, requests, urls, workers
from crawler.job import Job
from crawler.messages import Cause, Link, Report, UrlResult

log = logging.getLogger(__name__)

RESULT = tuple(name for name in UrlResult.__struct_fields__ if name not in ("url", "state"))
"""The columns of a URL that say what its last fetch came to."""


@dataclass
class _OfJob:
    """A job that some of the reports are for."""

    job_id: int
    job: Job
    trapped: bool = False
    """Whether it may have closed sections."""
    is_known: bool = True
    """Whether its row can be read."""


def record(ledger: Ledger, reports: Iterable[Report], now: float, refused: set[tuple[str, str]] | None = None) -> int:
    """Take in the outcome of batches; returns how many pages they finished. Results of a lease that ran out still count
    where the URL has not been leased again. A report seen twice changes nothing. Reports of a job that does not exist
    (any more) are left out; and those of redelivered batches, whose first holder may still be fetching: when their
    leases end, its holds decide (holds.py).

    What is not proved does not count (proof.py), and raises ForgedError where that is a whole report. The links (job,
    URL) that were not taken as they were reported are added to `refused`: nobody may take them for known."""
    reports = [report for report in reports if not report.redelivered]
    with ledger.transaction() as tx:
        of_job, ordered = _jobs(ledger, tx, reports, now)
        if unknown := sorted({report.job for report in reports} - of_job.keys()):
            log.warning("no such job, reports left out: %s", ", ".join(unknown))
            reports = [report for report in reports if report.job in of_job]
        if not reports:
            return 0
        found = moves.none_yet()
        proved_of = {name: proof.OfJob(known.job_id, known.job, known.is_known) for name, known in of_job.items()}
        reports = proof.of_leases(ledger, tx, reports, proved_of, now)
        leased = [report for report in reports if report.lease]
        met = _meet(ledger, tx, reports, of_job, set() if refused is None else refused)
        opened = _opened(links.lock(ledger, tx, _named(reports, of_job), met))
        taken_in = _finish_urls(ledger, tx, reports, of_job, opened, found, now)
        for of_this in met:
            links.insert(ledger, tx, of_this, found, now)
        held, watched = _end_leases(ledger, tx, reports, taken_in, found, now)
        due = politeness.reported(ledger, tx, leased, held, now)
        locked = moves.lock(ledger, tx, found, {report.host for report in reports if report.lease in held})
        moves.apply(ledger, tx, found, now, {key: due[key[1]] for key in locked})
        _note_wakes(ledger, tx, taken_in.wakes)
        most = {known.job_id: known.job.max_pages_per_host for known in of_job.values()}
        limited = {key: most[key[0]] for key in found if most[key[0]] is not None}
        politeness.flag_unwanted(ledger, tx, limited)
        _log_requests(ledger, tx, leased, of_job)
        ordered += _close(ledger, tx, of_job.values(), taken_in, watched, now)
        _credit(ledger, tx, taken_in.pages, now)
    for sweep_id in ordered:
        sweeps.work(ledger, now, sweep_id)  # a chunk, which is all of a small job; `tidy` does the rest
    return sum(taken_in.pages.values())


def _jobs(ledger: Ledger, tx: Connection, reports: list[Report], now: float) -> tuple[dict[str, _OfJob], list[int]]:
    """The reports' jobs by name, and the sweeps that they make necessary. A job whose row cannot be read takes its
    results by the default rules: they are fetched. By the unique index on jobs.name."""
    known, ordered = {}, []
    for row in ledger.run(
        tx, _named_jobs, [{"name": name} for name in sorted({report.job for report in reports})]
    ).all():
        try:
            known[row.name] = _OfJob(row.job_id, job_of(row.spec, row.prefixes), bool(row.trapped))
        except UnreadableJobError:
            known[row.name] = _OfJob(row.job_id, Job(name=row.name), is_known=False)
        else:
            if known[row.name].job.scope.kind == "prefix":
                of_this = [report for report in reports if report.job == row.name]
                ordered += _widen(ledger, tx, known[row.name], of_this, now)
    return known, ordered


def _named_jobs(ledger: Ledger) -> sa.Select[Any]:
    given = ledger.given(None, jobs.c.name)
    return (
        sa.select(*(jobs.c[name] for name in ("job_id", "name", "spec", "prefixes", "trapped")))
        .join(given, given.c.name == jobs.c.name)
        .order_by(jobs.c.job_id)
    )


def _widen(ledger: Ledger, tx: Connection, of_job: _OfJob, reports: list[Report], now: float) -> list[int]:
    """Let the job's scope follow its seeds: where one redirects out of the prefixes, the folder it leads to is a prefix
    as well, and a sweep judges again what was kept out; returns that. Locks the job's sweeps, then its row, before any
    URL; idempotent."""
    goals = [link for link in _links(reports, of_job.job.name) if link.seed and link.hops]
    goals = [link for link in goals if not link.url.startswith(of_job.job.scope.prefixes)]
    if not goals:
        return []
    pages = proof.pages(ledger, tx, {of_job.job_id: goals})
    new = {_folder(link.url) for link in proof.of_seeds(of_job.job_id, goals, pages)}
    if not new:
        return []
    sweeps.replace(tx, sweeps.of_job(of_job.job_id), sweeps.JUDGE, now)
    here = jobs.c.job_id == of_job.job_id
    row = tx.execute(sa.select(jobs.c.spec, jobs.c.prefixes).where(here).with_for_update()).one()
    prefixes = json.dumps(sorted({*json.loads(row.prefixes or "[]"), *new}))
    tx.execute(jobs.update().where(here).values(prefixes=prefixes))
    of_job.job = job_of(row.spec, prefixes)
    return [sweeps.order(ledger, tx, of_job.job_id, sweeps.JUDGE, now)]


def _meet(
    ledger: Ledger, tx: Connection, reports: list[Report], of_job: dict[str, _OfJob], refused: set[tuple[str, str]]
) -> list[links.Met]:
    """The links of the reports, by job, that may change the ledger, as they count: what a budget or a closed section
    keeps out is excluded. A look for each job, and one for the pages that links of interest are on; more only for jobs
    that have budgets or closed sections. Those that do not count as they were reported are added to `refused`."""
    found = {
        known.job_id: links.of_interest(ledger, tx, known.job_id, known.job, _links(reports, name))
        for name, known in of_job.items()
    }
    pages = proof.pages(ledger, tx, found)
    for name, known in of_job.items():
        of_this = proof.OfJob(known.job_id, known.job, known.is_known)
        found[known.job_id], not_taken = proof.judged(of_this, found[known.job_id], pages)
        refused |= {(name, url) for url in not_taken}
        proof.say_refused(reports, name, not_taken)
    parts = {known.job_id: budgets.Part(known.job, known.trapped) for known in of_job.values()}
    parts = {job_id: part for job_id, part in parts.items() if part.is_bounded}
    for job_id, part in parts.items():
        part.hosts.update(url_rules.host_of(link.url) for link in found[job_id])
    budgets.read(ledger, tx, parts)
    for job_id, part in parts.items():
        found[job_id] = budgets.keep_out(part, found[job_id])
    return [links.chosen(known.job_id, known.job, found[known.job_id]) for known in of_job.values()]


def _close(
    ledger: Ledger, tx: Connection, of_job: Iterable[_OfJob], taken_in: _TakenIn, watched: frozenset[str], now: float
) -> list[int]:
    """Count the pages for budgets, and look at those of watched leases for traps; returns the sweeps that exclude what
    is queued of what is closed by that. A statement or two for each of the two, if there is anything to count."""
    described = {known.job_id: known.job for known in of_job}
    for job_id, url in taken_in.gone:
        taken_in.below.subtract((job_id, prefix) for prefix in described[job_id].budgets(url))
    closings = [
        (job_id, sweeps.OVER, url_rules.host_of(prefix), prefix)
        for job_id, prefix in budgets.note(ledger, tx, taken_in.below, described)
    ]
    by_host: dict[tuple[int, str], list[tuple[str, str]]] = defaultdict(list)
    for (name, job_id, host), pages in taken_in.fetched.items():
        if name in watched:
            by_host[job_id, host] += pages
    closings += [(job_id, sweeps.CLOSE, host, section) for job_id, host, section in traps.observe(ledger, tx, by_host)]
    ordered = []
    for job_id, kind, host, text in closings:
        ordered += sweeps.order_once(ledger, tx, job_id, kind, now, host, text)
    return ordered


def _folder(url: str) -> str:
    """A normalised URL up to its last slash, without the query."""
    return url.partition("?")[0].rpartition("/")[0] + "/"


# --- URLs -------------------------------------------------------------------------------------------------------------


@dataclass
class _TakenIn:
    """What the reports' URLs came to."""

    pages: Counter[tuple[int, str]]
    """Pages fetched, by job_id and worker."""
    back: Counter[str]
    """URLs that are leased no longer, by lease."""
    wakes: dict[tuple[int, str], float]
    """When the first of those to be retried is due, by job_id and host."""
    below: budgets.Changes
    """Pages more, or fewer, below the prefixes that have a budget."""
    gone: list[tuple[int, str]]
    """URLs, by job_id, that were pages before, and failed as their leases were lost."""
    fetched: dict[tuple[str, int, str], list[tuple[str, str]]]
    """First visits (URL, digest), by lease, job_id and host, of jobs that look for traps."""


def _finish_urls(
    ledger: Ledger,
    tx: Connection,
    reports: list[Report],
    of_job: dict[str, _OfJob],
    opened: dict[tuple[str, str], Any],
    found: moves.Moves,
    now: float,
) -> _TakenIn:
    """Give every URL of the reports its new state. `opened`: as _opened gives it."""
    new_body: list[dict[str, Any]] = []
    no_body: list[dict[str, Any]] = []
    retried: list[dict[str, Any]] = []
    returned: list[dict[str, Any]] = []
    taken_in = _TakenIn(Counter(), Counter(), {}, Counter(), [], defaultdict(list))
    for report in reports:
        known = of_job[report.job]
        job, key = known.job, (known.job_id, report.host)
        moved = found[key]
        common = {"job_id": known.job_id, "host": report.host, "worker": report.worker, "release": report.release}

        def move(
            rows: list[dict[str, Any]],
            url: str,
            state: str,
            was_done: bool,
            *,
            lease: str = report.lease,
            moved: Counter[str] = moved,
            common: dict[str, Any] = common,
            job: Job = job,
            **columns: Any,
        ) -> None:
            row = opened.pop((lease, url))
            in_queue = state == "queued"
            moved[row.state] -= 1
            moved["again"] += (in_queue and was_done) - row.was_done
            if job.max_pages_per_prefix and (more := (state == "done" or (in_queue and was_done)) - row.was_done):
                taken_in.below.update({(common["job_id"], prefix): more for prefix in job.budgets(url)})
            moved[state] += 1
            taken_in.back[lease] += row.state == "leased"
            rows.append({**common, "url": url, "state": state, "was_done": in_queue and was_done, **columns})

        limited, of_lease = job.limited, (report.lease, *key)
        for page in report.results:
            row = opened.get((report.lease, page.url))
            # A late result of a URL that is back in the queue could be one page more than a limit allows.
            if row is None or (limited and row.state == "queued"):
                continue
            done = page.state == "done"
            taken_in.pages[known.job_id, report.worker] += done
            if done and page.digest and job.traps and not row.was_done and page.cause != Cause.UNCHANGED:
                taken_in.fetched[of_lease].append((page.url, page.digest))
            result = asdict(page)
            del result["url"], result["state"]
            if result["fields"] is not None:
                text = json.dumps(result["fields"], ensure_ascii=False)
                too_long = {"fields": None, "extract_error": f"{len(text)} characters of fields"}
                result |= {"fields": text} if len(text) <= proof.MAX_FIELDS else too_long
            # A 304, and a page that failed, keep what an earlier visit found; only a new body replaces it.
            rows = new_body if page.digest else no_body
            followed = done or page.cause in links.FOLLOWED
            if followed and row.leased_depth is not None and row.depth < row.leased_depth:
                # Met on a shorter path meanwhile: its links have to be followed from there as well.
                result |= {"attempts": 0, "etag": None, "last_modified": None, "expanded": row.leased_depth}
                move(rows, page.url, "queued", done, **result)
            else:
                expanded = row.leased_depth if followed else None
                move(rows, page.url, page.state, done, attempts=row.attempts + 1, expanded=expanded, **result)
        for retry in report.retries:
            row = opened.get((report.lease, retry.url))
            if row is not None and row.state == "leased":
                columns = {
                    "attempts": row.attempts + 1,
                    "reason": retry.reason,
                    "cause": retry.cause,
                    "fetched_at": now,
                }
                if columns["attempts"] >= job.max_attempts:
                    move(retried, retry.url, "failed", False, not_before=None, **columns)
                else:
                    wake = now + politeness.retry_wait(columns["attempts"], job.retry_wait)
                    taken_in.wakes[key] = min(wake, taken_in.wakes.get(key, wake))
                    move(retried, retry.url, "queued", row.was_done, not_before=wake, **columns)
                    moved["waiting"] += 1
        for url in report.unfetched:
            row = opened.get((report.lease, url))
            if row is not None and row.state == "leased":
                move(returned, url, "queued", row.was_done, attempts=row.attempts, reason=None, cause=None)
    outcome = ("reason", "cause")
    _update(ledger, tx, new_body, (*RESULT, "expanded"))
    _update(ledger, tx, no_body, (*outcome, "status", "fetched_at", "expanded"))
    _update(ledger, tx, retried, (*outcome, "not_before", "fetched_at"))
    _update(ledger, tx, returned, outcome)
    return taken_in


def _named(reports: list[Report], of_job: dict[str, _OfJob]) -> list[dict[str, Any]]:
    """The keys of the URLs that the reports say something of, each with the report's lease."""
    keys = {
        (of_job[report.job].job_id, report.host, url, report.lease)
        for report in reports
        for url in (*(page.url for page in report.results), *(retry.url for retry in report.retries), *report.unfetched)
    }
    return [dict(zip((*links.KEY, "lease"), key, strict=True)) for key in sorted(keys)]


def _opened(named: Iterable[Any]) -> dict[tuple[str, str], Any]:
    """Those of the `named` URLs, as links.lock returns them, that are not finished, by lease and URL. None of a report
    that was taken in before: that ended the lease in each row."""
    return {(row.lease, row.url): row for row in named if row.state in ("queued", "leased")}


def _links(reports: list[Report], job: str) -> list[Link]:
    return [link for report in reports if report.job == job for link in proof.to_judge(report.links)]


def _update(ledger: Ledger, tx: Connection, rows: list[dict[str, Any]], names: tuple[str, ...]) -> None:
    """Write the columns `names`, and those that always change, of `rows`. By primary key; links.lock has locked
    them."""
    if rows:
        ledger.run(tx, _finished, rows, ("state", "attempts", "was_done", "worker", "release", *names))


def _finished(ledger: Ledger, names: tuple[str, ...]) -> sa.Update:
    given = ledger.given(None, *(urls.c[name] for name in (*links.KEY, *names)))
    return (
        urls.update()
        .where(*(urls.c[name] == given.c[name] for name in links.KEY))
        .values({name: given.c[name] for name in names})
        .values(lease=None)
    )


# --- leases, hosts, workers -------------------------------------------------------------------------------------------


def _end_leases(
    ledger: Ledger, tx: Connection, reports: list[Report], taken_in: _TakenIn, found: moves.Moves, now: float
) -> tuple[frozenset[str], frozenset[str]]:
    """End the reports' leases; returns those that were still in force, and of these the ones of watched hosts. What a
    report forgot to name is queued again, or would stay leased for ever. By primary key; a second time there is none.
    """
    names = sorted({report.lease for report in reports} - {""})
    if not names:
        return frozenset(), frozenset()
    ended = ledger.run(tx, _ended, [{"lease": name} for name in names]).all()
    if forgotten := [row.lease for row in ended if row.urls != taken_in.back[row.lease]]:
        lease.lose(tx, forgotten, "its worker did not report it", found, now, taken_in.gone)
    held = frozenset(row.lease for row in ended)
    machines.end(ledger, tx, held, now)
    return held, frozenset(row.lease for row in ended if row.watched)


def _ended(ledger: Ledger) -> sa.Executable:
    given = ledger.given(None, leases.c.lease)
    these = leases.delete().where(leases.c.lease.in_(sa.select(given.c.lease)))
    return these.returning(*(leases.c[name] for name in ("lease", "urls", "watched")))


def _note_wakes(ledger: Ledger, tx: Connection, wakes: dict[tuple[int, str], float]) -> None:
    """Let hosts be looked at when the first of their waiting URLs is due. Idempotent; moves.apply has locked the
    rows."""
    if not wakes:
        return
    rows = [{"job_id": job_id, "host": host, "next_wake": at} for (job_id, host), at in sorted(wakes.items())]
    given = ledger.given(rows, *(host_queues.c[name] for name in ("job_id", "host", "next_wake")))
    here = sa.and_(host_queues.c.job_id == given.c.job_id, host_queues.c.host == given.c.host)
    first = sa.or_(host_queues.c.next_wake.is_(None), host_queues.c.next_wake > given.c.next_wake)
    tx.execute(host_queues.update().where(here, first).values(next_wake=given.c.next_wake))


def _log_requests(ledger: Ledger, tx: Connection, reports: list[Report], of_job: dict[str, _OfJob]) -> None:
    """Keep every request made. Idempotent: the primary key is (host, at, url)."""
    # Mostly the report's own host; another's where its robots.txt redirects to one.
    rows = [
        {
            "host": url_rules.host_of(request.url),
            **asdict(request),
            "job_id": of_job[report.job].job_id,
            "worker": report.worker,
            "release": report.release,
        }
        for report in reports
        for request in report.requests
    ]
    if rows:
        rows.sort(key=lambda row: (row["host"], row["at"], row["url"]))
        ledger.run(tx, _made, rows, tuple(rows[0]))


def _made(ledger: Ledger, names: tuple[str, ...]) -> Any:
    return ledger.insert_given(requests, names).on_conflict_do_nothing()


def _credit(ledger: Ledger, tx: Connection, pages: Counter[tuple[int, str]], now: float) -> None:
    """Count pages for the workers that fetched them. Locks their rows, last of all; a report seen twice finishes no
    page and so counts none."""
    rows = [
        {"job_id": job_id, "worker": worker, "pages": number}
        for (job_id, worker), number in sorted(pages.items())
        if number
    ]
    if rows:
        ledger.run(tx, _credited, rows, now=now)


def _credited(ledger: Ledger) -> Any:
    statement = ledger.insert_given(workers, ["job_id", "worker", "pages"], first_at=NOW, last_at=NOW)
    return statement.on_conflict_do_update(
        index_elements=["job_id", "worker"],
        set_={"pages": workers.c.pages + statement.excluded.pages, "last_at": statement.excluded.last_at},
    )
