"""Render the roles' templates with Ansible's own engine: no host, no container, every variable must be defined."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader, init_plugin_loader
from ansible.template import Templar, trust_as_template

ROLES = Path(__file__).parents[2] / "roles"
init_plugin_loader()
for plugins in ROLES.glob("*/filter_plugins"):
    filter_loader.add_directory(str(plugins))

# What a run knows besides the roles' defaults: facts of a host, arguments of the playbooks, results of earlier tasks.
HOST: dict[str, Any] = {
    "inventory_hostname": "worker1",
    "ansible_facts": {"distribution_major_version": "12", "python_version": "3.11.2", "architecture": "x86_64"},
    "frontier_broker_url": "amqp://ledger:ledger-secret@broker1:5672/crawler",
    "frontier_database_url": "postgresql+psycopg://crawler:database-secret@127.0.0.1:5432/crawler",
    "postgresql_password": "database-secret",
    "rabbitmq_passwords": {"seed": "seed-secret", "ledger": "ledger-secret"},
    "rabbitmq_worker_passwords": {"a.b": "a.b-secret", "axb": "axb-secret"},
    "release_contact": "you@example.org",
    "release_source": str(ROLES.parent),
    "worker_broker_url": "amqp://worker%40worker1:worker-secret@broker1:5672/crawler",
    "__release_built": {"stdout": "0123456789ab"},
    "__worker_target": {"stdout": ""},
}


def trusted(value: Any) -> Any:
    """Mark the strings in a value as templates, as Ansible does with what it reads from a role."""
    match value:
        case dict():
            return {key: trusted(item) for key, item in value.items()}
        case list():
            return [trusted(item) for item in value]
        case str():
            return trust_as_template(value)
    return value


def read(path: Path) -> dict[str, Any]:
    """Read a file of variables; one that does not exist has none."""
    return (yaml.safe_load(path.read_text()) or {}) if path.exists() else {}


@pytest.fixture
def render() -> Callable[..., str]:
    """Return render(role, template, **variables): the template's text with the role's defaults, overridden as given."""

    def render(role: str, template: str, **variables: Any) -> str:
        files = [ROLES / role / "defaults/main.yml", ROLES / role / "vars/main.yml"]
        known = {name: value for file in files for name, value in read(file).items()} | HOST | variables
        path = ROLES / role / "templates" / template
        assert path.exists()
        templar = Templar(loader=DataLoader(), variables=trusted(known))
        return str(templar.template(trust_as_template(f"{{{{ lookup('ansible.builtin.template', '{path}') }}}}")))

    return render


@pytest.fixture
def evaluate() -> Callable[..., Any]:
    """Return evaluate(expression, **variables): the value of a `when`, a `loop` or a variable of a playbook."""

    def evaluate(expression: str, **variables: Any) -> Any:
        templar = Templar(loader=DataLoader(), variables=trusted(variables))
        return templar.template(trust_as_template(expression if "{{" in expression else f"{{{{ {expression} }}}}"))

    return evaluate
