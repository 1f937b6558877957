"""Presigned URLs of the object store (AWS Signature Version 4, query form). Signing needs no connection.

https://docs.aws.amazon.com/AmazonS3/latest/API/sigv4-query-string-auth.html; a test compares it with botocore.
"""

from __future__ import annotations

import datetime
import hashlib
import hmac
from urllib.parse import quote, unquote, urlsplit

from api.settings import ObjectStore

REGION = "us-east-1"
MAX_SECONDS = 7 * 86_400


def presigned(store: ObjectStore, method: str, key: str, *, seconds: int, at: datetime.datetime) -> str:
    """Return a URL with which `method` on the object `key` is allowed for `seconds` from `at` (UTC)."""
    stamp = at.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{REGION}/s3/aws4_request"
    base = urlsplit(store.public_url)
    path = quote(f"{base.path}/{store.bucket}/{key}")
    query = _query(
        {
            "X-Amz-Algorithm": "AWS4-HMAC-SHA256",
            "X-Amz-Credential": f"{store.key}/{scope}",
            "X-Amz-Date": stamp,
            "X-Amz-Expires": str(min(seconds, MAX_SECONDS)),
            "X-Amz-SignedHeaders": "host",
        }
    )
    request = "\n".join([method, path, query, f"host:{_host(store.public_url)}", "", "host", "UNSIGNED-PAYLOAD"])
    to_sign = "\n".join(["AWS4-HMAC-SHA256", stamp, scope, hashlib.sha256(request.encode()).hexdigest()])
    signature = hmac.new(_signing_key(store.secret, scope), to_sign.encode(), "sha256").hexdigest()
    return f"{base.scheme}://{base.netloc}{path}?{query}&X-Amz-Signature={signature}"


def object_key(store: ObjectStore, url: str) -> str | None:
    """Return the key of the object that `url` names in our store, or None when it is somewhere else."""
    there = urlsplit(url)
    for ours in {store.public_url, store.url}:
        base = urlsplit(ours)
        prefix = f"{base.path}/{store.bucket}/"
        if there.netloc.lower() == base.netloc.lower() and unquote(there.path).startswith(prefix):
            return unquote(there.path).removeprefix(prefix)
    return None


def _query(values: dict[str, str]) -> str:
    return "&".join(f"{quote(key, safe='')}={quote(value, safe='')}" for key, value in sorted(values.items()))


def _host(url: str) -> str:
    """Return the Host header of `url`: the port only when it is not the scheme's own."""
    parts = urlsplit(url)
    host = parts.netloc.rpartition("@")[2]
    default = {"http": ":80", "https": ":443"}.get(parts.scheme, "")
    return host.removesuffix(default) if default else host


def _signing_key(secret: str, scope: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in scope.split("/"):
        key = hmac.new(key, part.encode(), "sha256").digest()
    return key
