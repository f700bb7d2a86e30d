"""The ledger's promises on SQLite, as the embedded mode uses it."""

from ledger_promises import *  # noqa: F403
