"""Why two slugs are not the same bytes: the first file that differs, and what about it.

`python3 -m compiler.difference A.squashfs B.squashfs` prints it and exits 1; 0 when they are the same.
"""

from __future__ import annotations

import os
import stat
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

SHOWN = 24


@dataclass(frozen=True)
class Difference:
    """The first difference. `path` is relative to the app; "" means that every file is the same."""

    path: str
    what: str

    def __str__(self) -> str:
        return f"{self.path}: {self.what}" if self.path else self.what


def difference(one: Path, other: Path) -> Difference | None:
    """Return the first difference of two slugs, or None when they are the same bytes."""
    if one.read_bytes() == other.read_bytes():
        return None
    with tempfile.TemporaryDirectory() as scratch:
        left, right = Path(scratch) / "left", Path(scratch) / "right"
        _unpack(one, left)
        _unpack(other, right)
        found = folder_difference(left, right)
    if found is not None:
        return found
    return Difference(
        "", "Every file is the same; the images differ: another mksquashfs or zstd, or another order of files."
    )


def folder_difference(left: Path, right: Path) -> Difference | None:
    """Return the first difference of two folders, by sorted path, or None."""
    names = sorted(_names(left) | _names(right))
    for name in names:
        what = _compare(left / name, right / name)
        if what is not None:
            return Difference(name, what)
    return None


def _unpack(slug: Path, to: Path) -> None:
    subprocess.run(
        ["unsquashfs", "-quiet", "-no-progress", "-dest", str(to), str(slug)], check=True, capture_output=True
    )


def _names(folder: Path) -> set[str]:
    found = set()
    for top, folders, files in os.walk(folder):
        found |= {(Path(top) / name).relative_to(folder).as_posix() for name in (*folders, *files)}
    return found


def _compare(left: Path, right: Path) -> str | None:
    """Return what differs between two paths, the most telling thing first."""
    for path, side in ((left, "second"), (right, "first")):
        if not path.is_symlink() and not path.exists():
            return f"only in the {side} slug"
    one, other = left.lstat(), right.lstat()
    if stat.S_IFMT(one.st_mode) != stat.S_IFMT(other.st_mode):
        return f"another kind of file: {stat.filemode(one.st_mode)} and {stat.filemode(other.st_mode)}"
    if stat.S_ISLNK(one.st_mode) and left.readlink() != right.readlink():
        return f"a link to {left.readlink()} and to {right.readlink()}"
    if stat.S_ISREG(one.st_mode):
        what = _compare_contents(left, left.read_bytes(), right.read_bytes())
        if what is not None:
            return what
    if one.st_mode != other.st_mode:
        return f"another mode: {stat.filemode(one.st_mode)} and {stat.filemode(other.st_mode)}"
    if int(one.st_mtime) != int(other.st_mtime):
        return f"another time: {int(one.st_mtime)} and {int(other.st_mtime)}"
    return None


def _compare_contents(path: Path, one: bytes, other: bytes) -> str | None:
    if one == other:
        return None
    at = next(
        (index for index, pair in enumerate(zip(one, other, strict=False)) if pair[0] != pair[1]),
        min(len(one), len(other)),
    )
    return f"{_kind(path, one, at)}, at byte {at}: {_around(one, at)} and {_around(other, at)} (sizes {len(one)} and {len(other)})"


def _kind(path: Path, contents: bytes, at: int) -> str:
    """Return what a difference at byte `at` likely means."""
    if path.suffix == ".pyc":
        if at < 8:
            return "bytecode of another Python, or of another invalidation mode"
        if at < 16:
            dated = int.from_bytes(contents[4:8], "little") & 1 == 0
            return "bytecode with its source's time" if dated else "bytecode of another source"
        return "bytecode with other code (a marshalled object is shared or not)"
    if contents.startswith(b"\x7fELF"):
        return "a compiled program or library"
    if b"\0" in contents[:1024]:
        return "other contents"
    return f"line {contents[:at].count(bytes([10])) + 1} differs"


def _around(contents: bytes, at: int) -> str:
    start = max(0, at - SHOWN // 3)
    return repr(contents[start : start + SHOWN])


def main(arguments: list[str]) -> int:
    """Print why two slugs differ."""
    if len(arguments) != 2:
        print("usage: python3 -m compiler.difference A.squashfs B.squashfs", file=sys.stderr)
        return 2
    found = difference(Path(arguments[0]), Path(arguments[1]))
    print("the same bytes" if found is None else found)
    return 0 if found is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
