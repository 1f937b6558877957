"""Which stage breaks which cycle of hard needs, and how: the one list of it, checked by `bootstrap.py graph` and in the tests.

A cycle is broken when a stage brings about, in another way, what one of its needs asks for. A break that breaks nothing is
refused: it would hide the next cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

from blackstart.model.component import Phase


@dataclass(frozen=True)
class Break:
    """`stage` meets, in another way, the need of `of` on `on` at `at`. `of` is None for all that no other break names."""

    of: str | None
    on: str
    at: Phase
    stage: str
    how: str

    @property
    def label(self) -> str:
        """Which need it meets, for people."""
        return f"{self.of or 'every component'} needs {self.on} at {self.at}"


BREAKS: tuple[Break, ...] = (
    Break(
        of="compile",
        on="compile",
        at="build",
        stage="stage-0",
        how="blackstart/seed.py packs the compiler's folder into a slug without a compiler: it needs nothing but Python itself",
    ),
    Break(
        of=None,
        on="compile",
        at="build",
        stage="stage-0",
        how="stage 0's seed of the compiler builds it, in a dyno that reaches stage 0's own store without a router",
    ),
    Break(
        of=None,
        on="api",
        at="build",
        stage="stage-0",
        how="stage 0's API takes its app, config and build: a service beside Debian's PostgreSQL, started from the checkout",
    ),
    Break(
        of=None,
        on="psmgr",
        at="build",
        stage="stage-0",
        how="stage 0's process manager starts its first dynos; the pivot's successor adopts them",
    ),
)
