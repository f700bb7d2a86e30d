"""What is read back: rows of other releases, of older schemas, and corrupt ones; and what the frontier tells a worker
and those who watch."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import sqlalchemy as sa
from ledger_promises import SITE, admission, counts, report
from msgspec.structs import replace

from crawler import progress
from crawler.frontier import orders, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger, UnreadableJobError
from crawler.frontier.record import record
from crawler.frontier.schema import host_queues, hosts, job_counts, jobs, leases, urls
from crawler.job import Job, JobError
from crawler.messages import Admission, Batch, Cause, Link, RobotsFile, UrlResult, encode


def written(ledger: Ledger, statement: Any) -> int:
    with ledger.transaction() as tx:
        return int(tx.execute(statement).rowcount)


# --- rows of other releases (E9) --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "reads"),
    [
        ({"name": "j", "delay": 0, "added_later": {"x": 1}, "scope": {"kind": "host", "also_later": [1]}}, True),
        ({"name": "j", "delay": 0, "extract": {"title": {"css": "h1", "later": 1}}}, True),
        ({"name": "j", "delay": 0, "scope": {"kind": "galaxy"}}, False),
        ({"name": "j", "delay": "soon"}, False),
        ({}, False),
        (None, False),
        ("not JSON at all", False),
    ],
)
def test_a_job_of_another_release_never_stops_others(ledger: Ledger, spec: Any, reads: bool) -> None:
    admit(ledger, admission("/a", "/b", delay=0), now=0)
    other = Admission(job=Job(name="other", delay=0), seeding="o", chunk=0, chunks=1, urls=["http://b.test/"])
    admit(ledger, other, now=0)
    text = spec if isinstance(spec, str) else json.dumps(spec)
    assert written(ledger, jobs.update().where(jobs.c.name == "j").values(spec=text)) == 1

    leased = {batch.job.name: batch for batch in lease(ledger, 10, now=1)}
    assert set(leased) == ({"j", "other"} if reads else {"other"})
    tidy.tidy(ledger, 2)
    record(ledger, [report(leased["other"])], now=3)
    tidy.tidy(ledger, 4)
    states = {job["job"]: job["state"] for job in status.snapshots(ledger, 4)}
    assert states == {"j": "running" if reads else "broken", "other": "done"}
    if reads:
        return
    (broken,) = (job for job in status.snapshots(ledger, 4) if job["job"] == "j")
    assert broken["broken"].startswith("its description cannot be read: ")
    with pytest.raises(UnreadableJobError):
        status.job_named(ledger, "j")
    written(ledger, jobs.update().where(jobs.c.name == "j").values(spec='{"name": "j", "delay": 0}'))
    tidy.tidy(ledger, 5)  # as after the upgrade to the release that wrote it
    assert status.snapshots(ledger, 5)[0]["state"] == "running"
    (batch,) = lease(ledger, 10, now=20)
    assert len(batch.targets) == 2


def test_a_report_for_a_job_that_cannot_be_read_is_taken(ledger: Ledger) -> None:
    admit(ledger, admission("/a", delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    written(ledger, jobs.update().values(spec="?"))
    assert record(ledger, [report(batch, links=("/b",))], now=1) == 1
    assert counts(ledger) == {"done": 1, "queued": 1}


@pytest.mark.parametrize("robots", ["?", "[]", '{"http://a.test": 5}', '{"http://a.test": {"status": "x"}}'])
def test_a_robots_txt_that_cannot_be_read_is_fetched_again(ledger: Ledger, robots: str) -> None:
    admit(ledger, admission("/a"), now=0)
    assert written(ledger, hosts.update().values(robots=robots)) == 1
    (batch,) = lease(ledger, 1, now=0)
    assert batch.robots == {}
    fresh = {SITE: RobotsFile(fetched_at=1, status=200, body="User-agent: *")}
    record(ledger, [report(batch, robots=fresh, links=("/b",))], now=1)
    (batch,) = lease(ledger, 1, now=10)
    assert batch.robots == fresh


def test_only_what_differs_from_the_defaults_is_stored(ledger: Ledger) -> None:
    admit(ledger, admission("/a", delay=2, scope={"kind": "any"}), now=0)
    with ledger.transaction() as tx:
        stored = json.loads(tx.execute(sa.select(jobs.c.spec)).scalar_one())
    assert stored == {"name": "j", "delay": 2, "scope": {"kind": "any"}}
    assert status.job_named(ledger, "j") == Job(name="j", delay=2, scope={"kind": "any"})


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"dealy": 2}, "dealy"),
        ({"scope": {"knid": "any"}}, "scope.knid"),
        ({"extract": {"title": {"css": "h1", "atribute": "x"}}}, "extract"),
    ],
)
def test_what_a_person_misspells_is_an_error(given: dict[str, Any], field: str) -> None:
    with pytest.raises(JobError, match=f"test: {field}"):
        Job.checked({"name": "j", **given}, origin="test")
    assert Job.model_validate({"name": "j", **given}).name == "j"


def test_rows_without_a_cause_are_understood(ledger: Ledger) -> None:
    """Of a release that wrote reasons alone, and of its workers' reports."""
    admit(ledger, admission("/"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    links = [
        Link(url=SITE + "/deep", depth=5, found_on=SITE + "/", excluded="depth"),
        Link(url="http://b.test/", depth=1, found_on=SITE + "/", excluded="scope: other host"),
        Link(url=SITE + "/a/a/a/a/", depth=1, found_on=SITE + "/", excluded="trap: a path segment more than 3 times"),
        Link(url=SITE + "/pdf", depth=1, found_on=SITE + "/"),
    ]
    record(ledger, [replace(report(batch), links=links)], now=1)
    (batch,) = lease(ledger, 1, now=10)
    (pdf,) = batch.targets
    record(ledger, [report(batch, results=[UrlResult(pdf.url, "excluded", 10, "robots.txt")])], now=10)
    assert counts(ledger) == {"done": 1, "excluded": 4}
    admit(ledger, admission("/", seeding="2", scope={"kind": "any"}, traps=False), now=11)
    assert counts(ledger) == {"done": 1, "queued": 3, "excluded": 1}
    for order, reason in (("cancelled", "job cancelled"), ("block", "host blocked")):
        written(
            ledger, urls.update().values(state="excluded", cause=None, reason=reason).where(urls.c.state == "queued")
        )
        drift = {"queued": 0, "excluded": host_queues.c.excluded + host_queues.c.queued}
        written(ledger, host_queues.update().values(drift))
        if order == "cancelled":
            assert orders.set_state(ledger, "j", "running", now=3) == 3
        else:
            orders.block(ledger, "a.test", now=4)
            assert orders.unblock(ledger, "a.test", now=5) == 2


# --- corrupt rows (E26) -----------------------------------------------------------------------------------------------


@pytest.fixture
def crawled(ledger: Ledger) -> Ledger:
    """Two hosts; URLs in every state."""
    seeds = [SITE + path for path in ("/a", "/b", "/c", "/d")] + ["http://b.test/"]
    job = Job(name="j", delay=0, max_attempts=1)
    admit(ledger, Admission(job=job, seeding="s", chunk=0, chunks=1, urls=seeds), now=0)
    batch = next(batch for batch in lease(ledger, 5, now=0) if batch.host == "a.test")
    outcomes = ("done", "failed", "excluded", "done")
    pages = [
        UrlResult(url=target.url, state=state, fetched_at=1, status=200)
        for target, state in zip(batch.targets, outcomes, strict=True)
    ]
    record(ledger, [report(batch, results=pages, links=("/new",))], now=1)
    return ledger


def in_state(state: str) -> sa.ColumnElement[bool]:
    return urls.c.state == state


def of_a(table: sa.Table) -> Any:
    return table.c.host == "a.test"


def counted_wrong(table: sa.Table) -> dict[str, Callable[[], Any]]:
    return {
        "done + 41": lambda: table.update().values(done=table.c.done + 41),
        "a lost count": lambda: table.update().values(failed=0),
        "discovered - 1": lambda: table.update().values(discovered=table.c.discovered - 1),
        "queued below zero": lambda: table.update().values(queued=-1),
    }


COUNTED = counted_wrong(job_counts)
"""What a status can see by the counts of the job alone."""
UNSEEN: dict[str, Callable[[], Any]] = {
    **{f"{what}, of hosts": order for what, order in counted_wrong(host_queues).items()},
    "two counts that make up for each other": lambda: (
        host_queues.update()
        .where(of_a(host_queues))
        .values(done=host_queues.c.done + 1, failed=host_queues.c.failed - 1)
    ),
    "a host's counts are gone": lambda: host_queues.delete().where(of_a(host_queues)),
    "a URL is gone": lambda: urls.delete().where(urls.c.url == SITE + "/a"),
    "a URL too many": lambda: urls.insert().values(
        job_id=1, host="a.test", url=SITE + "/x", state="done", depth=0, discovered_at=0
    ),
    "a URL in another state": lambda: urls.update().where(in_state("failed")).values(state="done"),
    "a URL in a state that is none": lambda: urls.update().where(in_state("failed")).values(state="lost"),
    "a URL of another job": lambda: urls.update().where(in_state("failed")).values(job_id=99),
    "leased under no lease": lambda: leases.delete(),
}
"""What only a recount can see."""


def test_a_sound_ledger_adds_up(crawled: Ledger) -> None:
    (job,) = status.snapshots(crawled, 2, recount=True)
    assert progress.conserved(job["counts"])
    assert job["recounted"] == job["by_host"] == job["counts"]
    assert job["counts"] == {"discovered": 6, "queued": 1, "leased": 1, "done": 2, "failed": 1, "excluded": 1}
    assert sum(site["discovered"] for site in job["sites"]) == 6


@pytest.mark.parametrize("corruption", [*COUNTED, *UNSEEN])
def test_a_corrupt_ledger_does_not_add_up(crawled: Ledger, corruption: str) -> None:
    if corruption == "a URL too many":
        with crawled.transaction() as tx:
            assert tx.execute(sa.select(jobs.c.job_id)).scalar_one() == 1 or pytest.skip("another id")
    assert written(crawled, {**COUNTED, **UNSEEN}[corruption]()) != 0
    (job,) = status.snapshots(crawled, 2, recount=True)
    assert not job["recounted"] == job["by_host"] == job["counts"]
    assert progress.conserved(job["counts"]) == (corruption in UNSEEN)


# --- older schemas ----------------------------------------------------------------------------------------------------


def test_counts_of_a_ledger_before_discovered_was_counted(crawled: Ledger) -> None:
    with crawled.engine.begin() as tx:
        tx.execute(sa.text("ALTER TABLE host_queues DROP COLUMN discovered"))
        tx.execute(sa.text("CREATE INDEX urls_open ON urls (job_id)"))
    assert crawled.create()
    assert not crawled.create()
    (job,) = status.snapshots(crawled, 2, recount=True)
    assert job["recounted"] == job["counts"]
    assert "urls_open" not in {index["name"] for index in sa.inspect(crawled.engine).get_indexes("urls")}


# --- what a worker is told --------------------------------------------------------------------------------------------


def test_a_seed_that_redirects_carries_the_scope_with_it(ledger: Ledger) -> None:
    """E6: --scope prefix, http redirects to https on www."""
    scope = {"kind": "prefix", "prefixes": (SITE + "/docs/",)}
    admit(ledger, admission("/docs/", "/docs/other", delay=0, scope=scope), now=0)
    (batch,) = lease(ledger, 1, now=0)
    first, other = batch.targets
    goal = "https://www.a.test/docs/index.html"
    pages = [
        UrlResult(url=first.url, state="excluded", cause=Cause.REDIRECT, fetched_at=1, status=301),
        UrlResult(url=other.url, state="done", fetched_at=1, status=200),
    ]
    out = batch.job.refuses("https://www.a.test/docs/one", other.url, 1)
    assert out
    links = [
        Link(url=goal, depth=0, hops=1, seed=True, found_on=first.url),
        Link(
            url="https://www.a.test/docs/one", depth=1, found_on=other.url, excluded="scope: other", cause=Cause.SCOPE
        ),
        Link(url="https://www.a.test/blog/", depth=1, found_on=other.url, excluded="scope: other", cause=Cause.SCOPE),
    ]
    first_time = replace(report(batch, results=pages), links=links)
    record(ledger, [first_time], now=1)
    record(ledger, [first_time], now=1.5)
    later = Link(url="https://www.a.test/docs/two", depth=1, found_on=goal)
    (batch,) = lease(ledger, 5, now=2)
    assert batch.job.scope.prefixes == (SITE + "/docs/", "https://www.a.test/docs/")
    assert not batch.job.refuses(later.url, goal, 1)
    assert batch.job.refuses("https://www.a.test/blog/", goal, 1)
    assert {target.url for target in batch.targets} == {goal, "https://www.a.test/docs/one"}
    record(ledger, [replace(report(batch), links=[later])], now=3)
    assert status.job_named(ledger, "j").scope.prefixes[1:] == ("https://www.a.test/docs/",)
    admit(ledger, admission("/docs/", delay=0, scope=scope, seeding="2"), now=4)
    assert status.job_named(ledger, "j").scope.prefixes[1:] == ("https://www.a.test/docs/",)
    states = {row["url"]: row["state"] for row in status.pages(ledger, "j")}
    assert states[later.url] == "queued"
    assert states["https://www.a.test/blog/"] == "excluded"


def leased_with(ledger: Ledger, files: dict[str, RobotsFile], now: float, **job: Any) -> Batch:
    orders.block(ledger, "blocked.test", now=0)
    admit(ledger, admission("/a", **job), now=now)
    written(ledger, hosts.update().values(robots=json.dumps({o: json.loads(encode(f)) for o, f in files.items()})))
    (batch,) = lease(ledger, 1, now=now)
    return batch


def test_a_batch_without_fresh_rules_knows_the_blocked_hosts(ledger: Ledger) -> None:
    """E25: robots.txt may redirect to one."""
    assert leased_with(ledger, {}, 10).blocked == {"blocked.test"}


@pytest.mark.parametrize(
    ("file", "blocked"),
    [
        (RobotsFile(fetched_at=99_000, status=200), set()),
        (RobotsFile(fetched_at=99_000, status=404), set()),
        (RobotsFile(fetched_at=99_000, status=503), {"blocked.test"}),
        (RobotsFile(fetched_at=99_000, status=0), {"blocked.test"}),
        (RobotsFile(fetched_at=10_000, status=200), {"blocked.test"}),
    ],
)
def test_a_batch_with_fresh_rules_need_not(ledger: Ledger, file: RobotsFile, blocked: set[str]) -> None:
    assert leased_with(ledger, {SITE: file}, 100_000).blocked == blocked


def test_a_batch_that_asks_for_no_rules_need_not(ledger: Ledger) -> None:
    assert leased_with(ledger, {}, 10, robots=False).blocked == frozenset()


def test_robots_txt_is_written_when_it_was_fetched(ledger: Ledger) -> None:
    """E21: not with every report."""
    written_columns: list[bool] = []

    @sa.event.listens_for(ledger.engine, "before_cursor_execute")
    def note(_c: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE hosts"):
            written_columns.append("robots" in statement)

    admit(ledger, admission("/a"), now=0)
    (batch,) = lease(ledger, 1, now=0)
    file = {SITE: RobotsFile(fetched_at=1, status=200, body="User-agent: *")}
    record(ledger, [report(batch, robots=file, links=("/b",))], now=1)
    assert written_columns[-1]
    (batch,) = lease(ledger, 1, now=10)
    assert batch.robots == file
    record(ledger, [report(batch, links=("/c",))], now=11)
    assert not written_columns[-1]
    (batch,) = lease(ledger, 1, now=20)
    assert batch.robots == file


# --- what watchers are told -------------------------------------------------------------------------------------------


def test_a_snapshot_names_the_newest_seedings(ledger: Ledger) -> None:
    """E7: --watch follows its own."""
    for number in range(status.SEEDINGS + 5):
        admit(ledger, admission(f"/{number}", seeding=f"s{number}", last=number % 2 == 0), now=number)
    (job,) = status.snapshots(ledger, 100)
    assert list(job["seedings"]) == [f"s{number}" for number in range(status.SEEDINGS + 4, 4, -1)]
    assert job["seedings"]["s24"] is True
    assert job["seedings"]["s23"] is False
    admit(ledger, admission("/x", seeding="s23", chunk=1), now=101)
    assert status.snapshots(ledger, 102)[0]["seedings"]["s23"] is True
    admit(ledger, admission("/y", seeding="overtaken", chunk=1), now=103)  # its last piece overtook the first
    assert status.snapshots(ledger, 104)[0]["seedings"]["overtaken"] is False


@pytest.mark.parametrize("known", [200, 4000])
def test_a_report_costs_the_same_whatever_the_host_s_size(ledger: Ledger, known: int, record_property: Any) -> None:
    """E14: on SQLite, in steps of its virtual machine."""
    if ledger.engine.dialect.name != "sqlite":
        pytest.skip("counts SQLite's steps")
    admit(ledger, admission(*(f"/{number}" for number in range(known)), delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    assert len(batch.targets) == 50
    steps = 0

    def step() -> int:
        nonlocal steps
        steps += 1
        return 0

    with ledger.engine.connect() as connection:
        raw = connection.connection.dbapi_connection
        assert raw is not None
    raw.set_progress_handler(step, 100)  # type: ignore[attr-defined]
    try:
        assert record(ledger, [report(batch, links=tuple(f"/{number}" for number in range(known))[:100])], now=1) == 50
    finally:
        raw.set_progress_handler(None, 0)  # type: ignore[attr-defined]
    record_property("hundreds of steps", steps)
    assert 10 < steps < 500
