"""The rooms of the package and the imports between them: floors without a circle, and no arrow that leads up."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

FLOORS = (
    {"__init__"},
    {"printable", "patterns"},
    {"limits", "urls", "fields", "settings", "progress"},
    {"job", "resolver"},
    {"messages", "ceilings"},
    {"known_links"},
    {"worker", "frontier"},  # strangers to each other
    {"processes", "local", "extractors"},
    {"seed", "cli"},
)
FLOOR = {room: number for number, rooms in enumerate(FLOORS) for room in rooms}
"""A room imports from lower floors alone. Rooms on one floor do not know each other."""

KEPT_OUT = {
    "worker": {"sqlalchemy", "psycopg", "celery", "kombu"},
    "frontier": {"selectolax", "bs4", "requests", "urllib3", "celery", "kombu", "gevent"},
    "local": {"celery", "kombu"},
}
"""Libraries that a room does without."""


def room_of(module: str) -> str:
    return module.split(".")[1] if "." in module else "__init__"


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """Every module that the file imports, whether at its head or within a function."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.update(
                f"{node.module}.{name.name}" if (ROOT / node.module.replace(".", "/")).is_dir() else node.module
                for name in node.names
            )
    return found


FILES = sorted(path for path in (ROOT / "crawler").rglob("*.py") if "__pycache__" not in path.parts)
MODULES = {module_of(path): imports(path) for path in FILES}


def own(names: set[str]) -> set[str]:
    """Those of our package, as modules: `crawler.urls.host_of` is `crawler.urls`."""
    ours = {name for name in names if name.split(".")[0] == "crawler"}
    return {name if name in MODULES else name.rpartition(".")[0] for name in ours}


def test_every_file_is_in_a_room() -> None:
    assert len(MODULES) > 30
    assert {room_of(module) for module in MODULES} == set(FLOOR)


@pytest.mark.parametrize("module", sorted(MODULES))
def test_imports_lead_down(module: str) -> None:
    room = room_of(module)
    elsewhere = {name for name in own(MODULES[module]) if room_of(name) != room}
    upward = {name for name in elsewhere if FLOOR[room_of(name)] >= FLOOR[room]}
    assert not upward, f"{module} may not import {upward}"


@pytest.mark.parametrize("room", sorted(KEPT_OUT))
def test_rooms_do_without(room: str) -> None:
    files = [module for module in MODULES if room_of(module) == room]
    assert files
    for module in files:
        libraries = {name.split(".")[0] for name in MODULES[module]}
        assert not libraries & KEPT_OUT[room], module


def test_no_circle_within_a_room() -> None:
    waiting = {
        module: {name for name in own(names) if room_of(name) == room_of(module) and name != module}
        for module, names in MODULES.items()
    }
    while waiting:
        free = {module for module, names in waiting.items() if not names & set(waiting)}
        assert free, f"a circle among {sorted(waiting)}"
        waiting = {module: names for module, names in waiting.items() if module not in free}


@pytest.mark.parametrize(
    ("module", "unloaded"),
    [
        ("crawler.processes.worker_tasks", {"sqlalchemy", "psycopg", "crawler.frontier"}),
        ("crawler.processes.recorder", {"selectolax", "bs4", "requests", "crawler.worker", "celery"}),
        ("crawler.processes.scheduler", {"selectolax", "bs4", "requests", "crawler.worker"}),
    ],
)
def test_a_process_loads_only_its_own_side(module: str, unloaded: set[str]) -> None:
    """What it imports indirectly as well."""
    program = f"import sys, {module}; print(*sys.modules)"
    environment = {"CRAWLER_BROKER_URL": "memory://", "PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    ran = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, cwd=ROOT)
    assert ran.returncode == 0, ran.stderr
    loaded = set(ran.stdout.split())
    assert module in loaded
    assert not unloaded & loaded


def test_the_readme_names_every_room() -> None:
    tree = (ROOT / "README.md").read_text().partition("## The tree")[2]
    named = set(re.findall(r"[\w./@-]+", tree))
    rooms = {path.name + ("/" if path.is_dir() else "") for path in (ROOT / "crawler").iterdir()}
    rooms = {room for room in rooms if not room.startswith("__")}
    tops = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split()
    folders = {f"{path.partition('/')[0]}/" for path in tops if "/" in path and not path.startswith(".")}
    assert len(rooms) > 10
    assert not (rooms | folders) - named
