"""The Procfile: one `type: command` a line."""

from __future__ import annotations

import re
from pathlib import Path

from compiler.errors import AppRefused

PROCESS_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,29}")  # the platform's grammar, blackstart/model/names.py
EXAMPLE = "web: gunicorn app:app"


def read_procfile(folder: Path) -> dict[str, str] | None:
    """Return the process types in the Procfile of `folder`, in its order; None when there is none."""
    path = folder / "Procfile"
    if not path.is_file():
        return None
    try:
        return parse_procfile(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise AppRefused(
            "procfile-not-text",
            "The Procfile is not UTF-8 text.",
            why=str(error),
            fixes=("Save the Procfile as plain UTF-8 text.",),
        ) from error


def parse_procfile(text: str) -> dict[str, str]:
    """Return the process types in `text`. Blank lines and lines that start with # are left out."""
    types: dict[str, str] = {}
    for number, raw in enumerate(text.splitlines(), start=1):
        line = raw.strip()
        if not line or line.startswith("#"):
            continue
        type_, command = _parse_line(number, line)
        if type_ in types:
            raise _bad_line(number, line, f"The process type {type_} is there twice.", "procfile-type-twice")
        types[type_] = command
    if not types:
        raise AppRefused(
            "procfile-empty",
            "The Procfile has no process types.",
            why="It is empty, or has only blank lines and comments.",
            fixes=(f"Write one process a line, as `{EXAMPLE}`.", "Remove the Procfile to use the buildpack's default."),
        )
    return types


def _parse_line(number: int, line: str) -> tuple[str, str]:
    type_, colon, command = line.partition(":")
    type_, command = type_.strip(), command.strip()
    if not colon:
        raise _bad_line(number, line, "It has no colon.", "procfile-bad-line")
    if not PROCESS_TYPE.fullmatch(type_):
        why = "A process type is a lower-case letter, then up to 29 letters, digits, dashes or underscores."
        raise _bad_line(number, line, why, "procfile-bad-line")
    if not command:
        raise _bad_line(number, line, "It has no command.", "procfile-bad-line")
    if "\0" in command:
        raise _bad_line(number, line, "A command cannot hold a NUL byte.", "procfile-bad-line")
    return type_, command


def _bad_line(number: int, line: str, why: str, reason: str) -> AppRefused:
    return AppRefused(
        reason,
        f"Line {number} of the Procfile is not understood: {line[:120]!r}",
        why=why,
        fixes=(f"Write one process a line, as `{EXAMPLE}`.",),
    )
