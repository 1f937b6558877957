"""The object store, as far as `psmgr` uses it. Keys are listed in docs/how-it-works.md."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from psmgr.settings import SLUG_BYTES, Settings

FETCH_S = 3600
CHUNK = 1 << 20
RESULT_BYTES = 1 << 20


class StoreUnavailable(Exception):
    """The object store did not answer, or refused. The message says which call and why."""


class ObjectMissing(StoreUnavailable):
    """There is no such object."""


class ObjectTooLarge(Exception):
    """The object is larger than a slug may be."""


class Store:
    """The platform's bucket: read and written at the inner address, presigned for builds at the public one."""

    def __init__(self, settings: Settings) -> None:
        self._bucket = settings.objects_bucket
        self._inner = _client(settings, settings.objects_url)
        self._public = _client(settings, settings.objects_public_url)

    def slug_url(self, slug: str) -> str:
        """Return a URL from which nodes fetch a slug, good for an hour."""
        return self._sign(self._inner, "get_object", slug_key(slug), FETCH_S)

    def made_url(self, build_id: str, seconds: int) -> str:
        """Return a URL from which nodes fetch what a build will store as its slug."""
        return self._sign(self._inner, "get_object", build_keys(build_id)[0], seconds)

    def public_get(self, key: str, seconds: int) -> str:
        """Return a URL from which a build reads `key`."""
        return self._sign(self._public, "get_object", key, seconds)

    def public_put(self, key: str, seconds: int) -> str:
        """Return a URL to which a build writes `key`."""
        return self._sign(self._public, "put_object", key, seconds)

    def read(self, key: str) -> bytes:
        """Return a small object (at most RESULT_BYTES of it)."""
        try:
            body = self._inner.get_object(Bucket=self._bucket, Key=key)["Body"]
            data: bytes = body.read(RESULT_BYTES)
        except (ClientError, BotoCoreError, OSError) as error:
            raise _unavailable(f"get {key}", error) from error
        return data

    def digest(self, key: str) -> tuple[str, int]:
        """Return the sha256 and the size of an object's bytes. Raises ObjectTooLarge for more than a slug may have."""
        digest, size = hashlib.sha256(), 0
        try:
            with contextlib.closing(self._inner.get_object(Bucket=self._bucket, Key=key)["Body"]) as body:
                for chunk in body.iter_chunks(CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
                    if size > SLUG_BYTES:
                        raise ObjectTooLarge(
                            f"the build stored more than the {SLUG_BYTES:,} bytes that a slug may have"
                        )
        except (ClientError, BotoCoreError, OSError) as error:
            raise _unavailable(f"get {key}", error) from error
        return digest.hexdigest(), size

    def exists(self, key: str) -> bool:
        """Return whether there is an object `key`."""
        try:
            self._inner.head_object(Bucket=self._bucket, Key=key)
        except (ClientError, BotoCoreError) as error:
            unavailable = _unavailable(f"head {key}", error)
            if isinstance(unavailable, ObjectMissing):
                return False
            raise unavailable from error
        return True

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside of the bucket."""
        try:
            self._inner.copy({"Bucket": self._bucket, "Key": source}, self._bucket, target)
        except (ClientError, BotoCoreError) as error:
            raise _unavailable(f"copy {source} to {target}", error) from error

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects. Missing ones are no error."""
        for key in keys:
            try:
                self._inner.delete_object(Bucket=self._bucket, Key=key)
            except (ClientError, BotoCoreError) as error:
                raise _unavailable(f"delete {key}", error) from error

    def _sign(self, client: Any, operation: str, key: str, seconds: int) -> str:
        params = {"Bucket": self._bucket, "Key": key}
        url: str = client.generate_presigned_url(operation, Params=params, ExpiresIn=seconds)
        return url


def slug_key(slug: str) -> str:
    """Return the key of a slug."""
    return f"slugs/{slug}.squashfs"


def build_keys(build_id: object) -> tuple[str, str]:
    """Return the keys of a build's slug and result."""
    return f"builds/{build_id}/slug", f"builds/{build_id}/result.json"


def cache_key(app_id: object) -> str:
    """Return the key of an app's build cache."""
    return f"caches/{app_id}"


def source_key(source_id: object) -> str:
    """Return the key of an uploaded source."""
    return f"sources/{source_id}"


def _client(settings: Settings, url: str) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=url,
        aws_access_key_id=settings.objects_key,
        aws_secret_access_key=settings.objects_secret,
        region_name="us-east-1",
        verify=settings.s3_ca if url.startswith("https://") else None,
        config=Config(
            signature_version="s3v4",
            s3={"addressing_style": "path"},
            connect_timeout=3,
            read_timeout=20,
            retries={"max_attempts": 3, "mode": "standard"},
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _unavailable(what: str, error: Exception) -> StoreUnavailable:
    code = error.response.get("Error", {}).get("Code") if isinstance(error, ClientError) else None
    kind = ObjectMissing if code in ("404", "NoSuchKey", "NotFound") else StoreUnavailable
    return kind(f"the object store refused to {what}: {error}" if code else f"the object store cannot {what}: {error}")
