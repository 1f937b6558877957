"""Local machines: they boot bare, are reached strictly, lose power, reboot, and leave nothing."""

from __future__ import annotations

import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from blackstart.errors import MachineError
from blackstart.providers.keys import new_private_key, public_line
from blackstart.providers.local import LocalPlatform
from blackstart.providers.network import outside_mtu

from .conftest import Shell

pytestmark = pytest.mark.system


def shell(platform: LocalPlatform, index: int = 0) -> Shell:
    return Shell(platform, platform.machines()[index])


def test_a_machine_is_bare_debian_13_and_wholly_up(machines: LocalPlatform) -> None:
    node = shell(machines)
    assert 'VERSION_ID="13"' in node.check("cat", "/etc/os-release")
    assert node.check("hostname").strip() == "tmach-node1"
    assert node.run("systemctl", "is-system-running", "--wait").stdout.strip() == "running"
    assert node.run("sh", "-c", "command -v docker").returncode != 0


def test_machines_reach_each_other_at_their_addresses_with_the_outside_mtu(machines: LocalPlatform) -> None:
    first, second = shell(machines, 0), shell(machines, 1)
    assert first.check("cat", "/sys/class/net/host0/mtu").strip() == str(outside_mtu())
    greeting = first.check("timeout", "5", "bash", "-c", f"head -c 4 < /dev/tcp/{second.machine.address}/22")
    assert greeting == "SSH-"


def test_machines_have_host_keys_of_their_own(machines: LocalPlatform) -> None:
    lines = machines.ssh.known_hosts.read_text().splitlines()
    assert len({line.split(" ", 1)[1] for line in lines}) == len(lines) == 2


def test_another_host_key_is_refused(machines: LocalPlatform) -> None:
    machine = machines.machines()[0]
    right = machines.ssh.known_hosts.read_text()
    machines.ssh.know(machine.address, public_line(new_private_key()))
    try:
        done = shell(machines).run("true")
    finally:
        machines.ssh.known_hosts.write_text(right)
    assert done.returncode == 255
    assert "Host key verification failed" in done.stderr
    assert shell(machines).check("id", "-u").strip() == "0"


def test_packages_install_without_an_update_and_are_kept_for_the_next_machine(machines: LocalPlatform) -> None:
    node = shell(machines)
    node.check("apt-get", "install", "--yes", "tini", seconds=120)
    machines.harvest_packages(node.machine)
    assert list((machines.cache_dir / "apt-archives").glob("tini_*.deb"))
    other = machines.machines()[1]
    machines.destroy(other)
    machines.create(other)
    machines.boot(other)
    assert shell(machines, 1).check("sh", "-c", "ls /var/cache/apt/archives/tini_*.deb")


def test_a_second_boot_and_create_change_nothing(machines: LocalPlatform) -> None:
    node = shell(machines)
    node.check("touch", "/root/mark")
    machines.prepare()
    machines.create(node.machine)
    machines.boot(node.machine)
    node.check("test", "-e", "/root/mark")


def test_power_off_kills_at_once_and_the_disk_survives(machines: LocalPlatform) -> None:
    node = shell(machines)
    node.check("sh", "-c", "echo here > /root/kept && sync")
    started = time.monotonic()
    machines.power_off(node.machine)
    assert time.monotonic() - started < 2
    assert not machines.running(node.machine)
    machines.power_off(node.machine)
    machines.boot(node.machine)
    assert node.check("cat", "/root/kept").strip() == "here"


def test_a_reboot_is_in_order(machines: LocalPlatform) -> None:
    node = shell(machines)
    node.check("systemd-run", "--unit=witness", "--property=ExecStop=touch /root/stopped", "sleep", "infinity")
    machines.reboot(node.machine)
    node.check("test", "-e", "/root/stopped")


def test_a_machine_outlives_the_process_that_booted_it(machines: LocalPlatform) -> None:
    keeper = machines._nspawn(machines.machines()[0]).processes()["sh"]
    parent = Path(f"/proc/{keeper}/stat").read_text().rsplit(")", 1)[1].split()[1]
    assert parent == "1"


def test_machines_share_no_control_group(machines: LocalPlatform) -> None:
    """Their systemds use the same names: in a shared group one removes what another is about to use."""
    inits = [machines._nspawn(machine).init() for machine in machines.machines()]
    groups = [set(Path(f"/proc/{init}/cgroup").read_text().splitlines()) for init in inits]
    assert len(groups) == 2
    assert not groups[0] & groups[1]


def test_a_boot_that_hangs_is_tried_once_more(machines: LocalPlatform, tmp_path: Path) -> None:
    hanging = replace(machines, name="thang", subnet="10.79.4.0/24", nodes=1, state_dir=tmp_path, boot_seconds=15)
    try:
        hanging.prepare()
        machine = hanging.machines()[0]
        hanging.create(machine)
        root = hanging.folder / machine.name / "root"
        (root / "etc/systemd/system/ssh.service.d").mkdir()
        (root / "etc/systemd/system/ssh.service.d/hang.conf").write_text(HANGS_ONCE)
        hanging.boot(machine)
        assert (root / "hung").exists()
    finally:
        hanging.down()
    assert hanging.leftovers() == ()


HANGS_ONCE = """[Service]
ExecStartPre=
ExecStartPre=/bin/sh -c 'test -e /hung || { touch /hung; exec sleep infinity; }'
ExecStartPre=/usr/sbin/sshd -t
TimeoutStartSec=infinity
"""


def test_a_second_platform_on_the_same_subnet_is_refused(machines: LocalPlatform, tmp_path: Path) -> None:
    other = replace(machines, name="tother", state_dir=tmp_path)
    with pytest.raises(MachineError, match="is taken") as caught:
        other.prepare()
    assert "platform tmach" in str(caught.value)
    assert other.leftovers() == ()


def test_a_machine_that_dies_while_booting_is_reported_with_its_console(
    machines: LocalPlatform, tmp_path: Path
) -> None:
    broken = replace(machines, name="tbroken", subnet="10.79.4.0/24", nodes=1, state_dir=tmp_path)
    try:
        broken.prepare()
        machine = broken.machines()[0]
        broken.create(machine)
        (broken.folder / machine.name / "root/usr/lib/systemd/systemd").unlink()
        with pytest.raises(MachineError, match="did not boot"):
            broken.boot(machine)
    finally:
        broken.down()
    assert broken.leftovers() == ()


def test_down_leaves_nothing_of_its_own_and_everything_of_others(machines: LocalPlatform, tmp_path: Path) -> None:
    other = replace(machines, name="tmachb", subnet="10.79.4.0/24", nodes=1, state_dir=tmp_path)
    try:
        other.prepare()
        other.create(other.machines()[0])
        other.boot(other.machines()[0])
        _mount_below(other.folder / "tmachb-node1" / "root" / "mnt")
        assert len(other.leftovers()) >= 5
        other.down()
        assert other.leftovers() == ()
        other.down()
    finally:
        other.down()
    assert machines.running(machines.machines()[0])
    assert shell(machines).check("id", "-u").strip() == "0"


def _mount_below(folder: Path) -> None:
    """A mount that somebody left: `down` must not delete through it."""
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(folder)], check=True, timeout=10)
