"""Real machines for system tests. Each platform has a name and a subnet of its own, and is gone afterwards."""

from __future__ import annotations

import os
import shlex
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from blackstart.providers import Machine
from blackstart.providers.local import CACHE, LocalPlatform
from blackstart.stacks import Stack, StackSources, ensure_stacks
from tests.system.platform_under_test import UnderTest, brought_up

ENGINE_PACKAGES = ("docker.io", "docker-cli", "iptables")
CGROUPS_UNIT = Path(__file__).parents[2] / "templates" / "node" / "blackstart-cgroups.service"


@dataclass(frozen=True)
class Shell:
    """Root on a machine, over strict SSH."""

    platform: LocalPlatform
    machine: Machine

    def run(self, *argv: str, stdin: bytes = b"", seconds: float = 120) -> subprocess.CompletedProcess[str]:
        """Run `argv` and return what it printed and its exit code."""
        vector = self.platform.ssh_command(self.machine, (shlex.join(argv),))
        done = subprocess.run(vector, input=stdin, capture_output=True, timeout=seconds, check=False)
        return subprocess.CompletedProcess(
            argv, done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
        )

    def check(self, *argv: str, stdin: bytes = b"", seconds: float = 120) -> str:
        """Run `argv`, which must succeed, and return what it printed."""
        done = self.run(*argv, stdin=stdin, seconds=seconds)
        assert done.returncode == 0, f"{argv}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout


@contextmanager
def local_machines(name: str, subnet: str, state: Path, *, nodes: int = 1) -> Iterator[LocalPlatform]:
    """Make and boot nodes; remove them at the end."""
    platform = LocalPlatform(name=name, subnet=subnet, nodes=nodes, with_stage0=False, state_dir=state)
    platform.down()
    try:
        platform.prepare()
        for machine in platform.machines():
            platform.create(machine)
            platform.boot(machine)
        yield platform
    finally:
        platform.down()


@pytest.fixture(scope="session")
def it(_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[UnderTest]:
    """The platform of test_platform*.py."""
    with brought_up(tmp_path_factory.mktemp("state")) as platform:
        yield platform


@pytest.fixture(scope="session")
def _root() -> None:
    if os.geteuid() != 0:
        pytest.fail("system tests make machines and need root: run them with sudo")


@pytest.fixture(scope="module")
def machines(_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalPlatform]:
    """Two bare machines."""
    with local_machines("tmach", "10.79.6.0/24", tmp_path_factory.mktemp("tmach"), nodes=2) as platform:
        yield platform


@pytest.fixture(scope="session")
def run_stack(_root: None) -> Stack:
    """The run stack, from the cache where it is there."""
    return ensure_stacks(CACHE, StackSources.of(), print).run


@pytest.fixture(scope="session")
def engine_machine(run_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shell]:
    """A machine with Docker and the run stack."""
    with local_machines("tdyno", "10.79.5.0/24", tmp_path_factory.mktemp("tdyno")) as platform:
        shell = Shell(platform, platform.machines()[0])
        shell.check("apt-get", "install", "--yes", *ENGINE_PACKAGES, seconds=300)
        platform.harvest_packages(shell.machine)
        unit = f"/etc/systemd/system/{CGROUPS_UNIT.name}"
        shell.check("tee", unit, stdin=CGROUPS_UNIT.read_bytes())
        shell.check("systemctl", "enable", "--now", CGROUPS_UNIT.name)
        shell.check("systemctl", "restart", "docker.service")
        for vector in run_stack.load_vectors(run_stack.path_on_machine):
            shell.check(*vector, seconds=300)
        shell.check("install", "-d", "-m", "0700", "/var/lib/blackstart/slugs")
        yield shell
