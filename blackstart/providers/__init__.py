"""Who makes machines: this host (`local`); later virtual machines or a cloud, behind the same interface."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Machine:
    """One planned machine."""

    name: str
    group: str
    """`stage0` or `runtime`."""
    address: str


class Provider(Protocol):
    """What the engine room needs of a provider. Every method may be called again; errors are BlackstartError."""

    def machines(self) -> tuple[Machine, ...]:
        """Return the planned machines, whether they exist or not."""
        ...

    def prepare(self) -> None:
        """Check the ground; make what all machines need (network, image)."""
        ...

    def create(self, machine: Machine) -> None:
        """Make the machine's disk and identity; nothing to do when it is there."""
        ...

    def start(self, machine: Machine) -> None:
        """Power the machine on; do not wait for it."""
        ...

    def boot(self, machine: Machine) -> None:
        """Start the machine and wait until its SSH server answers."""
        ...

    def exists(self, machine: Machine) -> bool:
        """Whether the machine was made."""
        ...

    def check_ours(self) -> None:
        """Refuse machines of this platform's name that were made from another state folder."""
        ...

    def running(self, machine: Machine) -> bool:
        """Whether the machine is powered on."""
        ...

    def power_off(self, machine: Machine) -> None:
        """Cut the power: nothing is shut down in order."""
        ...

    def reboot(self, machine: Machine) -> None:
        """Reboot the machine in order and wait until its SSH server answers."""
        ...

    def harvest_packages(self, machine: Machine) -> int:
        """Keep the packages that the machine downloaded for later machines; return how many are new."""
        ...

    def destroy(self, machine: Machine) -> None:
        """Remove the machine and its disk."""
        ...

    def down(self) -> None:
        """Remove everything of the platform, and nothing else."""
        ...

    def leftovers(self) -> tuple[str, ...]:
        """Name every trace of the platform that is still there."""
        ...
