"""`up` on named hosts, as inventories/prod.py has them: a user with sudo, another SSH port, a stage 0 that is wiped.

One node is enough: what is under test is how the hosts are reached, not how many there are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from blackstart.client import wait_for
from blackstart.providers import Machine
from blackstart.providers.local import LocalPlatform
from blackstart.providers.nspawn import HOST_CACHE
from blackstart.providers.options import ROOTS_OF_THIS_HOST
from blackstart.sources import checkout_root

from .conftest import Shell

pytestmark = [pytest.mark.system, pytest.mark.timeout(1800)]

NAME, SUBNET, PORT = "tprod", "10.79.33.0/24", 2222
UP_SECONDS = 1200

# As an operator gives such machines out: root cannot log in, nothing of this host's caches is to be seen.
PREPARE = f"""set -e
umount --lazy {HOST_CACHE} 2> /dev/null || true
DEBIAN_FRONTEND=noninteractive apt-get -q -y install sudo > /dev/null 2>&1
useradd --create-home --shell /bin/bash admin
echo 'admin ALL=(ALL) NOPASSWD: ALL' > /etc/sudoers.d/admin
install -d -o admin -g admin -m 0700 /home/admin/.ssh
install -o admin -g admin -m 0600 /root/.ssh/authorized_keys /home/admin/.ssh/authorized_keys
printf 'Port {PORT}\\nPermitRootLogin no\\n' > /etc/ssh/sshd_config.d/10-named.conf
systemctl restart ssh
"""

INVENTORY = """_all = {{
    "platform": "{name}",
    "domain": "{name}.internal",
    "ssh_user": "admin",
    "_sudo": True,
    "ssh_port": {port},
    "ssh_key": "{key}",
    "ssh_known_hosts_file": "{known_hosts}",
    "ssh_strict_host_key_checking": "yes",
    {roots}
}}
stage0 = [("first.{name}.internal", {{**_all, "ssh_hostname": "{stage0}", "address": "{stage0}"}})]
runtime = [("node1.{name}.internal", {{**_all, "ssh_hostname": "{node}", "address": "{node}"}})]
"""


@dataclass(frozen=True)
class Named:
    """Two machines that an inventory names."""

    provider: LocalPlatform
    inventory: Path
    known_hosts: Path
    environment: dict[str, str]

    def bootstrap(self, command: str, *arguments: str, seconds: int = 300) -> subprocess.CompletedProcess[str]:
        """Run bootstrap.py with the inventory."""
        argv = [sys.executable, "-m", "blackstart", command, "--inventory", str(self.inventory), *arguments]
        return subprocess.run(
            argv, cwd=checkout_root(), env=self.environment, capture_output=True, text=True, timeout=seconds
        )

    def run(self, machine: Machine, *argv: str) -> subprocess.CompletedProcess[str]:
        """Run a command with sudo, as the inventory's user."""
        options = [f"UserKnownHostsFile={self.known_hosts}", "BatchMode=yes", "ConnectTimeout=10"]
        flags = [word for option in options for word in ("-o", option)]
        key, where = str(self.provider.ssh.key), f"admin@{machine.address}"
        ssh = ["ssh", "-F", "none", "-i", key, "-p", str(PORT), *flags, where, "sudo", "-n", *argv]
        return subprocess.run(ssh, capture_output=True, text=True, timeout=60)


@pytest.fixture(scope="module")
def named(_root: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Named]:
    folder = tmp_path_factory.mktemp("named")
    provider = LocalPlatform(name=NAME, subnet=SUBNET, nodes=1, state_dir=folder / "machines")
    provider.down()
    try:
        provider.prepare()
        for machine in provider.machines():
            provider.create(machine)
            provider.boot(machine)
            Shell(provider, machine).check("bash", "-c", PREPARE, seconds=300)
        known = folder / "known_hosts"
        lines = [line.split(" ", 1) for line in provider.ssh.known_hosts.read_text().splitlines()]
        known.write_text("".join(f"[{host}]:{PORT} {key}\n" for host, key in lines))
        made = Named(provider, folder / "named.py", known, {**os.environ, "BLACKSTART_STATE": str(folder / "state")})
        stage0, node = provider.machines()
        made.inventory.write_text(
            INVENTORY.format(
                name=NAME,
                port=PORT,
                key=provider.ssh.key,
                known_hosts=known,
                roots=_roots(folder),
                stage0=stage0.address,
                node=node.address,
            )
        )
        for machine in provider.machines():
            wait_for(lambda m=machine: made.run(m, "true").returncode == 0 or None, "the machine's user", seconds=30)
        yield made
    finally:
        provider.down()


def _roots(folder: Path) -> str:
    """Return the datum that makes machines trust what this host trusts beside Debian's own roots."""
    roots = "\n".join(path.read_text().strip() for path in sorted(ROOTS_OF_THIS_HOST.rglob("*.crt")))
    if not roots:
        return ""
    bundle = folder / "roots.pem"
    bundle.write_text(roots + "\n")
    return f'"extra_ca_bundle": "{bundle}",'


def test_named_hosts_become_a_platform_and_the_first_one_is_wiped(named: Named) -> None:
    stage0, node = named.provider.machines()
    done = named.bootstrap("up", "--json", seconds=UP_SECONDS)
    assert done.returncode == 0, done.stderr[-8000:]
    status = json.loads(done.stdout)
    print("TIMING", status["elapsed_s"], status["steps"])
    assert status["stage"] == "self-hosted"
    assert [each["address"] for each in status["nodes"]] == [node.address]
    assert status["problems"] == []

    assert named.provider.running(stage0)  # a named host is wiped, not destroyed
    for path in ("/opt/blackstart", "/etc/blackstart/stage0", "/var/lib/docker/swarm/state.json"):
        assert named.run(stage0, "test", "-e", path).returncode == 1, path
    left = named.run(stage0, "sh", "-c", "'docker info --format {{.Swarm.LocalNodeState}} || true'").stdout.strip()
    assert left in ("", "inactive")

    again = named.bootstrap("up", seconds=UP_SECONDS)
    assert again.returncode == 0, again.stderr[-4000:]
    assert "done (" not in again.stderr
    deployed = named.bootstrap("deploy", "named", str(checkout_root() / "tests" / "fixtures" / "flask"))
    assert deployed.returncode == 0, deployed.stderr[-4000:]
    assert named.bootstrap("status").returncode == 0


def test_down_refuses_named_hosts_and_says_what_to_do(named: Named) -> None:
    done = named.bootstrap("down")
    assert done.returncode == 1
    assert "wipe named hosts yourself" in done.stderr
