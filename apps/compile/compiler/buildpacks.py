"""Buildpacks, by Heroku's interface: `bin/detect BUILD`, `bin/compile BUILD CACHE ENV`, `bin/release BUILD`.

`detect` exits 0 and prints the language's name, `compile` prints its progress, `release` prints YAML. A buildpack
may write shell to `$EXPORT_FILE`, which sets the environment of the next one, and, when it fails, JSON to
`$FAILURE_FILE` (reason, what, why, fixes). These two are our own additions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler import BUILDPACK_VERSION, output, processes
from compiler.errors import AppRefused
from compiler.processes import Clock

BUILT_IN = Path(__file__).resolve().parent.parent / "buildpacks"
FIRST = "apt"
LANGUAGES = ("ruby", "nodejs", "python", "static", "procfile")
"""In the order of Heroku's detection: the first that says yes compiles the app."""
CHOICE = ".buildpacks"


@dataclass(frozen=True)
class Buildpack:
    """A buildpack on disk. `language` is what its `detect` printed."""

    name: str
    language: str
    folder: Path
    version: str = BUILDPACK_VERSION

    def program(self, verb: str) -> str:
        """Return the path of `bin/<verb>`."""
        return str(self.folder / "bin" / verb)


@dataclass(frozen=True)
class Folders:
    """Where a build works: the app, its cache, config vars (a file each; none in our builds), and scratch."""

    build: Path
    cache: Path
    env: Path
    scratch: Path


def choose(folders: Folders, environment: Mapping[str, str], clock: Clock) -> list[Buildpack]:
    """Return the buildpacks that compile this app, in order. Raises AppRefused when there is none."""
    chosen = _named_by_app(folders.build)
    if chosen is not None:
        return [Buildpack(name, name.capitalize(), BUILT_IN / name) for name in chosen]
    found = []
    apt = _detect(FIRST, folders, environment, clock)
    if apt is not None:
        found.append(apt)
    languages = [pack for name in LANGUAGES if (pack := _detect(name, folders, environment, clock)) is not None]
    found += languages[:1]
    if not found:
        raise _nothing_detected(folders.build)
    _tell_others(languages)
    return found


def compile_with(pack: Buildpack, folders: Folders, environment: Mapping[str, str], clock: Clock) -> dict[str, str]:
    """Run the buildpack's `compile`; return the environment for the next one."""
    failure, export = folders.scratch / "failure.json", folders.scratch / "export"
    failure.unlink(missing_ok=True)
    export.unlink(missing_ok=True)
    own = {**environment, "FAILURE_FILE": str(failure), "EXPORT_FILE": str(export)}
    argv = [pack.program("compile"), str(folders.build), str(folders.cache), str(folders.env)]
    last: list[str] = []

    def line(text: str) -> None:
        output.say(text)
        last.append(text)
        del last[:-20]

    code = processes.run(argv, env=own, cwd=folders.build, clock=clock, line=line)
    if code != 0:
        raise _failed(pack, code, failure, last)
    return _exported(export, environment, folders.build, clock)


def default_processes(
    pack: Buildpack, folders: Folders, environment: Mapping[str, str], clock: Clock
) -> dict[str, str]:
    """Return the process types that the buildpack's `release` gives."""
    argv = [pack.program("release"), str(folders.build)]
    code, out, error = processes.output_of(argv, env=environment, cwd=folders.build, clock=clock)
    if code != 0:
        raise AppRefused(
            "buildpack-release-failed",
            f"The {pack.name} buildpack's bin/release failed (exit code {code}).",
            why=error.strip(),
        )
    return parse_release(out)


def parse_release(text: str) -> dict[str, str]:
    """Return `default_process_types` of a release's YAML: a mapping of plain or quoted scalars, two levels deep."""
    types: dict[str, str] = {}
    inside = False
    for line in text.splitlines():
        if not line.startswith((" ", "\t")):
            inside = line.split("#")[0].strip() == "default_process_types:"
            continue
        match = re.fullmatch(r"\s+([A-Za-z0-9_-]+|\"[^\"]+\"|'[^']+'):\s+(.+?)\s*", line)
        if inside and match is not None:
            types[match[1].strip("\"'")] = _scalar(match[2])
    return types


def _scalar(text: str) -> str:
    if text.startswith('"') and text.endswith('"'):
        return str(json.loads(text))
    if text.startswith("'") and text.endswith("'"):
        return text[1:-1].replace("''", "'")
    return text


def _detect(name: str, folders: Folders, environment: Mapping[str, str], clock: Clock) -> Buildpack | None:
    folder = BUILT_IN / name
    argv = [str(folder / "bin" / "detect"), str(folders.build)]
    code, out, error = processes.output_of(argv, env=environment, cwd=folders.build, clock=clock)
    if code > 1 or code < 0:
        raise AppRefused("buildpack-detect-failed", f"The {name} buildpack's bin/detect failed.", why=error.strip())
    return Buildpack(name, out.strip() or name, folder) if code == 0 else None


def _named_by_app(build: Path) -> list[str] | None:
    """Return the buildpacks that the app's own `.buildpacks` file names."""
    path = build / CHOICE
    if not path.is_file():
        return None
    lines = [line.split("#")[0].strip() for line in path.read_text(errors="replace").splitlines()]
    names = [line.removeprefix("heroku/") for line in lines if line]
    known = (FIRST, *LANGUAGES)
    for name in names:
        if name not in known:
            raise AppRefused(
                "buildpack-unknown",
                f"{CHOICE} names a buildpack that is not built in: {name[:80]!r}",
                fixes=(f"Use some of: {', '.join(known)}.", f"Remove {CHOICE} to let the app's files decide."),
            )
    if not names:
        raise AppRefused("buildpack-unknown", f"{CHOICE} names no buildpack.", fixes=(f"Remove {CHOICE}.",))
    return names


def _tell_others(languages: list[Buildpack]) -> None:
    others = [pack for pack in languages[1:] if pack.name not in ("static", "procfile")]
    if others:
        names = " and ".join(pack.language for pack in others)
        output.warn(
            f"This app looks like {names} too. It is compiled as {languages[0].language}, which comes first.\n"
            f"To choose, write the buildpacks' names into {CHOICE}, one a line, in order."
        )


def _failed(pack: Buildpack, code: int, failure: Path, last: list[str]) -> AppRefused:
    if failure.is_file():
        told = json.loads(failure.read_text())
        return AppRefused(str(told["reason"]), str(told["what"]), why=str(told["why"]), fixes=tuple(told["fixes"]))
    if processes.was_killed(code):
        return processes.out_of_memory(f"The {pack.name} buildpack")
    return AppRefused(
        f"{pack.name}-compile-failed",
        f"The {pack.name} buildpack failed (exit code {code}).",
        why="\n".join(last[-5:]).strip(),
        fixes=("Read the output above: it names the command that failed.",),
    )


def _exported(export: Path, environment: Mapping[str, str], build: Path, clock: Clock) -> dict[str, str]:
    """Return `environment` as changed by a buildpack's export file, which is shell."""
    if not export.is_file():
        return dict(environment)
    argv = ["bash", "-c", 'set -a; . "$1" >/dev/null; env -0', "export", str(export)]
    code, out, error = processes.output_of(argv, env=environment, cwd=build, clock=clock)
    if code != 0:
        raise AppRefused("buildpack-export-failed", "The buildpack's export file is not good shell.", why=error.strip())
    pairs = (pair.partition("=") for pair in out.split("\0") if pair)
    return {key: value for key, _, value in pairs if key not in ("_", "SHLVL", "PWD", "OLDPWD")}


def _nothing_detected(build: Path) -> AppRefused:
    there = sorted(path.name for path in build.iterdir())
    shown = ", ".join(there[:12]) + (", …" if len(there) > 12 else "")
    return AppRefused(
        "app-not-detected",
        "No buildpack knows this app.",
        why=f"The source's top folder has: {shown or 'nothing'}.",
        fixes=(
            "Python: add requirements.txt, or pyproject.toml and uv.lock.",
            "Node.js: add package.json and package-lock.json.",
            "Ruby: add Gemfile and Gemfile.lock.",
            "A static site: add index.html, or a folder public/ with one.",
            "Anything else: add a Procfile, with a line such as `web: ./server`.",
            "If the app lies in a folder below, send that folder as the source.",
        ),
    )
