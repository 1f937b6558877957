"""`component.toml`: what one of the platform's own apps asks beyond an ordinary app, and what it needs.

Raises `ComponentRefused` with the key's path: `processes.web.mode: 'x' is not one of replicated, global`.
"""

from __future__ import annotations

import tomllib
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

ALLOWED_MOUNTS = ("/var/lib/blackstart/router",)


class ComponentRefused(ValueError):
    """A component.toml is not valid."""


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Published(_Strict):
    """A fixed port: `target` in the dyno, `port` on the node."""

    target: int = Field(ge=1, le=65535)
    port: int = Field(ge=1, le=65535)


class Process(_Strict):
    """How the dynos of one process type run."""

    quantity: int = Field(default=0, ge=0, le=100)
    mode: Literal["replicated", "global"] = "replicated"
    network: Literal["platform", "host"] = "platform"
    alias: str | None = None
    volume: bool = False
    strategy: Literal["rolling", "recreate"] = "rolling"
    managers: bool = False
    engine_socket: bool = False
    publish: tuple[Published, ...] = ()
    mounts: tuple[Literal["/var/lib/blackstart/router"], ...] = ()
    stack: Literal["run", "build"] = "run"
    tls: bool = False
    memory_mb: int = Field(default=512, ge=16)
    cpus: float = Field(default=1.0, gt=0)


class Need(_Strict):
    """One edge of the dependency graph."""

    on: str
    kind: Literal["hard", "soft"]
    at: tuple[Literal["boot", "run", "build"], ...]
    why: str


class Component(_Strict):
    """A whole component.toml."""

    name: str
    library: tuple[str, ...] = ()
    processes: dict[str, Process] = {}
    needs: tuple[Need, ...] = ()

    def process(self, type_: str) -> Process:
        """Return how `type_` runs; the default for a process that the file does not name."""
        return self.processes.get(type_, Process())


def parse_component(text: str) -> Component:
    """Return the component described by the TOML `text`."""
    try:
        raw: dict[str, Any] = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ComponentRefused(f"component.toml is not TOML: {error}") from error
    head = raw.pop("component", {})
    return load_component({**head, **raw})


def load_component(value: dict[str, Any]) -> Component:
    """Return the component in `value` (the shape stored in `apps.component`)."""
    try:
        return Component.model_validate(value)
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ComponentRefused(f"component.toml: {path}: {first['msg']}") from error
