"""The no-op pivot: what ran before it still runs after it, with the same ids and start times."""

from __future__ import annotations

from blackstart.proofs import Proof
from blackstart.run import Run

NAME = "no-op-pivot"


def prove(run: Run) -> Proof:
    """Return the proof from what the pivot itself measured on the engine and on every node, kept in `pivot.json`."""
    kept = run.platform.state.read_json("pivot.json")
    if not kept:
        return Proof(NAME, holds=False, detail="the state folder has no pivot.json: this platform's pivot was not seen")
    counts = {kind: len(kept["before"][kind]) for kind in ("services", "tasks", "containers")}
    lost = kept["lost"]
    if lost or not all(counts.values()):
        return Proof(
            NAME, holds=False, detail=f"re-created: {', '.join(lost) or 'nothing was compared'}", evidence=kept
        )
    same = ", ".join(f"{count} {kind}" for kind, count in counts.items())
    return Proof(NAME, holds=True, detail=f"the same before and after: {same}", evidence=kept)
