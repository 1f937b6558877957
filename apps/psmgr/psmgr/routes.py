"""The routing table: which dynos answer for which host. See "The bus" in docs/how-it-works.md."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from psmgr import spec
from psmgr.desired import WantedApp, WantedRelease
from psmgr.engine import Node, Service, Task
from psmgr.plan import version_of

Table = dict[str, Any]
EMPTY: Table = {"hosts": {}, "apps": {}}


@dataclass(frozen=True)
class Ack:
    """What a router says that it has applied, and its open sessions by task id. One that stops takes no new connections."""

    version: int
    sessions: Mapping[str, int]
    stopping: bool = False

    def behind(self, version: int) -> bool:
        """Return whether a new client may reach an older table through this router."""
        return not self.stopping and self.version < version


def routing_table(
    domain: str,
    apps: Iterable[WantedApp],
    serving: Mapping[uuid.UUID, WantedRelease],
    services: Mapping[str, Iterable[Service]],
    nodes: Mapping[str, Node],
    healthy: frozenset[str],
    previous: Table,
    leaving: frozenset[str] = frozenset(),
) -> Table:
    """Return the table without its version. `serving` and `services` are by app id; `previous` is the last table.

    A dyno that was never routed does not appear in order to be drained. One that is `leaving` (a restart) is
    drained while another one serves.
    """
    hosts: dict[str, str] = {}
    found: dict[str, Any] = {}
    before = {name: routed_ids(previous, name) for name in previous["apps"]}
    for app in sorted(apps, key=lambda app: app.name):
        release = serving.get(app.id)
        if app.deleting or release is None:
            continue
        if not any(process.routed for process in release.processes) and app.name not in before:
            continue
        hosts[f"{app.name}.{domain}"] = app.name
        hosts.update(dict.fromkeys(app.hostnames, app.name))
        tls = app.component is not None and app.component.process("web").tls
        own = services.get(str(app.id), ())
        servers = _servers(app, release, own, nodes, healthy, before.get(app.name, frozenset()))
        found[app.name] = {"tls": tls, "servers": [] if app.maintenance else _spared(servers, leaving)}
    return {"hosts": dict(sorted(hosts.items())), "apps": found}


def _servers(
    app: WantedApp,
    release: WantedRelease,
    services: Iterable[Service],
    nodes: Mapping[str, Node],
    healthy: frozenset[str],
    before: frozenset[str],
) -> list[dict[str, Any]]:
    wanted = any(process.routed for process in release.processes)
    alone = {process.type for process in release.processes if process.recreate}  # the only one is the right one
    servers = []
    for service in services:
        own = service.labels.get(spec.KIND) == "process"
        if not own or not spec.is_routed(app.component, service.labels[spec.PROCESS]):
            continue
        serves = wanted and (version_of(service) == release.version or service.labels[spec.PROCESS] in alone)
        for task in service.tasks:
            server = _server(task, nodes, ready=serves and task.wanted and task.id in healthy)
            if server is not None and (server["state"] == "ready" or task.id in before):
                servers.append(server)
    return sorted(servers, key=lambda server: str(server["id"]))


def _spared(servers: list[dict[str, Any]], leaving: frozenset[str]) -> list[dict[str, Any]]:
    """Return `servers`, those `leaving` drained where another one is ready."""
    if not any(server["state"] == "ready" and server["id"] not in leaving for server in servers):
        return servers
    return [server | {"state": "drain"} if server["id"] in leaving else server for server in servers]


def _server(task: Task, nodes: Mapping[str, Node], *, ready: bool) -> dict[str, Any] | None:
    node, port = nodes.get(task.node_id), task.ports.get(spec.WEB_PORT)
    if task.phase != "running" or node is None or node.state == "down" or port is None:
        return None
    return {"id": task.id, "address": node.address, "port": port, "state": "ready" if ready else "drain"}


def routed_ids(table: Table, app: str | None = None) -> frozenset[str]:
    """Return the ids of the dynos in the table (of one app, or all)."""
    apps = table["apps"].values() if app is None else [table["apps"].get(app, {"servers": []})]
    return frozenset(server["id"] for entry in apps for server in entry["servers"])


def ready_ids(table: Table) -> frozenset[str]:
    """Return the ids of the dynos that get new requests."""
    return frozenset(
        server["id"] for entry in table["apps"].values() for server in entry["servers"] if server["state"] == "ready"
    )


def next_version(previous: int, now: float) -> int:
    """Return a version greater than any before, also where the last one is not known."""
    return max(previous + 1, int(now * 1000))


def parse_table(text: str | None) -> tuple[int, Table] | None:
    """Return the version and the table in the bus's JSON, or None where there is none that makes sense."""
    if text is None:
        return None
    try:
        raw = json.loads(text)
        table = {"hosts": dict(raw["hosts"]), "apps": dict(raw["apps"])}
        routed_ids(table)
        return int(raw["version"]), table
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def parse_ack(text: str | None) -> Ack | None:
    """Return what a router acknowledged, or None where its key is missing or makes no sense."""
    if text is None:
        return None
    try:
        raw = json.loads(text)
        sessions = {str(id_): int(server.get("sessions", 0)) for id_, server in raw.get("servers", {}).items()}
        return Ack(int(raw["version"]), sessions, bool(raw.get("stopping", False)))
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def drained(
    task_ids: frozenset[str],
    *,
    ready: frozenset[str],
    ready_at_routers: frozenset[str],
    version: int,
    acks: Iterable[Ack],
    waited_s: float,
    ack_s: float,
    drain_s: float,
) -> bool:
    """Return whether a service with these tasks may go without failing a request.

    `ready` is what should be routed, `ready_at_routers` what the published table (`version`) says. While the
    routers were not told to stop using a dyno, it stays: they may use it. A router that does not acknowledge
    holds it for `ack_s`, an open session for `drain_s`.
    """
    if task_ids & ready or task_ids & ready_at_routers:
        return False
    known = list(acks)
    if waited_s < ack_s and any(ack.version < version for ack in known):
        return False
    return waited_s >= drain_s or not any(ack.sessions.get(id_, 0) for ack in known for id_ in task_ids)
