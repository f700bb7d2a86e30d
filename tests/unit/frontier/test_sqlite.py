"""The ledger's promises on SQLite, as the embedded mode uses it."""

from budget_promises import *  # noqa: F403
from conservation_promises import *  # noqa: F403
from depth_promises import *  # noqa: F403
from failure_promises import *  # noqa: F403
from ledger_promises import *  # noqa: F403
from machine_promises import *  # noqa: F403
from order_promises import *  # noqa: F403
from proof_promises import *  # noqa: F403
from reading_promises import *  # noqa: F403
from sharing_promises import *  # noqa: F403
