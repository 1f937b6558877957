"""The matrix: which component is stopped, and which capability works then."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table

TABLE_WIDTH = 130
ENGINE = "engine"
TRAFFIC, RESTART = "traffic", "dyno restart"


@dataclass(frozen=True)
class Capability:
    """What the platform can do. `owner` is the component whose work it is (or the engine).

    `through` are the components that a probe must pass to ask for it. When one of those is down, a failure says
    nothing about the owner.
    """

    name: str
    owner: str
    through: tuple[str, ...] = ()


CAPABILITIES = (
    Capability(TRAFFIC, "router"),
    Capability(RESTART, ENGINE),
    Capability("routes", "psmgr", ("router",)),
    Capability("API reads", "api", ("router",)),
    Capability("upload", "objects", ("router",)),
    Capability("build", "compile", ("router", "api", "psmgr")),
    Capability("live output", "api", ("router", "psmgr", "compile")),
    Capability("deploy", "psmgr", ("router", "api", "compile")),
    Capability("config change", "psmgr", ("router", "api")),
    Capability("scale", "psmgr", ("router", "api")),
    Capability("one-off", "psmgr", ("router", "api")),
    Capability("commit", "postgres"),
    Capability("WAL archive", "postgres"),
)


@dataclass(frozen=True)
class Measured:
    """Whether a capability worked, after how long that was known, and what was seen."""

    works: bool
    seconds: float
    detail: str

    def as_json(self) -> dict[str, Any]:
        """Return the shape of the report."""
        return {"works": self.works, "seconds": round(self.seconds, 1), "detail": self.detail}


@dataclass(frozen=True)
class Row:
    """What worked while `stopped` were stopped; `on` names the only node where, empty: everywhere."""

    stopped: tuple[str, ...]
    capabilities: dict[str, Measured] = field(default_factory=dict)
    on: str = ""

    @property
    def title(self) -> str:
        """Return what was stopped, in words."""
        return (", ".join(self.stopped) or "nothing") + (f" on {self.on}" if self.on else "")

    def as_json(self) -> dict[str, Any]:
        """Return the shape of the report."""
        cells = {name: measured.as_json() for name, measured in self.capabilities.items()}
        return {"stopped": list(self.stopped), "on": self.on, "capabilities": cells}


def rows_from(evidence: dict[str, Any]) -> list[Row]:
    """Return the rows in the evidence of a proof, so that it can be compared with other declarations."""
    return [
        Row(tuple(raw["stopped"]), {name: Measured(**cell) for name, cell in raw["capabilities"].items()}, raw["on"])
        for raw in evidence["rows"]
    ]


def print_matrix(evidence: dict[str, Any]) -> None:
    """Print the matrix in a proof's evidence for people."""
    console = Console(highlight=False)
    console.print(drawn(rows_from(evidence)), width=max(console.width, TABLE_WIDTH))


def drawn(rows: Iterable[Row]) -> Table:
    """Return the matrix for a terminal: a row per capability, a column per stopped component."""
    rows = list(rows)
    table = Table("stopped", *(row.title.replace(", ", "\n") for row in rows), box=None, padding=(0, 1))
    for capability in CAPABILITIES:
        table.add_row(capability.name, *(_cell(row.capabilities.get(capability.name)) for row in rows))
    return table


def _cell(measured: Measured | None) -> str:
    if measured is None:
        return "-"
    return "[green]works[/green]" if measured.works else "[red]stops[/red]"
