"""The build cache: one folder, kept between builds of an app as a tar.zst in the object store.

It only saves time. Whatever goes wrong with it is a warning, and the build goes on without it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from compiler import limits, output
from compiler.errors import Failure, OverTime
from compiler.output import human_size
from compiler.processes import Clock
from compiler.store import Store

STAMP = ".made-on"


def restore(store: Store, url: str | None, folder: Path, stack: str, scratch: Path, clock: Clock) -> None:
    """Bring the cache at `url` back into `folder`; a cache made on another stack is thrown away."""
    folder.mkdir(parents=True, exist_ok=True)
    if url is None:
        return
    packed = scratch / "cache-before.tar.zst"
    try:
        if store.get_if_there(url, packed, what="the build cache", limit=2 * limits.CACHE):
            _tar(["--extract", "--file", str(packed), "--directory", str(folder)], clock)
    except (Failure, OSError, subprocess.SubprocessError) as error:
        _say_lost("read", error)
        _empty(folder)
    finally:
        packed.unlink(missing_ok=True)
    if _stamp(folder) != stack:
        _empty(folder)


def save(store: Store, url: str | None, folder: Path, stack: str, scratch: Path, clock: Clock, before: str) -> None:
    """Store `folder` at `url`, unless its contents are as they were `before` (a `contents` digest)."""
    if url is None:
        return
    packed = scratch / "cache-after.tar.zst"
    try:
        prune(folder)
        (folder / STAMP).write_text(stack)
        if contents(folder) == before:
            return
        _tar(["--create", "--file", str(packed), "--directory", str(folder), "."], clock)
        store.put(url, packed, what="the build cache")
    except OverTime:
        output.warn("No time is left to store the build cache. The next build starts without it.")
    except (Failure, OSError, subprocess.SubprocessError) as error:
        _say_lost("stored", error)
    finally:
        packed.unlink(missing_ok=True)


def contents(folder: Path) -> str:
    """Return a digest of the names and sizes in `folder`."""
    digest = hashlib.sha256()
    for path in _files(folder):
        digest.update(f"{path.relative_to(folder)}\0{path.lstat().st_size}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def prune(folder: Path) -> None:
    """Throw the largest parts of the cache away until it is within its limit. A part is a tool's folder."""
    sizes = {path: _size(path) for path in folder.iterdir() if path.is_dir()}
    while sum(sizes.values()) > limits.CACHE:
        largest = max(sizes, key=lambda path: sizes[path])
        output.detail(f"The build cache is over {human_size(limits.CACHE)}: throwing away {largest.name}'s part")
        shutil.rmtree(largest, ignore_errors=True)
        del sizes[largest]


def _tar(arguments: list[str], clock: Clock) -> None:
    clock.check()
    argv = ["tar", "--use-compress-program=zstd -q -1", *arguments]
    subprocess.run(argv, check=True, capture_output=True, timeout=clock.left())


def _stamp(folder: Path) -> str | None:
    path = folder / STAMP
    return path.read_text() if path.is_file() else None


def _empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)


def _files(folder: Path) -> Iterator[Path]:
    for top, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(top) / name for name in sorted(names))


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in _files(folder))


def _say_lost(verb: str, error: Exception) -> None:
    output.warn(f"The build cache could not be {verb}: {error}\nThis build goes on without it.")
