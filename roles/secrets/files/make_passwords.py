"""Make the passwords that are not there yet, and forget those of worker hosts that are in the inventory no more.

    make_passwords.py DIRECTORY [--keep]     reads names from standard input: seed, or workers/host1

Each is a file of its own, DIRECTORY/NAME_password, which its owner alone can read. A file that is there is kept. With
--keep, none is removed. Prints what was made and what was forgotten.
"""

from __future__ import annotations

import os
import secrets
import string
import sys
from pathlib import Path

LENGTH = 40


def main() -> None:
    """Do what the module's docstring says."""
    directory, *options = sys.argv[1:]
    wanted = [Path(directory, f"{name}_password") for name in sys.stdin.read().split()]
    workers = Path(directory, "workers")
    workers.mkdir(mode=0o700, exist_ok=True)
    for file in wanted:
        if not file.exists():
            password = "".join(secrets.choice(string.ascii_letters + string.digits) for _ in range(LENGTH))
            # Written beside it first: a run that is interrupted leaves no half a password.
            new = file.with_name(f".{file.name}.new")
            with open(new, "w", opener=lambda path, flags: os.open(path, flags, 0o600)) as written:
                written.write(password)
            new.replace(file)
            print("made", file.relative_to(directory))
    if "--keep" not in options:
        for file in set(workers.glob("*_password")) - set(wanted):
            file.unlink()
            print("forgot", file.relative_to(directory))


if __name__ == "__main__":
    main()
