"""What leaves the ledger, in which form, and how a person chooses it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from sqlalchemy.dialects import postgresql
from stand_in_pyarrow import install_if_missing

from crawler.frontier import export, schema
from crawler.frontier.export import ExportError, conditions
from crawler.frontier.ledger import Ledger

DONE = {
    "url": "http://a.test/",
    "host": "a.test",
    "state": "done",
    "status": 200,
    "fetched_at": 1_790_000_000.25,
    "discovered_at": 1_789_999_999.0,
    "depth": 0,
    "title": 'A, "quoted"\nand ünïcode',
    "content_type": "text/html",
    "bytes": 1234,
    "digest": "00ff",
    "worker": "worker-1@host1",
}
FOUND = {
    **DONE,
    "url": "http://a.test/found",
    "depth": 1,
    "found_on": "http://a.test/",
    "title": None,
    "fields": '{"name": "Thing", "prices": ["1", "2"]}',
    "warc_file": "x.warc.gz",
    "warc_offset": 5_000_000_000,
}
FAILED = {
    "url": "http://b.test/blog/x.html",
    "host": "b.test",
    "state": "failed",
    "status": 404,
    "reason": "HTTP 404",
    "fetched_at": 1_790_086_400.0,
    "discovered_at": 1_790_000_000.0,
    "depth": 2,
    "content_type": "text/plain",
}
QUEUED = {"url": "http://b.test/q", "host": "b.test", "state": "queued", "depth": 2, "discovered_at": 1_790_000_000.0}
ALL = [DONE, FOUND, FAILED, QUEUED]


def written(form: export.Format, records: list[dict[str, Any]], names: tuple[str, ...] = ()) -> io.BytesIO:
    out = io.BytesIO()
    assert export.write(iter(records), form, out, names=names) == len(records)
    out.seek(0)
    return out


@pytest.fixture
def pyarrow(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """pyarrow, or, where it is not installed, a stand-in: either way the same is asserted of what we write."""
    return install_if_missing(lambda name, module: monkeypatch.setitem(sys.modules, name, module))


def test_json_lines() -> None:
    lines = written("jsonl", ALL).getvalue().decode().splitlines()
    rows = [json.loads(line) for line in lines]
    assert "ünïcode" in lines[0]
    assert rows[1] == {
        "url": "http://a.test/found",
        "state": "done",
        "status": 200,
        "reason": None,
        "cause": None,
        "fetched_at": "2026-09-21T14:13:20.250Z",
        "depth": 1,
        "referrer": "http://a.test/",
        "title": None,
        "content_type": "text/html",
        "bytes": 1234,
        "digest": "00ff",
        "warc_file": "x.warc.gz",
        "warc_offset": 5_000_000_000,
        "extract_error": None,
        "fields": {"name": "Thing", "prices": ["1", "2"]},
    }
    assert rows[3]["fetched_at"] is None
    assert [list(row) for row in rows] == [list(export.COLUMNS)] * 4


def test_csv() -> None:
    rows = list(csv.DictReader(io.TextIOWrapper(written("csv", ALL), "utf-8", newline="")))
    assert list(rows[0]) == list(export.COLUMNS)
    assert rows[0]["title"] == DONE["title"]
    assert json.loads(rows[1]["fields"]) == {"name": "Thing", "prices": ["1", "2"]}
    assert rows[1]["fetched_at"] == "2026-09-21T14:13:20.250Z"
    assert rows[3]["status"] == rows[3]["fields"] == ""


def test_named_fields_are_columns() -> None:
    records = [*ALL, {**FOUND, "fields": '[{"name": "one"}, {"name": "two"}]'}]
    rows = list(csv.DictReader(io.TextIOWrapper(written("csv", records, ("name", "prices")), "utf-8", newline="")))
    assert "fields" not in rows[0]
    assert [row["fields.name"] for row in rows] == ["", "Thing", "", "", ""]
    assert [row["fields.prices"] for row in rows] == ["", '["1", "2"]', "", "", ""]


@pytest.mark.parametrize("cell", ["=1+1", "+49 30", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1"])
def test_no_csv_cell_is_a_formula(cell: str) -> None:
    """Titles and fields are what strangers wrote; Source: OWASP, CSV Injection."""
    record = {**FOUND, "title": cell, "fields": json.dumps({"name": cell, "prices": [cell]})}
    rows = list(csv.DictReader(io.TextIOWrapper(written("csv", [record], ("name", "prices")), "utf-8", newline="")))
    assert rows[0]["title"] == rows[0]["fields.name"] == "'" + cell
    assert json.loads(rows[0]["fields.prices"]) == [cell]
    (line,) = written("jsonl", [record]).getvalue().decode().splitlines()
    assert json.loads(line)["title"] == cell


@given(st.text().filter(lambda text: not text.startswith(("=", "+", "-", "@", "\t", "\r", "\n"))))
def test_any_other_csv_cell_is_what_was_found(cell: str) -> None:
    rows = list(csv.DictReader(io.TextIOWrapper(written("csv", [{**DONE, "title": cell}]), "utf-8", newline="")))
    assert rows[0]["title"] == cell.encode("utf-8", "replace").decode()


def test_parquet(pyarrow: ModuleType) -> None:
    table = pyarrow.parquet.read_table(written("parquet", [*ALL, {**DONE, "title": "=1"}], ("name", "prices")))
    assert table.schema.names == [
        *(name for name in export.COLUMNS if name != "fields"),
        "fields.name",
        "fields.prices",
    ]
    types = {name: str(table.schema.field(name).type) for name in ("fetched_at", "status", "warc_offset", "title")}
    assert types == {
        "fetched_at": "timestamp[ms, tz=UTC]",
        "status": "int32",
        "warc_offset": "int64",
        "title": "string",
    }
    rows = table.to_pylist()
    assert len(rows) == 5
    assert rows[1]["fetched_at"].isoformat() == "2026-09-21T14:13:20.250000+00:00"
    assert rows[1]["warc_offset"] == 5_000_000_000
    assert (rows[1]["fields.name"], rows[1]["fields.prices"]) == ("Thing", '["1", "2"]')
    assert rows[3]["status"] is None
    assert rows[4]["title"] == "=1"


@pytest.mark.usefixtures("pyarrow")
@pytest.mark.parametrize("form", export.FORMATS)
def test_nothing_is_a_valid_file_too(form: export.Format) -> None:
    content = written(form, []).getvalue()
    assert (content == b"") == (form == "jsonl")


def test_without_pyarrow_the_remedy_is_told_and_nothing_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ExportError, match="pip install pyarrow"):
        export.write(iter(ALL), "parquet", tmp_path / "out.parquet")
    assert not list(tmp_path.iterdir())


def test_a_file_appears_when_it_is_complete(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("the last export")

    def breaks() -> Iterator[dict[str, Any]]:
        yield from [DONE] * export.CHUNK
        assert out.read_text() == "the last export"
        raise ConnectionError("database gone")

    with pytest.raises(ConnectionError):
        export.write(breaks(), "jsonl", out)
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    assert out.read_text() == "the last export"
    export.write(iter(ALL), "jsonl", out)
    assert len(out.read_text().splitlines()) == 4


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"cannot write .*/no/out.csv.part: No such file or directory"):
        export.write(iter(ALL), "csv", tmp_path / "no" / "out.csv")


@pytest.mark.usefixtures("pyarrow")
@pytest.mark.parametrize("form", export.FORMATS)
def test_memory_does_not_grow_with_the_job(
    form: export.Format, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "CHUNK", 500)

    def peak(rows: int) -> int:
        told: list[int] = []
        records = ({**FOUND, "url": f"http://a.test/{number}"} for number in range(rows))
        tracemalloc.start()
        assert export.write(records, form, tmp_path / "out", progress=told.append) == rows
        largest = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert told == [*range(export.CHUNK, rows, export.CHUNK), rows]
        return largest

    peak(1)  # imports
    assert peak(6 * export.CHUNK) < 1.5 * peak(2 * export.CHUNK)


@pytest.mark.usefixtures("pyarrow")
@pytest.mark.parametrize("form", export.FORMATS)
def test_a_pipe_is_as_good_as_a_file(form: export.Format) -> None:
    call = f"export.write(({DONE!r} for _ in range(9)), {form!r}, sys.stdout.buffer)"
    install = (
        f"sys.path.insert(0, {str(Path(__file__).parent)!r}); import stand_in_pyarrow as p; p.install_if_missing()"
    )
    code = f"import sys; {install}; from crawler.frontier import export; {call}"
    piped = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, check=True).stdout
    assert piped == written(form, [DONE] * 9).getvalue()


# --- where ------------------------------------------------------------------------------------------------------------


@pytest.fixture
def filled(ledger: Ledger) -> Ledger:
    with ledger.engine.begin() as tx:
        for row in ALL:
            tx.execute(schema.urls.insert().values({"job_id": 1, **row}))
    return ledger


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        ("", ALL),
        ("state=done", [DONE, FOUND]),
        ("STATE = done AND depth > 0", [FOUND]),
        ("state=done,failed", [DONE, FOUND, FAILED]),
        ("state!=done,failed", [QUEUED]),
        ("status>=400", [FAILED]),
        ("status>=200 and status<300", [DONE, FOUND]),
        ("status<=200", [DONE, FOUND]),
        ("status<200", []),
        ("status>=404", [FAILED]),
        ("status>404", []),
        ("depth<=1", [DONE, FOUND]),
        ("fetched_at<=2026-09-22T14:13:20", [DONE, FOUND, FAILED]),
        ("fetched_at<2026-09-22T14:13:20", [DONE, FOUND]),
        ("status!=200", [FAILED, QUEUED]),  # what has no status has not this one
        ("status=", [QUEUED]),
        ("status!=", [DONE, FOUND, FAILED]),
        ("title= and state=done", [FOUND]),
        ("title!= and state=done", [DONE]),
        ("host=B.test", [FAILED, QUEUED]),
        ("referrer=http://a.test/", [FOUND]),
        ("reason='HTTP 404'", [FAILED]),
        ('reason="HTTP 404" and depth=2', [FAILED]),
        ("reason='HTTP 404,HTTP 500'", []),  # a quoted comma is a comma
        ("url~/blog/.*[.]html$", [FAILED]),
        ("url~'[?,]|found'", [FOUND]),
        ("url~a{0,1}.test/$", [DONE]),
        ("url!~^http://a", [FAILED, QUEUED]),
        ("title!~quoted", [FOUND, FAILED, QUEUED]),
        ("fetched_at>=2026-09-22", [FAILED]),
        ("fetched_at<2026-09-21T14:13:21", [DONE, FOUND]),
        ("fetched_at<2026-09-21T16:13:21+02:00", [DONE, FOUND]),
        ("bytes=1234", [DONE, FOUND]),
        ("depth<1", [DONE]),
        ("depth>=1", [FOUND, FAILED, QUEUED]),
        ("worker~^worker-1@", [DONE, FOUND]),
        ("title='A' or 1=1", None),
        ('title="\'; drop table urls; --"', []),
    ],
)
def test_where(where: str, chosen: list[dict[str, Any]] | None, filled: Ledger) -> None:
    if chosen is None:
        with pytest.raises(ExportError):
            conditions(where)
        return
    query = sa.select(schema.urls.c.url).where(*conditions(where))
    with filled.engine.connect() as connection:
        assert {row.url for row in connection.execute(query)} == {row["url"] for row in chosen}
    query.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]


def test_times_are_utc_wherever_one_sits(filled: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Pacific/Auckland")
    time.tzset()
    try:
        query = sa.select(schema.urls.c.url).where(*conditions("fetched_at<2026-09-21T14:13:21"))
        with filled.engine.connect() as connection:
            assert len(connection.execute(query).all()) == 2
        assert b"2026-09-21T14:13:20.250Z" in written("csv", ALL).getvalue()
    finally:
        monkeypatch.undo()
        time.tzset()


@pytest.mark.parametrize(
    ("where", "complaint"),
    [
        ("colour=red", "no column 'colour'; there are attempts, bytes, cause, content_type, depth"),
        ("fields=x", "no column 'fields'"),
        ("state=finished", "state=finished: no state 'finished'; there are queued, leased, done, failed, excluded"),
        ("status=ok", "status=ok: 'ok' is no number"),
        ("status=200,x", "status=200,x: 'x' is no number"),
        ("fetched_at>yesterday", "fetched_at>yesterday: 'yesterday' is no time: write 2026-11-01"),
        ("url~(", "url~[(]: '[(]' is no regular expression: missing [)]"),
        ("status~2..", "status~2..: a regular expression is for text"),
        ("status>", "status>: a value is missing"),
        ("url~", "url~: a value is missing"),
        ("state=done or status=404", "cannot read 'state=done or status=404': write COLUMN OPERATOR VALUE"),
        ("state=done and", "cannot read 'state=done and'"),
        ("state=done and 404", "cannot read '404'"),
        ("title=two words", "with quotes where the value has spaces"),
        ("url like x", "cannot read 'url like x'"),
    ],
)
def test_a_wrong_where_is_explained(where: str, complaint: str) -> None:
    with pytest.raises(ExportError, match=complaint):
        conditions(where)


@hypothesis_settings(max_examples=300)
@given(
    st.text()
    | st.builds("{}{}{}".format, st.sampled_from(["url", "status", "fetched_at"]), st.sampled_from("=<>~"), st.text())
)
def test_no_text_does_anything_but_choose_or_complain(text: str) -> None:
    """And what it chooses by is always bound, never part of the SQL."""
    try:
        chosen = conditions(text)
    except ExportError:
        return
    sql = str(sa.select(schema.urls.c.url).where(*chosen).compile(dialect=postgresql.dialect()))  # type: ignore[no-untyped-call]
    assert "'" not in sql.replace("= ''", "").replace("!= ''", "")
