"""Measuring the rows: stop, probe, put back, wait until all is up again."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import httpx

from blackstart import hold, observe
from blackstart.client import Client, wait_for
from blackstart.errors import BlackstartError, PlatformError
from blackstart.inventory import Host
from blackstart.load import Load
from blackstart.proofs.blast_radius.matrix import TRAFFIC, Measured, Row
from blackstart.proofs.blast_radius.probes import carry_out
from blackstart.proofs.blast_radius.scene import LEAST_SECONDS, SLOWER, Scene, running_containers
from blackstart.proofs.blast_radius.subjects import Subjects
from blackstart.remote import Remote
from blackstart.run import Run

CONTROL_PLANE = ("api", "psmgr", "postgres", "bus", "objects")
COMPILER = "compile"
CALL_SECONDS = 10.0
LOOK_SECONDS = 0.2
PAUSE_SECONDS = 0.2
STOPPED_SECONDS = 90.0
UP_SECONDS = 180.0


@dataclass(frozen=True)
class Planned:
    """A row to measure: `on` is the only node where `stopped` are stopped, None: everywhere."""

    stopped: tuple[str, ...] = ()
    on: Host | None = None


def planned_rows(nodes: Sequence[Host]) -> tuple[Planned, ...]:
    """Return the rows, the one with nothing stopped first, those that stop most of the control plane last."""
    one_router = (Planned(("router",), nodes[-1]),) if len(nodes) > 1 else ()
    single = tuple(Planned((name,)) for name in ("router", "compile", "objects", "bus", "api", "postgres", "psmgr"))
    return (Planned(), *one_router, *single, Planned(CONTROL_PLANE))


@dataclass(frozen=True)
class Stage:
    """What all rows share."""

    run: Run
    remotes: Mapping[str, Remote]
    subjects: Subjects
    log: Callable[[str], None]

    @property
    def nodes(self) -> tuple[Host, ...]:
        """Return the nodes."""
        return self.run.platform.inventory.nodes

    @property
    def manager(self) -> Remote:
        """Return a manager of the engine."""
        return self.remotes[self.run.platform.managers[0].name]


def measured_row(stage: Stage, planned: Planned, number: int, patience: Mapping[str, float]) -> Row:
    """Stop what is planned, measure every capability, put back what was stopped and wait until all is up."""
    entry, routers = _open_routers(stage.nodes, planned)
    store_seconds = patience.get("upload", CALL_SECONDS)
    client = observe.node_client(stage.run.platform, entry, seconds=CALL_SECONDS, store_seconds=store_seconds)
    put_url = client.call("POST", "/sources")["source_blob"]["put_url"]
    scene = Scene(stage.run.platform, stage.remotes, stage.subjects, number, entry, client, put_url, patience)
    row = Row(planned.stopped, scene.cells, planned.on.name if planned.on is not None else "")
    addresses = tuple(node.address for node in routers)
    load = Load(stage.run.platform, stage.subjects.steady, addresses=addresses, pause=PAUSE_SECONDS)
    began = time.monotonic()
    builds = builds_killed(stage.remotes) if COMPILER in planned.stopped else contextlib.nullcontext()
    with contextlib.closing(scene), builds, load:
        try:
            _stop(stage, planned)
            stopped_after = time.monotonic() - began
            scene.started = time.monotonic()
            carry_out(scene)
            measured_after = time.monotonic() - began
        finally:
            hold.release(stage.manager, stage.run.platform.name)
        wait_until_up(stage)
    scene.cells[TRAFFIC] = answered(load, time.monotonic() - began)
    stage.log(
        f"{row.title} stopped in {stopped_after:.0f} s, measured after {measured_after:.0f} s, all up again after "
        f"{time.monotonic() - began:.0f} s: {_summary(scene.cells)}"
    )
    return row


def answered(load: Load, seconds: float) -> Measured:
    """Return what became of the requests so far: traffic works when each was answered."""
    failures = load.failures
    text = f"{sum(load.answers.values())} requests, {sum(failures.values())} failed"
    first = next(iter(failures), None)
    return Measured(not failures and bool(load.answers), seconds, text if first is None else f"{text}: {first}")


def _open_routers(nodes: Sequence[Host], planned: Planned) -> tuple[Host, tuple[Host, ...]]:
    """Return the node to ask through, and those whose routers must serve: all, where every router is stopped."""
    running = tuple(node for node in nodes if "router" not in planned.stopped or planned.on not in (None, node))
    return (running or tuple(nodes))[0], running or tuple(nodes)


def _stop(stage: Stage, planned: Planned) -> None:
    """Hold every component of the row, and wait until no container of it runs."""
    name = stage.run.platform.name
    node_id = None if planned.on is None else _node_id(stage.remotes[planned.on.name])
    for component in planned.stopped:
        hold.hold(stage.manager, name, component, node_id=node_id)
    where = {planned.on.name: stage.remotes[planned.on.name]} if planned.on is not None else stage.remotes
    for component in planned.stopped:
        wait_for(partial(_none_runs, where, component), f"{component} to stop", seconds=STOPPED_SECONDS)


@contextlib.contextmanager
def builds_killed(remotes: Mapping[str, Remote]) -> Iterator[None]:
    """Kill each build's dyno as soon as it starts: the compiler has no other, so there is nothing to hold."""
    stop = threading.Event()
    threads = [threading.Thread(target=_kill_builds, args=(remote, stop), daemon=True) for remote in remotes.values()]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join(CALL_SECONDS)


def _kill_builds(remote: Remote, stop: threading.Event) -> None:
    while not stop.wait(LOOK_SECONDS):
        with contextlib.suppress(BlackstartError):
            ids = remote.check(["docker", "ps", "--quiet", "--filter", "label=blackstart.kind=build"]).split()
            if ids:
                remote.run(["docker", "kill", *ids])


def _none_runs(remotes: Mapping[str, Remote], component: str) -> bool:
    left = running_containers(remotes, component)
    if left:
        raise PlatformError(f"{len(left)} containers of {component} still run")
    return True


def _node_id(remote: Remote) -> str:
    return remote.check(["docker", "info", "--format", "{{.Swarm.NodeID}}"]).strip()


def patience_of(row: Row) -> dict[str, float]:
    """Return how long each capability may take, from what it took with nothing stopped."""
    return {name: LEAST_SECONDS + SLOWER * cell.seconds for name, cell in row.capabilities.items()}


def wait_until_up(stage: Stage) -> None:
    """Wait until the engine runs every dyno, every router serves, and what the row asked for is carried out."""
    hold.wait_until_up(stage.run.platform)
    with observe.answering_client(stage.run.platform) as client:
        for app in stage.subjects.names:
            wait_for(partial(_settled, client, app), f"{app} to settle", seconds=UP_SECONDS)
    for node in stage.nodes:
        for app in stage.subjects.names:
            wait_for(partial(_serves, stage, node, app), f"{app} through {node.name}", seconds=UP_SECONDS)


def _settled(client: Client, app: str) -> bool:
    """Whether nothing that was asked of `app` is still to be carried out. Raises PlatformError."""
    for what in ("builds", "releases"):
        if any(one["status"] == "pending" for one in client.call("GET", f"/apps/{app}/{what}")):
            raise PlatformError(f"{app}: a pending one of its {what}")
    dynos = client.call("GET", f"/apps/{app}/dynos")
    for formation in client.call("GET", f"/apps/{app}/formation"):
        up = sum(1 for dyno in dynos if dyno["type"] == formation["type"] and dyno["state"] == "up")
        if up != formation["quantity"]:
            raise PlatformError(f"{app}: {up} of {formation['quantity']} {formation['type']} dynos are up")
    if any(dyno["type"] == "run" for dyno in dynos):
        raise PlatformError(f"{app}: a one-off still runs")
    return True


def _serves(stage: Stage, node: Host, app: str) -> bool:
    headers = {"Host": f"{app}.{stage.run.platform.domain}"}
    try:
        code = httpx.get(f"http://{node.address}/", headers=headers, timeout=5, trust_env=False).status_code
    except httpx.HTTPError as error:
        raise PlatformError(f"{node.name} does not answer for {app}", why=type(error).__name__) from error
    if code != 200:
        raise PlatformError(f"{node.name} answers {code} for {app}")
    return True


def _summary(cells: Mapping[str, Measured]) -> str:
    stops = [name for name, cell in cells.items() if not cell.works]
    outcome = f"stops: {', '.join(stops)}" if stops else "all works"
    return f"{outcome} ({cells[TRAFFIC].detail})"


@contextlib.contextmanager
def nothing_held(run: Run) -> Iterator[None]:
    """Release every hold at the end, whatever happens; also what an earlier, killed run left, at the start."""
    hold.release_all(run.platform)
    try:
        yield
    finally:
        hold.release_all(run.platform)
