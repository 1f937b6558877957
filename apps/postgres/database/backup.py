"""`bin/backup`: a full base backup into the object store, encrypted; `--if-due` only when the newest is too old.

Runs beside the server (same user, same runtime folder). Prints a JSON report of the newest backup.
Exit 0: a backup is there. Exit 1: it failed, the message says why.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

from blackstart.process.failure import ProcessFailed, exit_code_of, say
from blackstart.process.files import take_lock

from . import cluster, config, settings
from .settings import Archive, Paths, Programs

SHORT_S, LONG_S = 120.0, 6 * 3600.0


def main() -> int:
    """Parse the command line and back up."""
    parser = argparse.ArgumentParser(prog="bin/backup", description="Put a base backup into the object store.")
    parser.add_argument("--if-due", action="store_true", help="only when the newest is older than BACKUP_INTERVAL_S")
    options = parser.parse_args()
    return exit_code_of("backup", lambda: run(if_due=options.if_due))


def run(*, if_due: bool) -> int:
    """Ensure the stanza, back up, report."""
    archive = settings.archive(os.environ)
    if archive is None:
        raise ProcessFailed("OBJECTS_URL is not set: there is nowhere to back up to")
    paths = settings.paths(os.environ)
    programs = settings.programs(os.environ)
    if not paths.backup_config.is_file():
        raise ProcessFailed(f"{paths.backup_config} is missing", why="bin/postgres writes it", fix="start the server")
    check_store(archive)
    take_lock(paths.runtime / "backup.lock", wait_s=0 if if_due else SHORT_S)
    backrest = Backrest(paths, programs, cluster.stanza(paths, programs))
    backrest.run("stanza-create", timeout_s=SHORT_S)
    newest = backrest.newest()
    if if_due and newest is not None and time.time() - newest["timestamp"]["stop"] < archive.interval_s:
        return 0
    say(f"backup: base backup of {backrest.stanza} begins")
    backrest.run("backup", "--type=full", timeout_s=LONG_S)
    newest = backrest.newest()
    if newest is None:
        raise ProcessFailed("the backup ended without an error, but the store does not list it")
    json.dump(report(backrest.stanza, newest), sys.stdout)
    sys.stdout.write("\n")
    sys.stdout.flush()
    return 0


def check_store(archive: Archive) -> None:
    """Find out at once that the store is away: pgBackRest tries for four times its io-timeout."""
    try:
        socket.create_connection((archive.host, archive.port), timeout=5).close()
    except OSError as error:
        raise ProcessFailed(f"the object store at {archive.host}:{archive.port} does not answer: {error}") from error


def report(stanza: str, backup: dict[str, Any]) -> dict[str, Any]:
    """Return what an operator needs to know of a backup."""
    return {
        "cluster": stanza,
        "backup": backup["label"],
        "started": backup["timestamp"]["start"],
        "finished": backup["timestamp"]["stop"],
        "database_bytes": backup["info"]["size"],
        "stored_bytes": backup["info"]["repository"]["delta"],
        "wal": [backup["archive"]["start"], backup["archive"]["stop"]],
    }


class Backrest:
    """pgBackRest for one cluster's stanza."""

    def __init__(self, paths: Paths, programs: Programs, stanza: str) -> None:
        self.stanza = stanza
        self._argv = config.backup_argv(programs["pgbackrest"], paths, stanza)
        self._env = programs.env

    def run(self, *words: str, timeout_s: float) -> str:
        """Return what the command prints; raises ProcessFailed with its errors."""
        return run_backrest([*self._argv, *words], self._env, timeout_s)

    def newest(self) -> dict[str, Any] | None:
        """Return the newest backup as `pgbackrest info` describes it."""
        listed = json.loads(self.run("info", "--output=json", timeout_s=SHORT_S))
        backups = [backup for entry in listed for backup in entry["backup"] if not backup.get("error")]
        return max(backups, key=lambda backup: backup["timestamp"]["stop"], default=None)


def run_backrest(argv: list[str], env: dict[str, str], timeout_s: float) -> str:
    """Run pgBackRest; raises ProcessFailed. It prints secrets as <redacted>."""
    try:
        done = subprocess.run(
            argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=timeout_s
        )
    except subprocess.TimeoutExpired as error:
        raise ProcessFailed(f"pgbackrest {argv[-1]} did not end within {timeout_s:.0f} s") from error
    if done.returncode != 0:
        words = [word for word in argv[1:] if not word.startswith("--")]
        raise ProcessFailed(
            f"pgbackrest {' '.join(words)} failed (status {done.returncode})",
            why=done.stderr.strip() or done.stdout.strip(),
        )
    return done.stdout
