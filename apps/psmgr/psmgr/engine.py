"""What the process manager asks of a scheduler, and what it sees of it. No scheduler's own words pass this page.

Errors: every method raises `EngineUnavailable` when the scheduler does not answer in time, `EngineRefused` when it
answers no.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Literal, Protocol

Mode = Literal["replicated", "global", "job", "global-job"]
TaskPhase = Literal["starting", "running", "complete", "failed", "stopped"]


class EngineError(Exception):
    """The root of the engine's errors."""


class EngineUnavailable(EngineError):
    """The engine did not answer (in time). Whether a write took effect is unknown: look again."""


class EngineRefused(EngineError):
    """The engine answered no. The message is its reason."""


class NameTaken(EngineRefused):
    """A service of this name exists already."""


@dataclass(frozen=True)
class Mount:
    """A path of the node (`bind`) or a named volume, shown in a dyno at `target`."""

    source: str
    target: str
    kind: Literal["bind", "volume"] = "bind"
    read_only: bool = True


@dataclass(frozen=True)
class Port:
    """A port published on the dyno's own node; `published` 0 lets the engine pick one."""

    target: int
    published: int = 0


@dataclass(frozen=True)
class Limits:
    """Hard limits of one dyno, and the memory set aside for it."""

    memory_mb: int
    cpus: float
    pids: int
    reserved_memory_mb: int = 0


@dataclass(frozen=True)
class ServiceSpec:
    """A service to run: the same whoever computes it. `restart_delay_s` None means that it is never restarted.

    `replaceable`: it is changed in place by `Engine.replace`, the old dyno stopped before the new one starts; where the
    new one fails soon, the engine goes back by itself.
    `check` is a command that the engine runs inside of the dyno: until it succeeds the dyno is starting, not running; when it
    does not within a minute, or fails later for half a minute, the dyno has failed.
    `network` is None (the node's own bridge), `host`, or the name of a network over all nodes, where `alias` names it.
    """

    name: str
    labels: Mapping[str, str]
    image: str
    command: tuple[str, ...]
    env: Mapping[str, str]
    limits: Limits
    mode: Mode = "replicated"
    replicas: int = 1
    network: str | None = None
    alias: str | None = None
    ports: tuple[Port, ...] = ()
    mounts: tuple[Mount, ...] = ()
    constraints: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    capabilities: tuple[str, ...] = ()
    restart_delay_s: int | None = None
    stop_grace_s: int = 30
    replaceable: bool = False
    check: tuple[str, ...] = ()


@dataclass(frozen=True)
class Node:
    """A machine of the engine."""

    id: str
    name: str
    address: str
    role: Literal["manager", "worker"]
    state: Literal["ready", "down", "drained"]


@dataclass(frozen=True)
class Task:
    """One run of one dyno. `since` is the unix time at which its phase began; `wanted` is false when it must end.

    `addresses` are its own on networks over all nodes; `ports` maps a container port to the node's. `version` is its
    release's; its service's differs while a replacement goes on. `container` names it on its own node.
    """

    id: str
    slot: int
    node_id: str
    phase: TaskPhase
    wanted: bool = True
    since: float = 0.0
    exit_code: int | None = None
    message: str = ""
    ports: Mapping[int, int] = field(default_factory=dict)
    addresses: tuple[str, ...] = ()
    version: str = ""
    container: str = ""


@dataclass(frozen=True)
class Service:
    """A service that exists. `replicas` is None where it runs once on every node.

    `went_back`: the engine undid the last replacement, because the new dyno failed. `in_change`: it still looks whether it must.
    """

    id: str
    name: str
    labels: Mapping[str, str]
    mode: Mode
    replicas: int | None
    created: float
    tasks: tuple[Task, ...] = ()
    went_back: bool = False
    in_change: bool = False


class Engine(Protocol):
    """The scheduler below us."""

    def nodes(self) -> list[Node]:
        """Return every machine."""

    def services(self, platform: str) -> list[Service]:
        """Return every service of `platform` with its tasks."""

    def create(self, spec: ServiceSpec) -> str:
        """Start a service; return its id. Raises NameTaken."""

    def scale(self, service_id: str, replicas: int) -> None:
        """Change the number of dynos; running ones are not replaced."""

    def replace(self, service_id: str, spec: ServiceSpec) -> None:
        """Change a service to `spec` (but for its name) in one write: old dyno out, new one in, back if it fails.

        It needs nobody after that write: the database itself can be replaced by it.
        """

    def remove(self, service_id: str) -> None:
        """Stop and forget a service. One that is gone already is no error."""

    def ensure_network(self, name: str, mtu: int | None) -> None:
        """Make the network over all nodes when it is missing."""

    def log(self, service_id: str) -> bytes:
        """Return what the service has printed so far."""

    def follow(self, service_id: str) -> Iterator[bytes]:
        """Yield what the service has printed and prints from now on. May end early, may never end."""

    def events(self) -> Iterator[None]:
        """Yield whenever something changed. A hint only."""
