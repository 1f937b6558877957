"""The proofs of `bootstrap.py verify`: what this platform claims about its own bootstrap, measured on the live platform.

Each module has one function `prove(run) -> Proof`. A proof that cannot be carried out does not hold: its detail says why.

graph          every cycle of hard boot needs is broken by a stage
no-op-pivot    the pivot re-created no service, task or container
fencing        a resurrected stage 0 is refused by database, object store, bus, engine and API
fixed-point    the platform's own compiler builds every component to the same bytes as stage 0's did
blast-radius   what stops working when a component stops is what `component.toml` declares
teardown       stage 0 was destroyed only after it was proven unneeded
black-start    every node killed at once comes back with no hand on it, and nothing is lost
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from blackstart.errors import BlackstartError
from blackstart.run import Run


@dataclass(frozen=True)
class Proof:
    """One proof. `detail` is one sentence for people; `evidence` is what was measured, JSON-able, for the report."""

    name: str
    holds: bool
    detail: str
    evidence: dict[str, Any] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Return the shape that `verify --json` prints."""
        return {"name": self.name, "holds": self.holds, "detail": self.detail}


Prover = Callable[[Run], Proof]


def carried_out(name: str, prover: Prover, run: Run) -> Proof:
    """Return the proof; one that fails with an error does not hold, and says why."""
    try:
        return prover(run)
    except BlackstartError as error:
        return Proof(name, holds=False, detail=str(error).replace("\n", "; "))
