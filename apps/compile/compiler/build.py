"""`bin/build`: a build in a one-off dyno. It holds presigned URLs for its own source, slug, result and cache, no more.

The environment it gets and the result it puts are a contract with psmgr: docs/how-it-works.md, "A build".
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from dataclasses import dataclass
from pathlib import Path

from compiler import cache, compilation, limits, output, processes, source
from compiler.buildpacks import Folders
from compiler.compilation import Compiled
from compiler.ending import ended
from compiler.environment import take
from compiler.errors import SourceRefused, StoreFailed
from compiler.processes import Clock
from compiler.store import Store

BUILD = Path("/app")
SCRATCH = Path("/tmp/build")  # noqa: S108 - a one-off dyno's own /tmp; one path, so that it leaves the same trace everywhere
SECRETS = (
    "SOURCE_URL",
    "SOURCE_SHA256",
    "SLUG_PUT_URL",
    "RESULT_PUT_URL",
    "CACHE_GET_URL",
    "CACHE_PUT_URL",
    "BUILD_TIMEOUT",
)
NEEDED = ("SOURCE_URL", "SLUG_PUT_URL", "RESULT_PUT_URL")


@dataclass(frozen=True)
class Order:
    """What psmgr asks for."""

    source_url: str
    source_sha256: str | None
    slug_put_url: str
    result_put_url: str
    cache_get_url: str | None
    cache_put_url: str | None
    stack: str
    seconds: float


def main() -> int:
    """Build as the environment says; return the exit code of the contract."""
    processes.hide_from_same_user()
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, _stopped)
    values = take(os.environ, SECRETS)
    return ended(lambda: build(order_of(values, os.environ.get("STACK", ""))))


def order_of(values: dict[str, str], stack: str) -> Order:
    """Return the order in the environment `values`. Raises StoreFailed when it is not whole."""
    missing = [name for name in NEEDED if name not in values]
    if missing:
        raise StoreFailed(
            "build-not-configured",
            f"The build dyno lacks {', '.join(missing)}.",
            fixes=("Builds are started by the platform. To compile a folder by hand: `bin/compile FOLDER`.",),
        )
    seconds = values.get("BUILD_TIMEOUT", str(limits.BUILD_SECONDS))
    if not re.fullmatch(r"\d+(\.\d+)?", seconds):
        raise StoreFailed("build-not-configured", f"BUILD_TIMEOUT is not a number of seconds: {seconds!r}")
    return Order(
        source_url=values["SOURCE_URL"],
        source_sha256=_sha256(values.get("SOURCE_SHA256")),
        slug_put_url=values["SLUG_PUT_URL"],
        result_put_url=values["RESULT_PUT_URL"],
        cache_get_url=values.get("CACHE_GET_URL"),
        cache_put_url=values.get("CACHE_PUT_URL"),
        stack=stack,
        seconds=float(seconds),
    )


def build(order: Order, *, build: Path = BUILD, scratch: Path = SCRATCH) -> None:
    """Fetch, compile, store. Raises Failure."""
    clock = Clock(order.seconds)
    store = Store()
    _prepare(build, scratch)
    sha256 = _fetch_source(order, store, build, scratch)
    folders = Folders(build, scratch / "cache", scratch / "env", scratch)
    cache.restore(store, order.cache_get_url, folders.cache, order.stack, scratch, clock)
    before = cache.contents(folders.cache)
    compiled = compilation.compile_app(folders, os.environ, clock)
    store.put(order.slug_put_url, compiled.slug.path, what="the slug")
    _put_result(order, store, compiled, sha256, scratch)
    cache.save(store, order.cache_put_url, folders.cache, order.stack, scratch, clock, before)


def result(compiled: Compiled, stack: str, source_sha256: str) -> dict[str, object]:
    """Return result.json, as psmgr reads it."""
    return {
        "slug": compiled.slug.sha256,
        "size": compiled.slug.size,
        "process_types": compiled.process_types,
        "buildpacks": [{"name": pack.name, "version": pack.version} for pack in compiled.buildpacks],
        "stack": stack,
        "source_sha256": source_sha256,
    }


def _prepare(build: Path, scratch: Path) -> None:
    try:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        build.mkdir(exist_ok=True)
        compilation.empty_folder(build)
    except PermissionError as error:
        raise StoreFailed(
            "build-not-configured",
            f"The build dyno's user cannot write {error.filename}.",
            fixes=(f"The build stack must give {build} to the user dyno.",),
        ) from error


def _fetch_source(order: Order, store: Store, build: Path, scratch: Path) -> str:
    tarball = scratch / "source.tar"
    sha256 = _get_source(order, store, tarball)
    if order.source_sha256 is not None and sha256 != order.source_sha256:
        raise SourceRefused(
            "source-checksum",
            "The source is not the one that was announced: its sha256 is another.",
            why=f"Announced: {order.source_sha256}\nReceived:  {sha256}",
            fixes=("Upload the source again, and start a new build.",),
        )
    source.unpack(tarball, build)
    tarball.unlink()
    return sha256


def _get_source(order: Order, store: Store, tarball: Path) -> str:
    try:
        return store.get(order.source_url, tarball, what="the source", limit=limits.SOURCE_TARBALL)
    except StoreFailed as failure:
        if failure.reason != "store-not-found":
            raise
        raise SourceRefused(
            "source-missing",
            "The source is not there: nothing was uploaded to its address.",
            fixes=("Upload the source first (PUT to the source's put_url), then start a new build.",),
        ) from failure


def _put_result(order: Order, store: Store, compiled: Compiled, source_sha256: str, scratch: Path) -> None:
    path = scratch / "result.json"
    path.write_text(json.dumps(result(compiled, order.stack, source_sha256)))
    store.put(order.result_put_url, path, what="the build's result")


def _sha256(text: str | None) -> str | None:
    if text is None:
        return None
    digest = text.lower().removeprefix("sha256:")
    if not re.fullmatch(r"[0-9a-f]{64}", digest):
        raise SourceRefused(
            "source-checksum",
            f"The source's checksum is not a sha256: {text[:80]!r}",
            fixes=("Give 64 hexadecimal digits.",),
        )
    return digest


def _stopped(*_: object) -> None:
    """Die at once, with everything below: the platform stops this build."""
    output.warn("The build was stopped.")
    processes.kill_descendants()
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main())
