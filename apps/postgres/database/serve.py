"""`bin/postgres`: starts PostgreSQL whatever the last stop was, keeps role and password as configured, archives."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from blackstart.process import children
from blackstart.process.children import Signals
from blackstart.process.failure import ProcessFailed, exit_code_of, say
from blackstart.process.files import disk_full_message, take_lock, write_private
from blackstart.process.settings import required, write_certificate

from . import cluster, config, settings, sql
from .settings import Paths, Programs

STOP_WITHIN_S = 25.0
ARCHIVER_GRACE_S = 3.0
BACKUP_CHECK_S = 600.0
RETRY_FIRST_S, RETRY_MOST_S = 1.0, 60.0


def main() -> int:
    """Run until told to stop; 0 after a clean stop."""
    return exit_code_of("postgres", run)


def run() -> int:
    """Prepare, start, converge, then watch."""
    env = os.environ
    user = settings.user_name()
    paths = settings.paths(env)
    programs = settings.programs(env)
    login, password = settings.login(env), required(env, "POSTGRES_PASSWORD")
    port = settings.port(env)
    with Signals() as signals:
        lock = take_lock(paths.lock)
        if full := disk_full_message(paths.data):
            say(f"postgres: {full}")
        cluster.prepare(paths, programs)
        archived = write_files(paths, programs, port, user)
        server = start(paths, programs, lock)
        try:
            superuser = sql.Superuser(paths, programs, port)
            if wait_ready(signals, server, superuser):
                for change in sql.converge(superuser, login, password):
                    say(f"postgres: {change}")
                say("postgres: ready")
                watch(signals, server, BackupKeeper() if archived else None)
        finally:
            stop(server, paths, programs)
    if signals.stop_asked:
        return 0
    raise ProcessFailed(f"the server {children.end_of(server)}", why=disk_full_message(paths.data))


def start(paths: Paths, programs: Programs, lock: int) -> subprocess.Popen[bytes]:
    """Start the server on the files that were written; it holds the lock, and dies with us."""
    return children.start(
        [programs["postgres"], "-D", paths.cluster, f"--config-file={paths.config}"],
        env=programs.env,
        dies_with=signal.SIGINT,
        lock=lock,
    )


def write_files(paths: Paths, programs: Programs, port: int, user: str) -> bool:
    """Write every file that the server reads; return whether it archives."""
    certificate = write_certificate(os.environ, paths.runtime)
    command = write_archive(paths, programs, port)
    write_private(paths.access, config.access_rules())
    write_private(paths.identities, config.identities(user))
    write_private(paths.config, config.server_config(paths, port, certificate, command))
    return command is not None


def write_archive(paths: Paths, programs: Programs, port: int) -> str | None:
    """Write pgBackRest's file; return archive_command, or None when there is no store."""
    archive = settings.archive(os.environ)
    if archive is None:
        say("postgres: OBJECTS_URL is not set: WAL is not archived, there is no backup")
        return None
    stanza = cluster.stanza(paths, programs)
    write_private(paths.backup_config, config.backup_config(archive, paths, port, stanza))
    return " ".join([*config.backup_argv(programs["pgbackrest"], paths, stanza), "archive-push", '"%p"'])


def wait_ready(signals: Signals, server: subprocess.Popen[bytes], superuser: sql.Superuser) -> bool:
    """Return True when the server takes writes, False when it ended or a stop was asked. Recovery may take long."""
    while server.poll() is None:
        if superuser.ready():
            return True
        if not signals.sleep(0.1):
            return False
    return False


class BackupKeeper:
    """Runs `bin/backup --if-due` again and again; the store may be away (a soft need)."""

    def __init__(self) -> None:
        self._child: subprocess.Popen[bytes] | None = None
        self._next = time.monotonic()
        self._retry_s = RETRY_FIRST_S

    def step(self) -> float:
        """Start or collect the backup program; return after how many seconds to look again."""
        if self._child is not None and self._child.poll() is not None:
            self._plan_next(self._child.returncode)
            self._child = None
        if self._child is None and time.monotonic() >= self._next:
            self._child = children.start(
                [sys.executable, Path(__file__).resolve().parents[1] / "bin" / "backup", "--if-due"],
                env=os.environ,
                dies_with=signal.SIGTERM,
            )
        return 3600.0 if self._child is not None else max(0.05, self._next - time.monotonic())

    def _plan_next(self, status: int) -> None:
        if status == 0:
            self._retry_s = RETRY_FIRST_S
            self._next = time.monotonic() + BACKUP_CHECK_S
            return
        wait_s = self._retry_s * random.uniform(0.5, 1.0)  # noqa: S311 - jitter
        self._retry_s = min(RETRY_MOST_S, self._retry_s * 2)
        self._next = time.monotonic() + wait_s
        say(f"postgres: degraded: the object store takes no backup; next try in {wait_s:.0f} s")

    def stop(self) -> None:
        """End a running backup; the next start takes it again."""
        if self._child is not None:
            children.stop(self._child, signal.SIGTERM, within_s=5)


def watch(signals: Signals, server: subprocess.Popen[bytes], keeper: BackupKeeper | None) -> None:
    """Return when the server ended or a stop was asked."""
    while server.poll() is None and not signals.stop_asked:
        signals.wait(keeper.step() if keeper is not None else None)
    if keeper is not None:
        keeper.stop()


def stop(server: subprocess.Popen[bytes], paths: Paths, programs: Programs) -> None:
    """Stop fast and cleanly. When the store is away the archiver keeps the server up after its shutdown checkpoint:
    then nothing is left to lose (WAL waits on disk for the next start), and the server is ended.
    """
    if server.poll() is not None:
        return
    server.send_signal(signal.SIGINT)
    until = time.monotonic() + STOP_WITHIN_S
    archiver_until: float | None = None
    while time.monotonic() < until:
        try:
            server.wait(0.2)
            return
        except subprocess.TimeoutExpired:
            if archiver_until is None and is_shut_down(paths, programs):
                archiver_until = time.monotonic() + ARCHIVER_GRACE_S
            if archiver_until is not None and time.monotonic() >= archiver_until:
                say("postgres: stopped with WAL that is not archived yet; it goes on at the next start")
                break
    else:
        say(f"postgres: no clean stop within {STOP_WITHIN_S:.0f} s; the next start recovers from the WAL")
    children.stop(server, signal.SIGQUIT, within_s=5)


def is_shut_down(paths: Paths, programs: Programs) -> bool:
    """Return whether the shutdown checkpoint is on disk."""
    return cluster.control(paths, programs).get("Database cluster state", "") == "shut down"
