"""The scanner's wheel: what needs no compiler to be tested. That it works is tested wherever pages are read."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = ROOT / "scanner" / "build.py"


@pytest.fixture
def build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build", BUILD)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_same_library_makes_the_same_wheel(build: ModuleType, tmp_path: Path) -> None:
    library = tmp_path / "scanner.so"
    library.write_bytes(b"a library")
    packed = []
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
        packed.append(build.pack("aarch64", library, tmp_path / name))
    first, second = packed
    assert first.name == "crawler_scanner-1-py3-none-manylinux_2_28_aarch64.whl"
    assert first.read_bytes() == second.read_bytes()
    with zipfile.ZipFile(first) as wheel:
        assert wheel.read("crawler_scanner/scanner.so") == b"a library"


def test_every_named_reference_is_known(build: ModuleType) -> None:
    text = build.entities()
    assert text.count("},\n") == 2231  # https://html.spec.whatwg.org/entities.json
    assert "MAX_ENTITY = 32;" in text


def test_ada_is_the_one_that_python_has(build: ModuleType) -> None:
    assert build.pinned_ada().startswith(f"ada-url=={importlib.metadata.version('ada-url')} ")


@pytest.mark.parametrize(
    ("arguments", "without_zig", "reason"),
    [(["riscv64"], False, "no scanner for riscv64"), ([], True, "has no ziglang")],
)
def test_where_it_cannot_be_built_nothing_else_fails(
    tmp_path: Path, arguments: list[str], without_zig: bool, reason: str
) -> None:
    python = sys.executable
    if without_zig:
        subprocess.run([python, "-m", "venv", "--without-pip", tmp_path / "venv"], check=True)
        python = str(tmp_path / "venv/bin/python")
    command = [python, BUILD, *arguments, "--cache", tmp_path / "cache"]
    ran = subprocess.run(command, capture_output=True, text=True)
    assert (ran.returncode, ran.stdout) == (3, "")
    assert "pages are read by lexbor" in ran.stderr
    assert reason in ran.stderr
