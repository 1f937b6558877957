"""Outside programs: argument vectors, always with a deadline, their last words in the error."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence

from blackstart.errors import BlackstartError

Log = Callable[[str], None]
TAIL_LINES = 15


class ProgramFailed(BlackstartError):
    """A program is missing, ended with an exit code other than 0, or ran over its time."""


def dying_with_us(argv: Sequence[str], ending: str) -> list[str]:
    """Return the vector of a program that the kernel ends with the signal `ending` when we end, however we end.

    Nothing goes on behind the back of the next run.
    """
    return ["setpriv", "--pdeathsig", ending, "--", *argv]


_running: set[subprocess.Popen[str]] = set()


@contextlib.contextmanager
def ended_on_stop(process: subprocess.Popen[str]) -> Iterator[None]:
    """While the block runs, `end_running` ends this program, which leads a process group of its own."""
    _running.add(process)
    try:
        yield
    finally:
        _running.discard(process)


def end_running() -> None:
    """Tell the long programs of this process, on whichever thread they are waited for, to end. Does not wait."""
    for process in tuple(_running):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def no_log(line: str) -> None:
    """Drop a line of a program's output."""


def run_program(
    argv: Sequence[str], *, seconds: float = 30, stdin: str | None = None, env: Mapping[str, str] | None = None
) -> str:
    """Return what `argv` writes to stdout. Raises ProgramFailed."""
    try:
        done = subprocess.run(
            list(argv),
            input=stdin,
            stdin=subprocess.DEVNULL if stdin is None else None,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            env=_environment(env),
            check=False,
        )
    except FileNotFoundError as error:
        raise _missing(argv) from error
    except subprocess.TimeoutExpired as error:
        raise _over_time(argv, seconds) from error
    if done.returncode != 0:
        raise _failed(argv, done.returncode, (done.stderr or done.stdout).splitlines())
    return done.stdout


def succeeds(argv: Sequence[str], *, seconds: float = 30) -> bool:
    """Whether `argv` ends with exit code 0."""
    try:
        run_program(argv, seconds=seconds)
    except ProgramFailed:
        return False
    return True


def follow_program(argv: Sequence[str], *, seconds: float, log: Log, env: Mapping[str, str] | None = None) -> None:
    """Run `argv`, hand every line of its output to `log` at once. Raises ProgramFailed.

    It is told to end when we are killed: nothing goes on behind the back of the next run.
    """
    if shutil.which(argv[0]) is None:
        raise _missing(argv)
    try:
        process = subprocess.Popen(
            dying_with_us(argv, "TERM"),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=_environment(env),
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise _missing(["setpriv"]) from error
    tail: deque[str] = deque(maxlen=TAIL_LINES)
    late = threading.Event()
    alarm = threading.Timer(seconds, _stop_group, (process, late))
    alarm.start()
    try:
        with process, ended_on_stop(process):
            for line in process.stdout or ():
                tail.append(line.rstrip("\n"))
                log(line.rstrip("\n"))
    except BaseException:
        _stop_group(process, late)
        raise
    finally:
        alarm.cancel()
    if late.is_set():
        raise _over_time(argv, seconds)
    if process.returncode != 0:
        raise _failed(argv, process.returncode, list(tail))


def _stop_group(process: subprocess.Popen[str], late: threading.Event) -> None:
    late.set()
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return


def _environment(env: Mapping[str, str] | None) -> dict[str, str] | None:
    return None if env is None else {**os.environ, **env}


def _missing(argv: Sequence[str]) -> ProgramFailed:
    return ProgramFailed(
        f"the program {argv[0]} is missing on this host",
        fix="run bootstrap.py, which installs it, or apt-get install it",
    )


def _over_time(argv: Sequence[str], seconds: float) -> ProgramFailed:
    return ProgramFailed(f"{_short(argv)} ran over its {seconds:g} s", why="it hangs, or this host is too busy")


def _failed(argv: Sequence[str], code: int, lines: list[str]) -> ProgramFailed:
    why = "\n".join(lines[-TAIL_LINES:]) or "it says nothing"
    return ProgramFailed(f"{_short(argv)} ended with exit code {code}", why=why)


def _short(argv: Sequence[str]) -> str:
    text = " ".join(argv)
    return text if len(text) <= 100 else text[:97] + "..."
