"""The power of all nodes at once: cut in an instant, given back in any order."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

from blackstart.client import wait_for
from blackstart.errors import HostError
from blackstart.inventory import Host
from blackstart.providers import Machine
from blackstart.remote import Remote, connected
from blackstart.run import Run

RESET = ["sh", "-c", "echo 1 > /proc/sys/kernel/sysrq && echo b > /proc/sysrq-trigger"]
RESET_SECONDS = 10.0
REBOOT_SECONDS = 600.0


def cut(run: Run) -> None:
    """Cut the power of every node at the same instant: nothing is synced, nothing is shut down.

    Local machines lose their PID 1. Named hosts reset themselves, and boot again by themselves.
    """
    nodes = run.platform.inventory.nodes
    with ThreadPoolExecutor(max_workers=len(nodes)) as pool:
        if run.provider is None:
            list(pool.map(_reset, nodes))
        else:
            list(pool.map(run.provider.power_off, _machines(run)))


def give_back(run: Run) -> list[str]:
    """Start the local machines in a random order, for any must do; return their names in that order."""
    machines = _machines(run)
    random.shuffle(machines)
    for machine in machines:
        if run.provider is not None:
            run.provider.start(machine)
    return [machine.name for machine in machines]


def _machines(run: Run) -> list[Machine]:
    names = {host.name for host in run.platform.inventory.nodes}
    return [] if run.provider is None else [machine for machine in run.provider.machines() if machine.name in names]


def _reset(host: Host) -> None:
    """Reset a named host; the connection dies with it."""
    try:
        with connected(host, seconds=RESET_SECONDS) as remote:
            result = remote.run(RESET, seconds=RESET_SECONDS)
    except HostError:
        return
    raise HostError(f"{host.name} did not reset itself", why=result.err, fix="allow sysrq on it, or reset it by hand")


def reboot(run: Run, node: Host) -> None:
    """Reboot a node in order and wait until it answers again."""
    if run.provider is not None:
        run.provider.reboot(next(machine for machine in _machines(run) if machine.name == node.name))
        return
    with connected(node) as remote:
        before = _boot(remote)
        remote.run(["systemctl", "reboot"])
    wait_for(lambda: _booted_since(node, before), f"{node.name} to reboot", seconds=REBOOT_SECONDS)


def _boot(remote: Remote) -> str:
    return remote.check(["cat", "/proc/sys/kernel/random/boot_id"]).strip()


def _booted_since(node: Host, before: str) -> bool | None:
    try:
        with connected(node, seconds=RESET_SECONDS) as remote:
            return True if _boot(remote) != before else None
    except HostError:
        return None
