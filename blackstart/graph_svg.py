"""The dependency graph as one self-contained SVG: `graph_svg(graph)`. It has no background and reads on light and dark.

Above, the components in the layers of their hard needs; below, what they need of the world; then what stages break.
"""

from __future__ import annotations

import itertools
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import networkx as nx
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from blackstart.graph import Edge, Graph
from blackstart.model.component import World

TEMPLATES = Path(__file__).resolve().parent.parent / "templates" / "report"

WIDTH, MARGIN = 1040, 24
BOX_WIDTH, BOX_HEIGHT = 124, 36
LAYER_HEIGHT, TOP = 118, 96
LABEL_WIDTH, ROW_HEIGHT, CELL_HEIGHT, HEXAGON = 168, 30, 20, 10
COLUMN_WIDTH = 118
LINE_HEIGHT, LINE_CHARACTERS = 17, 136
EVERY = "every component"
BOX_SLOT, BEND_SLOT = 1.0, 0.3
"""How much of a layer's width a box and a passing line get."""

LONG = 400.0
"""Boxes of one layer that are further apart are joined by an arc below the layer."""


@dataclass(frozen=True)
class Box:
    """A rectangle with a label; `x` and `y` are its middle."""

    label: str
    x: float
    y: float
    width: float = BOX_WIDTH
    height: float = BOX_HEIGHT


@dataclass(frozen=True)
class Line:
    """A curve from who needs to what is needed. `style` is the phase; `badge` the stage that meets it, in the curve's middle."""

    path: str
    style: str
    soft: bool
    title: str
    badge: str = ""
    x: float = 0
    y: float = 0


@dataclass(frozen=True)
class Cell:
    """What a component needs of a word for the world, of one kind."""

    x: float
    y: float
    width: float
    text: str
    style: str
    soft: bool
    title: str


@dataclass(frozen=True)
class Note:
    """A stage and what it meets: lines of text."""

    badge: str
    lines: list[str]
    y: float


def graph_svg(graph: Graph) -> str:
    """Return the drawing. It can stand alone or inside of an HTML page."""
    width = max(WIDTH, LABEL_WIDTH + 2 * MARGIN + COLUMN_WIDTH * len(graph.components))
    links = _links(graph)
    boxes = _boxes(graph, links, width)
    world_top = max(box.y for box in boxes.values()) + BOX_HEIGHT / 2 + 84
    notes = _notes(graph, world_top + (len(World) + 1) * ROW_HEIGHT + 44)
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("graph.svg.j2").render(
        width=width,
        height=notes[-1].y + len(notes[-1].lines) * LINE_HEIGHT + MARGIN if notes else world_top,
        margin=MARGIN,
        boxes=[box for box in boxes.values() if box.width],
        every=EVERY,
        lines=_lines(graph, links, boxes),
        world_top=world_top,
        columns=_columns(graph, width),
        rows=[
            (word.removeprefix("world:"), word.meaning, world_top + (n + 1) * ROW_HEIGHT)
            for n, word in enumerate(World)
        ],
        label_width=LABEL_WIDTH,
        hexagon=HEXAGON,
        cell_height=CELL_HEIGHT,
        cells=_cells(graph, width, world_top),
        notes=notes,
        line_height=LINE_HEIGHT,
        cycles=len(graph.cycles),
    )


# --- components ------------------------------------------------------------------------------------------------------


def _boxes(graph: Graph, links: list[_Link], width: float) -> dict[str, Box]:
    """Place the components, and the bends of lines that pass a layer: who needs above what is needed."""
    layers = [list(layer) for layer in graph.layers] + ([[EVERY]] if graph.shared else [])
    drawn = _with_bends(links, layers)
    _uncross(drawn, layers)
    boxes = {}
    for depth, names in enumerate(layers):
        y = TOP + LAYER_HEIGHT * (len(layers) - 1 - depth)
        slots = [BEND_SLOT if drawn.nodes[name].get("bend") else BOX_SLOT for name in names]
        x, stretch = float(MARGIN), (width - 2 * MARGIN) / sum(slots)
        for name, slot in zip(names, slots, strict=True):
            own = (0, 0) if slot == BEND_SLOT else (BOX_WIDTH + (20 if name == EVERY else 0), BOX_HEIGHT)
            boxes[name] = Box(name, x + slot * stretch / 2, y, *own)
            x += slot * stretch
    return boxes


def _with_bends(links: list[_Link], layers: list[list[str]]) -> nx.Graph:
    """Return what is drawn. A line that passes a layer gets a place of its own there, so that it goes behind no box."""
    depths = {name: depth for depth, layer in enumerate(layers) for name in layer}
    drawn = nx.Graph()
    drawn.add_nodes_from(depths)
    for link in links:
        down = depths[link.of] > depths[link.on]
        between = (
            range(depths[link.of] - 1, depths[link.on], -1) if down else range(depths[link.of] + 1, depths[link.on])
        )
        for depth in between:
            if link.bend(depth) not in drawn:
                drawn.add_node(link.bend(depth), bend=True)
                layers[depth].append(link.bend(depth))
        nx.add_path(drawn, [link.of, *(link.bend(depth) for depth in between), link.on])
    return drawn


def _uncross(drawn: nx.Graph, layers: list[list[str]]) -> None:
    """Swap two of a layer as long as that leaves fewer crossings, or as many and shorter lines."""
    best, better = _cost(drawn, layers), True
    while better:
        better = False
        for layer in layers:
            for one, other in itertools.combinations(range(len(layer)), 2):
                layer[one], layer[other] = layer[other], layer[one]
                cost = _cost(drawn, layers)
                if cost < best:
                    best, better = cost, True
                else:
                    layer[one], layer[other] = layer[other], layer[one]


def _cost(drawn: nx.Graph, layers: list[list[str]]) -> tuple[int, float]:
    """Return how many lines cross, and how far they go sideways."""
    places = {
        name: (depth, (n + 0.5) / len(names)) for depth, names in enumerate(layers) for n, name in enumerate(names)
    }
    lines = [sorted((places[one], places[other])) for one, other in drawn.edges]
    crossings = sum(_cross(*pair) for pair in itertools.combinations(lines, 2))
    return crossings, round(sum(abs(end[1] - start[1]) for start, end in lines), 6)


def _cross(first: list[tuple[int, float]], second: list[tuple[int, float]]) -> bool:
    """Whether two lines cross: between two layers their ends are in opposite orders, in one layer they overlap."""
    (a, b), (c, d) = first, second
    if (a[0], b[0]) != (c[0], d[0]):
        return False
    if a[0] == b[0]:
        return a[1] < c[1] < b[1] or c[1] < a[1] < d[1]
    return (a[1] - c[1]) * (b[1] - d[1]) < 0


# --- lines -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Link:
    """The needs of one kind of a component (or of every one) on another."""

    of: str
    on: str
    edges: tuple[Edge, ...]

    @property
    def style(self) -> str:
        return next(phase for phase in ("boot", "run", "build") if any(edge.at == phase for edge in self.edges))

    def bend(self, depth: int) -> str:
        """The name of the place where it passes a layer; lines between the same two pass together."""
        return "-".join((*sorted((self.of, self.on)), str(depth)))


def _links(graph: Graph) -> list[_Link]:
    found: dict[tuple[str, str, str], list[Edge]] = {}
    for edge in graph.own():
        found.setdefault((edge.of, edge.on, edge.kind), []).append(edge)
    own = [_Link(of, on, tuple(edges)) for (of, on, _), edges in found.items() if of != on]
    return own + [_Link(EVERY, edge.on, (edge,)) for edge in graph.shared]


def _lines(graph: Graph, links: list[_Link], boxes: dict[str, Box]) -> list[Line]:
    routes = {link: _route(link, boxes) for link in links}
    ports = _ports(routes)
    return [_line(graph, link, ports[link, 0], route[1:-1], ports[link, 1]) for link, route in routes.items()]


def _route(link: _Link, boxes: dict[str, Box]) -> list[Box]:
    """Return the boxes and bends that a line goes through, from end to end."""
    prefix = link.bend(0)[:-1]
    bends = [box for name, box in boxes.items() if not box.width and name.startswith(prefix)]
    of, on = boxes[link.of], boxes[link.on]
    return [of, *sorted(bends, key=lambda box: abs(box.y - of.y)), on]


Point = tuple[float, float]


def _ports(routes: dict[_Link, list[Box]]) -> dict[tuple[_Link, int], Point]:
    """Return where each line leaves (0) and ends (1): spread over the sides of the boxes, in the order of the other ends."""
    sides: dict[tuple[Box, str], list[tuple[float, int, _Link, int]]] = {}
    for number, (link, route) in enumerate(routes.items()):
        for end, (box, towards) in enumerate(((route[0], route[1]), (route[-1], route[-2]))):
            sides.setdefault((box, _side(box, towards)), []).append((towards.x, number, link, end))
    ports: dict[tuple[_Link, int], Point] = {}
    for (box, side), found in sides.items():
        for place, (_, _, link, end) in enumerate(sorted(found, key=lambda one: one[:2])):
            ports[link, end] = _point(box, side, (place + 1) / (len(found) + 1) - 0.5)
    return ports


def _side(box: Box, towards: Box) -> str:
    if towards.y != box.y:
        return "bottom" if towards.y > box.y else "top"
    if abs(towards.x - box.x) > LONG:
        return "bottom"
    return "right" if towards.x > box.x else "left"


def _point(box: Box, side: str, part: float) -> Point:
    if side in ("top", "bottom"):
        return box.x + part * box.width, box.y + box.height / 2 * (1 if side == "bottom" else -1)
    return box.x + box.width / 2 * (1 if side == "right" else -1), box.y + part * box.height


def _line(graph: Graph, link: _Link, start: Point, bends: list[Box], end: Point) -> Line:
    points = [start, *((box.x, box.y) for box in bends), end]
    level = abs(start[1] - end[1]) < BOX_HEIGHT
    path = _arc(start, end) if level else " ".join(_curve(*pair) for pair in itertools.pairwise(points))
    met = [one for one in map(graph.break_of, link.edges) if one is not None]
    middle = bends[len(bends) // 2] if bends else None
    return Line(
        f"M{start[0]:.1f},{start[1]:.1f} {path}",
        style=link.style,
        soft=link.edges[0].kind == "soft",
        title=_title(link.of, link.on, link.edges),
        badge=met[0].stage if met else "",
        x=(start[0] + end[0]) / 2 if middle is None else middle.x,
        y=(start[1] + end[1]) / 2 if middle is None else middle.y,
    )


def _curve(start: Point, end: Point) -> str:
    (x1, y1), (x2, y2) = start, end
    bend = (y2 - y1) * 0.45
    return f"C{x1:.1f},{y1 + bend:.1f} {x2:.1f},{y2 - bend:.1f} {x2:.1f},{y2:.1f}"


def _arc(start: Point, end: Point) -> str:
    """Join two of one layer: straight between neighbours, below the layer where they are far apart."""
    (x1, y1), (x2, y2) = start, end
    if abs(x2 - x1) + BOX_WIDTH <= LONG:
        return f"L{x2:.1f},{y2:.1f}"
    deep = y1 + 22 + abs(x2 - x1) * 0.04
    return f"C{x1:.1f},{deep:.1f} {x2:.1f},{deep:.1f} {x2:.1f},{y2:.1f}"


def _title(of: str, on: str, edges: Iterable[Edge]) -> str:
    return "\n".join(f"{of} needs {on} at {edge.at} ({edge.kind}): {edge.why}" for edge in edges)


# --- the world -------------------------------------------------------------------------------------------------------


def _columns(graph: Graph, width: float) -> list[tuple[str, float]]:
    """Return the components with the middle of each one's column, left to right."""
    left = MARGIN + LABEL_WIDTH
    step = (width - MARGIN - left) / max(1, len(graph.components))
    return [(name, left + step * (place + 0.5)) for place, name in enumerate(graph.components)]


def _cells(graph: Graph, width: float, top: float) -> list[Cell]:
    cells = []
    for name, x in _columns(graph, width):
        for row, word in enumerate(World):
            edges = [edge for edge in graph.on_world() if (edge.of, edge.on) == (name, word)]
            by_kind = [part for kind in ("hard", "soft") if (part := [edge for edge in edges if edge.kind == kind])]
            for place, part in enumerate(by_kind):
                cells.append(_cell(part, x + 48 * (place - (len(by_kind) - 1) / 2), top + (row + 1) * ROW_HEIGHT))
    return cells


def _cell(edges: list[Edge], x: float, y: float) -> Cell:
    text = " ".join(edge.at for edge in edges)
    style = "boot" if edges[0].at == "boot" else edges[0].at
    title = _title(edges[0].of, edges[0].on, edges)
    return Cell(x, y, 14 + 6.2 * len(text), text, style, edges[0].kind == "soft", title)


# --- what stages break -----------------------------------------------------------------------------------------------


def _notes(graph: Graph, top: float) -> list[Note]:
    notes: list[Note] = []
    y = top + 2 * LINE_HEIGHT
    for badge, text in _told(graph):
        lines = textwrap.wrap(text, LINE_CHARACTERS)
        notes.append(Note(badge, lines, y))
        y += len(lines) * LINE_HEIGHT + 10
    return notes


def _told(graph: Graph) -> list[tuple[str, str]]:
    told = [("no stage", f"BROKEN BY NOTHING: {cycle}") for cycle in graph.cycles if cycle.is_fatal]
    for one in graph.breaks:
        rings = [cycle for cycle in graph.cycles if one in cycle.broken_by]
        if rings:
            count = f"{len(rings)} cycles, such as {rings[0]}" if len(rings) > 1 else str(rings[0])
            told.append((one.stage, f"{one.label}: {one.how}. This breaks {count}."))
    return told
