"""Python bytecode that is the same on every machine and day.

A .pyc holds by default its source's time; one made with `unchecked-hash` (PEP 552) holds a hash of the source. What
marshal writes depends on which objects are shared in memory, so each half is compiled by one fresh process in
sorted order, whatever the number of cores. So it depends on nothing but the whole folder and its path, and the last one is
kept by their digest: an app whose packages are as before is not compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

HALVES = 2


def compile_bytecode(python: Path, folder: Path, cache: Path) -> None:
    """Compile every module in `folder` with `python`, the stack's. A module that is no valid Python is left as it is.

    `cache` is the build cache.
    """
    entries = sorted(
        path for path in folder.iterdir() if path.name != "__pycache__" and (path.is_dir() or path.suffix == ".py")
    )
    kept = cache / "bytecode" / f"{_digest(folder, entries)}.tar"
    if kept.is_file() and _unpacked(kept, folder):
        return
    before = set(_bytecode(folder))
    if _compile(python, entries):
        with contextlib.suppress(OSError):  # it only saves time
            _keep(kept, folder, sorted(set(_bytecode(folder)) - before))


def _digest(folder: Path, entries: list[Path]) -> str:
    """Return what bytecode depends on: the Python, where the modules are, how they are halved, and what is in them."""
    names = "/".join(entry.name for entry in entries)
    digest = hashlib.sha256(f"{sys.version}\0{folder}\0{names}\0".encode("utf-8", "surrogateescape"))
    for path in sorted(folder.rglob("*.py")):
        with contextlib.suppress(OSError):  # a link to nowhere is no module
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)}\0{content}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


def _keep(kept: Path, folder: Path, bytecode: list[Path]) -> None:
    """Keep `bytecode` in place of what was kept before, whole or not at all."""
    for old in kept.parent.glob("*.tar"):
        old.unlink()
    kept.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=kept.parent) as written:
        with tarfile.open(fileobj=written, mode="w") as archive:
            for path in bytecode:
                archive.add(path, arcname=path.relative_to(folder))
        os.link(written.name, kept)


def _unpacked(archive: Path, folder: Path) -> bool:
    """Whether the bytecode in `archive` is in place now. A damaged archive leaves none."""
    try:
        with tarfile.open(archive) as packed:
            packed.extractall(folder, filter="data")
    except (tarfile.TarError, OSError):
        for path in _bytecode(folder):
            path.unlink(missing_ok=True)
        return False
    return True


def _bytecode(folder: Path) -> Iterator[Path]:
    return folder.rglob("__pycache__/*.pyc")


def _compile(python: Path, entries: list[Path]) -> bool:
    """Whether both halves were compiled to their ends; that a module is no valid Python is no matter."""
    halves = [entries[start::HALVES] for start in range(HALVES)]
    children = [
        subprocess.Popen(
            [
                str(python),
                "-I",
                "-m",
                "compileall",
                "-q",
                "-q",
                "-j",
                "1",
                "--invalidation-mode",
                "unchecked-hash",
                *(str(entry) for entry in half),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for half in halves
        if half
    ]
    codes = [child.wait() for child in children]
    return min(codes, default=0) >= 0  # below 0: killed, for its memory say
