"""SCRAM-SHA-256 verifiers as PostgreSQL stores them (RFC 5802, RFC 7677): the server never sees the password."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re

from blackstart.process.failure import ProcessFailed

ITERATIONS = 4096  # PostgreSQL's own
VERIFIER = re.compile(r"SCRAM-SHA-256\$(\d+):([A-Za-z0-9+/=]+)\$([A-Za-z0-9+/=]+):([A-Za-z0-9+/=]+)")


def verifier(password: str, *, salt: bytes | None = None, iterations: int = ITERATIONS) -> str:
    """Return what pg_authid.rolpassword holds for `password`."""
    if not (password.isascii() and password.isprintable()):
        raise ProcessFailed("config var POSTGRES_PASSWORD must be printable ASCII")
    salt = os.urandom(16) if salt is None else salt
    salted = hashlib.pbkdf2_hmac("sha256", password.encode(), salt, iterations)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    return f"SCRAM-SHA-256${iterations}:{_text(salt)}${_text(stored)}:{_text(server)}"


def matches(password: str, stored: str) -> bool:
    """Return whether `stored` is a verifier of `password`."""
    match = VERIFIER.fullmatch(stored)
    if match is None:
        return False
    return hmac.compare_digest(stored, verifier(password, salt=base64.b64decode(match[2]), iterations=int(match[1])))


def _text(value: bytes) -> str:
    return base64.b64encode(value).decode()
