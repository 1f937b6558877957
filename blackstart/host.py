"""The operator's own host: what it must have, and how it is checked."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from blackstart.errors import HostError

HOST_PACKAGES = [
    "ca-certificates",
    "curl",
    "debian-archive-keyring",
    "iproute2",
    "mmdebstrap",
    "nftables",
    "openssh-client",
    "procps",
    "squashfs-tools",
    "systemd-container",
    "zstd",
]
"""Debian packages that make machines and stacks."""

TEST_PACKAGES = ["chromium", "git", "haproxy", "nodejs", "openssl", "pgbackrest", "postgresql", "redis-server", "ruby"]
"""What the tests need beside them."""

FREE_GIGABYTES = 15


def check_host() -> None:
    """Refuse a host on which nothing can be made. Raises HostError."""
    if os.geteuid() != 0:
        raise HostError("this needs root", why="it makes machines, networks and firewall rules", fix="run it with sudo")
    if not Path("/etc/debian_version").exists():
        raise HostError("this host is not Debian", fix="run it on Debian 12 or 13")


def check_free_space(cache: Path) -> None:
    """Refuse a file system that is too small to begin on: what was begun goes on in what it has. Raises HostError."""
    cache.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(cache).free // 10**9
    if free < FREE_GIGABYTES:
        raise HostError(
            f"{cache} has {free} GB free, {FREE_GIGABYTES} GB are needed",
            fix="free some space, or name a folder on a larger file system: $BLACKSTART_CACHE, or `cache` in your inventory",
        )


def missing_packages(packages: list[str]) -> list[str]:
    """Return those of `packages` that are not installed on this host."""
    listed = subprocess.run(
        ["dpkg-query", "--show", "--showformat=${Package} ${db:Status-Status}\n", *packages],
        check=False,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    installed = {line.split()[0] for line in listed.splitlines() if line.endswith(" installed")}
    return sorted(set(packages) - installed)
