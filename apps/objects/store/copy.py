"""`bin/copy-bucket`: every object below some prefixes from one bucket to another, each read back and compared.

    SOURCE_URL, SOURCE_KEY, SOURCE_SECRET, SOURCE_BUCKET and TARGET_…; the CA from BLACKSTART_CA
    COPY_TIMEOUT_S (default 3600) bounds the whole

Run again after any interruption: an object that is right in the target is not written again, but it is read and
compared again. Writers of the source must be stopped before. Prints a JSON report on standard output.
Exit 0: every object of the source is in the target, with the same sha256, and a slug's sha256 is its name.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import IO, Any

import boto3
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from blackstart.process.failure import ProcessFailed, exit_code_of
from blackstart.process.settings import ca_file, required, whole_number

PREFIXES = ("sources/", "slugs/", "caches/", "builds/")
SLUG = re.compile(r"slugs/(?P<sha256>[0-9a-f]{64})\.squashfs")
BLOCK = 1 << 20
AT_ONCE = 4


@dataclass(frozen=True)
class Copied:
    """What happened to one object."""

    key: str
    size: int
    sha256: str
    written: bool


class Bucket:
    """One bucket of one store."""

    def __init__(self, side: str) -> None:
        env = os.environ
        self.side = side.lower()
        self.name = required(env, f"{side}_BUCKET")
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=required(env, f"{side}_URL"),
            aws_access_key_id=required(env, f"{side}_KEY"),
            aws_secret_access_key=required(env, f"{side}_SECRET"),
            region_name="us-east-1",
            verify=str(ca_file(env)),
            config=Config(
                s3={"addressing_style": "path"},
                connect_timeout=10,
                read_timeout=60,
                max_pool_connections=AT_ONCE * 2,
                retries={"total_max_attempts": 5, "mode": "standard"},
            ),
        )

    def keys(self, prefix: str) -> Iterator[tuple[str, int]]:
        """Yield key and size of every object below `prefix`."""
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=self.name, Prefix=prefix)
        for page in pages:
            for entry in page.get("Contents", []):
                if not entry["Key"].endswith("/"):
                    yield entry["Key"], entry["Size"]

    def size(self, key: str) -> int | None:
        """Return the size of `key`, None when it is not there."""
        try:
            return int(self._client.head_object(Bucket=self.name, Key=key)["ContentLength"])
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def sha256(self, key: str, into: IO[bytes] | None = None) -> str:
        """Read `key` whole, also into a file; return its sha256."""
        answer = self._client.get_object(Bucket=self.name, Key=key)
        digest, read = hashlib.sha256(), 0
        for block in answer["Body"].iter_chunks(BLOCK):
            digest.update(block)
            read += len(block)
            if into is not None:
                into.write(block)
        if read != answer["ContentLength"]:
            raise ProcessFailed(f"{key} of the {self.side} ends after {read} of {answer['ContentLength']} bytes")
        return digest.hexdigest()

    def put(self, key: str, body: IO[bytes]) -> None:
        """Write `key`."""
        body.seek(0)
        self._client.upload_fileobj(body, self.name, key)

    def text(self, key: str) -> str:
        """Return what `key` holds, a short text."""
        return bytes(self._client.get_object(Bucket=self.name, Key=key)["Body"].read()).decode(errors="replace")

    def put_once(self, key: str, body: bytes) -> bool:
        """Write `key` unless it exists; return whether this call wrote it."""
        try:
            self._client.put_object(Bucket=self.name, Key=key, Body=body, IfNoneMatch="*")
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 412:
                return False
            raise
        return True


def main() -> int:
    """Parse the command line and copy."""
    parser = argparse.ArgumentParser(prog="bin/copy-bucket", description="Copy a bucket and prove it equal.")
    parser.add_argument("prefixes", nargs="*", default=list(PREFIXES), help=f"default: {' '.join(PREFIXES)}")
    options = parser.parse_args()
    return exit_code_of("copy-bucket", lambda: run(options.prefixes))


def run(prefixes: list[str]) -> int:
    """Copy everything, report."""
    started = time.monotonic()
    try:
        copied = copy_all(Bucket("SOURCE"), Bucket("TARGET"), prefixes, deadline())
    except (ClientError, BotoCoreError) as error:
        raise ProcessFailed("a store failed", why=str(error), fix="run again: it goes on where it was") from error
    json.dump(report(copied, prefixes, time.monotonic() - started), sys.stdout)
    sys.stdout.write("\n")
    return 0


def deadline() -> float:
    """Return when the whole must be over, as time.monotonic() counts."""
    return time.monotonic() + whole_number(os.environ, "COPY_TIMEOUT_S", 3600)


def copy_all(source: Bucket, target: Bucket, prefixes: Iterable[str], until: float) -> list[Copied]:
    """Copy every object, a few at once; the first error ends it."""
    listed = [entry for prefix in prefixes for entry in source.keys(prefix)]
    with ThreadPoolExecutor(AT_ONCE) as pool:
        futures = [pool.submit(copy_one, source, target, key, size, until) for key, size in listed]
        done, left = wait(futures, return_when=FIRST_EXCEPTION)
        for future in left:
            future.cancel()
        return [future.result() for future in done]


def copy_one(source: Bucket, target: Bucket, key: str, size: int, until: float) -> Copied:
    """Make `key` of the target equal to the source's; both are read whole."""
    if time.monotonic() > until:
        raise ProcessFailed("the time for the copy is over (COPY_TIMEOUT_S)", fix="run again: it goes on where it was")
    with tempfile.TemporaryFile() as body:
        sha256 = source.sha256(key, body)
        check_slug_name(key, sha256)
        written = target.size(key) != size or target.sha256(key) != sha256
        if written:
            target.put(key, body)
    if written and (stored := target.sha256(key)) != sha256:
        raise ProcessFailed(f"{key} has sha256 {stored} in the target, {sha256} in the source", fix="run again")
    return Copied(key, size, sha256, written)


def check_slug_name(key: str, sha256: str) -> None:
    """A slug is named by its content; one that is not is broken at its source."""
    match = SLUG.fullmatch(key)
    if key.startswith("slugs/") and (match is None or match["sha256"] != sha256):
        raise ProcessFailed(f"{key} of the source has sha256 {sha256}", why="a slug is named by its sha256")


def report(copied: list[Copied], prefixes: Iterable[str], seconds: float) -> dict[str, Any]:
    """Return the whole in figures, and every object's sha256."""
    return {
        "prefixes": list(prefixes),
        "objects": len(copied),
        "bytes": sum(item.size for item in copied),
        "written": sum(item.written for item in copied),
        "already_equal": sum(not item.written for item in copied),
        "sha256": {item.key: item.sha256 for item in sorted(copied, key=lambda item: item.key)},
        "seconds": round(seconds, 2),
    }
