"""Local machines: bare Debian 13 with systemd and SSH, made on this host with systemd-nspawn."""

from __future__ import annotations

import ipaddress
import os
import shutil
from dataclasses import dataclass, field
from pathlib import Path

from blackstart.debian import debian_sources
from blackstart.errors import HostError, MachineError
from blackstart.host import HOST_PACKAGES
from blackstart.model.names import NameRefused, platform_name
from blackstart.programs import Log, no_log, run_program
from blackstart.providers import Machine, cgroups, disk
from blackstart.providers.keys import SshFolder
from blackstart.providers.machine_image import MachineImage
from blackstart.providers.network import Bridge, outside_mtu
from blackstart.providers.nspawn import BOOT_SECONDS, HOST_CACHE, Nspawn, start
from blackstart.state import write_durably

__all__ = ["HOST_CACHE", "HOST_PACKAGES", "LocalPlatform"]

MACHINES = Path("/var/lib/blackstart/machines")
CACHE = Path("/var/cache/blackstart")
PROGRAMS = ("mmdebstrap", "systemd-nspawn", "nft", "ip", "tar", "setsid", "setpriv")
FREE_GIGABYTES = 6
STAGE0_HOST = 2
FIRST_NODE_HOST = 11
MAX_NODES = 9
REMOVE_SECONDS = 300


@dataclass(frozen=True)
class LocalPlatform:
    """The machines of one platform: `<name>-stage0` at .2, `<name>-node1` at .11 and so on; this host is .1."""

    name: str
    state_dir: Path
    subnet: str = "10.77.0.0/24"
    nodes: int = 3
    cache_dir: Path = CACHE
    machines_dir: Path = MACHINES
    apt_mirror: str | None = None
    with_stage0: bool = True
    boot_seconds: float = BOOT_SECONDS
    log: Log = field(default=no_log, compare=False)

    def __post_init__(self) -> None:
        try:
            platform_name(self.name)
        except NameRefused as error:
            raise MachineError(str(error), fix="choose another --platform") from error
        if not 1 <= self.nodes <= MAX_NODES:
            raise MachineError(
                f"{self.nodes} nodes are asked for", why=f"1 to {MAX_NODES} are possible", fix="choose another --nodes"
            )
        _private_subnet(self.subnet)

    # What is planned

    def machines(self) -> tuple[Machine, ...]:
        """Return the planned machines."""
        stage0 = [Machine(name=f"{self.name}-stage0", group="stage0", address=self._address(STAGE0_HOST))]
        nodes = [
            Machine(
                name=f"{self.name}-node{index + 1}", group="runtime", address=self._address(FIRST_NODE_HOST + index)
            )
            for index in range(self.nodes)
        ]
        return tuple((stage0 if self.with_stage0 else []) + nodes)

    def machine(self, name: str) -> Machine:
        """Return the planned machine `name`. Raises MachineError."""
        for machine in self.machines():
            if machine.name == name:
                return machine
        raise MachineError(
            f"platform {self.name} plans no machine {name}",
            fix="the names are " + ", ".join(each.name for each in self.machines()),
        )

    @property
    def bridge(self) -> Bridge:
        """The platform's network."""
        return Bridge(platform=self.name, subnet=_private_subnet(self.subnet))

    @property
    def image(self) -> MachineImage:
        """The image of all machines."""
        return MachineImage(cache=self.cache_dir, sources=debian_sources(self.apt_mirror))

    @property
    def ssh(self) -> SshFolder:
        """The platform's SSH identity."""
        return SshFolder(self.state_dir / "ssh")

    @property
    def folder(self) -> Path:
        """Where the platform's machines are."""
        return self.machines_dir / self.name

    @property
    def shared(self) -> Path:
        """What every machine sees, read-only, at HOST_CACHE."""
        return self.cache_dir / "shared"

    def ssh_command(self, machine: Machine, argv: tuple[str, ...] = ()) -> list[str]:
        """Return the vector of a strict SSH connection as root. SSH hands `argv` to a shell: quote it."""
        options = {
            "BatchMode": "yes",
            "ConnectTimeout": "10",
            "GlobalKnownHostsFile": "none",
            "IdentitiesOnly": "yes",
            "StrictHostKeyChecking": "yes",
            "UserKnownHostsFile": str(self.ssh.known_hosts),
        }
        flags = [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
        return ["ssh", "-F", "none", "-i", str(self.ssh.key), *flags, f"root@{machine.address}", *argv]

    # What all machines need

    def prepare(self) -> None:
        """Check this host, make network and image. Raises HostError and MachineError."""
        self.check_host()
        self.ensure_network()
        self.ensure_image()

    def check_host(self) -> None:
        """Refuse a host on which local machines cannot run, before anything is changed. Raises HostError."""
        if os.geteuid() != 0:
            raise HostError(
                "local machines need root", why="they are made with systemd-nspawn", fix="run this with sudo"
            )
        if not Path("/etc/debian_version").exists():
            raise HostError(
                "this host is not Debian", why="/etc/debian_version is missing", fix="run this on Debian 12 or 13"
            )
        missing = [program for program in PROGRAMS if shutil.which(program) is None]
        if missing:
            raise HostError(f"this host lacks {', '.join(missing)}", fix="apt-get install " + " ".join(HOST_PACKAGES))
        for place in (self.machines_dir, self.cache_dir):
            _check_free_space(place)

    def ensure_network(self) -> None:
        """Make the bridge and the firewall table."""
        self.bridge.ensure()

    def ensure_image(self) -> None:
        """Build the image unless it is cached."""
        self.image.ensure(self.log)

    # One machine

    def create(self, machine: Machine) -> None:
        """Make the machine's disk and identity; nothing to do when it is complete."""
        home = self._home(machine)
        if (home / disk.COMPLETE).exists():
            self.ssh.know(machine.address, disk.host_key_of(home / "root"))
            return
        if self._nspawn(machine).processes():
            raise MachineError(
                f"{machine.name} runs, but {home / disk.COMPLETE} is missing",
                why="a machine that was never completed cannot run: somebody removed the mark",
                fix=f"touch {home / disk.COMPLETE}; or, when the machine may be lost, remove the platform with `down`",
            )
        self._remove_folder(home)
        home.mkdir(mode=0o700, parents=True)
        write_durably(home / disk.OWNER, self.ssh.ensure_key().encode())
        root = home / "root"
        root.mkdir(mode=0o755)
        self.image.unpack(root)
        host_key = disk.personalise(
            root,
            machine=machine,
            gateway=self.bridge.address,
            prefix=self.bridge.subnet.prefixlen,
            mtu=outside_mtu(),
            authorized_key=self.ssh.ensure_key(),
            sources=self.image.sources,
            lists_from=self.image.path,
        )
        disk.lay_in_packages(root, self.cache_dir / "apt-archives")
        self.ssh.know(machine.address, host_key)
        (home / disk.COMPLETE).touch()

    def boot(self, machine: Machine) -> None:
        """Start the machine unless it runs, and wait for its SSH server.

        One that was started here and does not come up is started once more: on cgroup v1 a boot hangs now and then (seen).
        """
        nspawn, console = self._nspawn(machine), self.console(machine)
        ran = bool(nspawn.processes())
        self.start(machine)
        try:
            nspawn.wait_for_ssh(console, self.boot_seconds)
        except MachineError as error:
            if ran or not nspawn.processes():
                raise
            self.log(f"{error.what}; it is started again")
            nspawn.power_off()
            self.start(machine)
            nspawn.wait_for_ssh(console, self.boot_seconds)

    def start(self, machine: Machine) -> None:
        """Start the machine unless it runs; do not wait."""
        if not (self._home(machine) / disk.COMPLETE).exists():
            raise MachineError(f"{machine.name} cannot boot", why="it was never made", fix="create it first")
        nspawn = self._nspawn(machine)
        if not nspawn.processes():
            self.shared.mkdir(mode=0o755, parents=True, exist_ok=True)
            command = nspawn.command(self.bridge.name, self.shared, legacy_cgroups=cgroups.legacy())
            start(nspawn, command, self.console(machine))

    def exists(self, machine: Machine) -> bool:
        """Whether the machine was made completely."""
        return (self._home(machine) / disk.COMPLETE).exists()

    def found(self) -> tuple[Machine, ...]:
        """Return the machines that were made, as the disk tells: names and addresses, whatever is planned."""
        homes = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        groups = {True: "stage0", False: "runtime"}
        return tuple(
            Machine(home.name, groups[home.name.endswith("-stage0")], disk.address_of(home / "root"))
            for home in homes
            if (home / disk.COMPLETE).exists()
        )

    def check_ours(self) -> None:
        """Refuse machines on this disk that do not let this state folder's key in. Raises MachineError."""
        homes = sorted(self.folder.iterdir()) if self.folder.is_dir() else []
        key = self.ssh.kept_key()
        strange = [home.name for home in homes if not disk.is_owned_by(home, key)]
        if strange:
            raise MachineError(
                f"there are machines of {self.name} that were not made from this state folder: {', '.join(strange)}; "
                "nothing was changed",
                why=f"{self.ssh.key} is {'not their key' if key is not None else 'missing'}: the state folder is lost, "
                "or it is not the one that made them",
                fix="restore the state folder from its copy, name the right one with $BLACKSTART_STATE, or choose another "
                "--platform; when these machines may be lost: `down --without-state`",
            )

    def running(self, machine: Machine) -> bool:
        """Whether the machine is powered on."""
        return self._nspawn(machine).init() is not None

    def power_off(self, machine: Machine) -> None:
        """Cut the power; nothing to do when it is off."""
        self._nspawn(machine).power_off()

    def reboot(self, machine: Machine) -> None:
        """Reboot in order and wait for the SSH server."""
        nspawn = self._nspawn(machine)
        nspawn.reboot()
        nspawn.wait_for_ssh(self.console(machine))

    def destroy(self, machine: Machine) -> None:
        """Cut the power, remove disk, identity and console log; nothing to do when it is gone."""
        self.power_off(machine)
        cgroups.remove(machine.name)
        self._remove_folder(self._home(machine))
        self.ssh.forget(machine.address)
        self.console(machine).unlink(missing_ok=True)

    def harvest_packages(self, machine: Machine) -> int:
        """Keep the packages that the machine downloaded for later machines; return how many are new."""
        return disk.take_packages(self._root(machine), self.cache_dir / "apt-archives")

    def console(self, machine: Machine) -> Path:
        """Where the machine's console is logged."""
        return self.state_dir / "machines" / f"{machine.name}.log"

    # The end

    def down(self) -> None:
        """Remove every trace of this platform, and of no other."""
        for machine in self._found_machines():
            self.destroy(machine)
        self._remove_folder(self.folder)
        self.bridge.remove()

    def leftovers(self) -> tuple[str, ...]:
        """Name every trace of the platform: processes, control groups, folders, mounts, interfaces, firewall table."""
        traces = [f"process {machine.name}" for machine in self._found_machines() if self.running(machine)]
        traces += [
            f"control group {group}" for machine in self._found_machines() for group in cgroups.found(machine.name)
        ]
        traces += [f"folder {self.folder}"] if self.folder.exists() else []
        traces += [f"mount {path}" for path in disk.mounts_below(self.folder)]
        traces += [f"interface {self.bridge.name}"] if self.bridge.exists() else []
        traces += [f"interface {port}" for port in self.bridge.ports()]
        traces += [f"firewall table {self.bridge.table}"] if self.bridge.table_exists() else []
        return tuple(traces)

    def _found_machines(self) -> tuple[Machine, ...]:
        """Return the planned machines and those on the disk: the plan may have had more nodes before."""
        planned = {machine.name: machine for machine in self.machines()}
        if self.folder.is_dir():
            for home in sorted(self.folder.iterdir()):
                planned.setdefault(home.name, Machine(name=home.name, group="", address=disk.address_of(home / "root")))
        return tuple(planned.values())

    def _address(self, host: int) -> str:
        return str(_private_subnet(self.subnet)[host])

    def _home(self, machine: Machine) -> Path:
        return self.folder / machine.name

    def _root(self, machine: Machine) -> Path:
        return self._home(machine) / "root"

    def _nspawn(self, machine: Machine) -> Nspawn:
        return Nspawn(name=machine.name, folder=self._root(machine), address=machine.address)

    def _remove_folder(self, folder: Path) -> None:
        if not folder.is_relative_to(self.folder):
            raise MachineError(f"{folder} is not removed", why=f"it is not below {self.folder}")
        for mount in disk.mounts_below(folder):
            run_program(["umount", "--lazy", str(mount)])
        if folder.exists():
            run_program(
                ["rm", "--recursive", "--force", "--one-file-system", "--", str(folder)], seconds=REMOVE_SECONDS
            )


def _private_subnet(text: str) -> ipaddress.IPv4Network:
    """Return a private /24. Raises MachineError."""
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise MachineError(
            f"subnet {text!r} is refused", why=str(error), fix="give a private /24, such as 10.77.0.0/24"
        ) from error
    if not network.is_private or network.prefixlen != 24:
        raise MachineError(
            f"subnet {text} is refused", why="it is not a private /24", fix="give a private /24, such as 10.77.0.0/24"
        )
    return network


def _check_free_space(place: Path) -> None:
    place.mkdir(mode=0o755, parents=True, exist_ok=True)
    free = shutil.disk_usage(place).free // 10**9
    if free < FREE_GIGABYTES:
        raise HostError(
            f"{place} has {free} GB free, {FREE_GIGABYTES} GB are needed",
            why="the disks of machines and the caches are kept there",
            fix="free some space, or choose another place",
        )
