"""What the deploys know of the platform: the checked inventory that pyinfra runs on, and the state folder."""

from __future__ import annotations

import functools
import socket
from pathlib import Path

from pyinfra import host, inventory
from pyinfra.api.exceptions import DeployError

from blackstart.inventory import RUNTIME, STAGE0, Host, checked_inventory
from blackstart.platform import Platform
from blackstart.state import State

KEEPALIVE_SECONDS = 10
LOST_SECONDS = 60


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


@functools.cache
def notice_a_lost_machine(name: str) -> None:
    """Let the connection to this host fail soon after the machine is gone without a word (a cut cable, a dead host).

    pyinfra sets no deadline, and a connection on which nothing is sent would be waited on for ever.
    """
    client = getattr(host.connector, "client", None)
    transport = client.get_transport() if client is not None else None
    if transport is not None and hasattr(transport.sock, "setsockopt"):
        transport.set_keepalive(KEEPALIVE_SECONDS)
        transport.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, LOST_SECONDS * 1000)


def in_stage0() -> bool:
    """Whether this host is the stage-0 machine."""
    notice_a_lost_machine(host.name)
    return STAGE0 in host.groups


def in_runtime() -> bool:
    """Whether this host is a node that stays."""
    notice_a_lost_machine(host.name)
    return RUNTIME in host.groups
