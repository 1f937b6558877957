"""HAProxy as a child: started with the whole table, reloaded when its shape changes, stopped softly."""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

from router import pages
from router.config import Paths, Shape, render, render_hosts
from router.plan import Wanted
from router.runtime import Processes, Runtime, RuntimeFailed
from router.settings import Settings

LOG = logging.getLogger("router")
START_SECONDS = 15.0
TICK_SECONDS = 0.02


class HAProxyFailed(Exception):
    """HAProxy did not start, reload or answer. The message says what it was doing."""


def version_of(program: Path) -> tuple[int, int]:
    """Return (major, minor) of the HAProxy at `program`."""
    try:
        done = subprocess.run([program, "-v"], capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise HAProxyFailed(f"{program} -v failed: {error}") from error
    found = re.search(r"version (\d+)\.(\d+)", done.stdout)
    if found is None:
        raise HAProxyFailed(f"{program} -v does not tell a version: {done.stdout[:80]!r}")
    return int(found[1]), int(found[2])


class HAProxy:
    """One HAProxy in master-worker mode, with its files in `paths.run`."""

    def __init__(self, settings: Settings, paths: Paths) -> None:
        self.settings, self.paths = settings, paths
        self.runtime = Runtime(paths.master)
        self._version = version_of(settings.haproxy)
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def alive(self) -> bool:
        """Tell whether the master runs."""
        return self._child is not None and self._child.poll() is None

    def start(self, shape: Shape, want: Wanted) -> None:
        """Start with `want` and wait until the worker answers. Raises `HAProxyFailed`."""
        self.paths.master.unlink(missing_ok=True)
        self._write(shape, want)
        # A group of its own: a dyno's SIGTERM goes to the whole group (tini -g), and HAProxy drops every request at it.
        self._child = subprocess.Popen(self.command(), stdin=subprocess.DEVNULL, process_group=0)
        deadline = time.monotonic() + START_SECONDS
        while not self._answers():
            if not self.alive:
                raise HAProxyFailed(
                    f"HAProxy ended at its start with code {self._child.returncode}; its reason is above"
                )
            if time.monotonic() > deadline:
                self.kill()
                raise HAProxyFailed(f"HAProxy did not answer within {START_SECONDS:.0f} s of its start")
            time.sleep(TICK_SECONDS)

    def command(self) -> list[str]:
        """Return the argument vector. HAProxy finishes its requests and ends when the driver dies (SIGUSR1)."""
        command = [
            str(self.settings.haproxy),
            "-W",
            "-S",
            f"{self.paths.master},mode,600",
            "-f",
            str(self.paths.config),
        ]
        if self.paths.handover is not None and _listens(self.paths.handover):
            command += ["-x", str(self.paths.handover)]
        setpriv = shutil.which("setpriv")
        return [setpriv, "--pdeathsig", "USR1", *command] if setpriv is not None else command

    def reload(self, shape: Shape, want: Wanted) -> None:
        """Let a new worker with `want` take over the listeners; the old one finishes its requests. Raises `HAProxyFailed`."""
        before = self.processes()
        self._write(shape, want)
        try:
            self.runtime.reload()
        except RuntimeFailed as error:
            LOG.info("the reload closed the master's socket: %s", error)
        deadline = time.monotonic() + START_SECONDS
        while not self._reloaded(before):
            if not self.alive or time.monotonic() > deadline:
                raise HAProxyFailed("HAProxy did not finish its reload; its reason is above")
            time.sleep(TICK_SECONDS)

    def processes(self) -> Processes:
        """Return the workers. Raises `HAProxyFailed`."""
        try:
            return self.runtime.processes()
        except RuntimeFailed as error:
            raise HAProxyFailed(str(error)) from error

    def stop_softly(self) -> None:
        """Stop accepting; end when the last request is finished."""
        if self.alive and self._child is not None:
            self._child.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """End now, with every worker."""
        if self._child is None:
            return
        if self.alive:
            self._child.terminate()
        try:
            self._child.wait(5)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()

    def _answers(self) -> bool:
        try:
            return bool(self.runtime.processes().workers) and "srv_admin_state" in self.runtime.ask(
                "@1 show servers state"
            )
        except RuntimeFailed:
            return False

    def _reloaded(self, before: Processes) -> bool:
        try:
            now = self.runtime.processes()
        except RuntimeFailed:
            return False
        if now.failed > before.failed:
            raise HAProxyFailed("HAProxy refused its new configuration; its reason is above")
        return bool(now.workers) and now.workers != before.workers and self._answers()

    def _write(self, shape: Shape, want: Wanted) -> None:
        _write_private(self.paths.config, render(self.settings, self.paths, shape, want, self._version))
        _write_private(self.paths.hosts, render_hosts(want.hosts))
        for name, text in pages.files().items():
            _write_private(self.paths.run / name, text)
        if self.settings.certificate:
            _write_private(self.paths.certificate, self.settings.certificate)


def _listens(path: Path) -> bool:
    """Tell whether a router is behind the socket, or only its left-over file is there."""
    try:
        with socket.socket(socket.AF_UNIX) as peer:
            peer.settimeout(1.0)
            peer.connect(str(path))
    except OSError:
        return False
    return True


def _write_private(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    handle = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w", encoding="utf-8") as file:
        file.write(text)
    os.rename(temporary, path)
