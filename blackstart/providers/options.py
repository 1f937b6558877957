"""What the operator asked of local machines, kept in the state folder so that each run sees the same machines."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path
from typing import Any

from blackstart.errors import InventoryError
from blackstart.inventory import MAX_RUNTIME
from blackstart.state import State, write_durably

DEFAULT_PLATFORM = "blackstart"
DEFAULT_NODES = 3
DEFAULT_SUBNET = "10.77.0.0/24"
CACHE = "/var/cache/blackstart"
ROOTS_OF_THIS_HOST = Path("/usr/local/share/ca-certificates")
FIRST_NODE = 11
STAGE0 = 2


def remember_options(state: State, *, nodes: int | None, subnet: str | None) -> None:
    """Keep what `up` was asked for. Refuses to change a platform that exists."""
    known = state.read_json("options.json")
    asked = {key: value for key, value in (("nodes", nodes), ("subnet", subnet)) if value is not None}
    if nodes is not None and not 1 <= nodes <= MAX_RUNTIME:
        raise InventoryError(f"--nodes {nodes}: a platform has 1 to {MAX_RUNTIME} nodes")
    if subnet is not None:
        _checked_subnet(subnet)
    for key, value in asked.items():
        if key in known and known[key] != value:
            raise InventoryError(
                f"the platform {state.platform!r} has {key} {known[key]!r}, not {value!r}",
                fix="leave the option out, run `down` first, or choose another --platform",
            )
    state.write_json("options.json", {"nodes": DEFAULT_NODES, "subnet": DEFAULT_SUBNET, **known, **asked})


def local_subnet(state: State) -> ipaddress.IPv4Network:
    """Return the subnet of the platform's local machines."""
    return _checked_subnet(str(state.read_json("options.json").get("subnet", DEFAULT_SUBNET)))


def _checked_subnet(value: str) -> ipaddress.IPv4Network:
    try:
        network = ipaddress.IPv4Network(value)
    except ValueError as error:
        raise InventoryError(f"--subnet {value}: {error}", fix=f"give a private /24 such as {DEFAULT_SUBNET}") from error
    if network.prefixlen != 24 or not network.is_private:
        raise InventoryError(f"--subnet {value} is no private /24", fix=f"give one such as {DEFAULT_SUBNET}")
    return network


def local_hosts() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return the groups of the local inventory, in pyinfra's form."""
    platform = os.environ.get("BLACKSTART_PLATFORM", DEFAULT_PLATFORM)
    state = State.of(platform)
    nodes = int(state.read_json("options.json").get("nodes", DEFAULT_NODES))
    network = local_subnet(state)

    def host(name: str, place: int) -> tuple[str, dict[str, Any]]:
        return f"{platform}-{name}", {**_data(state), "ssh_hostname": str(network[place]), "address": str(network[place])}

    return {
        "stage0": [host("stage0", STAGE0)],
        "runtime": [host(f"node{number}", FIRST_NODE - 1 + number) for number in range(1, nodes + 1)],
    }


def _data(state: State) -> dict[str, Any]:
    roots = _extra_roots(state)
    return {
        "platform": state.platform,
        "domain": f"{state.platform}.internal",
        "cache": os.environ.get("BLACKSTART_CACHE", CACHE),
        "ssh_user": "root",
        "ssh_key": str(state.folder / "ssh" / "id_ed25519"),
        "ssh_known_hosts_file": str(state.folder / "ssh" / "known_hosts"),
        "ssh_strict_host_key_checking": "yes",
        **({} if roots is None else {"extra_ca_bundle": str(roots)}),
    }


def _extra_roots(state: State) -> Path | None:
    """Collect the roots that this host trusts beside Debian's own: its machines reach the world the same way."""
    roots = [path.read_text().strip() for path in sorted(ROOTS_OF_THIS_HOST.rglob("*.crt"))]
    if not roots:
        return None
    path = state.folder / "ca" / "extra-roots.pem"
    text = "\n".join(roots) + "\n"
    if not path.exists() or path.read_text() != text:
        write_durably(path, text.encode(), mode=0o644)
    return path
