"""From (what HAProxy has, what the table wants) to runtime commands. Pure.

Apps live in *slots*, a pool of backends that the configuration holds in advance, because HAProxy adds servers at
runtime but not backends. The order of the commands keeps every request answerable in between:
new servers, then hosts to them, then draining, then removal.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from router.table import App, Server, Table

NO_WEB = "no-web"
TLS_MARK = ":tls"
CHECK = "check inter 2s fastinter 200ms downinter 500ms fall 2 rise 1 observe layer4 error-limit 1 on-error fastinter"


@dataclass(frozen=True)
class Target:
    """A server as it should be. `peer`: the name its TLS certificate must carry; None for plain HTTP."""

    address: str
    port: int
    drain: bool = False
    peer: str | None = None


@dataclass(frozen=True)
class Live:
    """A server as HAProxy reports it. `status`: UP, DOWN, DRAIN or MAINT."""

    address: str
    port: int
    maint: bool = False
    drain: bool = False
    status: str = "UP"
    sessions: int = 0


@dataclass(frozen=True)
class Wanted:
    """What HAProxy should have: `servers[slot][name]`, `hosts[host] = backend`."""

    servers: Mapping[str, Mapping[str, Target]] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Actual:
    """What HAProxy has, in the same shape."""

    servers: Mapping[str, Mapping[str, Live]] = field(default_factory=dict)
    hosts: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Plan:
    """`changes` make the table hold; `removals` clear away servers that nothing uses any more."""

    changes: tuple[str, ...] = ()
    removals: tuple[str, ...] = ()
    waiting: bool = False  # a server to remove still has sessions

    @property
    def settled(self) -> bool:
        """Tell whether the table holds already."""
        return not self.changes


def slot_name(index: int) -> str:
    """Return the name of the backend of slot `index`."""
    return f"slot-{index:05d}"


def pool_size(apps: int, least: int = 64) -> int:
    """Return how many slots to configure for `apps`: a power of two with room for as many again."""
    size = least
    while size < 2 * apps:
        size *= 2
    return size


def assign(held: Mapping[str, str], apps: Collection[str], busy: Collection[str], size: int) -> dict[str, str] | None:
    """Return the slot of each app, or None when `size` slots are too few.

    `held` is the present assignment. An app that left keeps its slot while the slot is in `busy` (has servers), so
    that no other app's requests can reach them.
    """
    kept = {app: slot for app, slot in held.items() if app in apps or slot in busy}
    taken = set(kept.values()) | set(busy)
    free = (name for name in map(slot_name, range(size)) if name not in taken)
    for app in sorted(apps):
        if app not in kept:
            slot = next(free, None)
            if slot is None:
                return None
            kept[app] = slot
    return kept


def server_name(server: Server, app: App) -> str:
    """Return a server's name in HAProxy. Plain and TLS differ: that cannot be changed on a running server."""
    return server.id + TLS_MARK if app.tls else server.id


def server_id(name: str) -> str:
    """Return the table's id of the server that HAProxy calls `name`."""
    return name.removesuffix(TLS_MARK)


def wanted(table: Table, slots: Mapping[str, str], *, tls: bool) -> Wanted:
    """Return what `table` asks for. Without `tls` (no CA on this node) servers that speak TLS are left out."""
    usable = {name: app for name, app in table.apps.items() if tls or not app.tls}
    return Wanted(
        servers={
            slots[name]: {
                server_name(server, app): Target(
                    server.address, server.port, server.state == "drain", name if app.tls else None
                )
                for server in app.servers
            }
            for name, app in usable.items()
            if app.servers
        },
        hosts={
            host: slots[name] if name in usable and usable[name].routable else NO_WEB
            for host, name in table.hosts.items()
        },
    )


def plan(want: Wanted, have: Actual, *, map_path: str, ca: str) -> Plan:
    """Return the commands that turn `have` into `want`."""
    adds: list[str] = []
    drains: list[str] = []
    stops: list[str] = []
    removals: list[str] = []
    waiting = False
    for slot, targets in want.servers.items():
        live = have.servers.get(slot, {})
        for name, target in targets.items():
            path = f"{slot}/{name}"
            if name not in live:
                adds += _add(path, target, ca)
            else:
                adds += _readdress(path, target, live[name])
                (drains if target.drain else adds).extend(_restate(path, target, live[name]))
    for slot, servers in have.servers.items():
        for name, server in servers.items():
            if name not in want.servers.get(slot, {}):
                if not server.maint:
                    stops.append(f"set server {slot}/{name} state maint")
                if server.sessions == 0:
                    removals.append(f"del server {slot}/{name}")
                else:
                    waiting = True
    changes = adds + _map_sets(want, have, map_path) + drains + _map_deletes(want, have, map_path) + stops
    return Plan(tuple(changes), tuple(removals), waiting)


def server_options(target: Target, ca: str) -> str:
    """Return the settings of a server, the same words in the configuration and in `add server`."""
    if target.peer is None:
        return CHECK
    name = target.peer
    return f"{CHECK} check-ssl ssl verify required ca-file {ca} sni str({name}) verifyhost {name} check-sni {name}"


def endpoint(address: str, port: int) -> str:
    """Return an address as HAProxy reads it."""
    return f"ipv6@[{address}]:{port}" if ":" in address else f"{address}:{port}"


def _add(path: str, target: Target, ca: str) -> list[str]:
    return [
        f"add server {path} {endpoint(target.address, target.port)} {server_options(target, ca)}",
        f"enable health {path}",
        f"set server {path} state {'drain' if target.drain else 'ready'}",
    ]


def _readdress(path: str, target: Target, live: Live) -> list[str]:
    if (target.address, target.port) == (live.address, live.port):
        return []
    return [f"set server {path} addr {target.address} port {target.port}"]


def _restate(path: str, target: Target, live: Live) -> list[str]:
    if not live.maint and live.drain == target.drain:
        return []
    return [f"set server {path} state {'drain' if target.drain else 'ready'}"]


def _map_sets(want: Wanted, have: Actual, map_path: str) -> list[str]:
    return [
        f"{'set' if host in have.hosts else 'add'} map {map_path} {host} {backend}"
        for host, backend in want.hosts.items()
        if have.hosts.get(host) != backend
    ]


def _map_deletes(want: Wanted, have: Actual, map_path: str) -> list[str]:
    return [f"del map {map_path} {host}" for host in have.hosts if host not in want.hosts]
