"""What a build prints: Heroku's form, one line at a time, unbuffered.

`-----> ` starts a step, seven spaces continue it, ` !     ` is a warning or an error.
"""

from __future__ import annotations

import re
import sys

from compiler.errors import Failure

CREDENTIAL = re.compile(r"(?<=://)[^/\s:@]+:[^/\s@]+(?=@)")


def say(line: str) -> None:
    """Print a line as it is, but for credentials in addresses."""
    sys.stdout.write(CREDENTIAL.sub("****", line) + "\n")
    sys.stdout.flush()


def step(text: str) -> None:
    """Print the start of a step."""
    say(f"-----> {text}")


def detail(text: str) -> None:
    """Print a line that continues a step."""
    say(f"       {text}".rstrip())


def warn(text: str) -> None:
    """Print a warning, one or more lines."""
    for line in text.split("\n"):
        say(f" !     {line}".rstrip())


def refuse(failure: Failure) -> None:
    """Print why the app was not compiled, and what to do."""
    for line in refusal(failure):
        say(line)


def refusal(failure: Failure) -> list[str]:
    """Return the lines that explain `failure`; the last one is `Reason: <machine-readable>`."""
    lines = ["push rejected, failed to compile app", "", *failure.what.split("\n")]
    if failure.why:
        lines += ["", "Why:", *failure.why.split("\n")]
    if failure.fixes:
        lines += ["", "What to do:"]
        lines += [f"{number}. {fix}" for number, fix in enumerate(failure.fixes, start=1)]
    lines += ["", f"Reason: {failure.reason}"]
    return ["", *(f" !     {line}".rstrip() for line in lines), ""]


def human_size(size: int) -> str:
    """Return a size as Heroku prints it: `840K`, `1.4M`, `13M`."""
    if size < 1_000_000:
        return f"{max(1, round(size / 1_000))}K"
    if size < 10_000_000:
        return f"{size / 1_000_000:.1f}M"
    return f"{round(size / 1_000_000)}M"
