"""Files that survive a loss of power, and the lock that proves nobody else uses a data folder."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from pathlib import Path

from blackstart.process.failure import ProcessFailed

FULL_BELOW = 32 * 1024 * 1024  # bytes free: below it a start or a crash is told as "disk full"


def write_private(path: Path, text: str) -> None:
    """Replace `path` by a file of mode 0600 with `text`; a reader sees the old or the new whole."""
    temporary = path.with_name(f".{path.name}.new")
    with contextlib.suppress(FileNotFoundError):
        temporary.unlink()
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.rename(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make the names in `path` durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(path: Path) -> None:
    """Make every file and name below `path` durable."""
    for folder, _, files in os.walk(path):
        for name in files:
            descriptor = os.open(os.path.join(folder, name), os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        sync_folder(Path(folder))


def take_lock(path: Path, *, wait_s: float = 60) -> int:
    """Return a descriptor that holds the lock at `path`. Give it to every child that writes there (`pass_fds`):
    the lock is then free only when the last of them is gone, whatever their pids are.
    """
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    until = time.monotonic() + wait_s
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() >= until:
                os.close(descriptor)
                raise ProcessFailed(
                    f"{path.parent} is used by another process",
                    why=f"{path} is still locked after {wait_s:.0f} s",
                    fix="stop the other one; two must never write there",
                ) from None
            time.sleep(0.05)


def free_bytes(path: Path) -> int:
    """Return how many bytes an unprivileged user can still write at `path`."""
    return shutil.disk_usage(path).free


def disk_full_message(path: Path) -> str:
    """Return a message when the disk of `path` is full, otherwise an empty text."""
    free = free_bytes(path)
    if free >= FULL_BELOW:
        return ""
    return f"the disk of {path} is full ({free >> 20} MB free). To do: free or add space; it then starts by itself"


def move_aside(path: Path, *, keep: int = 2) -> Path:
    """Rename `path` to `<name>.broken-<n>` and return the new path; only the newest `keep` are kept."""
    older = sorted(path.parent.glob(f"{path.name}.broken-*"), key=lambda found: int(found.name.rpartition("-")[2]))
    number = int(older[-1].name.rpartition("-")[2]) + 1 if older else 1
    target = path.with_name(f"{path.name}.broken-{number}")
    path.rename(target)
    for old in older[: max(0, len(older) + 1 - keep)]:
        remove(old)
    sync_folder(path.parent)
    return target


def remove(path: Path) -> None:
    """Remove a file or a tree that may not be there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
