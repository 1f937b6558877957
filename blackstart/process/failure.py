"""The one exception of a component's own program, and how its `main` reports it."""

from __future__ import annotations

import sys
from collections.abc import Callable


class ProcessFailed(Exception):
    """A component cannot go on. `what` names what failed and where, `why` the cause, `fix` what to do next."""

    def __init__(self, what: str, *, why: str = "", fix: str = "", code: int = 1) -> None:
        super().__init__(what)
        self.what = what
        self.why = why
        self.fix = fix
        self.code = code

    def __str__(self) -> str:
        lines = [self.what]
        if self.why:
            lines.append(f"Why: {self.why}")
        if self.fix:
            lines.append(f"To do: {self.fix}")
        return "\n".join(lines)


def say(text: str) -> None:
    """Write `text` to the log (stderr) as one whole."""
    sys.stderr.write(text.rstrip("\n") + "\n")
    sys.stderr.flush()


def exit_code_of(program: str, run: Callable[[], int]) -> int:
    """Return what `run` returns; a failure is told in the log and becomes its exit code."""
    try:
        return run()
    except ProcessFailed as failure:
        say(f"{program}: {failure}")
        return failure.code
    except OSError as error:
        say(f"{program}: {error}")
        return 1
