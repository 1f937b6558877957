"""Log lines: one line per event on stdout, `at=<what> key=value …`. Callers pass no secrets."""

from __future__ import annotations

import sys


def line(at: str, fields: dict[str, object]) -> str:
    """Return the log line of an event; values with spaces, quotes or control characters are quoted."""
    return " ".join([f"at={at}", *(f"{key}={_value(value)}" for key, value in fields.items())])


def say(at: str, **fields: object) -> None:
    """Print one log line."""
    print(line(at, fields), file=sys.stdout, flush=True)


def _value(value: object) -> str:
    text = "-" if value is None else str(value)[:500]
    plain = text != "" and text.isascii() and text.isprintable() and not set(text) & set(' "=')
    return text if plain else '"' + text.encode("unicode_escape").decode().replace('"', "'") + '"'
