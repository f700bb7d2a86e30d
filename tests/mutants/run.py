"""Mutation testing: apply each known bug (mutant) to a copy of the tree and report whether the tests notice.

    python tests/mutants/run.py [--only TEXT] [-j 2]

Every tests/mutants/AREA.yml is a list of mutants:

    - name: noindex page is archived      # what a user would notice
      file: crawler/worker/batch.py
      was: |-                             # text that occurs exactly once in that file
        ...
      becomes: |-
        ...
      tests: tests/unit/worker/test_batch.py -k noindex     # arguments for pytest
      survives: why no test notices it                      # optional; the mutant still counts against the score

First the named test files run unchanged, each once: they must pass, or a "killed" would mean nothing. (Where one does
not pass as a whole, the tests that a mutant chooses from it must.) A mutant is killed when its tests fail or exceed
their time limit. Exit status: 0; 1 if less than 90 % are killed, or if a mutant
cannot be applied or its tests cannot be run; 2 if there is no such mutant.
"""

from __future__ import annotations

import argparse
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from queue import Queue

import yaml

ROOT = Path(__file__).resolve().parents[2]
WANTED = 0.9
"""Share of the mutants that must be killed."""
LEAST_SECONDS, SLOWER = 30.0, 5.0
"""Time limit of a mutant's tests: this many seconds, plus so many times what they take unchanged."""
NOT_COPIED = (".git", ".venv", ".cache", ".fleet", ".*_cache", ".hypothesis", "__pycache__", "*.egg-info", "*.sqlite*")
UNCHANGED_SECONDS = 600.0
"""Time limit of a test file, unchanged."""
TESTS_FAILED, NO_TESTS = 1, 5
"""pytest's exit status when tests ran and some failed, and when there were none; any other: they could not be run."""


class MutantError(ValueError):
    """A mutant that cannot be applied or run; the message names it and says why."""


@dataclass(frozen=True)
class Mutant:
    """One bug, as text to replace in one file, and the tests that should notice it."""

    area: str
    name: str
    file: str
    was: str
    becomes: str
    tests: str
    survives: str | None = None

    def __str__(self) -> str:
        return f"{self.area}: {self.name}"

    @property
    def files(self) -> str:
        """The test files or folders of `tests`, without the options that choose among their tests."""
        return shlex.join(itertools.takewhile(lambda word: not word.startswith("-"), shlex.split(self.tests)))

    def applied_to(self, text: str) -> str:
        """`text` of the file with the bug in it. Raises MutantError unless `was` occurs exactly once in it."""
        if (count := text.count(self.was)) != 1:
            raise MutantError(f"{self}: its 'was' occurs {count} times in {self.file}, not once")
        mutated = text.replace(self.was, self.becomes)
        if mutated == text:
            raise MutantError(f"{self}: 'becomes' is the same as 'was'")
        if self.file.endswith(".py"):
            try:
                compile(mutated, self.file, "exec")
            except SyntaxError as error:
                raise MutantError(f"{self}: {error} in the mutated file") from None
        return mutated


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant."""

    mutant: Mutant
    killed: bool
    problem: str | None = None
    """Why it could not be applied or run; such a mutant is not killed."""


def read_mutants(folder: Path) -> list[Mutant]:
    """The mutants of all *.yml in `folder`. Raises MutantError for an entry that is not as described above."""
    known = {field.name for field in fields(Mutant)} - {"area"}
    found = []
    for path in sorted(folder.glob("*.yml")):
        for number, entry in enumerate(yaml.safe_load(path.read_text()) or [], 1):
            if missing := known - {"survives"} - set(entry):
                raise MutantError(f"{path.name}, entry {number}: without {', '.join(sorted(missing))}")
            if unknown := set(entry) - known:
                raise MutantError(f"{path.name}, entry {number}: unknown {', '.join(sorted(unknown))}")
            found.append(Mutant(area=path.stem, **entry))
    return found


@contextmanager
def copies(root: Path, number: int) -> Iterator[list[Path]]:
    """`number` copies of the tree at `root` in a temporary folder; the virtual environment is shared by a link."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        made = [Path(folder) / str(index) for index in range(number)]
        for copy in made:
            shutil.copytree(root, copy, symlinks=True, ignore=shutil.ignore_patterns(*NOT_COPIED))
            if (root / ".venv").exists():
                (copy / ".venv").symlink_to((root / ".venv").resolve())
        yield made


def run_tests(copy: Path, arguments: str, seconds: float) -> int | None:
    """pytest's exit status for `arguments` in the tree `copy`; None when it takes longer than `seconds`."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider"]
    process = subprocess.Popen(
        [*command, f"--rootdir={copy}", *shlex.split(arguments)],
        cwd=copy,
        # Without .pyc files: they are told apart by size and second, which a mutant and its original may share.
        env={**os.environ, "PYTHONPATH": str(copy), "PYTHONDONTWRITEBYTECODE": "1", "PWD": str(copy)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # what the tests started, too
        process.wait()


def judge(mutant: Mutant, copy: Path, seconds: float) -> Outcome:
    """Apply `mutant` in the tree `copy`, run its tests for at most `seconds`, and undo it."""
    path = copy / mutant.file
    try:
        original = path.read_text()
        path.write_text(mutant.applied_to(original))
    except OSError as error:
        return Outcome(mutant, False, f"{mutant}: {mutant.file}: {error.strerror}")
    except MutantError as error:
        return Outcome(mutant, False, str(error))
    try:
        status = run_tests(copy, mutant.tests, seconds)
    finally:
        path.write_text(original)
    if status == NO_TESTS:
        return Outcome(mutant, False, f"{mutant}: there are no such tests: {mutant.tests}")
    if status not in (0, TESTS_FAILED, None):
        return Outcome(mutant, False, f"{mutant}: pytest cannot run its tests with it (exit status {status})")
    return Outcome(mutant, status != 0)


def judge_all(mutants: Sequence[Mutant], root: Path, jobs: int) -> list[Outcome]:
    """The outcome of each mutant, in the given order, found in `jobs` copies of `root` at once."""
    with copies(root, jobs) as made, ThreadPoolExecutor(jobs) as pool:
        free: Queue[Path] = Queue()
        for copy in made:
            free.put(copy)

        def unchanged(arguments: str) -> tuple[int | None, float]:
            copy, began = free.get(), time.monotonic()
            try:
                return run_tests(copy, arguments, UNCHANGED_SECONDS), time.monotonic() - began
            finally:
                free.put(copy)

        def run_unchanged(all_arguments: set[str]) -> dict[str, tuple[int | None, float]]:
            return dict(zip(all_arguments, pool.map(unchanged, all_arguments), strict=True))

        before = run_unchanged({mutant.files for mutant in mutants})
        broken = {files for files, (status, _) in before.items() if status != 0}
        before |= run_unchanged({mutant.tests for mutant in mutants if mutant.files in broken})

        def one(mutant: Mutant) -> Outcome:
            status, seconds = before.get(mutant.tests) or before[mutant.files]
            if status != 0:
                what = {None: "do not end", NO_TESTS: "are none"}.get(status, f"fail (exit status {status})")
                return Outcome(mutant, False, f"{mutant}: its tests {what} without it: {mutant.tests}")
            copy = free.get()
            try:
                outcome = judge(mutant, copy, LEAST_SECONDS + SLOWER * seconds)
            finally:
                free.put(copy)
            print("." if outcome.killed else "?" if outcome.problem else "S", end="", file=sys.stderr, flush=True)
            return outcome

        outcomes = list(pool.map(one, mutants))
    print(file=sys.stderr)
    return outcomes


def report(outcomes: Sequence[Outcome]) -> Iterator[str]:
    """The lines to print: a table by area, survivors, and what could not be run."""
    yield f"{'area':<16}{'mutants':>8}{'killed':>8}{'survived':>10}{'score':>8}"
    for area in [*sorted({outcome.mutant.area for outcome in outcomes}), "all"]:
        those = [outcome for outcome in outcomes if area in ("all", outcome.mutant.area)]
        killed = sum(outcome.killed for outcome in those)
        yield f"{area:<16}{len(those):>8}{killed:>8}{len(those) - killed:>10}{killed / len(those):>8.0%}"
    survivors = [outcome.mutant for outcome in outcomes if not outcome.killed and not outcome.problem]
    yield from _listed("survived", (f"{mutant} ({mutant.tests})" for mutant in survivors if not mutant.survives))
    yield from _listed(
        "survived, for a reason", (f"{mutant}: {mutant.survives}" for mutant in survivors if mutant.survives)
    )
    now_killed = (str(outcome.mutant) for outcome in outcomes if outcome.killed and outcome.mutant.survives)
    yield from _listed("killed, though their entry has 'survives': remove it", now_killed)
    yield from _listed("could not be run", (outcome.problem for outcome in outcomes if outcome.problem))


def _listed(title: str, lines: Iterable[str]) -> Iterator[str]:
    given = list(lines)
    if given:
        yield f"\n{title}:"
        yield from (f"  {line}" for line in given)


def main(arguments: list[str] | None = None, root: Path = ROOT) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", metavar="TEXT", help="only mutants of the area TEXT, or with TEXT in their name")
    parser.add_argument("-j", "--jobs", type=int, default=2, help="copies of the tree at work at once (default 2)")
    options = parser.parse_args(arguments)
    try:
        mutants = read_mutants(root / "tests/mutants")
    except MutantError as error:
        print(error, file=sys.stderr)
        return 1
    if options.only:
        mutants = [mutant for mutant in mutants if options.only == mutant.area or options.only in mutant.name]
    if not mutants:
        print("there is no such mutant in tests/mutants/*.yml", file=sys.stderr)
        return 2
    outcomes = judge_all(mutants, root, max(1, options.jobs))
    for line in report(outcomes):
        print(line)
    killed = sum(outcome.killed for outcome in outcomes)
    return 1 if killed < WANTED * len(outcomes) or any(outcome.problem for outcome in outcomes) else 0


if __name__ == "__main__":
    sys.exit(main())
