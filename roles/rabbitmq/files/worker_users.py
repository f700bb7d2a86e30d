"""Which users of workers RabbitMQ has, `worker@HOST` each.

    worker_users.py keep USER...      remove all but these
    worker_users.py revoke USER...    remove these

Removing closes a user's connections at once. `revoke` also takes the user out of the definitions, which the server
reads at every start, so that a restart does not bring it back. Prints the users that were removed; ends with 1 and a
message where one could not be, or RabbitMQ does not answer.
"""
# ruff: noqa: S603, S607 - it runs rabbitmqctl, by its name, with the names of users

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

DEFINITIONS = Path(os.environ.get("RABBITMQ_DEFINITIONS", "/etc/rabbitmq/definitions.json"))


def rabbitmqctl(*arguments: str) -> str:
    """Return what the command prints."""
    ran = subprocess.run(["rabbitmqctl", "--quiet", *arguments], capture_output=True, text=True)
    if ran.returncode:
        sys.exit(f"rabbitmqctl {' '.join(arguments)} failed: {ran.stderr.strip() or ran.stdout.strip()}")
    return ran.stdout


def users() -> set[str]:
    """Return the users that RabbitMQ knows."""
    return {user["user"] for user in json.loads(rabbitmqctl("--formatter", "json", "list_users"))}


def forget(revoked: set[str]) -> None:
    """Take users out of the definitions."""
    definitions = json.loads(DEFINITIONS.read_text())
    for part, key in (("users", "name"), ("permissions", "user")):
        definitions[part] = [entry for entry in definitions[part] if entry[key] not in revoked]
    before = DEFINITIONS.stat()
    written = DEFINITIONS.with_name(f".{DEFINITIONS.name}.revoking")
    written.unlink(missing_ok=True)
    with open(written, "x", opener=lambda path, flags: os.open(path, flags, 0o600)) as file:
        file.write(json.dumps(definitions, indent=4))
        os.fchown(file.fileno(), before.st_uid, before.st_gid)
        os.fchmod(file.fileno(), before.st_mode & 0o777)
    written.replace(DEFINITIONS)


def main() -> None:
    """Do what the module's docstring says."""
    verb, *named = sys.argv[1:]
    if verb == "revoke":
        forget(set(named))
        unwanted = users() & set(named)
    else:
        unwanted = {user for user in users() if user.partition("@")[0] == "worker"} - set(named)
    for user in sorted(unwanted):
        rabbitmqctl("delete_user", user)
        print(user, flush=True)
    # After the user, or it could connect again. Of one who was removed by a run that failed here, as well.
    for user in sorted(unwanted | (set(named) if verb == "revoke" else set())):
        rabbitmqctl("close_all_user_connections", user, "revoked")
    if left := users() & unwanted:
        sys.exit(f"still there: {', '.join(sorted(left))}")


if __name__ == "__main__":
    main()
