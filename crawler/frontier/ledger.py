"""The ledger behind an SQLAlchemy engine: opening, migrating, transactions, and rows that travel in bulk.

    discovered = queued + leased + done + failed + excluded        (per job, at every commit)

The ledger holds every URL a job ever saw, in exactly one state. PostgreSQL in the fleet, SQLite embedded. What happens
to it is in the modules beside this one, one for each verb of the circle:

    admit    take in seeds                          lease    hand out batches of due hosts
    record   take in a batch's report               tidy     expire leases, enforce limits, close jobs
    orders   block, pause, cancel, retry, delete    status   counts, explain, audit
    sweeps   work orders off, in chunks             moves    change states and counts together
    links    insert what was found
    politeness   when a host is due, rests, and is given up
    machines     hosts wait for their domain and address
    addresses    which address a host has
    budgets, traps   which parts of a job's web take no more URLs

Each public verb is one transaction (an order: one that puts it in force, then one for each chunk; `tidy`: many short
ones), and each may be repeated: a message seen twice changes nothing. All times are seconds since the epoch and come in
as `now`.

Locks are always taken in the order sweeps -> jobs -> urls -> leases -> slots -> machines -> waiting_hosts -> hosts ->
host_queues -> job_counts -> budgets -> traps -> workers, and within a table by key, so that recorders and the scheduler
cannot wait for each other in a circle. Rows travel to the database as one JSON parameter: ten times faster than a
parameter a value, and the same statement for both databases.
"""

from __future__ import annotations

import functools
import json
import math
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import msgspec
import sqlalchemy as sa
from pydantic import ValidationError
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.engine import Connection, Engine

from crawler.ceilings import NO_CEILINGS, Ceilings
from crawler.frontier import request_log
from crawler.frontier.caps import NO_CAPS, Caps
from crawler.frontier.schema import COUNTS, OUTDATED_INDEXES, STATES, host_queues, job_counts, metadata
from crawler.job import Job

EachRule = Callable[[sa.FromClause], tuple[sa.ColumnElement[bool], Sequence[sa.ColumnElement[Any]]]]
"""What rows of a table (or its alias) have to meet, and their order."""
NOW: sa.BindParameter[float] = sa.bindparam("now", type_=sa.Float(53))
"""The parameter `now` of a statement that Ledger.run executes."""


class Ledger:
    """An open ledger: what every verb gets as its first argument."""

    def __init__(self, engine: Engine, caps: Caps = NO_CAPS, ceilings: Ceilings = NO_CEILINGS) -> None:
        self.engine, self.caps, self.ceilings = engine, caps, ceilings
        self.wake_at = 0.0 if caps.on else math.inf
        """When hosts that wait for their domain or server may have a turn, as `lease` saw it last."""
        self.postgresql = engine.dialect.name == "postgresql"
        """Where other processes write at the same time, and rows are locked."""
        self.insert: Callable[..., Any] = postgresql.insert if self.postgresql else sqlite.insert
        """The dialect's insert, which knows ON CONFLICT."""
        self._made: dict[Hashable, sa.Executable] = {}

    @classmethod
    def open(cls, url: str, caps: Caps = NO_CAPS, ceilings: Ceilings = NO_CEILINGS) -> Ledger:
        """The ledger at an SQLAlchemy database URL, whose hosts are leased within these caps, for jobs under these
        ceilings."""
        engine = sa.create_engine(url, pool_pre_ping=True)
        if engine.dialect.name == "sqlite":

            @sa.event.listens_for(engine, "connect")
            def _fast_and_safe(connection: Any, _: Any) -> None:
                # WAL with NORMAL loses nothing that was committed when the process dies, only when the power does.
                connection.executescript("PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL;")

        return cls(engine, caps, ceilings)

    def create(self) -> bool:
        """Create what is missing of the schema: tables, indexes, columns, partitions. True if anything was.

        Between releases the schema only grows, by columns that may be null or have a default: so the release before can
        go on with it while hosts are upgraded one by one, and after a rollback.
        """
        with self.transaction() as tx:
            before = sa.inspect(tx)
            known = {name: {column["name"] for column in before.get_columns(name)} for name in before.get_table_names()}
            for table in metadata.sorted_tables:
                for column in table.columns if table.name in known else ():
                    if column.name not in known[table.name]:
                        definition = sa.schema.CreateColumn(column).compile(dialect=self.engine.dialect)
                        tx.execute(sa.text(f"ALTER TABLE {table.name} ADD COLUMN {definition}"))
            if "host_queues" in known and "discovered" not in known["host_queues"]:
                tx.execute(host_queues.update().values(discovered=sum(host_queues.c[state] for state in STATES)))
            for name in OUTDATED_INDEXES:
                tx.execute(sa.text(f"DROP INDEX IF EXISTS {name}"))
            metadata.create_all(tx)
            if "host_queues" in known and "job_counts" not in known:
                sums = [sa.func.sum(host_queues.c[name]) for name in COUNTS]
                counted = sa.select(host_queues.c.job_id, sa.literal(0), *sums).group_by(host_queues.c.job_id)
                tx.execute(job_counts.insert().from_select(["job_id", "slot", *COUNTS], counted))
            for table in metadata.sorted_tables:
                for index in table.indexes:
                    index.create(tx, checkfirst=True)
            after = sa.inspect(tx)
            grown = known != {
                name: {column["name"] for column in after.get_columns(name)} for name in after.get_table_names()
            }
        return request_log.create(self.engine, time.time()) or grown

    @contextmanager
    def snapshot(self) -> Iterator[Connection]:
        """A transaction for reading, whose statements all see the ledger at one moment."""
        with self.engine.connect() as connection:
            if self.postgresql:
                connection = connection.execution_options(isolation_level="REPEATABLE READ")
            with connection.begin():
                if not self.postgresql:
                    connection.exec_driver_sql("BEGIN")  # sqlite3 itself begins only before the first change
                yield connection

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """A transaction: committed at the end of the block, rolled back when it raises."""
        with self.engine.begin() as connection:
            yield connection

    def run(
        self,
        tx: Connection,
        make: Callable[..., sa.Executable],
        rows: list[dict[str, Any]] | None = None,
        *shape: Hashable,
        **values: Any,
    ) -> sa.CursorResult[Any]:
        """Execute the statement that `make(self, *shape)` makes. `rows`: what its `given` stands for; `values`: its
        other parameters. It is made once for each shape: to make one takes 250 us, and to execute it 100."""
        key = (make, *shape)
        if key not in self._made:
            self._made[key] = make(self, *shape)
        return tx.execute(self._made[key], values if rows is None else {"rows": _json(rows), **values})

    def insert_given(self, table: sa.Table, names: Sequence[str], **constants: sa.ColumnElement[Any]) -> Any:
        """An INSERT of the rows that are given when it is run, with the columns `names`, and `constants` added to each.
        They are inserted and locked in their order, so sort them by key where others may insert the same."""
        return self._insert(table, names, constants, lambda _: sa.true())

    def insert_unknown(self, table: sa.Table, names: Sequence[str], **constants: sa.ColumnElement[Any]) -> Any:
        """As insert_given, of those rows alone that `table` does not have; others are passed over.

        ON CONFLICT DO NOTHING by itself would wait for whoever is about to update a known row, and so could wait in a
        circle: PostgreSQL looks whether the other transaction deletes it.
        """

        def is_unknown(given: sa.FromClause) -> sa.ColumnElement[bool]:
            known = table.alias("known")
            key = [column.name for column in table.primary_key]
            same = [known.c[name] == (given.c[name] if name in given.c else constants[name]) for name in key]
            return sa.not_(sa.exists().select_from(known).where(*same))

        return self._insert(table, names, constants, is_unknown).on_conflict_do_nothing()

    def _insert(
        self,
        table: sa.Table,
        names: Sequence[str],
        constants: dict[str, sa.ColumnElement[Any]],
        where: Callable[[sa.FromClause], sa.ColumnElement[bool]],
    ) -> Any:
        given = self.given(None, *(table.c[name] for name in names))
        # SQLite takes ON CONFLICT after a SELECT only if that has a WHERE.
        chosen = sa.select(*given.c, *constants.values()).where(where(given))
        return self.insert(table).from_select([*names, *constants], chosen)

    def given(self, rows: list[dict[str, Any]] | None, *columns: sa.ColumnClause[Any]) -> sa.FromClause:
        """`rows` as a table expression with the given columns: one JSON parameter, however many rows there are. None:
        those that `run` is told.

        Join it by columns alone, never by constants: SQLite would walk through all rows that meet the constants.
        """
        payload: sa.ColumnElement[str] = sa.bindparam("rows", type_=sa.Text)
        if rows is not None:
            payload = sa.bindparam(None, _json(rows), type_=sa.Text, unique=True)
        if self.postgresql:
            function = sa.func.json_to_recordset(sa.cast(payload, postgresql.JSON))
            named = (sa.column(column.name, column.type) for column in columns)
            return function.table_valued(*named).render_derived(name="given", with_types=True)
        each = sa.func.json_each(payload).table_valued("value", name="each")
        return sa.select(
            *(
                sa.type_coerce(sa.func.json_extract(each.c.value, f"$.{column.name}"), column.type).label(column.name)
                for column in columns
            )
        ).subquery("given")

    def first_of_each(
        self,
        given: sa.FromClause,
        table: sa.Table,
        names: Sequence[str],
        rule: EachRule,
        limit: sa.BindParameter[int],
    ) -> sa.Select[Any]:
        """Columns of up to `limit` rows of `table` for each row of `given`, the first by a rule: `rule(alias)` returns
        what an alias of the table has to meet (it may compare with columns of `given`) and the order. Each row is found
        by its index, however many others there are. Locks the rows on PostgreSQL, and passes over those that are
        locked."""
        if self.postgresql:
            condition, order = rule(table)
            chosen = sa.select(table).where(condition).order_by(*order).limit(limit).with_for_update(skip_locked=True)
            first = chosen.lateral("first")
            return sa.select(*(first.c[name] for name in names)).select_from(given.join(first, sa.true()))
        # SQLite knows no LATERAL.
        alias = table.alias("first")
        condition, order = rule(alias)
        rowid: sa.ColumnElement[int] = sa.literal_column("first.rowid")
        rowids = sa.select(rowid).select_from(alias).where(condition).order_by(*order)
        found = sa.literal_column(f"{table.name}.rowid").in_(rowids.limit(limit).correlate(given))
        return sa.select(*(table.c[name] for name in names)).select_from(given.join(table, found))


def _json(rows: list[dict[str, Any]]) -> str:
    try:
        return msgspec.json.encode(rows).decode()
    except UnicodeEncodeError:  # half a surrogate pair: for the database to judge
        return json.dumps(rows)


class UnreadableJobError(ValueError):
    """A row of `jobs` that this release cannot read; the message says why."""


@functools.lru_cache(maxsize=256)
def job_of(spec: str, prefixes: str | None = None) -> Job:
    """The job in a `jobs.spec`, its scope widened by a `jobs.prefixes`. Raises UnreadableJobError."""
    try:
        job = Job.model_validate_json(spec)
        more = tuple(map(str, json.loads(prefixes or "[]")))
    except ValidationError as error:
        problem = error.errors()[0]
        where = ".".join(map(str, problem["loc"])) or "all of it"
        raise UnreadableJobError(f"its description cannot be read: {where}: {problem['msg']}") from None
    except (ValueError, TypeError) as error:
        raise UnreadableJobError(f"its prefixes cannot be read: {error}") from None
    if not more:
        return job
    return job.model_copy(update={"scope": job.scope.model_copy(update={"prefixes": (*job.scope.prefixes, *more)})})


def spec_of(job: Job) -> str:
    """A `jobs.spec`: what differs from the defaults, so that a release that knows fewer fields can read it."""
    return job.model_dump_json(exclude_defaults=True)
