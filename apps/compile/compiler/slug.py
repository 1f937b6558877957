"""The slug: a squashfs image of the build folder, named by its sha256, the same bytes for the same contents."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path

from compiler import limits
from compiler.errors import AppRefused, StoreFailed
from compiler.output import human_size
from compiler.reproduce import FOLDER_TIME, normalise

BLOCK = "256K"
LEVEL = "3"


@dataclass(frozen=True)
class Slug:
    """A slug on disk. `size` in bytes."""

    path: Path
    sha256: str
    size: int


def squashfs_argv(folder: Path, to: Path) -> list[str]:
    """Return the command that packs `folder`. Owners, times and the number of cores leave no trace."""
    return [
        "mksquashfs",
        str(folder),
        str(to),
        "-noappend",
        "-no-progress",
        "-quiet",
        "-no-xattrs",
        "-all-root",
        "-no-exports",
        "-no-hardlinks",
        "-mkfs-time",
        str(FOLDER_TIME),
        "-comp",
        "zstd",
        "-Xcompression-level",
        LEVEL,
        "-b",
        BLOCK,
    ]


def make_slug(folder: Path, to: Path, *, seconds: float) -> Slug:
    """Normalise `folder` and pack it into the file `to`."""
    normalise(folder)
    to.unlink(missing_ok=True)
    try:
        ran = subprocess.run(
            squashfs_argv(folder, to), capture_output=True, text=True, check=False, timeout=seconds, umask=0o022
        )
    except FileNotFoundError as error:
        raise StoreFailed(
            "build-tool-missing", "mksquashfs is not on this machine.", fixes=("Install Debian's squashfs-tools.",)
        ) from error
    if ran.returncode != 0:
        raise StoreFailed(
            "slug-not-packed", f"mksquashfs failed (exit code {ran.returncode}).", why=ran.stderr.strip()[-800:]
        )
    return checked_slug(to)


def checked_slug(path: Path) -> Slug:
    """Return the slug in the file `path`. Raises AppRefused when it is too large."""
    size = path.stat().st_size
    if size > limits.SLUG:
        raise AppRefused(
            "slug-too-large",
            f"The compiled slug is {human_size(size)}; the limit is {human_size(limits.SLUG)}.",
            fixes=(
                "Leave out what the app does not need to run.",
                "Keep large files in an object store, not in the app.",
            ),
        )
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return Slug(path, digest, size)
