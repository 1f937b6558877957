"""Making a folder the same whenever and wherever it was built.

Removed: what records when, where or from which cache something was built. Set: modes, and times.

**A file's time is a function of its contents**, not one fixed date. Web servers (Express, Rack, nginx, Python's) tell
browsers by time and size whether a file changed; with one date for all, a browser keeps the old file after a deploy
that changed it to another one of the same size.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

FOLDER_TIME = 946_684_800
"""2000-01-01: the time of folders and links."""
TIME_SPAN = 1 << 29
"""Files are dated within 17 years from 2000-01-01."""

REMOVED_FOLDERS = (
    r".*/__pycache__/__pycache__",
    r"(.*/)?node_modules/\.cache",
    r"(.*/)?vendor/bundle/ruby/[^/]+/(cache|doc|build_info|plugins)",
)
REMOVED_FILES = (
    r"(.*/)?\.DS_Store",
    r".*\.dist-info/(uv_cache|uv_build)\.json",
    r"(\.venv|\.static/venv)/\.lock",
    r"(.*/)?node_modules/\.package-lock\.json",
    r"(.*/)?vendor/bundle/ruby/[^/]+/(gems|bundler|extensions)/.*/(gem_make\.out|mkmf\.log|Makefile|[^/]+\.o)",
)
_FOLDERS = re.compile("|".join(f"(?:{pattern})" for pattern in REMOVED_FOLDERS))
_FILES = re.compile("|".join(f"(?:{pattern})" for pattern in REMOVED_FILES))


def normalise(folder: Path) -> None:
    """Make `folder`'s contents independent of when, where and by whom they were built."""
    for path in _walk(folder):
        name = path.relative_to(folder).as_posix()
        if path.is_dir() and not path.is_symlink():
            if _FOLDERS.fullmatch(name):
                shutil.rmtree(path)
        elif _FILES.fullmatch(name) or _is_dated_bytecode(path) or _is_special(path):
            path.unlink()
        elif path.name == "RECORD" and path.parent.suffix == ".dist-info":
            _forget_removed(path)
    _remove_empty_bytecode_folders(folder)
    for path in _walk(folder):
        _set_mode_and_time(path)
    folder.chmod(0o755)
    os.utime(folder, (FOLDER_TIME, FOLDER_TIME))


def file_time(contents_sha256: bytes) -> int:
    """Return the time (seconds) of a file with these contents."""
    return FOLDER_TIME + int.from_bytes(contents_sha256[:4], "big") % TIME_SPAN


def _walk(folder: Path) -> Iterator[Path]:
    """Yield everything in `folder`, each folder after what is in it, in sorted order."""
    for top, folders, files in os.walk(folder, topdown=False):
        for name in sorted((*folders, *files)):
            path = Path(top) / name
            if path.is_symlink() or path.exists():
                yield path


def _set_mode_and_time(path: Path) -> None:
    if path.is_symlink():
        os.utime(path, (FOLDER_TIME, FOLDER_TIME), follow_symlinks=False)
    elif path.is_dir():
        path.chmod(0o755)
        os.utime(path, (FOLDER_TIME, FOLDER_TIME))
    else:
        path.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
        time = file_time(_sha256(path))
        os.utime(path, (time, time))


def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _is_dated_bytecode(path: Path) -> bool:
    """Whether `path` is cached bytecode that holds its source's time (PEP 552: no flag set)."""
    if path.suffix != ".pyc" or path.parent.name != "__pycache__" or path.is_symlink():
        return False
    with path.open("rb") as file:
        return int.from_bytes(file.read(8)[4:8], "little") & 1 == 0


def _is_special(path: Path) -> bool:
    """Whether `path` is a socket, a pipe or a device: something that a build left."""
    mode = path.lstat().st_mode
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode) or stat.S_ISLNK(mode))


def _forget_removed(record: Path) -> None:
    """Take uv's notes, which are removed, out of a package's RECORD: it holds their hashes."""
    lines = record.read_text(errors="surrogateescape").splitlines(keepends=True)
    kept = [line for line in lines if not re.search(r"/uv_(cache|build)\.json,", line)]
    if kept != lines:
        record.write_text("".join(kept), errors="surrogateescape")


def _remove_empty_bytecode_folders(folder: Path) -> None:
    for path in _walk(folder):
        if path.name == "__pycache__" and path.is_dir() and not any(path.iterdir()):
            path.rmdir()
