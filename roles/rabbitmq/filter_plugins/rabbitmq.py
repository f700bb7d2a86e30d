"""Password hashes as RabbitMQ stores them (https://www.rabbitmq.com/docs/passwords)."""

from __future__ import annotations

import base64
import hashlib
import hmac


def rabbitmq_hash(password: str, user: str) -> str:
    """Return base64(salt + sha256(salt + password)).

    The four bytes of salt are derived from both, so that the same password gives the same file at every run.
    """
    salt = hmac.digest(password.encode(), user.encode(), "sha256")[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


class FilterModule:
    """The filters of this role."""

    def filters(self) -> dict[str, object]:
        """Map the names used in templates to functions."""
        return {"rabbitmq_hash": rabbitmq_hash}
