"""The blast radius: each component is stopped on the live platform, what still works is measured, and both must be
what `component.toml` declares. See docs/decisions/0008-components-are-held-to-measure-their-blast-radius.md.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from blackstart import observe
from blackstart.proofs import Proof
from blackstart.proofs.blast_radius.comparison import declared_needs, problems
from blackstart.proofs.blast_radius.matrix import TRAFFIC, Row, print_matrix
from blackstart.proofs.blast_radius.rows import (
    Planned,
    Stage,
    measured_row,
    nothing_held,
    patience_of,
    planned_rows,
    wait_until_up,
)
from blackstart.proofs.blast_radius.subjects import deployed_subjects
from blackstart.remote import connected
from blackstart.run import Run
from blackstart.sources import checkout_root

NAME = "blast-radius"
__all__ = ["NAME", "measured", "print_matrix", "prove"]


def prove(run: Run) -> Proof:
    """Return the proof; its evidence is the whole matrix."""
    rows = measured(run, planned_rows(run.platform.inventory.nodes))
    found = problems(declared_needs(checkout_root()), rows)
    evidence = {"rows": [row.as_json() for row in rows], "problems": found}
    if found:
        return Proof(NAME, holds=False, detail="; ".join(found), evidence=evidence)
    cells = sum(len(row.capabilities) for row in rows)
    traffic = ", ".join(row.capabilities[TRAFFIC].detail for row in rows if len(row.stopped) > 1)
    detail = (
        f"{len(rows)} rows, {cells} cells: what stops is what is declared; traffic and dyno restarts survive each row, "
        f"and with the whole control plane stopped ({traffic})"
    )
    return Proof(NAME, holds=True, detail=detail, evidence=evidence)


def measured(run: Run, plan: Sequence[Planned]) -> list[Row]:
    """Return the rows of `plan`; only the first when that one, with nothing stopped, shows that something is broken."""
    platform, log = run.platform, run.log(NAME)
    rows: list[Row] = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(nothing_held(run))
        remotes = {node.name: stack.enter_context(connected(node)) for node in platform.inventory.nodes}
        client = stack.enter_context(observe.answering_client(platform))
        stage = Stage(run, remotes, stack.enter_context(deployed_subjects(client)), log)
        log(f"made {', '.join(stage.subjects.names)}")
        wait_until_up(stage)
        patience: dict[str, float] = {}
        for number, planned in enumerate(plan):
            rows.append(measured_row(stage, planned, number, patience))
            if not planned.stopped:
                patience = patience_of(rows[-1])
                if not all(cell.works for cell in rows[-1].capabilities.values()):
                    break
    return rows
