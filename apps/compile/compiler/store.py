"""The object store, through presigned URLs: get and put of whole files, with capped, jittered retries.

TLS is verified, by the roots in SSL_CERT_FILE where it is set. Only http and https are spoken: a source's address
may come from a user, and must not name a file of this machine.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import ssl
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, TypeVar
from urllib.parse import urlsplit

from compiler.errors import Failure, SourceRefused, StoreFailed
from compiler.limits import STORE_ATTEMPTS, STORE_SECONDS, STORE_SILENCE

CHUNK = 1 << 20
FIRST_PAUSE = 0.5
LONGEST_PAUSE = 8.0
PASSING = {408, 425, 429, 500, 502, 503, 504}

Result = TypeVar("Result")


class _Again(Exception):
    """A try failed in a way that may pass."""


class _Refused(Exception):
    """The store gave a final answer that is not success. `status` is HTTP's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"HTTP {status}")
        self.status = status


class Store:
    """Gets and puts. `seconds` is the deadline of one call with all its retries; `pause` sleeps between tries."""

    def __init__(self, *, seconds: float = STORE_SECONDS, pause: Callable[[float], None] = time.sleep) -> None:
        self._seconds = seconds
        self._pause = pause
        self._opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler(),
            urllib.request.HTTPHandler(),
            urllib.request.HTTPSHandler(context=ssl.create_default_context()),
            urllib.request.HTTPDefaultErrorHandler(),
            urllib.request.HTTPRedirectHandler(),
            urllib.request.HTTPErrorProcessor(),
        ):
            self._opener.add_handler(handler)

    def get(self, url: str, to: Path, *, what: str, limit: int) -> str:
        """Write what `url` holds to `to` and return its sha256. `what` names it in errors: "the source"."""
        return self._named(lambda: self._get(url, to, what, limit), what, "read")

    def get_if_there(self, url: str, to: Path, *, what: str, limit: int) -> bool:
        """As `get`, but a 404 is False."""
        try:
            self._named(lambda: self._get(url, to, what, limit), what, "read")
        except StoreFailed as failure:
            if failure.reason == "store-not-found":
                return False
            raise
        return True

    def put(self, url: str, path: Path, *, what: str) -> None:
        """Store the file `path` at `url`."""
        self._named(lambda: self._put(url, path), what, "stored")

    def _named(self, call: Callable[[], Result], what: str, verb: str) -> Result:
        """Return what `call` returns, trying again while that can help; else a StoreFailed that names `what`."""
        end = time.monotonic() + self._seconds
        pause = FIRST_PAUSE
        for attempt in range(1, STORE_ATTEMPTS + 1):
            try:
                return call()
            except _Refused as error:
                raise _refusal(error.status, what, verb) from error
            except (_Again, OSError, http.client.HTTPException) as error:
                wait = random.uniform(pause / 2, pause)  # noqa: S311 - jitter, not a secret
                if attempt == STORE_ATTEMPTS or time.monotonic() + wait > end:
                    raise StoreFailed(
                        "store-unreachable",
                        f"{what[0].upper()}{what[1:]} could not be {verb}: the object store did not answer as it must.",
                        why=f"{attempt} tries; the last one: {_reason(error)}",
                        fixes=(
                            "Build again in a minute.",
                            "If it stays so, tell the operator: is the object store up?",
                        ),
                    ) from error
                self._pause(wait)
                pause = min(pause * 2, LONGEST_PAUSE)
        raise AssertionError("unreachable")

    def _get(self, url: str, to: Path, what: str, limit: int) -> str:
        _check_scheme(url, what)
        try:
            with self._opener.open(url, timeout=STORE_SILENCE) as answer, to.open("wb") as file:
                return _copy(answer, file, limit, what)
        except urllib.error.HTTPError as error:
            with error:
                raise _verdict(error.code) from error
        except urllib.error.URLError as error:
            raise _Again(_reason(error)) from error

    def _put(self, url: str, path: Path) -> None:
        parts = urlsplit(url)
        size = path.stat().st_size
        connection = _connection(parts.scheme, parts.hostname or "", parts.port)
        try:
            with path.open("rb") as body:
                target = parts.path + (f"?{parts.query}" if parts.query else "")
                connection.request("PUT", target, body=body, headers={"Content-Length": str(size)})
                answer = connection.getresponse()
                answer.read(CHUNK)
        finally:
            connection.close()
        if answer.status not in (200, 201, 204):
            raise _verdict(answer.status)


def _connection(scheme: str, host: str, port: int | None) -> http.client.HTTPConnection:
    if scheme == "http":
        return http.client.HTTPConnection(host, port, timeout=STORE_SILENCE)
    return http.client.HTTPSConnection(host, port, timeout=STORE_SILENCE, context=ssl.create_default_context())


def _copy(answer: http.client.HTTPResponse, file: BinaryIO, limit: int, what: str) -> str:
    """Copy an answer's body and return its sha256; a short body is tried again, one over `limit` is refused."""
    digest = hashlib.sha256()
    size = 0
    while chunk := answer.read(CHUNK):
        size += len(chunk)
        if size > limit:
            raise SourceRefused(
                "source-too-large",
                f"{what[0].upper()}{what[1:]} is larger than {limit // 1_000_000} MB.",
                fixes=("Leave out what the app does not need to run: data, media, build output, node_modules, .git.",),
            )
        digest.update(chunk)
        file.write(chunk)
    told = answer.headers.get("Content-Length")
    if told is not None and told.isdigit() and int(told) != size:
        raise _Again(f"the answer ended after {size} of {told} bytes")
    return digest.hexdigest()


def _check_scheme(url: str, what: str) -> None:
    if urlsplit(url).scheme not in ("http", "https"):
        raise SourceRefused(
            "source-address",
            f"The address of {what} is not an http or https one.",
            fixes=("Give the address of a tarball that starts with https://.",),
        )


def _verdict(status: int) -> Exception:
    return _Again(f"HTTP {status}") if status in PASSING else _Refused(status)


def _refusal(status: int, what: str, verb: str) -> Failure:
    name = f"{what[0].upper()}{what[1:]}"
    if status == 404:
        return StoreFailed(
            "store-not-found",
            f"{name} could not be {verb}: it is not there (HTTP 404).",
            fixes=("Upload the source first, then start the build.",),
        )
    return StoreFailed(
        "store-refused",
        f"{name} could not be {verb}: the object store answered HTTP {status}.",
        why="A presigned address is valid for a limited time, and for one object." if status in (401, 403) else "",
        fixes=("Start the build again: it gets new addresses.",),
    )


def _reason(error: Exception) -> str:
    inner = error.reason if isinstance(error, urllib.error.URLError) else error
    return str(inner) or type(inner).__name__
