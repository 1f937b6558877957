"""The disk of a bare Debian 13 machine: built once with mmdebstrap, kept by content, unpacked per machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from blackstart.debian import SUITE
from blackstart.errors import MachineError
from blackstart.programs import Log, ProgramFailed, follow_program, run_program

PACKAGES = (
    "systemd",
    "systemd-sysv",
    "openssh-server",
    "python3-minimal",
    "iproute2",
    "udev",
    "ca-certificates",
    "dbus",
)
STAMP = "/var/lib/apt/periodic/update-success-stamp"
"""Its age tells apt's users how old the package lists are."""

BUILD_SECONDS = 1200
UNPACK_SECONDS = 300
UNUSED_DAYS = 30


@dataclass(frozen=True)
class MachineImage:
    """The image of one recipe, `<cache>/machine-<key>.tar`."""

    cache: Path
    sources: tuple[str, ...]

    @property
    def path(self) -> Path:
        """Where the image is, once it is built."""
        return self.cache / f"machine-{self.key}.tar"

    @property
    def key(self) -> str:
        """The recipe's digest: another recipe is another file."""
        return hashlib.sha256(json.dumps(self.recipe("machine.tar")).encode()).hexdigest()[:16]

    def recipe(self, target: str) -> list[str]:
        """Return mmdebstrap's vector. The package lists stay, so that packages install without an update."""
        return [
            "mmdebstrap",
            "--mode=root",
            "--variant=apt",
            "--format=tar",
            "--skip=cleanup/apt/lists",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            f"--include={','.join(PACKAGES)}",
            f'--customize-hook=install -D -m 0644 /dev/null "$1{STAMP}"',
            SUITE,
            target,
            *self.sources,
        ]

    def ensure(self, log: Log) -> None:
        """Build the image unless it is there; a second builder waits for the first. Raises MachineError."""
        if self.path.exists():
            mark_used(self.path)
            return
        self.cache.mkdir(mode=0o755, parents=True, exist_ok=True)
        with locked(self.cache / "machine.lock"):
            remove_unused(self.cache, "machine-*.tar")
            for left in self.cache.glob("machine-*.partial"):  # of a builder that was killed: we hold the lock
                left.unlink()
            if not self.path.exists():
                self._build(log)

    def _build(self, log: Log) -> None:
        partial = self.path.with_suffix(f".{os.getpid()}.partial")
        log("building the image of a bare Debian 13 machine")
        try:
            follow_program(self.recipe(str(partial)), seconds=BUILD_SECONDS, log=log)
            partial.rename(self.path)
        except ProgramFailed as error:
            raise MachineError(
                "the image of a bare Debian 13 machine could not be built",
                why=f"{error.what}\n{error.why}",
                fix="check that this host reaches its Debian mirror (apt-get update), then run this again",
            ) from error
        finally:
            partial.unlink(missing_ok=True)

    def unpack(self, folder: Path) -> None:
        """Unpack the image as the empty `folder`. Raises MachineError."""
        try:
            run_program(
                ["tar", "--extract", "--numeric-owner", "--file", str(self.path), "--directory", str(folder)],
                seconds=UNPACK_SECONDS,
            )
        except ProgramFailed as error:
            raise MachineError(
                f"{self.path} could not be unpacked to {folder}",
                why=error.why or error.what,
                fix="free some space; when the file is damaged, remove it and run this again",
            ) from error


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`; wait while another process holds it."""
    with path.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def mark_used(path: Path) -> None:
    """Note in the access time that a cached file is in use; its modification time stays the time of its making."""
    os.utime(path, (time.time(), path.stat().st_mtime))


def remove_unused(folder: Path, pattern: str) -> None:
    """Remove cached files that nobody used for UNUSED_DAYS."""
    oldest = time.time() - UNUSED_DAYS * 86400
    for path in folder.glob(pattern):
        status = path.stat()
        if path.is_file() and max(status.st_atime, status.st_mtime) < oldest:
            path.unlink(missing_ok=True)


def write_files(root: Path, files: Sequence[tuple[str, str]]) -> None:
    """Write (path inside, text) pairs below `root`, 0644, whatever was there."""
    for inside, text in files:
        path = root / inside.lstrip("/")
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        path.unlink(missing_ok=True)
        path.write_text(text)
        path.chmod(0o644)
