"""A machine's disk: what makes an unpacked image this machine, and the Debian packages that need no download."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from pathlib import Path

from blackstart.providers import Machine
from blackstart.providers.keys import new_private_key, public_line, write_private
from blackstart.providers.machine_image import STAMP, write_files

COMPLETE = "complete"
"""The mark beside a root file system that says it is complete."""

OWNER = "owner"
"""The file beside a root file system that holds the public key of the state folder that made it."""

NETWORK_FILE = "etc/systemd/network/10-host0.network"
"""Sorts before systemd's own 80-container-host0.network, which would ask for DHCP."""
HOST_KEY = "etc/ssh/ssh_host_ed25519_key"
ARCHIVES = "var/cache/apt/archives"
SERVICES = ("systemd-networkd.service", "ssh.service")
NOT_WANTED = ("apt-daily.timer", "apt-daily-upgrade.timer", "systemd-networkd-wait-online.service")
"""The first two would hold apt's lock at a bad time; the last waits for what is static."""


def personalise(
    root: Path,
    *,
    machine: Machine,
    gateway: str,
    prefix: int,
    mtu: int,
    authorized_key: str,
    sources: tuple[str, ...],
    lists_from: Path,
) -> str:
    """Give the file system in `root` its name, address, keys and sources; return its public host key."""
    write_files(
        root,
        [
            ("etc/hostname", f"{machine.name}\n"),
            ("etc/hosts", f"127.0.0.1 localhost\n127.0.1.1 {machine.name}\n::1 localhost ip6-localhost\n"),
            ("etc/machine-id", ""),
            ("etc/resolv.conf", _resolvers()),
            ("etc/apt/sources.list", "".join(f"{line}\n" for line in sources)),
            ("etc/apt/apt.conf.d/90blackstart", APT_SETTINGS),
            ("etc/dpkg/dpkg.cfg.d/90blackstart", DPKG_SETTINGS),
            ("etc/ssh/sshd_config.d/90blackstart.conf", SSHD_SETTINGS),
            (NETWORK_FILE, _network(machine.address, gateway, prefix, mtu)),
        ],
    )
    for service in SERVICES:
        _link(root / "etc/systemd/system/multi-user.target.wants" / service, f"/usr/lib/systemd/system/{service}")
    for unit in NOT_WANTED:
        _link(root / "etc/systemd/system" / unit, "/dev/null")
    _let_in(root, authorized_key)
    _same_age(root / STAMP.lstrip("/"), lists_from)
    return _host_key(root)


APT_SETTINGS = """APT::Install-Recommends "false";
APT::Keep-Downloaded-Packages "true";
Binary::apt::APT::Keep-Downloaded-Packages "true";
Acquire::Languages "none";
DPkg::Lock::Timeout "120";
"""
DPKG_SETTINGS = "force-unsafe-io\n"
"""A machine that is made in seconds needs no fsync per file."""

SSHD_SETTINGS = """PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
HostKey /etc/ssh/ssh_host_ed25519_key
UseDNS no
"""


def _network(address: str, gateway: str, prefix: int, mtu: int) -> str:
    return (
        f"[Match]\nName=host0\n\n[Link]\nMTUBytes={mtu}\n\n"
        f"[Network]\nAddress={address}/{prefix}\nGateway={gateway}\nLinkLocalAddressing=no\nIPv6AcceptRA=no\n"
    )


def address_of(root: Path) -> str:
    """Return the address that `personalise` gave, empty when it did not come so far."""
    try:
        text = (root / NETWORK_FILE).read_text()
    except OSError:
        return ""
    found = re.search(r"^Address=([0-9.]+)/", text, flags=re.MULTILINE)
    return found.group(1) if found is not None else ""


def is_owned_by(home: Path, key: str | None) -> bool:
    """Whether the state folder with this public key made the machine in `home`, or there is no machine in it yet."""
    try:
        owner = (home / OWNER).read_text()
    except OSError:
        owner = _let_in_by(home / "root")
    if not (home / "root").exists():
        return True
    return key is not None and owner.strip() == key


def _let_in_by(root: Path) -> str:
    """Return the key that a machine lets in, empty when there is none: what machines without OWNER tell."""
    try:
        return (root / "root/.ssh/authorized_keys").read_text()
    except OSError:
        return ""


def host_key_of(root: Path) -> str:
    """Return the public host key of a machine that was made."""
    return public_line((root / HOST_KEY).read_bytes())


def _resolvers() -> str:
    """Return this host's resolv.conf."""
    with contextlib.suppress(OSError):
        return Path("/etc/resolv.conf").read_text()
    return ""


def _let_in(root: Path, key: str) -> None:
    folder = root / "root/.ssh"
    folder.mkdir(mode=0o700, exist_ok=True)
    write_private(folder / "authorized_keys", f"{key}\n".encode())


def _host_key(root: Path) -> str:
    """Make the only host key; Debian's package made some that all machines of the image would share."""
    for old in (root / "etc/ssh").glob("ssh_host_*"):
        old.unlink()
    private = new_private_key()
    write_private(root / HOST_KEY, private)
    return public_line(private)


def _link(path: Path, target: str) -> None:
    path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _same_age(stamp: Path, image: Path) -> None:
    """The package lists are as old as the image."""
    modified = image.stat().st_mtime
    stamp.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
    stamp.touch()
    os.utime(stamp, (modified, modified))


def lay_in_packages(root: Path, archive: Path) -> None:
    """Put the kept packages where the machine's apt looks for them; it checks their hashes before use."""
    if archive.is_dir():
        for package in archive.glob("*.deb"):
            _link_or_copy(package, root / ARCHIVES / package.name)


def take_packages(root: Path, archive: Path) -> int:
    """Keep the packages in the machine's apt cache; return how many are new."""
    archive.mkdir(mode=0o755, parents=True, exist_ok=True)
    new = [package for package in (root / ARCHIVES).glob("*.deb") if not (archive / package.name).exists()]
    for package in new:
        _link_or_copy(package, archive / package.name)
    return len(new)


def _link_or_copy(source: Path, target: Path) -> None:
    if target.exists():
        return
    try:
        os.link(source, target)
    except OSError:
        partial = target.with_name(f".{target.name}.partial")
        shutil.copy2(source, partial)
        partial.rename(target)


def mounts_below(folder: Path) -> tuple[Path, ...]:
    """Return the mount points at or below `folder` in this mount namespace, the deepest first."""
    points = (line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines())
    paths = (Path(_unescaped(point)) for point in points)
    return tuple(sorted((path for path in paths if path.is_relative_to(folder)), key=lambda path: -len(path.parts)))


def _unescaped(text: str) -> str:
    """Undo the octal escapes of /proc/self/mountinfo."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found.group(1), 8)), text)
