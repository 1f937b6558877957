"""What the deploys know of the platform: the checked inventory that pyinfra runs on, and the state folder."""

from __future__ import annotations

import functools
from pathlib import Path

from pyinfra import host, inventory
from pyinfra.api.exceptions import DeployError

from blackstart.inventory import RUNTIME, STAGE0, Host, checked_inventory
from blackstart.platform import Platform
from blackstart.state import State


@functools.cache
def platform() -> Platform:
    """Return the platform of this pyinfra run."""
    raw = [
        (str(member.name), group, dict(member.data.dict()))
        for group in (STAGE0, RUNTIME)
        for member in inventory.get_group(group, [])
    ]
    checked = checked_inventory(Path("the inventory"), raw)
    return Platform(inventory=checked, state=State.of(checked.platform))


def me() -> Host:
    """Return the host that this deploy runs for."""
    return next(member for member in platform().inventory.hosts if member.name == host.name)


def for_stage0() -> Platform:
    """Return the platform, as long as stage 0 may be told its credentials. Raises DeployError once it is fenced."""
    known = platform()
    if known.state.epoch > 0:
        raise DeployError(f"stage 0 of {known.name} is fenced: it is told no credential of the platform any more")
    return known


def in_stage0() -> bool:
    """Whether this host is the stage-0 machine."""
    return STAGE0 in host.groups


def in_runtime() -> bool:
    """Whether this host is a node that stays."""
    return RUNTIME in host.groups
