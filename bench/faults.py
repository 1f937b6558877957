"""Faults for `up`: run it, reach a moment in it, do harm, run it again, and compare the platform with what it should be.

Shared by bench/kill_matrix.py and tests/system/test_kill.py. A moment is seen, never slept for: by a line of `up`'s own
progress, or by a program that runs on one of the platform's machines (local machines' processes are this host's too).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from blackstart import observe  # noqa: E402
from blackstart.dynos import inside  # noqa: E402
from blackstart.inventory import load_inventory  # noqa: E402
from blackstart.platform import Platform  # noqa: E402
from blackstart.providers import Machine  # noqa: E402
from blackstart.providers.local import LocalPlatform  # noqa: E402
from blackstart.providers.options import local_platform, remember_options  # noqa: E402
from blackstart.remote import connected  # noqa: E402
from blackstart.state import State  # noqa: E402

LINE = re.compile(r"^\s*[0-9.]+s  \[(?P<step>[a-z0-9-]+)\] (?P<text>.*)$")
UP_SECONDS = 900.0
POLL_SECONDS = 0.02
DISK_GIGABYTES = 8
LEFT_MEGABYTES = 8


@dataclass
class Up:
    """One `up` that runs, in a process group of its own; its progress is in `lines`, as (step, text)."""

    process: subprocess.Popen[str]
    lines: list[tuple[str, str]] = field(default_factory=list)
    rest: list[str] = field(default_factory=list)

    def follow(self) -> None:
        """Read its progress until it ends."""
        if self.process.stderr is None:
            return
        with self.process.stderr as stream:
            for line in stream:
                found = LINE.match(line.rstrip("\n"))
                if found is not None:
                    self.lines.append((found["step"], found["text"]))
                else:
                    self.rest.append(line.rstrip("\n"))

    def reaches(self, moment: Callable[[Up], bool], *, seconds: float = UP_SECONDS) -> bool:
        """Wait for a moment. False when `up` ended before it."""
        deadline = time.monotonic() + seconds
        while not moment(self):
            if self.process.poll() is not None:
                return moment(self)
            if time.monotonic() > deadline:
                raise TimeoutError(f"the moment did not come within {seconds:.0f} s; the last lines: {self.lines[-5:]}")
            time.sleep(POLL_SECONDS)
        return True

    def kill(self) -> None:
        """SIGKILL the whole process group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(timeout=30)

    def end(self, *, seconds: float = UP_SECONDS) -> int:
        """Wait for its end and return its exit code."""
        return self.process.wait(timeout=seconds)

    def texts(self, step: str) -> list[str]:
        """Return the lines of a step so far."""
        return [text for name, text in list(self.lines) if name == step]

    def error(self) -> str:
        """Return the last words."""
        return "\n".join([*(f"[{step}] {text}" for step, text in self.lines[-4:]), *self.rest[-30:]])


# --- moments ---------------------------------------------------------------------------------------------------------


def line_of(step: str, number: int) -> Callable[[Up], bool]:
    """The moment when a step that runs has shown its first line and `number` further ones."""
    return lambda up: len(up.texts(step)) > number and up.texts(step)[0] != "is so already"


def says(step: str, pattern: str) -> Callable[[Up], bool]:
    """The moment when a line of a step contains the pattern."""
    return lambda up: any(re.search(pattern, text) for text in up.texts(step))


def done(step: str) -> Callable[[Up], bool]:
    """The moment when a step is done."""
    return says(step, r"^done \(")


# --- a platform to do harm to ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rehearsal:
    """A platform of its own, with its own state folder."""

    name: str
    subnet: str
    nodes: int
    root: Path

    @property
    def environment(self) -> dict[str, str]:
        """What `bootstrap.py` is run with."""
        return {**os.environ, "BLACKSTART_STATE": str(self.root), "BLACKSTART_PLATFORM": self.name}

    @cached_property
    def state(self) -> State:
        """The state folder."""
        os.environ.update({"BLACKSTART_STATE": str(self.root), "BLACKSTART_PLATFORM": self.name})
        return State.of(self.name)

    @property
    def provider(self) -> LocalPlatform:
        """The machines."""
        return local_platform(self.state)

    @property
    def platform(self) -> Platform:
        """The platform, as the library sees it."""
        return Platform(load_inventory(ROOT / "inventories" / "local.py"), self.state)

    @property
    def command(self) -> list[str]:
        """The vector of bootstrap.py in its own environment."""
        return [sys.executable, "-m", "blackstart"]

    def start(self, *arguments: str) -> Up:
        """Start `up`."""
        argv = [*self.command, "up", "--platform", self.name, *arguments]
        if not self.state.read_hint("options.json"):
            argv += ["--nodes", str(self.nodes), "--subnet", self.subnet]
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        up = Up(process)
        threading.Thread(target=up.follow, daemon=True).start()
        return up

    def run(self, *arguments: str, seconds: float = 300) -> subprocess.CompletedProcess[str]:
        """Run another command of bootstrap.py."""
        argv = [*self.command, *arguments, "--platform", self.name]
        return subprocess.run(argv, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=seconds)

    def down(self) -> None:
        """Remove it; its own `down` may have done so already."""
        local_platform(self.state, damaged_too=True).down()
        if self.state.folder.exists():
            self.state.remove()
        self.__dict__.pop("state", None)

    # moments on the machines

    def runs(self, pattern: str) -> Callable[[Up], bool]:
        """The moment when a program whose command line has the pattern runs on a machine of the platform."""
        return lambda up: any(re.search(pattern, line) for line in self.command_lines())

    def pids(self, pattern: str) -> list[int]:
        """Return this host's process ids of what runs on the machines with the pattern in its command line."""
        return [pid for pid, line in self._programs() if re.search(pattern, line)]

    def command_lines(self) -> Iterator[str]:
        """Yield the command lines of what runs on the machines."""
        yield from (line for _, line in self._programs())

    def _programs(self) -> Iterator[tuple[int, str]]:
        parents = _parents()
        inits = {machine.init() for machine in map(self.provider._nspawn, self.provider.machines())} - {None}
        for pid in parents:
            above = pid
            while above in parents and above not in inits:
                above = parents[above]
            if above in inits:
                yield pid, _read(f"/proc/{pid}/cmdline").replace("\0", " ")

    def operators_left(self) -> list[str]:
        """Return the programs on this host that an `up` of this platform left running."""
        mark = f"BLACKSTART_PLATFORM={self.name}"
        mine = (pid for pid in _parents() if pid != os.getpid() and mark in _read(f"/proc/{pid}/environ").split("\0"))
        lines = [_read(f"/proc/{pid}/cmdline").replace("\0", " ") for pid in mine]
        return [line for line in lines if "pyinfra" in line or "-m blackstart up" in line]

    # harm

    @contextlib.contextmanager
    def ssh_cut(self) -> Iterator[None]:
        """Refuse SSH to and from the platform's machines, and nothing else, in a firewall table of our own."""
        table = f"kill-{self.name}"
        rules = (
            f"table inet {table}\ndelete table inet {table}\n"
            f"table inet {table} {{\n"
            "chain out { type filter hook output priority filter; policy accept;"
            f" ip daddr {self.subnet} tcp dport 22 reject with tcp reset; }}\n"
            "chain in { type filter hook input priority filter; policy accept;"
            f" ip saddr {self.subnet} tcp sport 22 reject with tcp reset; }}\n}}\n"
        )
        subprocess.run(["nft", "-f", "-"], input=rules, text=True, check=True, timeout=30)
        try:
            yield
        finally:
            subprocess.run(["nft", "delete", "table", "inet", table], check=True, timeout=30)

    def give_disks_of_their_own(self) -> None:
        """Make the machines, each with a small file system of its own for /var/lib, so that filling it harms nobody else."""
        remember_options(self.state, nodes=self.nodes, subnet=self.subnet)
        self.provider.prepare()
        for machine in self.provider.machines():
            self.provider.create(machine)
            self._own_disk(machine)

    def _own_disk(self, machine: Machine) -> None:
        place, image = self.var_lib(machine), self.root / f"{machine.name}.disk"
        with image.open("wb") as stream:
            stream.truncate(DISK_GIGABYTES << 30)
        away = place.with_name("lib.away")
        place.rename(away)
        place.mkdir(mode=0o755)
        for argv in (
            ["mkfs.ext4", "-q", "-m", "0", "-F", str(image)],
            ["mount", "-o", "loop", str(image), str(place)],
            ["cp", "-a", f"{away}/.", str(place)],
            ["rm", "-rf", str(away)],
        ):
            subprocess.run(argv, check=True, timeout=120)
        image.unlink()  # the mount keeps it; it is gone when that is

    def var_lib(self, machine: Machine) -> Path:
        """Return where this host sees the machine's /var/lib."""
        return self.provider.folder / machine.name / "root" / "var" / "lib"

    @contextlib.contextmanager
    def disks_full(self) -> Iterator[None]:
        """Fill the machines' own disks; free them at the end."""
        places = [self.var_lib(machine) for machine in self.provider.machines() if self.var_lib(machine).is_mount()]
        for place in places:
            left = os.statvfs(place)
            size = left.f_bavail * left.f_frsize - (LEFT_MEGABYTES << 20)
            if size > 0:
                subprocess.run(["fallocate", "-l", str(size), str(place / "ballast")], check=True, timeout=60)
        try:
            yield
        finally:
            for place in places:
                (place / "ballast").unlink(missing_ok=True)


def _parents() -> dict[int, int]:
    """Return the parent of every process."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(f"{entry}/stat")):
            found[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return found


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


# --- the same platform -----------------------------------------------------------------------------------------------

TABLES = ("apps", "formations", "platform", "accounts")


def picture(rehearsal: Rehearsal) -> dict[str, Any]:
    """Return what must be the same however the platform came about. Times, ids and numbers of releases are left out."""
    platform = rehearsal.platform
    done = rehearsal.run("status", "--json")
    status = json.loads(done.stdout)
    first = platform.inventory.nodes[0]
    with observe.answering_client(platform) as client:
        apps = sorted(str(app["name"]) for app in client.call("GET", "/apps"))
        releases = {app: client.call("GET", f"/apps/{app}/releases") for app in apps}
    return {
        "stage": status["stage"],
        "status exits 0": done.returncode == 0,
        "problems": status["problems"],
        "stage0": status["stage0"],
        "nodes": [(node["name"], node["state"]) for node in status["nodes"]],
        "apps": apps,
        "slugs": {component["app"]: component["slug"] for component in status["components"]},
        "dynos": sorted(
            f"{component['app']} {process['name']} {process['state']}"
            for component in status["components"]
            for process in component["processes"]
        ),
        "last release": {app: (all_[-1]["status"], all_[-1]["current"]) for app, all_ in releases.items() if all_},
        "managers": observe.engine_managers(first),
        "members": sorted(observe.engine_member_addresses(first)),
        "services": services(rehearsal),
        "rows": rows(rehearsal),
        "left over": leftovers(rehearsal),
    }


def differences(reference: dict[str, Any], found: dict[str, Any]) -> list[str]:
    """Return in words what differs."""
    keys = [key for key in reference if key in found]
    return [
        f"{key}: {found[key]} and not {reference[key]}" for key in keys if _plain(reference[key]) != _plain(found[key])
    ]


def _plain(value: Any) -> Any:
    return json.loads(json.dumps(value))


def services(rehearsal: Rehearsal) -> dict[str, int]:
    """Return how many services each process type has: one, unless something was left behind."""
    form = '{{ index .Spec.Labels "blackstart.app" }}.{{ index .Spec.Labels "blackstart.process" }}'
    with connected(rehearsal.platform.inventory.nodes[0]) as remote:
        ids = remote.check(["docker", "service", "ls", "-q", "--filter", "label=blackstart.kind=process"]).split()
        return dict(Counter(remote.check(["docker", "service", "inspect", "--format", form, *ids]).split()))


def rows(rehearsal: Rehearsal) -> dict[str, str]:
    """Return how many rows the core tables of the platform's own database have."""
    platform = rehearsal.platform
    union = " UNION ALL ".join(f"SELECT '{name} ' || count(*) FROM {name}" for name in TABLES)
    server = f"host=localhost dbname=platform user={platform.database_login} sslmode=require"
    program = f'"$(echo "$HOME"/.apt/usr/lib/postgresql/*/bin/psql)" "{server}" -qtA --no-psqlrc -c "{union}"'
    command = f'read -r PGPASSWORD; export PGPASSWORD; for file in .profile.d/*.sh; do . "./$file"; done; {program}'
    with connected(platform.volume_nodes["postgres"]) as remote:
        database = inside(remote, platform.name, "postgres")
        password = platform.secrets["database_password"]
        out = remote.check([*database, "bash", "-c", command], stdin=f"{password}\n")
    return dict(line.rsplit(" ", 1) for line in out.splitlines() if line)


def leftovers(rehearsal: Rehearsal) -> list[str]:
    """Name what a fault left behind: machines, containers of the pivot, half slugs, programs."""
    nodes = {machine.name for machine in rehearsal.provider.machines() if machine.group == "runtime"}
    found = [f"machine {machine.name}" for machine in rehearsal.provider.found() if machine.name not in nodes]
    found += [f"program {line}" for line in rehearsal.operators_left()]
    for node in rehearsal.platform.inventory.nodes:
        with connected(node) as remote:
            for name in remote.check(["docker", "ps", "-a", "--format", "{{.Names}}"]).split():
                found += [f"container {name} on {node.name}"] if name.startswith("blackstart-pivot") else []
            partial = remote.check(["find", "/var/lib/blackstart/slugs", "-name", "*.partial"]).split()
            found += [f"{path} on {node.name}" for path in partial]
    return found
