"""Declared equals measured: a pure comparison of `component.toml` with the matrix.

- A capability that stops although nothing declared explains it is an undeclared dependency.
- A hard need at run that does not show is declared wrongly.
- A soft need may show or not.
- Traffic and dyno restarts survive every row. Only with every router stopped no request can arrive.

When a component stops, whatever hard-needs it at run is down as well, and so on. A capability's stop is explained when
its owner, or a component that the probe must pass, is down in this sense, or when its owner declares a need at run, hard
or soft, of what was stopped.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from blackstart.model.component import Need
from blackstart.proofs.blast_radius.matrix import CAPABILITIES, RESTART, TRAFFIC, Row
from blackstart.sources import component_names, read_component

Declared = Mapping[str, Sequence[Need]]


def declared_needs(root: Path) -> dict[str, tuple[Need, ...]]:
    """Return what each component of a checkout declares."""
    return {name: read_component(root, name).needs for name in component_names(root)}


def problems(declared: Declared, rows: Iterable[Row]) -> list[str]:
    """Return in words where the declarations and the matrix disagree; empty when they agree."""
    known = list(rows)
    single = [row for row in known if len(row.stopped) == 1 and not row.on]
    found = [*_broken_without_cause(known), *_dead_survivors(known)]
    for row in single:
        found.extend(_undeclared(declared, row))
    return found + _not_shown(declared, {row.stopped[0]: row for row in single})


def needed_at_run(declared: Declared, name: str, *, hard: bool) -> set[str]:
    """Return the components that `name` needs while it runs; `hard`: only those it cannot do without."""
    needs = declared.get(name, ())
    return {
        need.on
        for need in needs
        if "run" in need.at and need.on in declared and need.on != name and (need.kind == "hard" or not hard)
    }


def down_with(declared: Declared, stopped: str) -> set[str]:
    """Return `stopped` and every component that is down with it: hard needs, through hard needs."""
    down = {stopped}
    while True:
        more = {name for name in declared if needed_at_run(declared, name, hard=True) & down} - down
        if not more:
            return down
        down |= more


def _broken_without_cause(rows: list[Row]) -> list[str]:
    """Return what does not work though nothing is stopped: then the matrix says nothing."""
    return [
        f"{name} does not work though nothing is stopped: {measured.detail}"
        for row in rows
        if not row.stopped
        for name, measured in row.capabilities.items()
        if not measured.works
    ]


def _dead_survivors(rows: list[Row]) -> list[str]:
    found = []
    for row in rows:
        every_router = "router" in row.stopped and not row.on
        for name in (RESTART,) if every_router else (TRAFFIC, RESTART):
            measured = row.capabilities.get(name)
            if row.stopped and (measured is None or not measured.works):
                detail = "not measured" if measured is None else measured.detail
                found.append(f"{name} must survive, but stops with {row.title}: {detail}")
    return found


def _undeclared(declared: Declared, row: Row) -> list[str]:
    stopped = row.stopped[0]
    down = down_with(declared, stopped)
    return [
        f"{capability.owner} does not declare that it needs {stopped} at run, but {capability.name} stops with it: "
        f"{row.capabilities[capability.name].detail}"
        for capability in CAPABILITIES
        if capability.name in row.capabilities
        and not row.capabilities[capability.name].works
        and not {capability.owner, *capability.through} & down
        and stopped not in needed_at_run(declared, capability.owner, hard=False)
        and capability.name not in (TRAFFIC, RESTART)
    ]


def _not_shown(declared: Declared, rows: Mapping[str, Row]) -> list[str]:
    found = []
    for owner in sorted(declared):
        own = [capability.name for capability in CAPABILITIES if capability.owner == owner]
        for needed in sorted(needed_at_run(declared, owner, hard=True) & set(rows)):
            cells = [rows[needed].capabilities[name] for name in own if name in rows[needed].capabilities]
            if cells and all(cell.works for cell in cells):
                found.append(f"{owner} declares a hard need of {needed} at run, but {', '.join(own)} works without it")
    return found
