"""Deciding what to do: a pure function of what should run and what runs. Doing it is elsewhere.

Level-triggered: a plan is made anew each time from what is there, so it does not matter who made the last one,
or how far it came. One call returns what can be done now; the next call, after that, returns what follows.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field

from psmgr import spec
from psmgr.desired import WantedApp, WantedProcess, WantedRelease
from psmgr.engine import Node, Service, Task

RUNS_HEALTHY_S = 2.0
PROVES_S = 10.0
CRASHES = 3
SLUG_DAMAGED = 45
SLUG_EXITS = (44, SLUG_DAMAGED)


@dataclass(frozen=True)
class Fetch:
    """Bring a slug onto the nodes that lack it."""

    slug: str


@dataclass(frozen=True)
class Create:
    """Start the service of one process type of a release."""

    release: WantedRelease
    process: WantedProcess


@dataclass(frozen=True)
class Replace:
    """Change the only service of a process type to another release, where two may not run side by side.

    One write to the engine, which does the rest alone: what is replaced may be the database that we read.
    """

    service: Service
    release: WantedRelease
    process: WantedProcess


@dataclass(frozen=True)
class Scale:
    """Change a service's number of dynos."""

    service: Service
    replicas: int


@dataclass(frozen=True)
class Drain:
    """Let the routers send nothing new to a service; it is removed when they have done so."""

    service: Service


@dataclass(frozen=True)
class Remove:
    """Remove a service."""

    service: Service


@dataclass(frozen=True)
class Succeed:
    """The release is healthy: from now on it is the one that serves."""

    release: WantedRelease


@dataclass(frozen=True)
class Fail:
    """The release cannot run; what ran before goes on."""

    release_id: uuid.UUID
    version: int
    reason: str


@dataclass(frozen=True)
class Forget:
    """Nothing of a deleted app runs any more: remove its rows and objects."""

    app_id: uuid.UUID


Action = Fetch | Create | Replace | Scale | Drain | Remove | Succeed | Fail | Forget


@dataclass(frozen=True)
class Facts:
    """What is known beside the services.

    `present`: pairs (node id, slug). `settled`: slugs whose fetch was tried on every ready node and is on some.
    `healthy`: task ids that answered. `drained`: service ids that get no requests. `overdue`: releases (ids)
    over their deadline. `taken`: names of apps whose planned routes every router uses.
    `routed`: task ids that get new requests by the last table.
    `proven`: task ids of dynos that say that they do their work (None: not known, not asked for).
    `obstacles`: slug to the reason why it cannot be fetched. `damaged`: releases (ids) whose slug the object store
    does not hold as it was made; no wait helps them.
    """

    now: float
    nodes: tuple[Node, ...] = ()
    present: frozenset[tuple[str, str]] = frozenset()
    settled: frozenset[str] = frozenset()
    healthy: frozenset[str] = frozenset()
    drained: frozenset[str] = frozenset()
    overdue: frozenset[uuid.UUID] = frozenset()
    obstacles: dict[str, str] = field(default_factory=dict)
    damaged: frozenset[uuid.UUID] = frozenset()
    boot_s: float = 60.0
    proven: frozenset[str] | None = None
    taken: frozenset[str] = frozenset()
    routed: frozenset[str] = frozenset()

    @property
    def ready(self) -> tuple[Node, ...]:
        """Return the nodes that may get dynos."""
        return tuple(node for node in self.nodes if node.state == "ready")

    def has(self, slug: str) -> bool:
        """Return whether dynos of `slug` can start."""
        nodes = self.ready
        if not nodes:
            return False
        return slug in self.settled or all((node.id, slug) in self.present for node in nodes)


def plan_app(app: WantedApp, services: Iterable[Service], facts: Facts) -> tuple[Action, ...]:
    """Return what to do for `app` now. `services` are its own (one-offs and builds among them).

    A process type that an operator holds is left as it is: nothing of it is started, changed or removed.
    """
    existing = tuple(services)
    if app.deleting:
        return tuple(Remove(service) for service in existing) or (Forget(app.id),)
    held = {service.labels[spec.PROCESS] for service in existing if spec.HELD in service.labels}
    return tuple(action for action in _actions(app, existing, facts) if _process_of(action) not in held)


def _process_of(action: Action) -> str | None:
    """Return the process type whose services `action` starts, changes or removes."""
    match action:
        case Create(_, process) | Replace(_, _, process):
            return process.type
        case Scale(service) | Drain(service) | Remove(service):
            return service.labels[spec.PROCESS]
        case _:
            return None


def _actions(app: WantedApp, existing: tuple[Service, ...], facts: Facts) -> tuple[Action, ...]:
    own = tuple(service for service in existing if service.labels.get(spec.KIND) == "process")
    actions: list[Action] = [
        Fail(id_, version, f"superseded by v{app.rolling.version}" if app.rolling is not None else "superseded")
        for id_, version in app.superseded
    ]
    if app.rolling is not None:
        reason = failure_of(app.rolling, own, facts)
        if reason is not None:
            return (*actions, Fail(app.rolling.id, app.rolling.version, reason))
    wanted: dict[tuple[str, int], tuple[WantedRelease, WantedProcess]] = {}
    for release in (app.current, app.rolling):
        if release is not None:
            wanted.update({(process.type, release.version): (release, process) for process in release.processes})
    _give_way(app, wanted, own, facts)
    actions.extend(_removals(own, wanted, facts))
    actions.extend(Fetch(slug) for slug in _missing_slugs(app, own, facts))
    actions.extend(_starts(own, wanted, facts))
    if app.rolling is not None and is_healthy(app.rolling, own, facts) and _is_served(app, app.rolling, facts):
        actions.append(Succeed(app.rolling))
    return tuple(actions)


def failure_of(release: WantedRelease, services: tuple[Service, ...], facts: Facts) -> str | None:
    """Return why the pending `release` must be given up, or None."""
    own = [service for service in services if version_of(service) == release.version]
    for service in own:
        failed = [task for task in service.tasks if task.phase == "failed" and _is_of(task, release.version)]
        crashed = [task for task in failed if task.exit_code not in SLUG_EXITS]
        # Failures that name no exit code are the engine's (no such image, a port taken): they count as well.
        if len(crashed) >= CRASHES:
            last = max(crashed, key=lambda task: task.since)
            code = "" if last.exit_code is None else f" (exit code {last.exit_code})"
            return f"{service.labels[spec.PROCESS]} crashed {len(crashed)} times{code}: {last.message}"
    exclusive = {process.type for process in release.processes if process.recreate}
    for service in services:
        had_its_turn = any(task.version == str(release.version) for task in service.tasks)
        undone = service.went_back and had_its_turn and version_of(service) < release.version
        if undone and service.labels[spec.PROCESS] in exclusive:
            return f"{service.labels[spec.PROCESS]} failed soon after its start; v{version_of(service)} runs again"
    silent = _silent(release, own, facts)
    if silent is not None:
        return f"{silent} did not listen on $PORT ({spec.WEB_PORT}) within {facts.boot_s:.0f} seconds of its start"
    if release.id in facts.damaged and not facts.has(release.slug):
        return facts.obstacles.get(release.slug, "the slug is damaged")
    if release.id not in facts.overdue or is_healthy(release, services, facts):
        return None
    return f"not healthy within the deadline: {_obstacle(release, own, facts)}"


def begun_at(release: WantedRelease, services: Iterable[Service], now: float) -> float:
    """Return when the release began to take over, as the engine knows it: a new process manager goes on counting.

    A service that is replaced in place is older than its release, and says nothing.
    """
    own = {process.type for process in release.processes if not process.recreate}
    ages = [
        service.created
        for service in services
        if service.labels.get(spec.KIND) == "process"
        and service.labels[spec.PROCESS] in own
        and version_of(service) == release.version
    ]
    return min([now, *ages])


def _silent(release: WantedRelease, services: list[Service], facts: Facts) -> str | None:
    routed = {process.type for process in release.processes if process.routed}
    for service in services:
        for task in service.tasks if service.labels[spec.PROCESS] in routed else ():
            late = facts.now - task.since > facts.boot_s
            if task.phase == "running" and task.wanted and task.id not in facts.healthy and late:
                return service.labels[spec.PROCESS]
    return None


def _obstacle(release: WantedRelease, services: list[Service], facts: Facts) -> str:
    if not facts.ready:
        return "no node is ready"
    if not facts.has(release.slug):
        return facts.obstacles.get(release.slug, "the slug is not on the nodes")
    for process in release.processes:
        service = next((s for s in services if s.labels[spec.PROCESS] == process.type), None)
        if service is None:
            return f"{process.type} was not started"
        if not _process_healthy(process, service, facts):
            waiting = [task for task in service.tasks if task.wanted and task.id not in facts.healthy]
            told = next((task.message for task in waiting if task.phase != "running" and task.message), "")
            if process.proves and not told and facts.proven is not None and waiting:
                return f"{process.type} runs, but does not say that it does its work"
            port = f" does not listen on $PORT ({spec.WEB_PORT})" if process.routed else " does not stay up"
            return f"{process.type}{port if not told else f' is not up: {told}'}"
    return "it took too long"


def serving(app: WantedApp, services: Iterable[Service], facts: Facts) -> WantedRelease | None:
    """Return the release whose dynos get requests: the new one from the moment it is healthy, until then the old one.

    A worker that fails later, or a dyno more that is asked for, does not send the requests back.
    """
    rolling = app.rolling
    if rolling is None:
        return app.current
    own = tuple(service for service in services if service.labels.get(spec.KIND) == "process")
    tasks = {task.id for service in own if version_of(service) == rolling.version for task in service.tasks}
    still = bool(tasks & facts.routed & facts.healthy)
    return rolling if still or is_healthy(rolling, own, facts) else app.current


def _is_served(app: WantedApp, release: WantedRelease, facts: Facts) -> bool:
    """Return whether routers send requests to `release`: who reads that it succeeded may ask it at once."""
    return app.name in facts.taken or not any(process.routed for process in release.processes)


def is_healthy(release: WantedRelease, services: tuple[Service, ...], facts: Facts) -> bool:
    """Return whether every dyno of `release` that should run is healthy."""
    own = {s.labels[spec.PROCESS]: s for s in services if version_of(s) == release.version}
    return all(
        process.type in own and _process_healthy(process, own[process.type], facts) for process in release.processes
    )


def _process_healthy(process: WantedProcess, service: Service, facts: Facts) -> bool:
    own = (task for task in service.tasks if task.wanted and _is_of(task, version_of(service)))
    healthy = [task for task in own if is_up(task, process.routed, facts)]
    if process.proves and facts.proven is not None:
        healthy = [task for task in healthy if task.id in facts.proven and facts.now - task.since >= PROVES_S]
    if process.recreate and service.in_change:
        return False
    if not process.everywhere:
        return len({task.slot for task in healthy}) >= process.quantity and service.replicas == process.quantity
    nodes = {node.id for node in facts.ready if not process.managers or node.role == "manager"}
    return nodes != set() and nodes <= {task.node_id for task in healthy}


def is_up(task: Task, routed: bool, facts: Facts) -> bool:
    """Return whether the dyno is healthy: a routed one answers, any other has run for two seconds."""
    if task.phase != "running":
        return False
    return task.id in facts.healthy if routed else facts.now - task.since >= RUNS_HEALTHY_S


def _is_of(task: Task, version: int) -> bool:
    return task.version in ("", str(version))


def version_of(service: Service) -> int:
    """Return the release's version that the service runs."""
    return int(service.labels[spec.VERSION])


def _key(service: Service) -> tuple[str, int]:
    return service.labels[spec.PROCESS], version_of(service)


def _give_way(
    app: WantedApp,
    wanted: dict[tuple[str, int], tuple[WantedRelease, WantedProcess]],
    services: tuple[Service, ...],
    facts: Facts,
) -> None:
    """Where old and new may not run side by side, want only one of them.

    The old one stays until all else of the new release is healthy and its slug is in place, so that a release
    which fails early costs nothing.
    """
    if app.rolling is None or app.current is None:
        return
    rolling = app.rolling
    exclusive = [process for process in rolling.processes if process.recreate]
    others = tuple(process for process in rolling.processes if not process.recreate)
    rest = WantedRelease(rolling.id, rolling.version, rolling.status, rolling.slug, rolling.stack, others)
    begun = facts.has(rolling.slug) and is_healthy(rest, services, facts)
    for process in exclusive:
        started = any(_key(service) == (process.type, rolling.version) for service in services)
        loser = app.current if begun or started else rolling
        wanted.pop((process.type, loser.version), None)


def _removals(
    services: tuple[Service, ...],
    wanted: dict[tuple[str, int], tuple[WantedRelease, WantedProcess]],
    facts: Facts,
) -> Iterable[Action]:
    replaced = _to_replace(services, wanted)
    for service in services:
        if _key(service) not in wanted and service not in replaced:
            yield Remove(service) if service.id in facts.drained else Drain(service)


def _to_replace(
    services: tuple[Service, ...], wanted: dict[tuple[str, int], tuple[WantedRelease, WantedProcess]]
) -> list[Service]:
    """Return the services to change in place: of each process type that must be alone the newest, if none is right."""
    found = []
    for key, (_, process) in wanted.items():
        same = [service for service in services if service.labels[spec.PROCESS] == process.type]
        if process.recreate and same and all(_key(service) != key for service in same):
            found.append(max(same, key=version_of))
    return found


def _missing_slugs(app: WantedApp, services: tuple[Service, ...], facts: Facts) -> list[str]:
    """Return the slugs that dynos need and nodes lack: before a service starts, and when a dyno said so."""
    existing = {_key(service): service for service in services}
    slugs: dict[str, None] = {}
    for release in (app.current, app.rolling):
        for process in () if release is None else release.processes:
            service = existing.get((process.type, release.version)) if release is not None else None
            if release is not None and (_lacks_slug(service) if service else not facts.has(release.slug)):
                slugs[release.slug] = None
    return list(slugs)


def _starts(
    services: tuple[Service, ...],
    wanted: dict[tuple[str, int], tuple[WantedRelease, WantedProcess]],
    facts: Facts,
) -> Iterable[Action]:
    existing = {_key(service): service for service in services}
    for key, (release, process) in wanted.items():
        service = existing.get(key)
        if service is not None:
            if service.replicas is not None and service.replicas != process.quantity:
                yield Scale(service, process.quantity)
            continue
        if not facts.has(release.slug):
            continue
        same = [other for other in services if other.labels[spec.PROCESS] == process.type]
        if process.recreate and same:
            if len(same) == 1:
                yield Replace(same[0], release, process)
            continue
        yield Create(release, process)


def _lacks_slug(service: Service) -> bool:
    newest: dict[tuple[int, str], Task] = {}
    for task in sorted(service.tasks, key=lambda task: task.since):
        newest[task.slot, task.node_id] = task
    return any(task.phase == "failed" and task.exit_code in SLUG_EXITS for task in newest.values())
