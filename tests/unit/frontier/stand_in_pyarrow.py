"""The little of pyarrow that crawler/frontier/export.py uses, for tests where it is not installed.

pyarrow takes 165 MB, so neither hosts nor the control node have it unless somebody wants Parquet (extra `parquet`).
What we hand to it (columns, types, values, row groups) is ours to test everywhere; the files it makes of that are its
own matter. A "file" of the stand-in is the pickled table.
"""

from __future__ import annotations

import importlib
import pickle
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

TYPES: dict[str, Any] = {"int32": int, "int64": int, "string": str, "timestamp[ms, tz=UTC]": int}
"""What a value has to be, by the type of its column; pyarrow refuses others, or converts them."""


class Schema:
    def __init__(self, columns: list[tuple[str, str]]) -> None:
        self.columns = dict(columns)
        assert len(self.columns) == len(columns), "two columns of one name"

    @property
    def names(self) -> list[str]:
        return list(self.columns)

    def field(self, name: str) -> Any:
        made = ModuleType("field")
        made.type = self.columns[name]  # type: ignore[attr-defined]
        return made


class Table:
    def __init__(self, schema: Schema, rows: list[dict[str, Any]]) -> None:
        self.schema, self.rows = schema, rows

    @classmethod
    def from_pylist(cls, rows: list[dict[str, Any]], schema: Schema) -> Table:
        for row in rows:
            for name, kind in schema.columns.items():
                assert row[name] is None or isinstance(row[name], TYPES[kind]), (name, row[name])
        return cls(schema, [{name: row[name] for name in schema.columns} for row in rows])

    def to_pylist(self) -> list[dict[str, Any]]:
        times = {name for name, kind in self.schema.columns.items() if kind.startswith("timestamp")}
        epoch = datetime(1970, 1, 1, tzinfo=UTC)
        return [
            {
                name: epoch + timedelta(milliseconds=value) if name in times and value is not None else value
                for name, value in row.items()
            }
            for row in self.rows
        ]


class ParquetWriter:
    def __init__(self, stream: Any, schema: Schema, compression: str) -> None:
        assert compression in ("zstd", "snappy", "gzip", "none")
        self.stream = stream
        pickle.dump(schema.columns, stream)

    def write_table(self, table: Table) -> None:
        pickle.dump(table.rows, self.stream)

    def __enter__(self) -> ParquetWriter:
        return self

    def __exit__(self, *_: object) -> None:
        pickle.dump(None, self.stream)


def read_table(stream: Any) -> Table:
    table = Table(Schema(list(pickle.load(stream).items())), [])  # noqa: S301
    while (rows := pickle.load(stream)) is not None:  # noqa: S301
        table.rows.extend(rows)
    return table


def install_if_missing(install: Callable[[str, ModuleType], None] = sys.modules.__setitem__) -> ModuleType:
    """pyarrow with its `parquet`: the real one, or the stand-in, which is then installed under its names."""
    try:
        importlib.import_module("pyarrow.parquet")
        return importlib.import_module("pyarrow")
    except ImportError:
        stand_in, parquet = ModuleType("pyarrow"), ModuleType("pyarrow.parquet")
    vars(stand_in).update(
        int32=lambda: "int32",
        int64=lambda: "int64",
        string=lambda: "string",
        timestamp=lambda unit, tz: f"timestamp[{unit}, tz={tz}]",
        schema=Schema,
        Table=Table,
        parquet=parquet,
    )
    vars(parquet).update(ParquetWriter=ParquetWriter, read_table=read_table)
    install("pyarrow", stand_in)
    install("pyarrow.parquet", parquet)
    return stand_in
