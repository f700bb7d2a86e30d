"""The names of the variables given on the command line with ``-e``."""

from __future__ import annotations

from ansible.plugins.lookup import LookupBase
from ansible.utils.vars import load_extra_vars

DOCUMENTATION = """
name: extra_vars
short_description: names of the variables given with -e
description:
  - Extra variables override all others, so a playbook cannot tell by its value whether a number was asked for
    just now or stands in the inventory. This lookup tells.
"""


class LookupModule(LookupBase):
    """Look up nothing but the command line."""

    def run(self, *_terms: object, **_options: object) -> list[list[str]]:
        """Return one list of names."""
        return [sorted(load_extra_vars(self._loader))]
