"""A job's URLs and what became of them, written as JSON lines, CSV or Parquet, in constant memory.

`--where` chooses among the URLs. Each condition is a column, an operator and a value; they are joined by `and`:

    state=done and status>=200 and status<300
    state=failed,excluded and host=example.org          a comma: any of these
    url~'/blog/.*[.]html$' and fetched_at>=2026-11-01   ~: the regular expression is found in it; !~: it is not
    extract_error!=                                     without a value, = is unknown and != is known: pages whose
                                                        extractor failed

In CSV, a text that a spreadsheet would run as a formula (it begins with = + - @, a tab or a line break) is preceded by
an apostrophe, and on a terminal what would control it is written as an escape. With --raw, CSV carries every text as it
is, as JSON lines and Parquet do.
"""

from __future__ import annotations

import csv
import importlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, Literal, NamedTuple

import sqlalchemy as sa

from crawler.frontier import schema
from crawler.printable import UNPRINTABLE, printable

Format = Literal["jsonl", "csv", "parquet"]
FORMATS: tuple[Format, ...] = ("jsonl", "csv", "parquet")
CHUNK = 5_000
"""Rows written at once, between two calls of `progress`; in Parquet: a row group."""

Row = dict[str, Any]

COLUMNS = {
    "url": "url",
    "state": "state",
    "status": "status",
    "reason": "reason",
    "cause": "cause",
    "fetched_at": "fetched_at",
    "depth": "depth",
    "referrer": "found_on",
    "title": "title",
    "content_type": "content_type",
    "bytes": "bytes",
    "digest": "digest",
    "warc_file": "warc_file",
    "warc_offset": "warc_offset",
    "extract_error": "extract_error",
    "fields": "fields",
}
"""What is exported, by name: the ledger's column."""
_MORE_TO_CHOOSE_BY = ("host", "attempts", "discovered_at", "worker", "release")
_TIMES = ("fetched_at", "discovered_at")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")
"""How texts begin that spreadsheets run as formulas. Source: OWASP, CSV Injection."""


class ExportError(ValueError):
    """An export that cannot be made; the message names the part and the remedy."""


# --- writing ----------------------------------------------------------------------------------------------------------


def write(
    records: Iterable[Mapping[str, Any]],
    form: Format,
    out: Path | BinaryIO,
    *,
    names: Sequence[str] = (),
    raw: bool = False,
    shown: bool = False,
    progress: Callable[[int], None] = lambda _: None,
) -> int:
    """Write `records`, as status.pages gives them; returns how many there were.

    A path `out` appears when it is complete; until then there is `….part` beside it. The `names` of extracted fields
    give CSV and Parquet a column `fields.NAME` each, with a list of values as JSON; without them there is one column
    `fields`, all JSON. `raw`: leave formulas in CSV, and control characters, as they are. `shown`: `out` is a terminal.
    `progress` is told the number of rows written so far. Raises ExportError before anything is written.
    """
    write_all = {"jsonl": _jsonl, "csv": _csv, "parquet": _parquet}[form]
    style = _Style(neutral=not raw, printable=shown and not raw)
    if form == "parquet":
        _pyarrow()
    rows = map(_row, records)
    count = 0

    def chunks() -> Iterator[list[Row]]:
        nonlocal count
        while chunk := list(islice(rows, CHUNK)):
            yield chunk
            count += len(chunk)
            progress(count)

    with _opened(out) as stream:
        write_all(chunks(), stream, names, style)
    return count


@contextmanager
def _opened(out: Path | BinaryIO) -> Iterator[BinaryIO]:
    """`out` to write to; a path is written as `….part` and renamed when all went well."""
    if not isinstance(out, Path):
        yield out
        out.flush()
        return
    part = out.with_name(f"{out.name}.part")
    try:
        stream = part.open("wb")
    except OSError as error:
        raise ExportError(f"cannot write {part}: {error.strerror}") from None
    try:
        with stream:
            yield stream
        part.replace(out)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _row(record: Mapping[str, Any]) -> Row:
    """A record by its outside names; null where this ledger has no such column."""
    row = {name: record.get(column) for name, column in COLUMNS.items()}
    if isinstance(row["fields"], str):
        row["fields"] = json.loads(row["fields"])
    return row


class _Style(NamedTuple):
    """How texts are written."""

    neutral: bool
    """In CSV, without formulas."""
    printable: bool
    """Without what controls a terminal."""


def _jsonl(chunks: Iterator[list[Row]], stream: BinaryIO, _: Sequence[str], style: _Style) -> None:
    for chunk in chunks:
        for row in chunk:
            row["fetched_at"] = _iso(row["fetched_at"])
        lines = [json.dumps(row, ensure_ascii=False) for row in chunk]
        if style.printable:  # of what controls a terminal, JSON itself escapes C0 alone
            lines = [UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", line) for line in lines]
        stream.write("".join([line + "\n" for line in lines]).encode("utf-8", "replace"))


def _csv(chunks: Iterator[list[Row]], stream: BinaryIO, names: Sequence[str], style: _Style) -> None:
    text = io.TextIOWrapper(stream, "utf-8", "replace", newline="", write_through=True)
    try:
        # Lines end with CRLF (RFC 4180): with another end, Python 3.11 would leave a lone CR or LF in a text unquoted,
        # and readers would take what follows it for a new row.
        writer = csv.DictWriter(text, _header(names), lineterminator="\r\n")
        writer.writeheader()
        for chunk in chunks:
            for row in chunk:
                row["fetched_at"] = _iso(row["fetched_at"])
                _flatten(row, names)
            writer.writerows([{name: _text_cell(value, style) for name, value in row.items()} for row in chunk])
    finally:
        text.detach()  # the stream is not ours to close


def _text_cell(value: Any, style: _Style) -> Any:
    if not isinstance(value, str):
        return value
    text = f"'{value}" if style.neutral and value.startswith(_FORMULA) else value
    return printable(text) if style.printable else text


def _parquet(chunks: Iterator[list[Row]], stream: BinaryIO, names: Sequence[str], _: _Style) -> None:
    pa, pq = _pyarrow()
    kinds = {
        "status": pa.int32(),
        "depth": pa.int32(),
        "bytes": pa.int64(),
        "warc_offset": pa.int64(),
        "fetched_at": pa.timestamp("ms", tz="UTC"),
    }
    schema = pa.schema([(name, kinds.get(name, pa.string())) for name in _header(names)])
    with pq.ParquetWriter(stream, schema, compression="zstd") as writer:
        for chunk in chunks:
            for row in chunk:
                row["fetched_at"] = None if row["fetched_at"] is None else round(row["fetched_at"] * 1000)
                _flatten(row, names)
            writer.write_table(pa.Table.from_pylist(chunk, schema=schema))


def _header(names: Sequence[str]) -> list[str]:
    """The columns of a table."""
    return [name for name in COLUMNS if name != "fields"] + ([f"fields.{name}" for name in names] or ["fields"])


def _flatten(row: Row, names: Sequence[str]) -> None:
    """Replace `fields` by the columns of _header."""
    fields = row.pop("fields")
    if not names:
        row["fields"] = None if fields is None else json.dumps(fields, ensure_ascii=False)
        return
    for name in names:
        value = fields.get(name) if isinstance(fields, dict) else None
        plain = value is None or isinstance(value, str)
        row[f"fields.{name}"] = value if plain else json.dumps(value, ensure_ascii=False)


def _iso(at: float | None) -> str | None:
    """ISO 8601, to the millisecond."""
    if at is None:
        return None
    return datetime.fromtimestamp(at, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _pyarrow() -> tuple[Any, Any]:
    try:
        return importlib.import_module("pyarrow"), importlib.import_module("pyarrow.parquet")
    except ImportError:
        raise ExportError(
            "Parquet needs pyarrow, which is not installed here: `pip install pyarrow`, or export csv or jsonl"
        ) from None


# --- choosing ---------------------------------------------------------------------------------------------------------

_CONDITION = re.compile(
    r"""\s*(?P<column>[A-Za-z_]+)\s*(?P<operator>!=|>=|<=|!~|=|<|>|~)
        \s*(?:"(?P<double>[^"]*)"|'(?P<single>[^']*)'|(?P<bare>(?!and\s)[^\s"'][^\s]*)|)
        (?:\s+and\s+(?=\S)|\s*$)""",
    re.VERBOSE | re.IGNORECASE,
)


def conditions(text: str) -> list[sa.ColumnElement[bool]]:
    """The conditions of a `--where`, all of which a row of schema.urls has to meet. Raises ExportError."""
    found = []
    position = 0
    while position < len(text):
        match = _CONDITION.match(text, position)
        if not match:
            raise ExportError(
                f"cannot read {text[position:].strip()!r}: write COLUMN OPERATOR VALUE, such as status>=400 or "
                "url~'[.]pdf$', with quotes where the value has spaces, joined by `and`"
            )
        column, operator = match["column"].lower(), match["operator"]
        quoted = match["double"] if match["double"] is not None else match["single"]
        if quoted is not None:
            values = [quoted]
        else:
            bare = match["bare"] or ""
            values = bare.split(",") if operator in ("=", "!=") else [bare]
        found.append(_condition(column, operator, values))
        position = match.end()
    return found


def _choosable() -> dict[str, sa.Column[Any]]:
    names = {**COLUMNS, **{name: name for name in _MORE_TO_CHOOSE_BY}}
    del names["fields"]
    return {name: schema.urls.c[column] for name, column in names.items() if column in schema.urls.c}


def _condition(name: str, operator: str, texts: list[str]) -> sa.ColumnElement[bool]:
    known = _choosable()
    if name not in known:
        raise ExportError(f"no column {name!r}; there are {', '.join(sorted(known))}")
    column = known[name]
    part = f"{name}{operator}{','.join(texts)}"
    if texts == [""]:
        if operator not in ("=", "!="):
            raise ExportError(f"{part}: a value is missing")
        unknown = sa.or_(column.is_(None), column == "") if _is_text(column) else column.is_(None)
        return unknown if operator == "=" else sa.not_(unknown)
    if operator in ("~", "!~"):
        return _matches(column, operator, texts[0], part)
    values = [_value(name, column, text, part) for text in texts]
    match operator:
        case "=":
            return column.in_(values)
        case "!=":
            return sa.or_(column.is_(None), column.not_in(values))  # a URL that has no status has not the status 200
        case "<":
            return column < values[0]
        case "<=":
            return column <= values[0]
        case ">":
            return column > values[0]
        case _:
            return column >= values[0]


def _matches(column: sa.Column[Any], operator: str, pattern: str, part: str) -> sa.ColumnElement[bool]:
    if not _is_text(column):
        raise ExportError(f"{part}: a regular expression is for text; compare numbers and times with = != < <= > >=")
    try:
        re.compile(pattern)
    except re.error as error:
        raise ExportError(f"{part}: {pattern!r} is no regular expression: {error}") from None
    found = column.regexp_match(pattern)
    return found if operator == "~" else sa.or_(column.is_(None), sa.not_(found))


def _is_text(column: sa.Column[Any]) -> bool:
    return isinstance(column.type, sa.Text)


def _value(name: str, column: sa.Column[Any], text: str, part: str) -> str | int | float:
    if name == "state" and text not in schema.STATES:
        raise ExportError(f"{part}: no state {text!r}; there are {', '.join(schema.STATES)}")
    if _is_text(column):
        return text.lower() if name == "host" else text
    if name in _TIMES:
        try:
            then = datetime.fromisoformat(text)
        except ValueError:
            raise ExportError(f"{part}: {text!r} is no time: write 2026-11-01 or 2026-11-01T12:30 (UTC)") from None
        return (then if then.tzinfo else then.replace(tzinfo=UTC)).timestamp()
    try:
        return float(text) if isinstance(column.type, sa.Float) else int(text)
    except ValueError:
        raise ExportError(f"{part}: {text!r} is no number") from None
