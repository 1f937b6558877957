"""Python bytecode that is the same on every machine and day.

A .pyc holds by default its source's time; one made with `unchecked-hash` (PEP 552) holds a hash of the source. What
marshal writes depends on which objects are shared in memory, so each half is compiled by one fresh process in
sorted order, whatever the number of cores. So it depends on nothing but the whole folder and its path, and the last one is
kept by their digest: an app whose packages are as before is not compiled again.
"""

from __future__ import annotations

import contextlib
import hashlib
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

HALVES = 2


def compile_bytecode(python: Path, folder: Path, cache: Path) -> None:
    """Compile every module in `folder` with `python`, the stack's. A module that is no valid Python is left as it is.

    `cache` is the build cache.
    """
    kept = cache / "bytecode" / f"{_digest(folder)}.tar"
    if kept.is_file() and _unpacked(kept, folder):
        return
    _compile(python, folder)
    shutil.rmtree(kept.parent, ignore_errors=True)
    kept.parent.mkdir(parents=True)
    with tarfile.open(kept, "w") as archive:
        for path in sorted(_bytecode(folder)):
            archive.add(path, arcname=path.relative_to(folder))


def _digest(folder: Path) -> str:
    """Return what bytecode depends on: the Python, where the modules are, which there are, and what is in them."""
    digest = hashlib.sha256(f"{sys.version}\0{folder}\0".encode())
    for path in sorted(folder.rglob("*.py")):
        with contextlib.suppress(OSError):  # a link to nowhere is no module
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            digest.update(f"{path.relative_to(folder)}\0{content}\0".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()


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


def _compile(python: Path, folder: Path) -> None:
    entries = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix == ".py")
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
    for child in children:
        child.wait()
