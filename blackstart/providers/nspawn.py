"""One systemd-nspawn machine as a process: its command line, whether it runs, its end."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from blackstart.errors import MachineError
from blackstart.programs import run_program
from blackstart.providers import cgroups

PROC = Path("/proc")
SYSTEMD = Path("/run/systemd/system")
HOST_CACHE = "/var/cache/blackstart/host"
"""Where a machine sees this host's `<cache>/shared`, read-only."""

REBOOT_SIGNAL = signal.SIGRTMIN + 5
"""What systemd as PID 1 takes as an order to reboot (systemd(1))."""

KEEPER = """
until test "$1" = --; do echo $$ > "$1/cgroup.procs" || exit; shift; done
shift
while "$@"; test $? -eq 133; do :; done
"""
"""Enters the control groups before `--`, then runs what follows. systemd-nspawn ends with 133 when its machine reboots,
and leaves it to its keeper to start it again."""

BOOT_SECONDS = 60.0
POLL_SECONDS = 0.05
END_SECONDS = 20.0
SSH_PORT = 22


@dataclass(frozen=True)
class Nspawn:
    """A machine's name, disk and address."""

    name: str
    folder: Path
    address: str

    def command(self, bridge: str, shared: Path, *, legacy_cgroups: bool) -> list[str]:
        """Return the vector that boots the machine.

        Everything of the kernel that Docker needs is let through; these machines are for trust, not for isolation.
        systemd in a container reads its arguments as the kernel's command line: on a host with cgroup v1 systemd 257
        must be told to use it.
        """
        command = [
            "systemd-nspawn",
            f"--directory={self.folder}",
            f"--machine={self.name}",
            "--boot",
            "--register=no",
            "--keep-unit",
            f"--network-bridge={bridge}",
            "--console=pipe",
            "--capability=all",
            "--system-call-filter=add_key keyctl bpf @privileged",
            "--resolv-conf=off",
            "--timezone=off",
            "--link-journal=no",
            f"--bind-ro={shared}:{HOST_CACHE}",
            "systemd.show_status=yes",
        ]
        if legacy_cgroups:
            command += ["SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1", "systemd.unified_cgroup_hierarchy=0"]
        return command

    def detached(self, command: list[str], groups: list[Path]) -> list[str]:
        """Return the vector that starts `command` so that it outlives whoever starts it, and again at a reboot.

        Where systemd runs the host, in a unit of its own with delegated cgroups; else in a session of its own, in `groups`.
        """
        kept = ["sh", "-c", KEEPER, self.name, *map(str, groups), "--", *command]
        if SYSTEMD.is_dir():
            unit = ["systemd-run", "--quiet", "--collect", f"--unit=blackstart-{self.name}", "--property=Delegate=yes"]
            return [*unit, "--property=KillMode=mixed", "--setenv=SYSTEMD_NSPAWN_API_VFS_WRITABLE=yes", *_escaped(kept)]
        return ["setsid", "--fork", *kept]

    def processes(self) -> dict[str, int]:
        """Return this machine's keeper and systemd-nspawn, each as name → process id where it runs."""
        wanted = {f"--machine={self.name}", f"--directory={self.folder}"}
        return {Path(words[0]).name: pid for pid, words in _processes() if wanted <= set(words)}

    def supervisor(self) -> int | None:
        """Return the process id of the machine's systemd-nspawn, None when it does not run."""
        return self.processes().get("systemd-nspawn")

    def init(self) -> int | None:
        """Return the host's process id of the machine's PID 1, None when there is none."""
        supervisor = self.supervisor()
        if supervisor is None:
            return None
        children = _read(PROC / str(supervisor) / "task" / str(supervisor) / "children").split()
        return next((int(child) for child in children if _is_init(int(child))), None)

    def power_off(self) -> None:
        """Kill PID 1: the kernel ends everything of the machine in an instant. Raises MachineError."""
        deadline = time.monotonic() + END_SECONDS
        while processes := self.processes():
            init = self.init()
            for pid in processes.values() if init is None else [init]:
                _kill(pid)
            for pid in processes.values():
                _ended(pid, 2.0)
            if time.monotonic() > deadline:
                raise MachineError(f"{self.name} does not die", why=f"still there: {self.processes()}")

    def reboot(self) -> None:
        """Order a reboot and wait until it is under way. Raises MachineError."""
        init = self.init()
        if init is None:
            raise MachineError(f"{self.name} cannot reboot", why="it is powered off", fix="boot it")
        os.kill(init, REBOOT_SIGNAL)
        if not _ended(init, BOOT_SECONDS):
            raise MachineError(
                f"{self.name} did not shut down within {BOOT_SECONDS:g} s", fix="power it off, then boot it"
            )

    def wait_for_ssh(self, log_file: Path, seconds: float = BOOT_SECONDS) -> None:
        """Wait until the machine's SSH server greets. Raises MachineError with the console's last lines."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if greets(self.address):
                return
            processes = self.processes()
            if not processes or (_ended(next(iter(processes.values())), POLL_SECONDS) and not self.processes()):
                raise MachineError(
                    f"{self.name} did not boot: systemd-nspawn ended", why=last_lines(log_file), fix=_see(log_file)
                )
        raise MachineError(
            f"{self.name}: no SSH server answers at {self.address} after {seconds:g} s",
            why=last_lines(log_file),
            fix=_see(log_file),
        )


def start(machine: Nspawn, command: list[str], log_file: Path) -> None:
    """Start the machine, its console in `log_file`. Raises MachineError."""
    log_file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    cgroups.remove(machine.name)
    groups = [] if SYSTEMD.is_dir() else cgroups.make(machine.name)
    vector = machine.detached(command, groups)
    if vector[0] == "systemd-run":
        log_file.write_text("")
        run_program(
            [
                *vector[:1],
                f"--property=StandardOutput=append:{log_file}",
                f"--property=StandardError=append:{log_file}",
                *vector[1:],
            ]
        )
        return
    with log_file.open("wb") as console:
        _spawn(vector, console)


def _spawn(vector: list[str], console: BinaryIO) -> None:
    """Run `setsid --fork`: it returns at once, its child is nobody's.

    The child must inherit nothing: a machine that outlives us would hold a caller's lock for as long as it runs (seen).
    """
    environment = {**os.environ, "SYSTEMD_NSPAWN_API_VFS_WRITABLE": "yes"}
    null = subprocess.DEVNULL
    done = subprocess.run(
        vector, env=environment, stdin=null, stdout=console, stderr=console, timeout=END_SECONDS, check=False
    )
    if done.returncode != 0:
        raise MachineError(
            f"{vector[0]} could not start {vector[2]}", fix="install systemd-container and util-linux on this host"
        )


def greets(address: str, port: int = SSH_PORT) -> bool:
    """Whether an SSH server greets at the address."""
    try:
        with socket.create_connection((address, port), timeout=1.0) as connection:
            connection.settimeout(2.0)
            return connection.recv(4) == b"SSH-"
    except OSError:
        return False


def last_lines(path: Path, count: int = 15) -> str:
    """Return the end of a console's log."""
    return "\n".join(_read(path).splitlines()[-count:])


def _escaped(command: list[str]) -> list[str]:
    """Return `command` so that systemd expands no variable in it (systemd.service(5), command lines)."""
    return [word.replace("$", "$$") for word in command]


def _see(log_file: Path) -> str:
    return f"see {log_file}; then run this again"


def _processes() -> Iterator[tuple[int, list[str]]]:
    """Yield (process id, arguments) of everything that runs; a zombie has no arguments."""
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            arguments = _read(entry / "cmdline").split("\0")
            if arguments[0]:
                yield int(entry.name), arguments


def _is_init(pid: int) -> bool:
    """Whether the process is PID 1 of its own namespace (the last number of NSpid)."""
    for line in _read(PROC / str(pid) / "status").splitlines():
        if line.startswith("NSpid:"):
            return line.split()[-1] == "1"
    return False


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _ended(pid: int, seconds: float) -> bool:
    """Wait up to `seconds` for the end of any process, ours or not."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        ready, _, _ = select.select([handle], [], [], max(seconds, 0.0))
        return bool(ready)
    finally:
        os.close(handle)


def _read(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
