"""The platform's black start beside the bare engine's, on machines of the same kind, in one run.

    .venv/bin/python bench/black_start.py [--rounds N]

In each round the platform loses the power of all nodes in the middle of writes and a deploy (`verify --black-start`): seconds
from the power until every router serves an app and every component and dyno is up. Then the bare engine on three machines of
its own, with one service on every node, loses its power too: seconds until the service answers on all of them. While one is
measured, the other is off.
Prints each round, medians, and the ratio. Exit 1 when a round fails, or the ratio is over 1.5.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import httpx
import running

from blackstart import observe, power
from blackstart.client import wait_for
from blackstart.errors import BlackstartError, PlatformError
from blackstart.progress import Progress
from blackstart.proofs import black_start
from blackstart.providers.local import CACHE, LocalPlatform
from blackstart.providers.options import local_platform
from blackstart.run import Run
from blackstart.stacks import StackSources, ensure_stacks

AIM = 1.5
ROUNDS = 10
BACK_SECONDS = 300.0
PORT = 8000
PACKAGES = ["docker.io", "docker-cli", "iptables"]
CGROUPS = running.ROOT / "templates" / "node" / "blackstart-cgroups.service"


def main() -> int:
    """Measure both, round after round; print; return 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    options = parser.parse_args()
    ours, bare, failed = [], [], 0
    with bare_engine() as engine, running.platform() as platform:
        engine.cut()
        run = Run("inventories/local.py", platform, local_platform(platform.state), Progress(quiet=True))
        for number in range(1, options.rounds + 1):
            seconds, said = platform_round(run)
            if seconds is None:
                failed += 1
            else:
                ours.append(seconds)
            power.cut(run)
            bare.append(engine.round())
            power.give_back(run)
            wait_for(lambda: True if observe.all_up(platform) else None, "the platform", seconds=BACK_SECONDS)
            print(f"round {number:2}  platform {said}   bare engine {bare[-1]:.1f} s", flush=True)
    if not ours:
        return 1
    ratio = statistics.median(ours) / statistics.median(bare)
    print(
        f"{len(ours)}/{options.rounds} black starts succeeded; medians: platform {statistics.median(ours):.1f} s, "
        f"bare engine {statistics.median(bare):.1f} s, ratio {ratio:.2f} (aim {AIM})"
    )
    return 0 if failed == 0 and ratio <= AIM else 1


def platform_round(run: Run) -> tuple[float | None, str]:
    """Return the seconds of one black start of the platform, None when it failed, and what to print."""
    try:
        proof = black_start.prove(run)
    except BlackstartError as error:
        return None, f"FAILED: {error}"
    if not proof.holds:
        return None, f"FAILED: {proof.detail}"
    seconds = max(proof.evidence["seconds until"].values())
    return seconds, f"{seconds:.1f} s, interrupted deploy {proof.evidence['interrupted deploy']}"


@dataclass(frozen=True)
class BareEngine:
    """Three machines with the engine and one service on each, and nothing of ours."""

    machines: LocalPlatform

    def on(self, index: int, *argv: str, stdin: bytes = b"") -> str:
        """Run a command on a machine and return what it printed."""
        vector = self.machines.ssh_command(self.machines.machines()[index], (shlex.join(argv),))
        return subprocess.run(vector, input=stdin, check=True, capture_output=True, timeout=300).stdout.decode()

    def cut(self) -> None:
        """Cut the power of all machines at once."""
        with ThreadPoolExecutor(3) as pool:
            list(pool.map(self.machines.power_off, self.machines.machines()))

    def start(self) -> None:
        """Start the machines in a random order."""
        machines = list(self.machines.machines())
        random.shuffle(machines)
        for machine in machines:
            self.machines.start(machine)

    def wait(self) -> None:
        """Wait until the service answers on every machine."""
        for machine in self.machines.machines():
            url = f"http://{machine.address}:{PORT}/"
            wait_for(lambda url=url: answers(url), url, seconds=BACK_SECONDS, poll=0.5)

    def round(self) -> float:
        """Return the seconds from the power until the service answers everywhere; the machines are off before and after."""
        self.start()
        self.wait()
        self.cut()
        began = time.monotonic()
        self.start()
        self.wait()
        seconds = time.monotonic() - began
        self.cut()
        return seconds


def answers(url: str) -> bool:
    """Whether something answers 200. Raises PlatformError when not."""
    try:
        if httpx.get(url, timeout=2, trust_env=False).status_code == 200:
            return True
    except httpx.HTTPError as error:
        raise PlatformError(f"{url} does not answer", why=str(error)) from error
    raise PlatformError(f"{url} answers something else")


@contextlib.contextmanager
def bare_engine() -> Iterator[BareEngine]:
    """Yield three managers with a service on each; removed at the end."""
    with tempfile.TemporaryDirectory() as folder:
        machines = LocalPlatform(name="bare", subnet="10.79.9.0/24", nodes=3, with_stage0=False, state_dir=Path(folder))
        machines.down()
        try:
            machines.prepare()
            for machine in machines.machines():
                machines.create(machine)
                machines.boot(machine)
            engine = BareEngine(machines)
            _install(engine)
            engine.wait()
            yield engine
        finally:
            machines.down()


def _install(engine: BareEngine) -> None:
    stack = ensure_stacks(CACHE, StackSources.of(), print).run
    for index in range(3):
        engine.on(index, "apt-get", "install", "--yes", "-qq", *PACKAGES)
        engine.on(index, "tee", f"/etc/systemd/system/{CGROUPS.name}", stdin=CGROUPS.read_bytes())
        engine.on(index, "systemctl", "enable", "--now", "--quiet", CGROUPS.name)
        engine.on(index, "systemctl", "restart", "docker.service")
        for vector in stack.load_vectors(stack.path_on_machine):
            engine.on(index, *vector)
    addresses = [machine.address for machine in engine.machines.machines()]
    pool = ["--default-addr-pool", "10.201.0.0/16"]
    engine.on(0, "docker", "swarm", "init", "--advertise-addr", addresses[0], *pool)
    token = engine.on(0, "docker", "swarm", "join-token", "-q", "manager").strip()
    for index in (1, 2):
        where = ["--advertise-addr", addresses[index], f"{addresses[0]}:2377"]
        engine.on(index, "docker", "swarm", "join", "--token", token, *where)
    published = f"mode=host,target={PORT},published={PORT}"
    server = ["tini", "--", "python3", "-m", "http.server", str(PORT), "--directory", "/usr/share"]
    options = ["--name", "bare", "--mode", "global", "--publish", published, "--no-resolve-image", "--detach"]
    engine.on(0, "docker", "service", "create", *options, stack.name, *server)


if __name__ == "__main__":
    sys.exit(main())
