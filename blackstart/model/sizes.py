"""Dyno sizes by Heroku's names: the limits of an ordinary app's dynos. A component's limits are in its component.toml."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT = "standard-1X"


@dataclass(frozen=True)
class Size:
    """The limits of one dyno; the memory reservation is a half of `memory_mb`."""

    name: str
    memory_mb: int
    cpus: float
    pids: int


SIZES = {
    size.name.lower(): size
    for size in (
        Size("eco", 512, 1.0, 256),
        Size("basic", 512, 1.0, 256),
        Size("standard-1X", 512, 1.0, 256),
        Size("standard-2X", 1024, 2.0, 512),
        Size("performance-m", 2560, 2.0, 4096),
        Size("performance-l", 14336, 8.0, 16384),
    )
}


class SizeUnknown(ValueError):
    """There is no dyno size of this name. The message lists those that exist."""


def size(name: str) -> Size:
    """Return the dyno size called `name`, in any case, as the CLI writes it."""
    found = SIZES.get(name.lower())
    if found is None:
        raise SizeUnknown(f"dyno size {name[:80]!r} is unknown: there are {', '.join(s.name for s in SIZES.values())}")
    return found
