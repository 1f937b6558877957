"""The graph: nothing that the components declare keeps the platform from starting, and a stage breaks each cycle."""

from __future__ import annotations

from blackstart.graph import read_graph
from blackstart.proofs import Proof
from blackstart.run import Run
from blackstart.sources import checkout_root

NAME = "graph"


def prove(run: Run) -> Proof:
    """Return the proof from this checkout's `component.toml` files and `blackstart/breaks.py`."""
    graph = read_graph(checkout_root())
    problems, evidence = graph.problems(), graph.as_json()
    if problems:
        return Proof(NAME, holds=False, detail="; ".join(problem.what for problem in problems), evidence=evidence)
    stages = " or ".join(sorted({one.stage for cycle in graph.cycles for one in cycle.broken_by})) or "no stage"
    at_boot = sum(cycle.subgraph == "boot" for cycle in graph.cycles)
    detail = (
        f"{len(graph.components)} components, {len(graph.cycles)} cycles of hard needs ({at_boot} at boot alone), "
        f"all broken by {stages}"
    )
    return Proof(NAME, holds=True, detail=detail, evidence=evidence)
