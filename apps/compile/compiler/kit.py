"""What the built-in buildpacks share: their arguments, running tools, failing with a reason, writing .profile.d."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler import output
from compiler.errors import AppRefused
from compiler.processes import memory_kills, out_of_memory, was_killed

TAIL = 60


@dataclass(frozen=True)
class Work:
    """The arguments of `bin/compile`."""

    build: Path
    cache: Path
    env: Path

    def profile(self, name: str, text: str) -> None:
        """Write a script that every dyno of the app sources before its command."""
        folder = self.build / ".profile.d"
        folder.mkdir(exist_ok=True)
        (folder / name).write_text(text)


@dataclass(frozen=True)
class Ran:
    """How a tool ended, and the last lines it printed."""

    code: int
    lines: tuple[str, ...]

    @property
    def text(self) -> str:
        """The last lines as one text."""
        return "\n".join(self.lines)

    def why(self, count: int = 12) -> str:
        """Return the lines that an error shows."""
        return "\n".join([line for line in self.lines if line.strip()][-count:])


def compiling(arguments: list[str], compile_: Callable[[Work], None]) -> int:
    """Run a buildpack's `compile`; hand a refusal to the compiler through $FAILURE_FILE."""
    build, cache, env = (Path(argument) for argument in arguments[:3])
    try:
        compile_(Work(build, cache, env))
    except AppRefused as failure:
        told = {"reason": failure.reason, "what": failure.what, "why": failure.why, "fixes": list(failure.fixes)}
        path = os.environ.get("FAILURE_FILE")
        if path is None:
            output.refuse(failure)
        else:
            Path(path).write_text(json.dumps(told))
        return 1
    return 0


def released(types: Mapping[str, str]) -> int:
    """Print `release`'s YAML: the process types of an app without a Procfile."""
    print("---")
    if types:
        print("default_process_types:")
        for type_, command in types.items():
            print(f"  {type_}: {json.dumps(command)}")
    return 0


def run(
    argv: list[str], *, cwd: Path, env: Mapping[str, str] | None = None, quiet: bool = False, keep: int = TAIL
) -> Ran:
    """Run a tool, printing its lines indented, and return how it ended with the last `keep` lines.

    Raises AppRefused when it, or what it started, was killed for its memory: a tool tells of a killed child in its own way.
    """
    kills = memory_kills()
    child = subprocess.Popen(
        argv,
        cwd=cwd,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    lines: list[str] = []
    for raw in child.stdout or ():
        line = raw.rstrip()
        if not quiet:
            output.detail(line)
        lines.append(line)
        del lines[:-keep]
    code = child.wait()
    if was_killed(code) or (code != 0 and memory_kills() > kills):
        raise out_of_memory(f"`{' '.join(argv[:2])}`")
    return Ran(code, tuple(lines))


def export(variables: Mapping[str, str]) -> None:
    """Set variables for the buildpacks that follow. Values are shell words: `$PATH` in them counts."""
    path = os.environ.get("EXPORT_FILE")
    if path is not None:
        with Path(path).open("a") as file:
            file.writelines(f'export {name}="{value}"\n' for name, value in variables.items())


def shell(words: list[str]) -> str:
    """Return an argument vector as a shell line."""
    return shlex.join(words)


def first_match(text: str, cases: list[tuple[str, AppRefused]]) -> AppRefused | None:
    """Return the refusal of the first case whose sign is in `text`."""
    return next((refusal for sign, refusal in cases if sign in text), None)


def tool_version(argv: list[str]) -> str:
    """Return the first line a tool prints about itself."""
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split("\n")[0].strip()


def python_version() -> str:
    """Return the stack's Python version, as 3.13.5."""
    return ".".join(str(part) for part in sys.version_info[:3])
