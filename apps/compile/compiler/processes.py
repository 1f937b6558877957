"""Running other programs: in their own process group, within the build's time, with nothing left behind.

A buildpack is a stranger's code (an app's build script, a package's setup.py). It may fork, detach and hang; when
it is over, or its time is, every process that came from it is killed.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from compiler.errors import AppRefused, OverTime
from compiler.limits import KILL_SECONDS

PR_SET_DUMPABLE = 4
PR_SET_CHILD_SUBREAPER = 36
LINE = 64 * 1024

_adopting = False


class Clock:
    """The time a build has left."""

    def __init__(self, seconds: float) -> None:
        self.limit = seconds
        self._end = time.monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left, never less than 0."""
        return max(0.0, self._end - time.monotonic())

    def check(self) -> None:
        """Raise OverTime when no time is left."""
        if self.left() <= 0:
            raise self.over()

    def over(self) -> OverTime:
        """Return the error for a build that took too long."""
        return OverTime(
            "build-timeout",
            f"The build took longer than its limit of {self.limit:.0f} seconds and was stopped.",
            why="Everything it had started was killed. The last lines above show what it was doing.",
            fixes=(
                "Look at the last step above: a command that waits for input, or for a server, never ends in a build.",
                "Add a lock file, so that versions are not searched for during the build.",
                "Build again: packages that were downloaded by a build that succeeds are cached.",
                "Ask the operator for a longer build timeout.",
            ),
        )


def hide_from_same_user() -> None:
    """Keep this process's memory and environment from other processes of its user.

    Buildpacks run as the same user, and /proc/<pid>/environ of this process holds presigned URLs. A process that is
    not dumpable has its /proc files owned by root and cannot be traced (prctl(2)).
    """
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)


def adopt_orphans() -> None:
    """Become the parent of every orphan below, so that a detached process can still be found and killed."""
    global _adopting
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    _adopting = True


def run(argv: list[str], *, env: Mapping[str, str], cwd: Path, clock: Clock, line: Callable[[str], None]) -> int:
    """Run `argv`, hand each line it prints (stdout and stderr) to `line`, and return its exit code.

    Raises OverTime when the clock runs out. Every process it started is gone on return.
    """
    clock.check()
    child = subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        umask=0o022,
    )
    reader = threading.Thread(target=_forward, args=(child, line), daemon=True)
    reader.start()
    try:
        code = child.wait(timeout=clock.left())
    except subprocess.TimeoutExpired:
        raise clock.over() from None
    finally:
        _end(child)
        reader.join(timeout=KILL_SECONDS)
    return code


def output_of(argv: list[str], *, env: Mapping[str, str], cwd: Path, clock: Clock) -> tuple[int, str, str]:
    """Run `argv` and return its exit code, its stdout and its stderr."""
    clock.check()
    child = subprocess.Popen(
        argv,
        env=dict(env),
        cwd=cwd,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        umask=0o022,
    )
    try:
        out, err = child.communicate(timeout=clock.left())
    except subprocess.TimeoutExpired:
        raise clock.over() from None
    finally:
        _end(child)
    return child.returncode, out.decode(errors="replace"), err.decode(errors="replace")


def was_killed(code: int) -> bool:
    """Whether an exit code means SIGKILL: the child's own, or as a shell or a buildpack passes it on."""
    return code in (-signal.SIGKILL, 128 + signal.SIGKILL)


def out_of_memory(what: str) -> AppRefused:
    """Return the error for a build whose process was killed for its memory."""
    limit = memory_limit()
    size = "" if limit is None else f" of {limit // 1_000_000} MB"
    return AppRefused(
        "build-out-of-memory",
        f"{what} was killed: the build needed more memory than its limit{size}.",
        why="The kernel kills a process of a build that goes over the limit (exit code 137).",
        fixes=(
            "Give the build less to do at once: fewer parallel jobs, smaller bundles, no source maps.",
            "Use packages that come compiled (wheels, prebuilt gems) instead of compiling them in the build.",
            "Ask the operator for more build memory.",
        ),
    )


def memory_limit() -> int | None:
    """Return the memory limit of this container in bytes, or None when there is none."""
    for path in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        with contextlib.suppress(OSError, ValueError):
            limit = int(Path(path).read_text())
            return limit if limit < 1 << 50 else None
    return None


def memory_kills() -> int:
    """Return how many processes of this container the kernel killed for the memory limit; 0 where it does not say."""
    for path in ("/sys/fs/cgroup/memory.events", "/sys/fs/cgroup/memory/memory.oom_control"):
        with contextlib.suppress(OSError, ValueError):
            words = dict(line.split() for line in Path(path).read_text().splitlines())
            return int(words.get("oom_kill", "0"))
    return 0


def kill_descendants() -> None:
    """Kill every process below this one, also those that detached themselves: in a program that adopts orphans."""
    if not _adopting:
        return
    deadline = time.monotonic() + KILL_SECONDS
    while time.monotonic() < deadline:
        children = _descendants(os.getpid())
        if not children:
            return
        for pid in children:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        _reap()
        time.sleep(0.01)


def _forward(child: subprocess.Popen[bytes], line: Callable[[str], None]) -> None:
    if child.stdout is None:
        return
    while raw := child.stdout.readline(LINE):
        text = raw.decode(errors="replace").rstrip("\n").rstrip("\r")
        line(text.rsplit("\r", 1)[-1])


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a child: its group, then whatever else came from it."""
    if child.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            child.wait(timeout=KILL_SECONDS)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()
    kill_descendants()


def _reap() -> None:
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def _descendants(root: int) -> list[int]:
    """Return the pids below `root` that are not dead already."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with contextlib.suppress(OSError, ValueError, IndexError):
                fields = Path(f"/proc/{entry}/stat").read_text().rsplit(")", 1)[1].split()
                parents[int(entry)] = int(fields[1]) if fields[0] != "Z" or int(fields[1]) == root else 0
    found: list[int] = []
    wave = [root]
    while wave:
        wave = [pid for pid, parent in parents.items() if parent in wave]
        found += wave
    return found
