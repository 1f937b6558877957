"""What the operator asked of local machines, kept in the state folder so that each run sees the same machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from blackstart.errors import InventoryError
from blackstart.providers.local import LocalPlatform
from blackstart.state import State, write_durably

DEFAULT_PLATFORM = "blackstart"
DEFAULT_NODES = 3
DEFAULT_SUBNET = "10.77.0.0/24"
CACHE = "/var/cache/blackstart"
ROOTS_OF_THIS_HOST = Path("/usr/local/share/ca-certificates")


def remember_options(state: State, *, nodes: int | None, subnet: str | None) -> None:
    """Keep what `up` was asked for. Refuses to change a platform that exists, and machines that are not ours."""
    known = state.read_json("options.json")
    asked = {key: value for key, value in (("nodes", nodes), ("subnet", subnet)) if value is not None}
    # Refuses what cannot be.
    planned = LocalPlatform(
        name=state.platform,
        state_dir=state.folder,
        nodes=int(known.get("nodes", DEFAULT_NODES if nodes is None else nodes)),
        subnet=str(known.get("subnet", DEFAULT_SUBNET if subnet is None else subnet)),
    )
    planned.check_ours()
    for key, value in asked.items():
        if key in known and known[key] != value:
            raise InventoryError(
                f"the platform {state.platform!r} has {key} {known[key]!r}, not {value!r}",
                fix="leave the option out, run `down` first, or choose another --platform",
            )
    check_plan(planned, {**known, **asked})
    state.write_json("options.json", {"nodes": DEFAULT_NODES, "subnet": DEFAULT_SUBNET, **known, **asked})


def check_plan(planned: LocalPlatform, chosen: dict[str, Any]) -> None:
    """Refuse a plan that the machines on the disk contradict: options.json was lost or is old. Raises InventoryError."""
    found = planned.found()
    wrong = [f"{machine.name} at {machine.address}" for machine in found if machine not in planned.machines()]
    lacking = [key for key in ("nodes", "subnet") if key not in chosen] if found else []
    if not wrong and not lacking:
        return
    there = ", ".join(f"{machine.name} at {machine.address}" for machine in found)
    raise InventoryError(
        f"options.json of {planned.name} does not say what its machines were made with; nothing was changed",
        why=f"it lacks {' and '.join(lacking)}" if lacking else f"it does not plan {', '.join(wrong)}",
        fix=f"give `up` the --nodes and --subnet of the first time (there is: {there})",
    )


def local_platform(state: State, *, damaged_too: bool = False) -> LocalPlatform:
    """Return the provider of this platform's local machines; with `damaged_too` also when its options cannot be read."""
    known = state.read_hint("options.json") if damaged_too else state.read_json("options.json")
    return LocalPlatform(
        name=state.platform,
        state_dir=state.folder,
        subnet=str(known.get("subnet", DEFAULT_SUBNET)),
        nodes=int(known.get("nodes", DEFAULT_NODES)),
        cache_dir=Path(os.environ.get("BLACKSTART_CACHE", CACHE)),
    )


def local_hosts() -> dict[str, list[tuple[str, dict[str, Any]]]]:
    """Return the groups of the local inventory, in pyinfra's form."""
    state = State.of(os.environ.get("BLACKSTART_PLATFORM", DEFAULT_PLATFORM))
    provider = local_platform(state)
    groups: dict[str, list[tuple[str, dict[str, Any]]]] = {"stage0": [], "runtime": []}
    for machine in provider.machines():
        data = {**_data(state, provider), "ssh_hostname": machine.address, "address": machine.address}
        groups[machine.group].append((machine.name, data))
    return groups


def _data(state: State, provider: LocalPlatform) -> dict[str, Any]:
    roots = _extra_roots(state)
    return {
        "platform": state.platform,
        "domain": f"{state.platform}.internal",
        "cache": str(provider.cache_dir),
        "ssh_user": "root",
        "ssh_key": str(provider.ssh.key),
        "ssh_known_hosts_file": str(provider.ssh.known_hosts),
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
