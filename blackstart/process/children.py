"""Child processes: found on PATH or in the slug, started alone in their process group, stopped in order.

`tini -g` sends SIGTERM to the whole group of a dyno; a child of ours has a group of its own, so that only we decide
how it stops. It dies with us (`setpriv --pdeathsig`), so that a killed parent leaves nobody behind.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import FrameType, TracebackType
from typing import Self

from blackstart.process.failure import ProcessFailed, say

SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
INHERITED = ("PATH", "HOME", "USER", "LOGNAME", "TMPDIR", "LD_LIBRARY_PATH", "TZ")


def child_env(env: Mapping[str, str], **more: str) -> dict[str, str]:
    """Return the environment for a child: no config var of ours, so no secret, but `more`."""
    kept = {name: env[name] for name in INHERITED if name in env}
    return {"PATH": SYSTEM_PATH, **kept, "LC_ALL": "C.UTF-8", **more}


def program(name: str, env: Mapping[str, str], *, folders: Sequence[Path] = ()) -> Path:
    """Return the path of the program `name` from `folders`, then PATH."""
    path = env.get("PATH", "") or SYSTEM_PATH
    for folder in (*folders, *(Path(part) for part in path.split(":") if part)):
        found = folder / name
        if os.path.isfile(found) and os.access(found, os.X_OK):  # a folder of PATH may be closed to us
            return found
    raise ProcessFailed(f"program {name} is not installed", why=f"it is not on PATH ({path})")


def start(
    argv: Sequence[str | Path],
    *,
    env: Mapping[str, str],
    dies_with: signal.Signals,
    lock: int | None = None,
    cwd: Path | None = None,
    stdout: int | None = None,
    stderr: int | None = None,
) -> subprocess.Popen[bytes]:
    """Start `argv` in a process group of its own; when this process dies, it gets the signal `dies_with`.

    Call it from the main thread: the kernel ties the death signal to the thread that started the child.
    """
    setpriv = program("setpriv", env)
    return subprocess.Popen(
        [str(setpriv), "--pdeathsig", dies_with.name.removeprefix("SIG"), "--", *(str(part) for part in argv)],
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=stderr,
        pass_fds=() if lock is None else (lock,),
        process_group=0,
    )


def stop(child: subprocess.Popen[bytes], how: signal.Signals, *, within_s: float) -> int:
    """Send `how` to `child`, kill it after `within_s`, return its exit status."""
    if child.poll() is None:
        child.send_signal(how)
        try:
            child.wait(within_s)
        except subprocess.TimeoutExpired:
            say(f"process {child.pid} did not stop within {within_s:.0f} s: killed")
            child.kill()
    return child.wait()


class Signals:
    """SIGTERM, SIGINT and the end of a child, as something to wait for."""

    def __init__(self) -> None:
        self.stop_asked = False

    def __enter__(self) -> Self:
        self._reader, self._writer = socket.socketpair()
        self._reader.setblocking(False)
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._old = {
            number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
        }
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, tb: TracebackType | None) -> None:
        for number, handler in self._old.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._old_fd)
        self._reader.close()
        self._writer.close()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if number != signal.SIGCHLD:
            self.stop_asked = True

    def wait(self, timeout_s: float | None = None) -> None:
        """Return at the next signal, or after `timeout_s`."""
        if self.stop_asked:
            return
        ready, _, _ = select.select([self._reader], [], [], timeout_s)
        if ready:
            self._reader.recv(4096)

    def wait_for_end(self, *children: subprocess.Popen[bytes]) -> subprocess.Popen[bytes] | None:
        """Return the first of `children` that ended, or None when a stop was asked."""
        while not self.stop_asked:
            for child in children:
                if child.poll() is not None:
                    return child
            self.wait()
        return None

    def sleep(self, seconds: float) -> bool:
        """Return True after `seconds`, False as soon as a stop was asked."""
        until = time.monotonic() + seconds
        while not self.stop_asked and (left := until - time.monotonic()) > 0:
            self.wait(left)
        return not self.stop_asked


def end_of(child: subprocess.Popen[bytes]) -> str:
    """Return how `child` ended, in words."""
    status = child.wait()
    return f"was killed by {signal.Signals(-status).name}" if status < 0 else f"ended with status {status}"
