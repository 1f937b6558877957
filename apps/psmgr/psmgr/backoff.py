"""Waiting after failures: doubled, capped, jittered, so that many clients of a dead service do not return as one."""

from __future__ import annotations

import random


def delay(failures: int, *, base: float = 0.5, cap: float = 15.0) -> float:
    """Return the seconds to wait after the `failures`-th failure in a row."""
    ceiling = min(cap, base * 2 ** min(failures - 1, 16))
    return random.uniform(ceiling / 2, ceiling)  # noqa: S311 (spreads load, keeps no secret)
