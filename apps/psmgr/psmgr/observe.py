"""What runs, written to the database for `api` to show. Only what changed is written."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from blackstart.model.tables import Dyno, now
from blackstart.model.tables import Node as NodeRow
from psmgr import spec
from psmgr.desired import WantedApp, WantedRelease
from psmgr.engine import Node, Service, Task
from psmgr.plan import Facts, is_up, version_of


@dataclass(frozen=True)
class Seen:
    """A dyno as it is."""

    app_id: uuid.UUID
    name: str
    release_id: uuid.UUID
    type: str
    command: str
    size: str
    state: str
    node: str | None
    task: str | None
    port: int | None = None


def seen_dynos(app: WantedApp, serving: WantedRelease | None, services: Iterable[Service], facts: Facts) -> list[Seen]:
    """Return the dynos of what serves, and of what takes over where nothing serves yet."""
    release = serving or app.rolling
    if release is None or app.deleting:
        return []
    names = {node.id: node.name for node in facts.nodes}
    seen: dict[str, Seen] = {}
    wanted = {process.type: process for process in release.processes}
    for service in services:
        if service.labels.get(spec.KIND) != "process" or version_of(service) != release.version:
            continue
        process = wanted.get(service.labels[spec.PROCESS])
        if process is None:
            continue
        for key, task in newest_tasks(service).items():
            number = names.get(task.node_id, "") if process.everywhere else str(key[0])
            name = f"{process.type}.{number}"[:40]
            seen[name] = Seen(
                app_id=app.id,
                name=name,
                release_id=release.id,
                type=process.type,
                command=process.command,
                size=process.size,
                state=dyno_state(task, process.routed, facts),
                node=names.get(task.node_id),
                task=task.id,
                port=task.ports.get(spec.WEB_PORT),
            )
    return list(seen.values())


def newest_tasks(service: Service) -> dict[tuple[int, str], Task]:
    """Return the newest task of each slot (of each node where it runs everywhere), those wanted before others."""
    newest: dict[tuple[int, str], Task] = {}
    for task in sorted(service.tasks, key=lambda task: (task.wanted, task.since)):
        newest[(task.slot, "" if service.mode == "replicated" else task.node_id)] = task
    return {key: task for key, task in newest.items() if task.wanted or task.phase == "failed"}


def dyno_state(task: Task, routed: bool, facts: Facts) -> str:
    """Return a dyno's state in Heroku's words."""
    if task.phase == "running":
        return "up" if is_up(task, routed, facts) else "starting"
    if task.phase == "starting":
        return "starting"
    return "crashed" if task.phase == "failed" else "down"


class Ports:
    """Where routed dynos listen. The engine says it once, and forgets it when another of its managers leads (tried)."""

    def __init__(self) -> None:
        self._known: dict[str, int] | None = None

    def complete(self, services: Iterable[Service], session: Session) -> tuple[Service, ...]:
        """Return `services` with the ports that the engine forgot, from memory or from the database."""
        if self._known is None:
            rows = session.execute(select(Dyno.task, Dyno.port).where(Dyno.task.is_not(None), Dyno.port.is_not(None)))
            self._known = {task: port for task, port in rows if task is not None and port is not None}
        completed = tuple(replace(each, tasks=tuple(self._task(task) for task in each.tasks)) for each in services)
        there = {task.id: task.ports.get(spec.WEB_PORT) for service in completed for task in service.tasks}
        self._known = {id_: port for id_, port in there.items() if port is not None}
        return completed

    def _task(self, task: Task) -> Task:
        known = (self._known or {}).get(task.id)
        if known is None or task.phase != "running" or spec.WEB_PORT in task.ports:
            return task
        return replace(task, ports={**task.ports, spec.WEB_PORT: known})


class Observer:
    """Writes what was seen, and remembers it, so that an unchanged world costs no write."""

    def __init__(self) -> None:
        self._dynos: dict[tuple[uuid.UUID, str], Seen] | None = None
        self._nodes: dict[str, Node] | None = None

    def dynos_changed(self, seen: Iterable[Seen]) -> bool:
        """Return whether the dynos differ from those written last."""
        return self._dynos != {(dyno.app_id, dyno.name): dyno for dyno in seen}

    def write_dynos(self, session: Session, seen: Iterable[Seen]) -> None:
        """Make the rows of dynos that are no one-offs equal to `seen`."""
        wanted = {(dyno.app_id, dyno.name): dyno for dyno in seen}
        rows = {}
        for row in session.scalars(select(Dyno).where(~Dyno.one_off)):
            if (row.app_id, row.name) in rows or (row.app_id, row.name) not in wanted:
                session.delete(row)
            else:
                rows[row.app_id, row.name] = row
        for key, dyno in wanted.items():
            row = rows.get(key) or Dyno(app_id=dyno.app_id, name=dyno.name)
            changes = {
                "release_id": dyno.release_id,
                "type": dyno.type,
                "command": dyno.command,
                "size": dyno.size,
                "state": dyno.state,
                "node": dyno.node,
                "task": dyno.task,
                "port": dyno.port,
            }
            if row.stop_requested and row.task != dyno.task:
                row.stop_requested = False  # another run of the dyno: what was asked is done
            for field, value in changes.items():
                if getattr(row, field) != value:
                    setattr(row, field, value)
            session.add(row)
        session.flush()

    def remember_dynos(self, seen: Iterable[Seen]) -> None:
        """Remember what was written and committed."""
        self._dynos = {(dyno.app_id, dyno.name): dyno for dyno in seen}

    def nodes_changed(self, nodes: Mapping[str, Node]) -> bool:
        """Return whether the nodes differ from those written last."""
        return self._nodes != dict(nodes)

    def write_nodes(self, session: Session, nodes: Mapping[str, Node]) -> None:
        """Make the rows of nodes equal to `nodes` (by name)."""
        rows = {row.name: row for row in session.scalars(select(NodeRow))}
        session.execute(delete(NodeRow).where(NodeRow.name.not_in(nodes)))
        for name, node in nodes.items():
            row = rows.get(name) or NodeRow(name=name)
            row.address, row.role, row.state = node.address, node.role, node.state
            row.seen_at = now()
            session.add(row)
        session.flush()

    def remember_nodes(self, nodes: Mapping[str, Node]) -> None:
        """Remember what was written and committed."""
        self._nodes = dict(nodes)
