"""Password hashes as RabbitMQ stores them (https://www.rabbitmq.com/docs/passwords)."""

from __future__ import annotations

import base64
import hashlib
import hmac
import re
from collections.abc import Mapping, Sequence
from typing import Any


def rabbitmq_hash(password: str, user: str) -> str:
    """Return base64(salt + sha256(salt + password)).

    The four bytes of salt are derived from both, so that the same password gives the same file at every run.
    """
    salt = hmac.digest(password.encode(), user.encode(), "sha256")[:4]
    return base64.b64encode(salt + hashlib.sha256(salt + password.encode()).digest()).decode()


def rabbitmq_for_each_host(items: Sequence[Any], passwords: Mapping[str, str]) -> list[Any]:
    """Return each of the items once for each host, by name, with that host in its texts: {host}, {host_pattern} (a
    regular expression that matches the host's name alone) and {password_hash}.

    `passwords`: of the hosts' users, by host.
    """

    def filled(item: Any, words: Mapping[str, str]) -> Any:
        if isinstance(item, Mapping):
            return {key: filled(value, words) for key, value in item.items()}
        if isinstance(item, str):
            for word, value in words.items():
                item = item.replace(word, value)
        return item

    made = []
    for host, password in sorted(passwords.items()):
        hashed = rabbitmq_hash(password, f"worker@{host}")
        words = {"{host}": host, "{host_pattern}": re.escape(host), "{password_hash}": hashed}
        made += [filled(item, words) for item in items]
    return made


class FilterModule:
    """The filters of this role."""

    def filters(self) -> dict[str, object]:
        """Map the names used in templates to functions."""
        return {"rabbitmq_hash": rabbitmq_hash, "rabbitmq_for_each_host": rabbitmq_for_each_host}
