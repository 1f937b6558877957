"""The routing table: what `psmgr` publishes, parsed and checked. Pure.

Shape (docs/how-it-works.md):
`{"version": n, "hosts": {host: app}, "apps": {app: {"tls": bool, "servers": [{"id", "address", "port", "state"}]}}}`.
Keys that are not known are ignored, so that a newer `psmgr` may add some. Everything that ends in a command to
HAProxy is checked against a grammar here; nothing else is ever quoted or escaped later.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from blackstart.model import names

SERVER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")
State = Literal["ready", "drain"]


class TableRefused(ValueError):
    """The text is no routing table. The message starts with the path of the key that is wrong."""


class TableOutdated(TableRefused):
    """The table is older than the one in use."""


@dataclass(frozen=True)
class Server:
    """One web dyno: where it listens, and whether it gets new requests (`ready`) or only finishes old ones (`drain`)."""

    id: str
    address: str
    port: int
    state: State = "ready"


@dataclass(frozen=True)
class App:
    """The web dynos of one app. `tls`: they speak TLS and show a certificate for the app's name."""

    tls: bool = False
    servers: tuple[Server, ...] = ()

    @property
    def routable(self) -> bool:
        """Tell whether any dyno may get a new request."""
        return any(server.state == "ready" for server in self.servers)


@dataclass(frozen=True)
class Table:
    """A whole routing table."""

    version: int = 0
    hosts: Mapping[str, str] = field(default_factory=dict)
    apps: Mapping[str, App] = field(default_factory=dict)


EMPTY = Table()


def parse(text: str) -> Table:
    """Return the table in the JSON `text`, or raise `TableRefused`."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise TableRefused(f"not JSON: {error}") from error
    root = _object(value, "table")
    return Table(
        version=_integer(root.get("version"), "version", 1, 2**63 - 1),
        hosts={
            _host(host): _app_name(app, f"hosts.{host}") for host, app in _object(root.get("hosts"), "hosts").items()
        },
        apps={
            _app_name(name, "apps"): _app(app, f"apps.{name}")
            for name, app in _object(root.get("apps"), "apps").items()
        },
    )


def successor(current: Table, text: str) -> Table:
    """Return the table in `text` when it may follow `current`; raise `TableOutdated` when it is older."""
    table = parse(text)
    if table.version < current.version:
        raise TableOutdated(f"version: {table.version} is older than {current.version}, which is in use")
    return table


def dump(table: Table) -> str:
    """Return `table` as JSON that `parse` reads back."""
    return json.dumps(
        {
            "version": table.version,
            "hosts": dict(table.hosts),
            "apps": {
                name: {"tls": app.tls, "servers": [vars(server) for server in app.servers]}
                for name, app in table.apps.items()
            },
        },
        sort_keys=True,
    )


def _app(value: object, path: str) -> App:
    raw = _object(value, path)
    servers = raw.get("servers", [])
    if not isinstance(servers, list):
        raise TableRefused(f"{path}.servers: not a list")
    parsed = tuple(_server(server, f"{path}.servers[{index}]") for index, server in enumerate(servers))
    if len({server.id for server in parsed}) != len(parsed):
        raise TableRefused(f"{path}.servers: an id occurs twice")
    tls = raw.get("tls", False)
    if not isinstance(tls, bool):
        raise TableRefused(f"{path}.tls: not true or false")
    return App(tls=tls, servers=parsed)


def _server(value: object, path: str) -> Server:
    raw = _object(value, path)
    identity, address, state = raw.get("id"), raw.get("address"), raw.get("state")
    if not isinstance(identity, str) or SERVER_ID.fullmatch(identity) is None:
        raise TableRefused(f"{path}.id: not 1 to 64 letters, digits, '_', '.' or '-'")
    if not isinstance(address, str):
        raise TableRefused(f"{path}.address: not an IP address")
    try:
        address = str(ipaddress.ip_address(address))
    except ValueError as error:
        raise TableRefused(f"{path}.address: not an IP address") from error
    if state not in ("ready", "drain"):
        raise TableRefused(f"{path}.state: not 'ready' or 'drain'")
    port = _integer(raw.get("port"), f"{path}.port", 1, 65535)
    return Server(identity, address, port, "ready" if state == "ready" else "drain")


def _host(value: str) -> str:
    if value != value.lower() or names.DOMAIN.fullmatch(value) is None:
        raise TableRefused(f"hosts: {value[:80]!r} is not a host name in lower case")
    return value


def _app_name(value: object, path: str) -> str:
    if not isinstance(value, str) or names.APP.fullmatch(value) is None:
        raise TableRefused(f"{path}: {str(value)[:80]!r} is not an app's name")
    return value


def _object(value: object, path: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TableRefused(f"{path}: not an object")
    return value


def _integer(value: object, path: str, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        raise TableRefused(f"{path}: not a whole number from {low} to {high}")
    return value
