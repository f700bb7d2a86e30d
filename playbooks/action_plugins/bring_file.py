"""Bring a file of any size home, piece by piece, and give it its name only once its digest is right.

Why not `ansible.builtin.fetch`: with `become` it holds the whole file in memory several times over, and without, the
one who logs in would have to be able to read the archive. Why not rsync, scp or `ssh cat`: they need a package, or sudo
without a password, and each kind of connection (`local`, passwords, jump hosts) spelled out again. A piece comes over
Ansible's own connection: what reaches a host for one playbook does for all. It costs a third more bytes on the way.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shlex
from pathlib import Path

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

DOCUMENTATION = """
name: bring_file
short_description: bring a file home from a host, in constant memory and verified
options:
  src: {description: absolute path on the host, type: path, required: true}
  dest: {description: path on the control node; its folder is made if need be, type: path, required: true}
  sha256: {description: what the file must have there and here, type: str, required: true}
notes:
  - A copy grows under the name `<dest>.part`. An interrupted one is gone on with by the next run.
  - A file that has the name `dest` already is replaced.
"""

PIECE = 8 * 1024**2
"""Bytes brought at once: what this process holds of a file is a small multiple of it."""


class ActionModule(ActionBase):
    """Copy `src` of the host to `dest` of the control node."""

    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, object] | None = None) -> dict[str, object]:
        """Return `changed` and `bytes`, how many were brought or, in a dry run, would be."""
        result: dict[str, object] = super().run(tmp, task_vars)
        text, path = {"type": "str", "required": True}, {"type": "path", "required": True}
        _, given = self.validate_argument_spec({"src": text, "dest": path, "sha256": text})
        src, dest, wanted = given["src"], Path(given["dest"]), given["sha256"]
        if self._task.check_mode:
            return {**result, "changed": True, "bytes": int(self._ask(f"stat --format=%s {shlex.quote(src)}"))}

        part = dest.with_name(dest.name + ".part")
        try:
            part.parent.mkdir(parents=True, exist_ok=True)
            brought = 0
            for mode in ("ab", "wb"):  # what an interrupted run left may be damaged: then anew
                with part.open(mode) as file:
                    began = file.tell()
                    while piece := self._piece(src, file.tell()):
                        file.write(piece)
                    brought += file.tell() - began
                    file.flush()
                    os.fsync(file.fileno())
                found = _digest(part)
                if found == wanted:
                    part.rename(dest)
                    return {**result, "changed": True, "bytes": brought}
                if not began:
                    break
            part.unlink()
        except OSError as error:
            raise AnsibleActionFail(f"{src} cannot be kept as {dest}") from error
        raise AnsibleActionFail(
            f"{src} has the SHA-256 digest {wanted} there, but what arrived here has {found}; it was not kept. Type "
            "the same command again; if that does not help, look for a failing disk or memory."
        )

    def _piece(self, src: str, offset: int) -> bytes:
        """At most PIECE bytes of the file from `offset`; none at its end."""
        read = f"dd if={shlex.quote(src)} bs=1M iflag=skip_bytes,count_bytes skip={offset} count={PIECE} status=none"
        return base64.b64decode(self._ask(f"{read} | base64 --wrap=0"), validate=True)

    def _ask(self, command: str) -> str:
        """What a shell command prints on the host."""
        # It travels on standard input: to a command without any, Ansible gives a terminal, and that is slow.
        answer = self._low_level_execute_command("bash", in_data=f"set -o pipefail; {command}\n".encode())
        if answer["rc"] != 0:
            raise AnsibleActionFail(f"`{command}` failed: {answer['stderr'].strip() or answer['stdout'].strip()}")
        return str(answer["stdout"])


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
