"""The request log: every request made (table `requests`), kept for a number of days.

On PostgreSQL the table is partitioned by day (UTC) of `at`, so that a day is forgotten by dropping its partition,
however many requests it holds; on SQLite it is one table, whose oldest rows are deleted in chunks. The partitions:

    requests_20261124            a day; made some days ahead
    requests_other               the default partition, for what no day takes: clocks of workers are wrong at times,
                                 and the scheduler that makes the days may have been down
    requests_before_1795540000   the whole table of a release that had no partitions, up to the second of its migration

A day has a unique index on a hash of the URL instead of the URL, a third of the size of the primary key. The parent has
none, since it would have to be built on the table of the earlier release; ON CONFLICT DO NOTHING asks each partition's.

Changes of partitions wait PATIENCE for their locks, as recorders may have to wait behind them for as long, and are left
to the next call if they do not get them.
"""

from __future__ import annotations

import datetime
import time
from collections.abc import Callable
from functools import partial

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine
from sqlalchemy.exc import OperationalError

from crawler.frontier.schema import requests

DAY = 86400
AHEAD = 3
"""Days whose partitions are there before they begin."""
CHUNK = 2000
"""Rows deleted in one transaction; and rows that are moved from the default partition into a new day: a day of which it
has more stays there."""
PATIENCE = "200ms"
TRIES = 100
"""Of a change that cannot be left to the next call."""
LOCK_NOT_AVAILABLE = "55P03"
OTHER = "requests_other"
BEFORE = "requests_before_"
COLUMNS = ", ".join(f'"{column.name}"' for column in requests.c)


class LockedError(RuntimeError):
    """Somebody reads or writes `requests` without an end; the message says what to do."""


def create(engine: Engine, now: float) -> bool:
    """Bring the partitions up to date, of a new ledger as of one of a release that had none; whether that was
    necessary. May be repeated, and goes on with what was broken off. Nobody waits longer than PATIENCE for it."""
    if engine.dialect.name != "postgresql":
        return False
    changed = _surely(engine, lambda tx: _put_aside(tx, now))
    changed |= _surely(engine, _add_default)
    make_days(engine, now)
    changed |= _attach_before(engine)
    return _surely(engine, _satisfy_earlier_release) or changed


def make_days(engine: Engine, now: float) -> None:
    """Make the partitions of today and of the days ahead. May be repeated at any time; without effect on SQLite."""
    if engine.dialect.name != "postgresql":
        return
    today = int(now // DAY) * DAY
    with engine.begin() as tx:
        there = _partitions(tx)
    taken = max((int(name.removeprefix(BEFORE)) for name in there if name.startswith(BEFORE)), default=0)
    days = ((_name(day), day) for day in range(today, today + (AHEAD + 1) * DAY, DAY))
    missing = {name: day for name, day in days if name not in there and day >= taken}
    for name, day in missing.items():
        attempt(engine, partial(_make_day, name=name, start=day, end=day + DAY))


def forget_some(engine: Engine, before: float) -> int:
    """Forget some of the requests made before a time: a whole day, or a chunk of what is in no day. Returns how many
    partitions or rows those were; 0 when there is nothing more to forget. Days are forgotten when they are over."""
    if engine.dialect.name != "postgresql":
        return _forget_chunk(engine, requests.name, before)
    with engine.begin() as tx:
        ends = {name: _end(name) for name in _partitions(tx)}
    for name, end in ends.items():
        if end is not None and end <= before and attempt(engine, partial(_drop, name=name)):
            return 1
    # The index of a day begins with the host; the others have one on `at`.
    return next((number for name in ends if not _is_day(name) and (number := _forget_chunk(engine, name, before))), 0)


def same_url(engine: Engine, url: str) -> sa.ColumnElement[bool]:
    """Whether a request was for `url`, in words that the index of a day knows."""
    same = requests.c.url == url
    if engine.dialect.name != "postgresql":
        return same
    return sa.and_(same, _hashed(requests.c.url) == _hashed(sa.literal(url)))


def _hashed(text: sa.ColumnElement[str]) -> sa.ColumnElement[int]:
    return sa.func.hashtextextended(text, sa.literal_column("0"))


# --- partitions: their names, and what changes them -------------------------------------------------------------------


def _name(start: int) -> str:
    return f"requests_{datetime.datetime.fromtimestamp(start, datetime.UTC):%Y%m%d}"


def _is_day(name: str) -> bool:
    return name.removeprefix("requests_").isdigit()


def _end(name: str) -> int | None:
    """The time before which all of a partition's requests were made; None of the default partition."""
    if name == OTHER:
        return None
    if name.startswith(BEFORE):
        return int(name.removeprefix(BEFORE))
    day = datetime.datetime.strptime(name, "requests_%Y%m%d").replace(tzinfo=datetime.UTC)
    return int(day.timestamp()) + DAY


def _partitions(tx: Connection) -> list[str]:
    """The names of the partitions. Reads the catalogue."""
    children = "SELECT inhrelid::regclass::text FROM pg_inherits WHERE inhparent = to_regclass('requests') ORDER BY 1"
    return list(tx.execute(sa.text(children)).scalars())


def _make_day(tx: Connection, name: str, start: int, end: int) -> bool:
    """Make a partition for what is made from `start` until before `end`, and move there what the default partition has
    of it, unless that is much. Locks the parent against other changes of partitions only (SHARE UPDATE EXCLUSIVE), the
    default partition against all."""
    tx.execute(sa.text("LOCK TABLE requests IN SHARE UPDATE EXCLUSIVE MODE"))
    tx.execute(sa.text(f"LOCK TABLE {OTHER} IN ACCESS EXCLUSIVE MODE"))
    if name in _partitions(tx):
        return False
    here = f"at >= {start} AND at < {end}"
    some = f"SELECT count(*) FROM (SELECT 1 FROM {OTHER} WHERE {here} LIMIT {CHUNK + 1}) AS found"  # noqa: S608  our own
    if tx.execute(sa.text(some)).scalar_one() > CHUNK:
        return False
    tx.execute(sa.text(f"CREATE TABLE {name} (LIKE requests INCLUDING DEFAULTS)"))
    tx.execute(sa.text(f"CREATE UNIQUE INDEX {name}_once ON {name} (host, at, hashtextextended(url, 0))"))
    tx.execute(sa.text(_moving(OTHER, here, name)))
    tx.execute(sa.text(f"ALTER TABLE requests ATTACH PARTITION {name} FOR VALUES FROM ({start}) TO ({end})"))
    return True


def _moving(source: str, where: str, target: str) -> str:
    """A statement that moves rows; those that the target has are left out."""
    moved = f"DELETE FROM {source} WHERE {where} RETURNING {COLUMNS}"  # noqa: S608  all of it is our own
    inserted = f"INSERT INTO {target} ({COLUMNS}) SELECT {COLUMNS} FROM moved ON CONFLICT DO NOTHING"  # noqa: S608
    return f"WITH moved AS ({moved}) {inserted}"


def _add_default(tx: Connection) -> bool:
    """Add the default partition. Idempotent."""
    if OTHER in _partitions(tx):
        return False
    tx.execute(sa.text(f"CREATE TABLE {OTHER} PARTITION OF requests DEFAULT"))
    tx.execute(sa.text(f"CREATE UNIQUE INDEX {OTHER}_once ON {OTHER} (host, at, hashtextextended(url, 0))"))
    tx.execute(sa.text(f"CREATE INDEX {OTHER}_at ON {OTHER} (at)"))
    return True


def _drop(tx: Connection, name: str) -> bool:
    """Drop a partition. Locks the parent against all, for as long as the catalogue takes; its files are removed after
    that. DETACH CONCURRENTLY, which would not, is refused where there is a default partition."""
    tx.execute(sa.text(f"DROP TABLE {name}"))
    return True


def _forget_chunk(engine: Engine, name: str, before: float) -> int:
    """Delete the oldest requests made before a time; returns how many. By an index on `at`; nobody else locks them."""
    table = sa.table(name, sa.column("at"))
    with engine.begin() as tx:
        old = sa.select(table.c.at).where(table.c.at < before).order_by(table.c.at).limit(CHUNK).subquery()
        last = tx.execute(sa.select(sa.func.max(old.c.at))).scalar_one()
        return 0 if last is None else int(tx.execute(table.delete().where(table.c.at <= last)).rowcount)


# --- the table of a release without partitions ------------------------------------------------------------------------


def _put_aside(tx: Connection, now: float) -> bool:
    """Put the table of an earlier release aside, with a partitioned one in its place. Moves no row: the table, which
    nobody writes from now on, becomes a partition when it has been looked through (_attach_before)."""
    kind = tx.execute(sa.text("SELECT relkind::text FROM pg_class WHERE oid = to_regclass('requests')")).scalar_one()
    if kind == "p":
        return False
    cut = int(now) + 1
    name = f"{BEFORE}{cut}"
    for statement in (
        f"ALTER TABLE requests RENAME TO {name}",
        f"ALTER TABLE {name} RENAME CONSTRAINT requests_pkey TO {name}_pkey",
        f"ALTER INDEX ix_requests_at RENAME TO {name}_at",
        f"ALTER TABLE {name} ADD CONSTRAINT {name}_end CHECK (at < {cut}) NOT VALID",
    ):
        tx.execute(sa.text(statement))
    requests.create(tx)
    _add_default(tx)
    day = cut // DAY * DAY
    return _make_day(tx, _name(day), cut, day + DAY)


def _attach_before(engine: Engine) -> bool:
    """Make a partition of a table that was put aside, if there is one. Looks through all of it, while others go on."""
    aside = "SELECT relname FROM pg_class WHERE relname LIKE :name AND relkind = 'r' AND NOT relispartition"
    with engine.begin() as tx:
        name = tx.execute(sa.text(aside), {"name": f"{BEFORE}%"}).scalar()
    if name is None:
        return False
    cut = _end(name)
    with engine.begin() as tx:  # of a worker whose clock was wrong
        tx.execute(sa.text(_moving(name, f"at >= {cut}", "requests")))
    with engine.begin() as tx:
        tx.execute(sa.text(f"ALTER TABLE {name} VALIDATE CONSTRAINT {name}_end"))

    def attach(tx: Connection) -> bool:
        """What was made before the cut and has arrived since is in the default partition."""
        tx.execute(sa.text("LOCK TABLE requests IN SHARE UPDATE EXCLUSIVE MODE"))
        tx.execute(sa.text(f"LOCK TABLE {OTHER} IN ACCESS EXCLUSIVE MODE"))
        tx.execute(sa.text(_moving(OTHER, f"at < {cut}", name)))
        tx.execute(sa.text(f"ALTER TABLE requests ATTACH PARTITION {name} FOR VALUES FROM (MINVALUE) TO ({cut})"))
        return True

    return _surely(engine, attach)


def _satisfy_earlier_release(tx: Connection) -> bool:
    """Have an index of the name by which the release before looks for one, or it would build one on every partition
    when it is deployed again. It holds nothing. Idempotent."""
    if tx.execute(sa.text("SELECT to_regclass('ix_requests_at')")).scalar_one() is not None:
        return False
    tx.execute(sa.text("CREATE INDEX ix_requests_at ON ONLY requests (at) WHERE false"))
    return True


# --- locks ------------------------------------------------------------------------------------------------------------


def attempt(engine: Engine, change: Callable[[Connection], int]) -> int | None:
    """What `change` returns, in a transaction of its own; None, and no change, if it does not get its locks in time."""
    try:
        with engine.begin() as tx:
            if engine.dialect.name == "postgresql":
                tx.execute(sa.text(f"SET LOCAL lock_timeout = '{PATIENCE}'"))
            return change(tx)
    except OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != LOCK_NOT_AVAILABLE:
            raise
        return None


def _surely(engine: Engine, change: Callable[[Connection], bool]) -> bool:
    """As `attempt`, again and again; between, those who waited behind it have their turn. Raises LockedError."""
    for _ in range(TRIES):
        if (changed := attempt(engine, change)) is not None:
            return bool(changed)
        time.sleep(0.1)
    raise LockedError("The ledger's table `requests` is always in use: end what reads it (audit, a dump), then again.")
