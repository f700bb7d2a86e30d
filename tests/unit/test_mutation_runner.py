"""tests/mutants/run.py, on a project of one function: what it calls killed, survived, and not to be run."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
import yaml

RUNNER = Path(__file__).parents[1] / "mutants/run.py"
SOURCE = "def larger(a, b):\n    return a if a > b else b\n"
KILLED = {
    "name": "the smaller is returned",
    "file": "larger.py",
    "was": "a > b",
    "becomes": "a < b",
    "tests": "test_it.py -k larger",
}


@pytest.fixture(scope="module")
def runner() -> ModuleType:
    spec = importlib.util.spec_from_file_location("mutation_runner", RUNNER)
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def project(tmp_path: Path) -> Path:
    (tmp_path / "tests/mutants").mkdir(parents=True)
    (tmp_path / "pyproject.toml").write_text("[tool.pytest.ini_options]\n")
    (tmp_path / "larger.py").write_text(SOURCE)
    (tmp_path / "test_it.py").write_text(
        "import larger\n\n\ndef test_larger():\n    assert larger.larger(1, 2) == 2\n\n\n"
        "def test_broken():\n    raise AssertionError\n"
    )
    return tmp_path


def mutants(project: Path, *changes: dict[str, str]) -> None:
    """Write the area `some`: KILLED with each of `changes`."""
    entries = [{**KILLED, **change} for change in changes]
    (project / "tests/mutants/some.yml").write_text(yaml.safe_dump(entries))


def test_killed_and_survived_are_told_apart_and_the_tree_is_left_alone(
    runner: ModuleType, project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mutants(
        project,
        {},
        {"name": "equal", "becomes": "a >= b"},
        {"name": "hidden", "becomes": "a >= b", "survives": "equal numbers are the same"},
    )
    assert runner.main(["-j", "1"], root=project) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[1].split() == ["some", "3", "1", "2", "33%"]
    assert "survived:\n  some: equal (test_it.py" in out
    assert "survived, for a reason:\n  some: hidden: equal numbers are the same" in out
    assert (project / "larger.py").read_text() == SOURCE
    assert runner.main(["--only", "smaller"], root=project) == 0
    assert runner.main(["--only", "no such"], root=project) == 2


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"was": "a", "becomes": "b"}, "occurs 4 times in larger.py, not once"),
        ({"was": "gone"}, "occurs 0 times"),
        ({"file": "gone.py"}, "gone.py: No such file"),
        ({"becomes": "a >"}, "in the mutated file"),
        ({"becomes": "a > b"}, "the same"),
        ({"tests": "test_gone.py"}, "its tests fail (exit status 4) without it"),
        ({"tests": "test_it.py -k nothing"}, "its tests are none without it"),
        ({"tests": "test_it.py -k broken"}, r"fail (exit status 1) without it"),
        ({"was": "def larger", "becomes": "undefined\ndef larger"}, "pytest cannot run its tests with it"),
    ],
)
def test_a_mutant_that_shows_nothing_is_no_kill(
    runner: ModuleType, project: Path, capsys: pytest.CaptureFixture[str], change: dict[str, str], complaint: str
) -> None:
    mutants(project, change)
    assert runner.main(["-j", "1"], root=project) == 1
    out = capsys.readouterr().out
    assert complaint in out.partition("could not be run:\n")[2]
    assert out.splitlines()[1].split() == ["some", "1", "0", "1", "0%"]


def test_tests_that_hang_with_a_mutant_kill_it(
    runner: ModuleType, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "LEAST_SECONDS", 0.5)
    mutants(project, {"was": "    return", "becomes": "    while True: pass\n    return"})
    assert runner.main(["-j", "1"], root=project) == 0
