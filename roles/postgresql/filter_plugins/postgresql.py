"""Passwords as PostgreSQL stores them (RFC 5802, RFC 7677)."""

from __future__ import annotations

import base64
import hashlib
import hmac

ITERATIONS = 4096  # PostgreSQL's own default


def scram_verifier(password: str, role: str) -> str:
    """Return ``SCRAM-SHA-256$iterations:salt$StoredKey:ServerKey`` for an ASCII password.

    The salt is derived from both, so that the same password gives the same verifier at every run.
    """
    salt = hmac.digest(password.encode(), role.encode(), "sha256")[:16]
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, ITERATIONS)
    stored_key = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server_key = hmac.digest(salted, b"Server Key", "sha256")
    salt64, stored64, server64 = (base64.b64encode(part).decode() for part in (salt, stored_key, server_key))
    return f"SCRAM-SHA-256${ITERATIONS}:{salt64}${stored64}:{server64}"


class FilterModule:
    """The filters of this role."""

    def filters(self) -> dict[str, object]:
        """Map the names used in templates to functions."""
        return {"scram_verifier": scram_verifier}
