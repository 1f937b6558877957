"""Config vars at rest: AES-256-GCM. The stored form is `b"1" + nonce (12 bytes) + ciphertext and tag`.

The first byte is the form's version, so that a later key scheme can be told apart.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import secrets

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

VERSION = b"1"
NONCE_BYTES = 12


class SealedWithAnotherKey(Exception):
    """The stored config cannot be opened with this SECRET_KEY, or it was altered."""


class Sealer:
    """Seals and opens maps of config vars. `key` is base64 of 32 bytes (the config var SECRET_KEY)."""

    def __init__(self, key: str) -> None:
        self._aead = AESGCM(base64.b64decode(key, validate=True))

    def seal(self, values: dict[str, str], context: str) -> bytes:
        """Return `values` sealed; `context` (the app's id) must be the same when it is opened."""
        nonce = os.urandom(NONCE_BYTES)
        plain = json.dumps(values, sort_keys=True).encode()
        return VERSION + nonce + self._aead.encrypt(nonce, plain, context.encode())

    def open(self, sealed: bytes, context: str) -> dict[str, str]:
        """Return the config vars in `sealed`. Raises SealedWithAnotherKey."""
        if sealed[:1] != VERSION:
            raise SealedWithAnotherKey("the stored config has an unknown form")
        nonce, cipher = sealed[1 : 1 + NONCE_BYTES], sealed[1 + NONCE_BYTES :]
        try:
            plain = self._aead.decrypt(nonce, cipher, context.encode())
        except InvalidTag as error:
            raise SealedWithAnotherKey("the stored config does not open with this SECRET_KEY") from error
        values: dict[str, str] = json.loads(plain)
        return values


def new_key() -> str:
    """Return a fresh SECRET_KEY."""
    return base64.b64encode(os.urandom(32)).decode()


def new_token() -> str:
    """Return a fresh bearer token."""
    return secrets.token_urlsafe(32)


def token_digest(token: str) -> str:
    """Return what is stored of a token. Tokens are 256 random bits, so a plain sha256 is enough."""
    return hashlib.sha256(token.encode()).hexdigest()
