"""`verify`: which proofs there are, in the order in which they are carried out; those that disturb the platform come last."""

from __future__ import annotations

from collections.abc import Sequence

from blackstart.proofs import (
    Proof,
    Prover,
    black_start,
    carried_out,
    fencing,
    fixed_point,
    graph,
    kept,
    no_op_pivot,
    teardown,
)
from blackstart.run import Run

PROVERS: dict[str, Prover] = {
    "graph": graph.prove,
    "no-op-pivot": no_op_pivot.prove,
    "fencing": fencing.prove,
    "fixed-point": fixed_point.prove,
    "teardown": teardown.prove,
    "black-start": black_start.prove,
}


def run_proofs(names: Sequence[str], run: Run) -> list[Proof]:
    """Carry out the proofs `names`, showing each as a step and keeping it, and return them in the order of PROVERS."""
    proofs = []
    chosen = [name for name in PROVERS if name in names]
    with run.progress.showing({name: name for name in chosen}):
        for name in chosen:
            with run.progress.step(name):
                proofs.append(carried_out(name, PROVERS[name], run))
            kept.keep(run.platform.state, proofs[-1], seconds=run.progress.seconds(name))
    return proofs
