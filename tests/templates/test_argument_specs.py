"""The defaults of a role and its argument specs say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

ROLES = sorted((Path(__file__).parents[2] / "roles").iterdir())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_defaults_and_argument_specs_agree(role: Path) -> None:
    text = (role / "defaults/main.yml").read_text()
    defaults = yaml.safe_load(text) or {}
    required = set(re.findall(rf"^# ({role.name}_\w+):", text, re.MULTILINE))  # shown, but commented out
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]

    for spec in specs.values():
        options = spec["options"]
        assert set(options) == set(defaults) | required
        assert {name for name, option in options.items() if option.get("required")} == required
        assert {name: option["default"] for name, option in options.items() if "default" in option} == defaults
        assert all(option.get("description") and option.get("type") for option in options.values())


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_secrets_are_marked_in_the_argument_specs(role: Path) -> None:
    specs = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]
    for spec in specs.values():
        for name, option in spec["options"].items():
            assert bool(option.get("no_log")) == bool(re.search("password|_url$", name)), name


@pytest.mark.parametrize("role", ROLES, ids=lambda role: role.name)
def test_readme_fits_one_screen(role: Path) -> None:
    assert 3 <= len((role / "README.md").read_text().splitlines()) <= 50
