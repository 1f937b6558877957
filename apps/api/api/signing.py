"""Secrets in URLs: the path of a build's output is signed, because its readers send no Authorization."""

from __future__ import annotations

import base64
import hmac
import uuid


class Signer:
    """Signs ids under a key that is derived from SECRET_KEY, so that it opens nothing else."""

    def __init__(self, secret_key: str) -> None:
        self._key = hmac.new(base64.b64decode(secret_key), b"blackstart build output", "sha256").digest()

    def sign(self, id: uuid.UUID) -> str:
        """Return the signature of `id`, fit for a path."""
        return base64.urlsafe_b64encode(hmac.new(self._key, id.bytes, "sha256").digest()).decode().rstrip("=")

    def fits(self, id: uuid.UUID, signature: str) -> bool:
        """Whether `signature` is that of `id`."""
        return hmac.compare_digest(self.sign(id).encode(), signature.encode())
