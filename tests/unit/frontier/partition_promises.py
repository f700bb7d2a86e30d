"""Promises of the request log that only PostgreSQL can keep: tests/integration runs them, and so does

CRAWLER_TEST_DATABASE_URL=… pytest tests/unit/frontier/partition_promises.py
"""

from __future__ import annotations

import sqlalchemy as sa
from ledger_promises import admission, report
from msgspec.structs import replace

from crawler.frontier import request_log, status, tidy
from crawler.frontier.admit import admit
from crawler.frontier.lease import lease
from crawler.frontier.ledger import Ledger
from crawler.frontier.record import _log_requests, _OfJob, record
from crawler.frontier.request_log import AHEAD, DAY
from crawler.frontier.schema import metadata, requests
from crawler.job import Job
from crawler.messages import Report, Request

NOON = 20_000 * DAY + DAY / 2
TODAY, OTHER = "requests_20241004", "requests_other"


def kept(ledger: Ledger, *at: float) -> None:
    """Record a page of a.test, and log requests at these times."""
    admit(ledger, admission("/", delay=0), now=0)
    (batch,) = lease(ledger, 1, now=0)
    record(ledger, [report(batch)], now=1)
    made = [Request(url=f"http://a.test/{time}", at=time, status=200, seconds=0.1) for time in at]
    for _ in range(2):  # again: the same rows
        log(ledger, replace(report(batch), requests=made))


def log(ledger: Ledger, made: Report) -> None:
    """Log a report's requests whenever they were made: those of a lease, proof.py bounds."""
    with ledger.transaction() as tx:
        _log_requests(ledger, tx, [made], {made.job: _OfJob(1, Job(name=made.job))})


def where(ledger: Ledger) -> dict[float, str]:
    """The partition that each request is in, by time."""
    with ledger.transaction() as tx:
        return dict(tx.execute(sa.text("SELECT at, tableoid::regclass::text FROM requests ORDER BY at")).all())  # type: ignore[arg-type]


def before() -> tuple[sa.Table, sa.Index]:
    """The table as releases before had it, and its index."""
    columns = (sa.Column(column.name, column.type, nullable=column.nullable) for column in requests.columns)
    table = sa.Table("requests", sa.MetaData(), *columns, sa.PrimaryKeyConstraint("host", "at", "url"))
    return table, sa.Index("ix_requests_at", table.c.at)


def test_a_day_is_forgotten_as_a_whole_when_it_is_over(ledger: Ledger) -> None:
    request_log.make_days(ledger.engine, NOON)
    kept(ledger, NOON, NOON + 1, NOON + DAY)
    assert where(ledger) == {NOON: TODAY, NOON + 1: TODAY, NOON + DAY: "requests_20241005"}
    tidy.forget(ledger, NOON + 90 * DAY + 2, days=90, seconds=60)
    assert len(where(ledger)) == 3
    tidy.forget(ledger, NOON + 90.5 * DAY, days=90, seconds=60)
    assert list(where(ledger)) == [NOON + DAY]
    assert TODAY not in sa.inspect(ledger.engine).get_table_names()


def test_days_are_made_ahead(ledger: Ledger) -> None:
    tidy.forget(ledger, NOON, days=90)
    kept(ledger, NOON + AHEAD * DAY, NOON + (AHEAD + 1) * DAY)
    assert list(where(ledger).values()) == ["requests_20241007", OTHER]


def test_requests_of_a_wrong_clock_are_kept_and_forgotten(ledger: Ledger) -> None:
    request_log.make_days(ledger.engine, NOON)
    kept(ledger, 5, NOON, NOON + 400 * DAY)
    assert where(ledger) == {5: OTHER, NOON: TODAY, NOON + 400 * DAY: OTHER}
    assert [row["at"] for row in status.audit(ledger, "a.test")["requests"]] == [5, NOON, NOON + 400 * DAY]
    tidy.forget(ledger, NOON + 1, days=90, seconds=60)
    assert list(where(ledger)) == [NOON, NOON + 400 * DAY]


def test_a_day_takes_over_what_came_before_it_was_made(ledger: Ledger) -> None:
    kept(ledger, NOON, NOON + 1)
    assert set(where(ledger).values()) == {OTHER}
    request_log.make_days(ledger.engine, NOON)
    assert where(ledger) == {NOON: TODAY, NOON + 1: TODAY}
    (row,) = status.explain(ledger, "http://a.test/")
    assert row["requests"] == []


def test_a_day_of_which_much_came_before_stays_where_it_is(ledger: Ledger, monkeypatch) -> None:  # type: ignore[no-untyped-def]
    monkeypatch.setattr(request_log, "CHUNK", 1)
    kept(ledger, NOON, NOON + 1, NOON + DAY)
    request_log.make_days(ledger.engine, NOON)
    assert where(ledger) == {NOON: OTHER, NOON + 1: OTHER, NOON + DAY: "requests_20241005"}
    tidy.forget(ledger, NOON + 90 * DAY + 0.5, days=90, seconds=60)
    assert list(where(ledger)) == [NOON + 1, NOON + DAY]


def test_who_reads_is_not_waited_for(ledger: Ledger) -> None:
    request_log.make_days(ledger.engine, NOON)
    kept(ledger, 5, NOON)
    with ledger.transaction() as reading:
        reading.execute(sa.select(requests)).all()
        tidy.forget(ledger, NOON + 91 * DAY, days=90, seconds=60)
        assert list(where(ledger)) == [NOON]
    tidy.forget(ledger, NOON + 91 * DAY, days=90, seconds=60)
    assert where(ledger) == {}


def test_the_table_of_an_earlier_release_becomes_a_partition(ledger: Ledger) -> None:
    kept(ledger, NOON)
    old, index = before()
    with ledger.transaction() as tx:
        rows = [dict(row) for row in tx.execute(sa.select(requests)).mappings()]
        requests.drop(tx)
        old.create(tx)
        far = {**rows[0], "at": 1e11}  # of a wrong clock
        tx.execute(old.insert(), [{**rows[0], "at": 1.0}, *rows, far])
    assert ledger.create()
    assert not ledger.create()
    first, second, third = where(ledger).items()
    assert first[0] == 1.0
    assert first[1].startswith("requests_before_")
    assert second == (NOON, first[1])
    assert third == (1e11, OTHER)
    # The release before goes on: what it inserts is there once, and it finds all that its schema has.
    with ledger.transaction() as tx:
        tx.execute(ledger.insert(requests).values([far, rows[0]]).on_conflict_do_nothing())
        old.create(tx, checkfirst=True)
        index.create(tx, checkfirst=True)
    assert list(where(ledger)) == [1.0, NOON, 1e11]
    tidy.forget(ledger, NOON + 90 * DAY, days=90, seconds=60)
    assert list(where(ledger)) == [NOON, 1e11]
    tidy.forget(ledger, 1e11, days=90, seconds=60)
    assert list(where(ledger)) == [1e11]
    assert first[1] not in sa.inspect(ledger.engine).get_table_names()


def test_a_migration_that_was_broken_off_goes_on(ledger: Ledger) -> None:
    kept(ledger, NOON)
    metadata.tables["requests"].drop(ledger.engine)
    before()[0].create(ledger.engine)
    request_log._surely(ledger.engine, lambda tx: request_log._put_aside(tx, NOON))
    admit(ledger, admission("/more", seeding="more"), now=3)
    (batch,) = lease(ledger, 1, now=100)
    late = Request(url="http://a.test/more", at=NOON - 1, status=200, seconds=0.1)
    log(ledger, replace(report(batch), requests=[late]))
    assert where(ledger) == {NOON - 1: OTHER}
    assert ledger.create()
    assert where(ledger) == {NOON - 1: f"requests_before_{int(NOON) + 1}"}
