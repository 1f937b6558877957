"""Hosts that cannot be reached or cannot become nodes: `up` says which, why and what to do, and changes nothing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from blackstart.client import wait_for
from blackstart.deploys import run_deploy
from blackstart.providers.keys import new_private_key, write_private
from blackstart.providers.local import LocalPlatform
from blackstart.sources import checkout_root
from blackstart.stacks import Stack

from .conftest import Shell

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]  # on a new machine images and stacks are built first


@dataclass(frozen=True)
class Hosts:
    """Two bare machines, and the folder of the operator that names them."""

    platform: LocalPlatform
    folder: Path

    def shell(self, index: int) -> Shell:
        return Shell(self.platform, self.platform.machines()[index])

    def inventory(self, **changed: str) -> Path:
        """Name the first machine stage 0, the second one a node; `changed` are data of the node."""
        stage0, node = self.platform.machines()
        common = {
            "platform": "tbad",
            "domain": "tbad.internal",
            "ssh_user": "root",
            "ssh_key": str(self.platform.ssh.key),
            "ssh_known_hosts_file": str(self.platform.ssh.known_hosts),
        }
        first = {**common, "ssh_hostname": stage0.address, "address": stage0.address}
        second = {**common, "ssh_hostname": node.address, "address": node.address, **changed}
        path = self.folder / "hosts.py"
        path.write_text(f"stage0 = [('first', {first})]\nruntime = [('second', {second})]\n")
        return path

    def refused(self, inventory: Path) -> str:
        """Run `up`, which must fail, and return what it says."""
        argv = [sys.executable, "-m", "blackstart", "up", "--inventory", str(inventory)]
        environment = {**os.environ, "BLACKSTART_STATE": str(self.folder / "state")}
        done = subprocess.run(
            argv, cwd=checkout_root(), env=environment, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == 1, done.stderr
        for index in (0, 1):  # nothing was changed, also on the host that is fit
            self.wait_for_ssh(index)
            assert self.shell(index).run("test", "-e", "/etc/blackstart").returncode == 1
        return done.stderr

    def wait_for_ssh(self, index: int) -> None:
        """Wait until the machine takes connections again: its server refuses an address for a while after wrong keys."""
        wait_for(lambda: True if self.shell(index).run("true").returncode == 0 else None, "its SSH server", seconds=120)

    def accepted(self, inventory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Run what `up` asks of the hosts first; it must find nothing wrong."""
        monkeypatch.setenv("BLACKSTART_STATE", str(self.folder / "state"))
        run_deploy(str(inventory), "checks", log=print)


@pytest.fixture(scope="module")
def hosts(run_stack: Stack, machines: LocalPlatform, tmp_path_factory: pytest.TempPathFactory) -> Hosts:
    return Hosts(machines, tmp_path_factory.mktemp("bad-hosts"))


def test_a_wrong_key_names_the_host_and_what_to_check(hosts: Hosts) -> None:
    key = hosts.folder / "wrong-key"
    write_private(key, new_private_key())
    address = hosts.platform.machines()[1].address
    said = hosts.refused(hosts.inventory(ssh_key=str(key)))
    assert f"second cannot be reached over SSH as root@{address}:22" in said
    assert "Authentication" in said
    assert "user and key in the inventory" in said
    assert "first cannot" not in said


def test_a_missing_host_is_named(hosts: Hosts) -> None:
    gone = str(hosts.platform.machines()[1].address).rpartition(".")[0] + ".77"
    said = hosts.refused(hosts.inventory(ssh_hostname=gone, address=gone))
    assert f"second cannot be reached over SSH as root@{gone}:22" in said
    assert "check that the machine is on" in said


def test_a_host_that_is_not_debian_is_refused(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    node = hosts.shell(1)
    node.check("cp", "--remove-destination", "/usr/lib/os-release", "/etc/os-release")
    node.check("sed", "-i", "s/^ID=.*/ID=ubuntu/; s/^PRETTY_NAME=.*/PRETTY_NAME=Ubuntu/", "/etc/os-release")
    said = hosts.refused(hosts.inventory())
    assert "second runs Ubuntu, not Debian 13" in said
    assert "take the host out of the inventory" in said
    node.check("cp", "/usr/lib/os-release", "/etc/os-release")
    hosts.accepted(hosts.inventory(), monkeypatch)


def test_a_full_disk_is_refused(hosts: Hosts, monkeypatch: pytest.MonkeyPatch) -> None:
    node = hosts.shell(1)
    node.check("mount", "-t", "tmpfs", "-o", "size=64m", "small", "/var/lib")
    said = hosts.refused(hosts.inventory())
    assert "second has 64 MB free below /var/lib and needs 4000 MB: free some space" in said
    node.check("umount", "/var/lib")
    hosts.accepted(hosts.inventory(), monkeypatch)


@pytest.mark.parametrize(("index", "name", "port"), [(1, "second", 443), (0, "first", 6379)])
def test_an_occupied_port_is_refused(
    hosts: Hosts, monkeypatch: pytest.MonkeyPatch, index: int, name: str, port: int
) -> None:
    with listening(hosts.shell(index), port):
        said = hosts.refused(hosts.inventory())
    assert f"{name}: the platform needs port {port}, and another program listens there" in said
    assert "`ss -ltnp`" in said
    hosts.accepted(hosts.inventory(), monkeypatch)


@contextmanager
def listening(machine: Shell, port: int) -> Iterator[None]:
    """Let systemd listen on a port of the machine."""
    machine.check("systemd-run", "--quiet", "--unit=taken", f"--socket-property=ListenStream={port}", "cat")
    try:
        yield
    finally:
        machine.check("systemctl", "stop", "taken.socket")
