"""The newest outcome of each proof, kept in the state folder (`proofs.json`), so that every report shows what is known."""

from __future__ import annotations

import datetime
from dataclasses import asdict
from typing import Any

from blackstart.proofs import Proof
from blackstart.state import State

FILE = "proofs.json"


def keep(state: State, proof: Proof, *, seconds: float) -> None:
    """Keep `proof`, which took `seconds` and ended now, in place of its earlier outcome."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    state.remember(FILE, proof.name, {**asdict(proof), "at": now, "seconds": round(seconds, 1)})


def kept(state: State) -> list[dict[str, Any]]:
    """Return each proof's newest outcome, oldest first: `{"name", "holds", "detail", "evidence", "at", "seconds"}`."""
    return sorted(state.read_json(FILE).values(), key=lambda outcome: str(outcome["at"]))
