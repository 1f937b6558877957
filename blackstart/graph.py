"""The dependency graph: what each `component.toml` declares, its cycles, which stage breaks them, and the order from it.

An edge goes from a component to what it needs. Cycles are looked for in three subgraphs of hard needs: `boot`, `boot+run` and
`build` (which has all three: who builds must run). A cycle is listed with the smallest of them that has it.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import networkx as nx

from blackstart.breaks import BREAKS, Break
from blackstart.errors import GraphError
from blackstart.model.component import ComponentRefused, Need, Phase, World
from blackstart.sources import component_names, read_component

Kind = Literal["hard", "soft"]
SUBGRAPHS: dict[str, tuple[Phase, ...]] = {
    "boot": ("boot",),
    "boot+run": ("boot", "run"),
    "build": ("boot", "run", "build"),
}


@dataclass(frozen=True)
class Edge:
    """The component `of` needs `on` (a component or a word of World) in one phase."""

    of: str
    on: str
    at: Phase
    kind: Kind
    why: str

    def __str__(self) -> str:
        return f"apps/{self.of}/component.toml: {self.of} needs {self.on} at {self.at} ({self.kind}): {self.why}"


@dataclass(frozen=True)
class Cycle:
    """Components that need each other, in a ring.

    `standing` are the hard needs along it that no stage meets in another way, `broken_by` what stages do about the others. It is
    fatal when none of it can ever be the first: each step stands, and one is needed to start. Where all only run by each other,
    each starts, and they find each other.
    """

    subgraph: str
    members: tuple[str, ...]
    standing: tuple[Edge, ...]
    broken_by: tuple[Break, ...]
    is_fatal: bool

    def __str__(self) -> str:
        return " → ".join((*self.members, self.members[0]))


@dataclass(frozen=True)
class Graph:
    """Every component of a checkout, what each needs, and what stages do about it."""

    components: tuple[str, ...]
    edges: tuple[Edge, ...]
    breaks: tuple[Break, ...]

    @cached_property
    def cycles(self) -> tuple[Cycle, ...]:
        """Every cycle of hard needs."""
        found: dict[tuple[str, ...], Cycle] = {}
        for subgraph, phases in SUBGRAPHS.items():
            for nodes in nx.simple_cycles(_digraph(self._hard(phases))):
                members = _from_least(nodes)
                found.setdefault(members, self._cycle(subgraph, members))
        return tuple(sorted(found.values(), key=lambda cycle: (len(cycle.members), cycle.members)))

    @cached_property
    def order(self) -> tuple[str, ...]:
        """The components, each after those that it needs. Raises GraphError where a hard boot need makes that impossible.

        Where not all needs can be obeyed, boot goes before run and hard before soft.
        """
        return tuple(nx.lexicographical_topological_sort(self._obeyed(("hard", "soft"))))

    @property
    def layers(self) -> list[list[str]]:
        """The components by their hard needs: each layer needs only those before it. Where a ring is fatal, one layer."""
        if any(cycle.is_fatal for cycle in self.cycles):
            return [list(self.components)]
        return [sorted(layer) for layer in nx.topological_generations(self._obeyed(("hard",)))]

    @property
    def shared(self) -> tuple[Edge, ...]:
        """A need of each kind that every component has on a component when it is built, told by one of them."""
        found: dict[str, list[Edge]] = {}
        for edge in self.on_components(kind="hard"):
            if edge.at == "build":
                found.setdefault(edge.on, []).append(edge)
        return tuple(edges[-1] for edges in found.values() if len(edges) == len(self.components))

    def own(self) -> tuple[Edge, ...]:
        """The needs on other components that not every component has."""
        shared = {(edge.on, edge.at, edge.kind) for edge in self.shared}
        return tuple(edge for edge in self.on_components() if (edge.on, edge.at, edge.kind) not in shared)

    def problems(self) -> list[GraphError]:
        """Return what must not be: cycles that nothing breaks, and breaks that break nothing."""
        fatal = [_unbroken(cycle) for cycle in self.cycles if cycle.is_fatal]
        return fatal + [_useless(one) for one in self.breaks if not self._is_of_use(one)]

    def break_of(self, edge: Edge) -> Break | None:
        """Return how a stage meets this need in another way; one that names the component goes before one that does not."""
        for name in (edge.of, None):
            for one in self.breaks:
                if edge.kind == "hard" and (one.of, one.on, one.at) == (name, edge.on, edge.at):
                    return one
        return None

    def on_components(self, *, kind: Kind | None = None) -> tuple[Edge, ...]:
        """The needs on other components."""
        return tuple(edge for edge in self.edges if edge.on in self.components and kind in (None, edge.kind))

    def on_world(self) -> tuple[Edge, ...]:
        """The needs on what is no component."""
        return tuple(edge for edge in self.edges if edge.on not in self.components)

    def as_json(self) -> dict[str, Any]:
        """Return what `graph --json` prints."""
        return {
            "order": list(self.order) if not any(cycle.is_fatal for cycle in self.cycles) else None,
            "needs": [edge.__dict__ for edge in self.edges],
            "world": {word.value: word.meaning for word in World},
            "cycles": [_cycle_json(cycle) for cycle in self.cycles],
            "problems": [str(problem) for problem in self.problems()],
        }

    def _hard(self, phases: Sequence[Phase]) -> list[Edge]:
        return [edge for edge in self.on_components(kind="hard") if edge.at in phases]

    def _cycle(self, subgraph: str, members: tuple[str, ...]) -> Cycle:
        steps = [self._step(of, on) for of, on in zip(members, (*members[1:], members[0]), strict=True)]
        standing = [[edge for edge in step if self.break_of(edge) is None] for step in steps]
        left = tuple(edge for step in standing for edge in step)
        is_fatal = all(standing) and any(edge.at != "run" for edge in left)
        met = () if is_fatal else (self.break_of(edge) for step in steps for edge in step)
        return Cycle(subgraph, members, left, tuple(dict.fromkeys(one for one in met if one is not None)), is_fatal)

    def _step(self, of: str, on: str) -> list[Edge]:
        return [edge for edge in self.on_components(kind="hard") if (edge.of, edge.on) == (of, on)]

    def _is_of_use(self, one: Break) -> bool:
        return any(one in cycle.broken_by for cycle in self.cycles)

    def _obeyed(self, kinds: Sequence[Kind]) -> nx.DiGraph:
        """Return the graph of needs of `kinds` that an order can obey, from what is needed to who needs it."""
        obeyed = nx.DiGraph()
        obeyed.add_nodes_from(self.components)
        for kind, phase in itertools.product(kinds, ("boot", "run")):
            for edge in self.on_components():
                if (edge.kind, edge.at) != (kind, phase) or self.break_of(edge) is not None:
                    continue
                if not nx.has_path(obeyed, edge.of, edge.on):
                    obeyed.add_edge(edge.on, edge.of)
                elif (kind, phase) == ("hard", "boot"):
                    raise next(iter(self.problems()), GraphError(f"no order obeys this need: {edge}"))
        return obeyed


def read_graph(root: Path, breaks: tuple[Break, ...] = BREAKS) -> Graph:
    """Return the graph of the checkout `root`. Raises GraphError with the file and the key's path."""
    names = tuple(component_names(root))
    edges = [edge for name in names for edge in _edges(root, name, names)]
    return Graph(names, tuple(sorted(edges, key=lambda edge: (edge.of, edge.on, edge.at))), breaks)


def component_order(root: Path) -> list[str]:
    """Return the components of `root` in the order in which they are brought up, and replaced."""
    return list(read_graph(root).order)


def _edges(root: Path, name: str, names: Iterable[str]) -> list[Edge]:
    try:
        needs = read_component(root, name).needs
    except ComponentRefused as error:
        raise GraphError(f"apps/{name}: {error}", fix="correct that file") from error
    edges: list[Edge] = []
    for place, need in enumerate(needs):
        if need.on not in names and not need.on.startswith("world:"):
            raise _unknown(name, place, need, names)
        edges += [Edge(name, need.on, at, need.kind, need.why) for at in need.at]
    return edges


def _unknown(name: str, place: int, need: Need, names: Iterable[str]) -> GraphError:
    return GraphError(
        f"apps/{name}/component.toml: needs.{place}.on: there is no component {need.on!r}",
        why=f"components are {', '.join(names)}; what is none begins with world:",
        fix="correct that name",
    )


def _digraph(edges: Iterable[Edge]) -> nx.DiGraph:
    return nx.DiGraph([(edge.of, edge.on) for edge in edges])


def _from_least(nodes: Sequence[str]) -> tuple[str, ...]:
    """Return the ring so that it begins with its least name: the same ring is always written the same."""
    start = nodes.index(min(nodes))
    return (*nodes[start:], *nodes[:start])


def _unbroken(cycle: Cycle) -> GraphError:
    return GraphError(
        f"a cycle of hard needs that no stage breaks ({cycle.subgraph}): {cycle}",
        why="none of them can be the first. Declared are:\n" + "\n".join(f"  {edge}" for edge in cycle.standing),
        fix="let one of them start without the other and declare that need soft; "
        "or let a stage meet one of these needs in another way, and say how in blackstart/breaks.py",
    )


def _useless(one: Break) -> GraphError:
    return GraphError(
        f"blackstart/breaks.py: a break that breaks no cycle: {one.label} ({one.stage})",
        why="no cycle of hard needs goes through that need, so it would only hide the next one that does",
        fix="remove it",
    )


def _cycle_json(cycle: Cycle) -> dict[str, Any]:
    return {
        "subgraph": cycle.subgraph,
        "members": list(cycle.members),
        "fatal": cycle.is_fatal,
        "broken_by": [one.__dict__ for one in cycle.broken_by],
    }
