"""What the benchmark says is what was measured: goals by the worst corpus, pages by their records in the archive."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
from requests.structures import CaseInsensitiveDict

from crawler.worker.archive import Archive
from crawler.worker.fetch import Response

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of the benchmark."""
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module


def test_a_goal_is_judged_by_the_worst_corpus(bench: Any) -> None:
    def corpus(**medians: float) -> dict[str, Any]:
        return {"contestants": {name: {"median": median} for name, median in medians.items()}}

    sites = {"documentation": corpus(scrapy=10, alone=300), "links": corpus(scrapy=10, alone=249)}
    sites["corpus"] = corpus(alone=1)  # without Scrapy: says nothing
    (line,) = [line for line in bench("report")._promises({"sites": sites}).splitlines() if "worker alone" in line]
    assert line.endswith("| >= 25 x | 24.9 x (links; documentation 30.0) | **no** |")
    sites["links"] = corpus(scrapy=10, alone=250)
    (line,) = [line for line in bench("report")._promises({"sites": sites}).splitlines() if "worker alone" in line]
    assert line.endswith("| >= 25 x | 25.0 x (links; documentation 30.0) | yes |")


def test_each_page_is_looked_up_in_the_archive(bench: Any, tmp_path: Path) -> None:
    archive = Archive(tmp_path, host="h", worker="w", floor_bytes=0)
    rows = []
    for number in range(4):
        page = Response(
            url=f"http://example.org/{number}",
            status=200,
            headers=CaseInsensitiveDict(),
            body=b"x" * 5000,
            started_at=1_790_000_000.0,
            seconds=0.1,
        )
        position = archive.write("j", page, {})
        rows.append((position.file, position.offset, page.url))
    wrong = bench("archived").wrong
    assert wrong(tmp_path, rows) == (4, [])  # while the file grows
    archive.close()
    assert wrong(tmp_path, rows) == (4, [])
    file, offset, url = rows[1]
    for bad in ((file, offset + 1, url), (file, offset, url + "?"), (file, 0, url), rows[0]):
        told, shown = wrong(tmp_path, [rows[0], bad])
        assert (told, len(shown)) == (2 - (bad == rows[0]), 1)
