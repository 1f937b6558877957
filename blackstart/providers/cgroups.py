"""Control groups of its own for each machine, on a host with cgroup v1 where no systemd gives it any.

Without them all machines live in the groups of whoever started them, and their systemds share names: one removes as
empty what another is about to start a unit in ("Failed to spawn executor", boots that hang: seen), and what their
engines made stays behind.
"""

from __future__ import annotations

import os
import time
from pathlib import Path

from blackstart.errors import MachineError

CGROUPS = Path("/sys/fs/cgroup")
MEMBERSHIP = Path("/proc/self/cgroup")
INHERITED = ("cpuset.cpus", "cpuset.mems")
"""Empty in a new group, and nothing can enter it while they are."""

END_SECONDS = 10.0
POLL_SECONDS = 0.05


def legacy() -> bool:
    """Whether this host mounts cgroup v1 (or the hybrid), and not only v2."""
    return not (CGROUPS / "cgroup.controllers").exists()


def make(machine: str) -> list[Path]:
    """Make the machine's groups, one in each hierarchy, below ours; return them. Raises MachineError."""
    groups = [parent / _name(machine) for parent in _ours()]
    for group in groups:
        try:
            group.mkdir(exist_ok=True)
            for inherited in INHERITED:
                if (group / inherited).exists():
                    (group / inherited).write_text((group.parent / inherited).read_text())
        except OSError as error:
            raise MachineError(
                f"the control group {group} cannot be made",
                why=str(error),
                fix=f"mount {CGROUPS} so that root may write",
            ) from error
    return groups


def found(machine: str) -> list[Path]:
    """Return the machine's groups, whoever made them."""
    return [Path(folder) / _name(machine) for folder, names, _ in os.walk(CGROUPS) if _name(machine) in names]


def remove(machine: str) -> None:
    """Remove the groups of a machine that is powered off. Raises MachineError."""
    deadline = time.monotonic() + END_SECONDS
    while groups := found(machine):
        for group in groups:
            busy = _remove(group)
            if busy is not None and time.monotonic() > deadline:
                raise MachineError(
                    f"{group} cannot be removed",
                    why=str(busy),
                    fix="end the processes in its cgroup.procs, then run this again",
                )
        time.sleep(POLL_SECONDS)


def _remove(group: Path) -> OSError | None:
    """Remove a group and those in it; return why not. The kernel lets go of a dead process a moment later."""
    try:
        for folder, _, _ in os.walk(group, topdown=False):
            os.rmdir(folder)
    except OSError as error:
        return error
    return None


def _ours() -> list[Path]:
    """Return the groups that this process is in; none where there is only cgroup v2."""
    if not legacy():
        return []
    lines = [line.split(":", 2) for line in MEMBERSHIP.read_text().splitlines()]
    ours = [CGROUPS / (names.removeprefix("name=") or "unified") / path.lstrip("/") for _, names, path in lines]
    return [group for group in ours if group.is_dir()]


def _name(machine: str) -> str:
    return f"blackstart-{machine}"
