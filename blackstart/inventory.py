"""Inventories as pyinfra reads them: a Python file whose top-level lists are groups, and group_data beside it.

Blackstart uses the groups `stage0` (one host) and `runtime` (1 to 9 hosts).
"""

from __future__ import annotations

import runpy
import sys
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

from blackstart.errors import BlackstartError, InventoryError
from blackstart.settings import HostSettings, checked_ssh, host_settings

STAGE0 = "stage0"
RUNTIME = "runtime"
MAX_RUNTIME = 9


@dataclass(frozen=True)
class Host:
    """One host of the inventory."""

    name: str
    group: str
    settings: HostSettings
    ssh: dict[str, Any]

    @property
    def address(self) -> str:
        """The host's address for the other machines."""
        return self.settings.address


@dataclass(frozen=True)
class Inventory:
    """All hosts. `path` is the file it came from."""

    path: Path
    hosts: tuple[Host, ...]

    def group(self, name: str) -> tuple[Host, ...]:
        """Return the hosts of a group."""
        return tuple(host for host in self.hosts if host.group == name)

    @property
    def stage0(self) -> Host:
        """The stage-0 machine."""
        return self.group(STAGE0)[0]

    @property
    def nodes(self) -> tuple[Host, ...]:
        """The machines that the platform stays on."""
        return self.group(RUNTIME)

    @property
    def platform(self) -> str:
        """The platform's name."""
        return self.hosts[0].settings.platform

    @property
    def domain(self) -> str:
        """The platform's domain."""
        return self.hosts[0].settings.domain


def load_inventory(path: Path) -> Inventory:
    """Return the checked inventory in `path`. Raises InventoryError."""
    if not path.is_file():
        raise InventoryError(f"there is no inventory {path}", fix="name an existing file with --inventory")
    groups = {name: value for name, value in _run(path).items() if _is_group(name, value)}
    raw: list[tuple[str, str, dict[str, Any]]] = []
    for group in (STAGE0, RUNTIME):
        if group not in groups:
            raise InventoryError(
                f"{path}: group {group} is missing", fix=f"add a list named {group}; see inventories/prod.py"
            )
        for entry in groups[group]:
            name, data = _entry(path, group, entry)
            raw.append((str(name), group, {**_group_data(path, "all"), **_group_data(path, group), **data}))
    return checked_inventory(path, raw)


def _entry(path: Path, group: str, entry: object) -> tuple[str, dict[str, Any]]:
    """Return name and data of a host as pyinfra takes it: `"name"` or `("name", {data})`. Raises InventoryError."""
    match entry:
        case str() as name:
            return name, {}
        case (str() as name, dict() as data) if isinstance(entry, tuple):
            return name, data
        case _:
            raise InventoryError(
                f"{path}: group {group} has a host that is not understood: {entry!r}",
                fix='write "name", or ("name", {"address": "192.0.2.10"}) with the host\'s data; see inventories/prod.py',
            )


def checked_inventory(path: Path, raw: list[tuple[str, str, dict[str, Any]]]) -> Inventory:
    """Return the inventory of (host, group, data) triples, checked as a whole."""
    hosts = []
    for name, group, data in raw:
        ssh = checked_ssh(name, data)
        own = {"address": str(ssh.get("ssh_hostname", name)), **data}
        hosts.append(Host(name=name, group=group, settings=host_settings(name, own), ssh=ssh))
    inventory = Inventory(path=path, hosts=tuple(hosts))
    _check_groups(inventory)
    _check_same(inventory)
    _check_networks(inventory)
    return inventory


def _check_groups(inventory: Inventory) -> None:
    stage0, nodes = len(inventory.group(STAGE0)), len(inventory.nodes)
    if stage0 != 1:
        raise InventoryError(
            f"{inventory.path}: group {STAGE0} has {stage0} hosts",
            why="it takes exactly one",
            fix=f"name one host in the list {STAGE0}: it is wiped at the end, so it cannot also be a node",
        )
    if not 1 <= nodes <= MAX_RUNTIME:
        raise InventoryError(
            f"{inventory.path}: group {RUNTIME} has {nodes} hosts",
            why=f"it takes 1 to {MAX_RUNTIME}",
            fix=f"name the platform's nodes in the list {RUNTIME}; three survive the loss of one",
        )
    for kind in ("name", "address"):
        values = [getattr(host, kind) for host in inventory.hosts]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise InventoryError(f"{inventory.path}: {kind} {twice[0]} is there twice", fix="each host has its own")


def _check_same(inventory: Inventory) -> None:
    """Data that describe the platform must not differ between its hosts."""
    first = inventory.hosts[0]
    for key in ("platform", "domain", "engine_address_pool"):
        for host in inventory.hosts[1:]:
            mine, theirs = getattr(host.settings, key), getattr(first.settings, key)
            if mine != theirs:
                raise InventoryError(
                    f"{inventory.path}: {host.name}: data.{key} is {mine!r}, but {theirs!r} on {first.name}",
                    fix="set it once, in group_data/all.py",
                )


def _check_networks(inventory: Inventory) -> None:
    """The networks that the platform makes for itself must hold no host's address, nor each other."""
    for host in inventory.hosts:
        pool = ip_network(host.settings.engine_address_pool)
        bridge = ip_network(host.settings.dyno_network)
        if pool.overlaps(bridge):
            raise InventoryError(
                f"{inventory.path}: {host.name}: data.dyno_network {bridge} overlaps data.engine_address_pool {pool}",
                fix="choose two private networks that nothing else uses",
            )
        for key, network in (("engine_address_pool", pool), ("dyno_network", bridge)):
            inside = next((each for each in inventory.hosts if ip_address(each.address) in network), None)
            if inside is not None:
                raise InventoryError(
                    f"{inventory.path}: {inside.name}: its address {inside.address} lies in {host.name}'s "
                    f"data.{key} {network}",
                    why="the platform would take that network for itself, and the host would be cut off",
                    fix=f"set {key} to a private network that nothing else uses (or another --subnet for local machines)",
                )


def _is_group(name: str, value: object) -> bool:
    return not name.startswith("_") and isinstance(value, list | tuple)


def _group_data(inventory: Path, group: str) -> dict[str, Any]:
    path = inventory.parent / "group_data" / f"{group}.py"
    if not path.is_file():
        return {}
    return {name: value for name, value in _run(path).items() if _is_datum(name, value)}


def _is_datum(name: str, value: object) -> bool:
    return not name.startswith("__") and (
        value is None or isinstance(value, str | int | float | bool | list | tuple | dict)
    )


def _run(path: Path) -> dict[str, Any]:
    root = str(Path(__file__).resolve().parent.parent)
    if root not in sys.path:
        sys.path.insert(0, root)
    try:
        return runpy.run_path(str(path))
    except BlackstartError:
        raise
    except Exception as error:
        raise InventoryError(
            f"{path} cannot be read", why=f"{type(error).__name__}: {error}", fix="correct the file"
        ) from error
