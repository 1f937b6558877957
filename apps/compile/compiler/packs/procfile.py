"""The `procfile` buildpack: an app that is ready to run as it is."""

from __future__ import annotations

from compiler import kit, output


def compile(arguments: list[str]) -> int:
    """Leave the app as it is."""
    return kit.compiling(arguments, lambda work: output.detail("Nothing to install: the app runs as it is."))


def release(_: list[str]) -> int:
    """Give no process types: the Procfile has them."""
    return kit.released({})
