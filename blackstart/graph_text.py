"""The dependency graph in a terminal: readable at 100 columns."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.table import Table
from rich.text import Text
from rich.tree import Tree

from blackstart.breaks import Break
from blackstart.graph import Cycle, Edge, Graph
from blackstart.model.component import Phase, World

WIDTH = 100
SHOWN = 3
"""How many cycles of each break are shown; `--json` has all."""


def print_graph(graph: Graph, console: Console | None = None) -> None:
    """Print the needs, the cycles with what breaks them, and the order."""
    console = console or Console(highlight=False, width=WIDTH)
    console.print(_components(graph), "", _world(graph), "", _cycles(graph))
    if not any(cycle.is_fatal for cycle in graph.cycles):
        console.print("", Text("Brought up in this order: " + " → ".join(graph.order)))


def _components(graph: Graph) -> RenderableType:
    tree = Tree("Components and what they need of each other (hard in capitals)", guide_style="dim")
    if graph.shared:
        _grow(tree.add(Text("every component", style="bold")), graph.shared)
    for name in graph.components:
        _grow(tree.add(Text(name, style="bold")), (edge for edge in graph.own() if edge.of == name))
    return tree


def _grow(branch: Tree, edges: Iterable[Edge]) -> None:
    for (on, hard, why), phases in _declared(edges).items():
        row = Table.grid(padding=(0, 1))
        row.add_column(width=8)
        row.add_column(width=9, no_wrap=True)
        row.add_column(overflow="fold")
        text = " ".join(phases)
        at = Text(text.upper(), style="bold") if hard else Text(text)
        row.add_row(at, Text(on, style="cyan"), Text(why, style="dim"))
        branch.add(row)


def _declared(edges: Iterable[Edge]) -> dict[tuple[str, bool, str], list[Phase]]:
    """Return the phases of each need, put together as its file has them."""
    found: dict[tuple[str, bool, str], list[Phase]] = {}
    for edge in edges:
        found.setdefault((edge.on, edge.kind == "hard", edge.why), []).append(edge.at)
    return found


def _world(graph: Graph) -> RenderableType:
    table = Table(
        title="What they need of the world (soft in brackets)", title_justify="left", box=None, padding=(0, 1)
    )
    table.add_column("")
    for name in graph.components:
        table.add_column(name)
    edges = graph.on_world()
    for word in World:
        cells = [_cell(edge for edge in edges if (edge.of, edge.on) == (name, word)) for name in graph.components]
        table.add_row(Text(word.removeprefix("world:"), style="cyan"), *cells)
    return table


def _cell(edges: Iterable[Edge]) -> Text:
    phases = {edge.at: edge.kind for edge in edges}
    words = [f"{at}" if kind == "hard" else f"({at})" for at, kind in phases.items()]
    return Text(" ".join(words)) if words else Text("·", style="dim")


def _cycles(graph: Graph) -> RenderableType:
    boot = [cycle for cycle in graph.cycles if cycle.subgraph == "boot"]
    parts: list[RenderableType] = [
        Text(f"Cycles of hard needs: {len(graph.cycles)}, of them {len(boot)} at boot alone"),
        *(_broken(one, [cycle for cycle in graph.cycles if one in cycle.broken_by]) for one in graph.breaks),
        *(Text(f"  together at run, each starts: {cycle}") for cycle in graph.cycles if _is_mutual(cycle)),
        *(Text(f"  BROKEN BY NOTHING: {cycle}", style="bold red") for cycle in graph.cycles if cycle.is_fatal),
    ]
    return Group(*parts)


def _is_mutual(cycle: Cycle) -> bool:
    return not cycle.is_fatal and not cycle.broken_by


def _broken(one: Break, cycles: list[Cycle]) -> RenderableType:
    rings = ", ".join(str(cycle) for cycle in cycles[:SHOWN])
    more = f", and {len(cycles) - SHOWN} more" if len(cycles) > SHOWN else ""
    text = Text.assemble(
        (one.stage, "bold"), f" meets: {one.label}\n  ", (one.how, "dim"), f"\n  breaks {rings or 'nothing'}{more}"
    )
    return Padding(text, (0, 0, 0, 2))
