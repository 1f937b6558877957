"""`component.toml`: what one of the platform's own apps asks beyond an ordinary app, and what it needs.

Raises `ComponentRefused` with the key's path: `processes.web.mode: 'x' is not one of replicated, global`.
"""

from __future__ import annotations

import tomllib
from enum import StrEnum
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from blackstart.model.names import NameRefused, app_name

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
    check: str | None = Field(default=None, pattern=r"^(tcp:[0-9]{1,5}|https?:[0-9]{1,5}/[A-Za-z0-9/_.-]*)$")
    proves: bool = False
    publish: tuple[Published, ...] = ()
    mounts: tuple[Literal["/var/lib/blackstart/router"], ...] = ()
    stack: Literal["run", "build"] = "run"
    tls: bool = False
    memory_mb: int = Field(default=512, ge=16)
    cpus: float = Field(default=1.0, gt=0)


class World(StrEnum):
    """What a component may need beside other components: what the world, the node and the operator hold."""

    DNS = "world:dns"
    CLOCK = "world:clock"
    CERTIFICATES = "world:certificates"
    PACKAGES = "world:packages"
    BACKUP_STORE = "world:backup-store"
    SECRET_KEY = "world:secret-key"  # noqa: S105 - a name
    CREDENTIALS = "world:credentials"
    OPERATOR_STATE = "world:operator-state"
    ENGINE = "world:engine"
    SLUG_CACHE = "world:slug-cache"
    DISK = "world:disk"

    @property
    def meaning(self) -> str:
        """What it is, in a sentence."""
        return _MEANINGS[self]


_MEANINGS: dict[World, str] = {
    World.DNS: "names outside the platform: those of package sources, and the platform's domain for its users",
    World.CLOCK: "a right time: inside the certificates' validity, and within 15 minutes of the object store's",
    World.CERTIFICATES: "the platform's CA and its leaves, on the nodes and in config vars, not expired",
    World.PACKAGES: "package sources: Debian, PyPI, npm, RubyGems, or the inventory's mirrors of them",
    World.BACKUP_STORE: "where the database's archive and base backups lie",
    World.SECRET_KEY: "the key that opens config vars in the database",
    World.CREDENTIALS: "the stores' passwords and keys and the backups' passphrase, made once by the operator's side",
    World.OPERATOR_STATE: "the operator's state folder, from which a component's first config vars come",
    World.ENGINE: "Docker Swarm: the node's daemon, and a majority of its managers",
    World.SLUG_CACHE: "the slug and the stack image on the node's own disk",
    World.DISK: "room on the node's disk, and the component's volume where it has one",
}

Phase = Literal["boot", "run", "build"]
"""boot: a dyno (re)starts on a node that had it; run: it does its work; build: it is compiled, released and first started."""


class Need(_Strict):
    """One edge of the dependency graph: `on` is a component or a word of `World`.

    hard: without it a dyno does not start (boot), does none of its work (run), no release comes about (build).
    soft: it starts, works with less, or works later.
    """

    on: str
    kind: Literal["hard", "soft"]
    at: tuple[Phase, ...] = Field(min_length=1)
    why: str = Field(min_length=1)


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
    component = load_component({**head, **raw}, newer=False)
    for place, need in enumerate(component.needs):
        _check_name(f"needs.{place}.on", need.on)
    return component


def _check_name(path: str, on: str) -> None:
    """Refuse a name that can be no component, and no word of `World`.

    Only where a file is read: a running API must take the description of a newer component that uses a newer word.
    """
    try:
        if not on.startswith("world:"):
            app_name(on)
            return
        World(on)
    except NameRefused as error:
        raise ComponentRefused(f"component.toml: {path}: {error}") from error
    except ValueError as error:
        words = ", ".join(World)
        raise ComponentRefused(f"component.toml: {path}: {on!r} is not one of {words}") from error


def load_component(value: dict[str, Any], *, newer: bool = True) -> Component:
    """Return the component in `value` (the shape stored in `apps.component`).

    What a `newer` version wrote may have keys that this one does not know: they are passed over, so that the control
    plane of before goes on while an upgrade replaces it.
    """
    try:
        return Component.model_validate(value, extra="ignore" if newer else "forbid")
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(str(part) for part in first["loc"])
        raise ComponentRefused(f"component.toml: {path}: {first['msg']}") from error
