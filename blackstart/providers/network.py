"""The network of a local platform: one bridge, and a firewall table that lets its machines reach the outside."""

from __future__ import annotations

import ipaddress
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackstart.errors import MachineError
from blackstart.programs import run_program, succeeds

DEFAULT_MTU = 1500
FORWARDING = Path("/proc/sys/net/ipv4/ip_forward")


@dataclass(frozen=True)
class Bridge:
    """The bridge `bs-<platform>` and the firewall table `ip blackstart-<platform>`."""

    platform: str
    subnet: ipaddress.IPv4Network

    @property
    def name(self) -> str:
        """The interface's name; a platform's name is short enough for the kernel's 15 characters."""
        return f"bs-{self.platform}"

    @property
    def table(self) -> str:
        """The firewall table's name."""
        return f"blackstart-{self.platform}"

    @property
    def address(self) -> str:
        """The host's own address on the bridge."""
        return str(self.subnet[1])

    def ensure(self) -> None:
        """Make bridge, address and firewall table. Raises MachineError when the subnet is taken."""
        self.check_free()
        if not self.exists():
            run_program(
                ["ip", "link", "add", "name", self.name, "type", "bridge", "stp_state", "0", "forward_delay", "0"]
            )
        run_program(["ip", "link", "set", "dev", self.name, "mtu", str(outside_mtu()), "up"])
        run_program(["ip", "address", "replace", f"{self.address}/{self.subnet.prefixlen}", "dev", self.name])
        if FORWARDING.read_text().strip() != "1":
            FORWARDING.write_text("1\n")
        run_program(["nft", "-f", "-"], stdin=self._rules())

    def check_free(self) -> None:
        """Refuse a subnet that another interface uses. Raises MachineError."""
        for network, interface in used_networks():
            if interface != self.name and network.overlaps(self.subnet):
                raise MachineError(
                    f"subnet {self.subnet} of platform {self.platform} is taken: {interface} uses {network}",
                    why=_owner(interface),
                    fix="choose a free private /24 with --subnet, or take the other platform down first",
                )
        for own, interface in interface_addresses():
            if interface == self.name and own != ipaddress.ip_interface(f"{self.address}/{self.subnet.prefixlen}"):
                raise MachineError(
                    f"the bridge {self.name} has the address {own}, not {self.address}",
                    why=f"platform {self.platform} runs with another subnet, or somebody else made the bridge",
                    fix=f"use the subnet {own.network}, or take the platform down first",
                )

    def exists(self) -> bool:
        """Whether the interface is there. Raises MachineError when it is no bridge."""
        path = Path("/sys/class/net") / self.name
        if path.exists() and not (path / "bridge").exists():
            raise MachineError(
                f"the interface {self.name} exists and is no bridge",
                fix="rename or remove it, or choose another platform name",
            )
        return path.exists()

    def ports(self) -> tuple[str, ...]:
        """Return the interfaces on the bridge."""
        ports = Path("/sys/class/net") / self.name / "brif"
        return tuple(sorted(port.name for port in ports.iterdir())) if ports.is_dir() else ()

    def table_exists(self) -> bool:
        """Whether the firewall table is there."""
        return succeeds(["nft", "list", "table", "ip", self.table])

    def remove(self) -> None:
        """Remove both; nothing to do when they are gone."""
        if self.exists():
            run_program(["ip", "link", "delete", "dev", self.name])
        if self.table_exists():
            run_program(["nft", "delete", "table", "ip", self.table])

    def _rules(self) -> str:
        """Return the table as one transaction that replaces the old one."""
        return f"""
table ip {self.table}
delete table ip {self.table}
table ip {self.table} {{
    chain leaving {{
        type nat hook postrouting priority srcnat; policy accept;
        ip saddr {self.subnet} oifname != "{self.name}" masquerade
    }}
}}
"""


def outside_mtu() -> int:
    """Return the MTU of the interface with the default route, in bytes; machines must not send more."""
    for route in _ip("route", "show", "default"):
        mtu = Path("/sys/class/net") / str(route.get("dev", "")) / "mtu"
        if mtu.is_file():
            return int(mtu.read_text())
    return DEFAULT_MTU


def used_networks() -> list[tuple[ipaddress.IPv4Network, str]]:
    """Return the (network, interface) pairs of this host's addresses and routes, the default route left out."""
    found = [(address.network, interface) for address, interface in interface_addresses()]
    for route in _ip("route", "show"):
        if route.get("dst") != "default" and "dev" in route:
            found.append((ipaddress.IPv4Network(str(route["dst"])), str(route["dev"])))
    return found


def interface_addresses() -> list[tuple[ipaddress.IPv4Interface, str]]:
    """Return the (address, interface) pairs of this host."""
    return [
        (ipaddress.IPv4Interface(f"{address['local']}/{address['prefixlen']}"), str(link["ifname"]))
        for link in _ip("address", "show")
        for address in link.get("addr_info", [])
    ]


def _ip(*arguments: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(run_program(["ip", "-json", "-4", *arguments]) or "[]")
    return found


def _owner(interface: str) -> str:
    if interface.startswith("bs-"):
        return f"{interface} is the bridge of the platform {interface.removeprefix('bs-')}"
    return f"{interface} is an interface of this host"
