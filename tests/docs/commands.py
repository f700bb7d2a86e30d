"""Every command that README.md, its neighbours and docs/*.md tell a person to type, and what runs it in the tests.

A command that is in no list here fails tests/docs/test_commands.py, and so does an entry that is in no document.
"""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PROGRAMS = (
    r"\.|ansible\S*|apt\S*|bash|crawler|curl|git|journalctl|make|molecule|pip|podman|pytest|python3?|rabbitmqctl|ruff|ssh|"
    r"sudo|systemctl|zcat|zless"
)


def typed(text: str) -> list[str]:
    """The commands of a Markdown text: each line of a `sh` block without its comment, and each code span that begins
    with a program and goes on."""
    blocks = re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    lines = [re.sub(r"\s+#\s.*|^#.*", "", line).strip() for block in blocks for line in block.splitlines()]
    spans = re.findall(r"`([^`]+)`", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL))
    spans = [" ".join(span.split()) for span in spans]
    return [line for line in lines if line] + [span for span in spans if re.match(rf"({PROGRAMS}) \S", span)]


def documented() -> dict[str, list[str]]:
    """Each command, and the documents that it stands in."""
    found: dict[str, list[str]] = {}
    for path in [*sorted(ROOT.glob("*.md")), *sorted(ROOT.glob("docs/**/*.md"))]:
        for command in typed(path.read_text()):
            found.setdefault(command, []).append(str(path.relative_to(ROOT)))
    return found


HERE = {
    ". .venv/bin/activate",
    "python crawler/seed.py https://example.org/ --local --depth 2 -o pages.jsonl",
}
"""Run by test_commands.py: they need no fleet."""

FLEET = (
    "ansible-playbook playbooks/status.yml",
    "ansible-playbook playbooks/logs.yml -e since='2 hours ago'",
    "ansible-playbook playbooks/collect.yml",
    "ansible-playbook scale.yml -e workers=4 --limit paris",
    "python crawler/seed.py https://example.org/ --depth 3 --watch",
    "python crawler/seed.py --file urls.txt --name news",
    "python crawler/seed.py --job job.yml --watch",
    "sudo crawler explain URL",
    "sudo crawler audit HOST",
    'sudo crawler export --job JOB --format csv --where "state=done and title!="',
    "sudo crawler pause JOB",
    "sudo crawler retry JOB --reason 'HTTP 5'",
    "sudo crawler block HOST",
    "crawler status --recount",
)
"""Run by tests/fleet/test_docs.py in this order, `crawler` on the frontier host."""

ELSEWHERE = {
    "ansible-playbook deploy.yml": "each molecule scenario runs it twice; the second run must change nothing",
    "ansible-playbook scale.yml -e workers=20": "test_scale runs 20 over two hosts; 20 on each take 6 GB",
    "ansible-playbook playbooks/destroy.yml -e confirm=yes": "test_destroy",
    "crawler retry JOB --reason 'address not public'": "it wants such URLs: tests/unit/frontier/order_promises.py",
    "ansible-playbook playbooks/revoke.yml -e confirm=yes --limit paris": "test_stolen_worker",
    "crawler retry JOB --reason trap": "it wants a section closed as a trap: tests/unit/test_cli.py",
    "sudo crawler delete JOB": "it asks, and wants a job that has ended: tests/unit/test_cli.py",
    "bash .ci/run": "it runs all tests, this one among them",
    "python tests/unit/worker/soup.py FOLDER": "it measures",
    "python bench/run.py": "it measures for an hour: make bench",
    "python bench/run.py --only hosts --hosts 200000 --rounds 1": "it measures: a part of make bench",
    "python bench/run.py --only sites --rounds 1": "it measures, and fetches large packages first",
    "python bench/run.py --only shares --minutes 10": "it measures: a part of make bench",
    "python bench/run.py --only frontier --parts order --known 5000000 --watched 900": "it measures",
    "python bench/run.py --only block": "it measures: a part of make bench",
    "python bench/run.py --only delay": "it measures: a part of make bench",
    "python bench/run.py --rounds 1 --only documentation,links,alone,system,embedded": "it measures",
    "python bench/run.py --only frontier --parts bytes,forget,finished": "it measures: a part of make bench",
}
"""Not run as they stand, and why."""

NAMES = {
    "crawler status",
    "crawler explain",
    "crawler retry",
    "crawler delete",
    "crawler block",
    "systemctl stop",
    "podman import",
}
"""Not to be typed: sentences speak of the program."""
