"""What every machine of the platform has: packages, trust, the engine's daemon, the firewall, the stacks."""

from __future__ import annotations

import ipaddress
import json
from io import StringIO
from pathlib import Path
from shlex import quote
from typing import Any
from urllib.parse import urlsplit

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.api.operation import OperationMeta
from pyinfra.facts.files import Directory, File
from pyinfra.operations import apt, files, server, systemd

from blackstart.errors import HostError
from blackstart.model.dyno import BUNDLE
from blackstart.observe import STAGE0_IS_BANNED
from blackstart.ownership import IDENTITY, check_carried, identity
from blackstart.platform import BUS_PORT, STAGE0_API_PORT, STAGE0_OBJECTS_PORT, TRUST
from blackstart.stacks import Stack
from deploys.lib import facts, operations
from deploys.lib.applied import applied
from deploys.lib.context import in_runtime, in_stage0, me, platform

PACKAGES = ["docker.io", "docker-cli", "iptables", "nftables", "ca-certificates"]
ENGINE_TCP = (2377, 7946)
ENGINE_UDP = (4789, 7946)
ROUTER_PORTS = (80, 443)
POSTGRES_PORT = 5432
DYNO_UID = 10000
FREE_MB = 4000
DEBIAN = "13"
"""Older releases have neither this engine's packages nor the database's version."""
VXLAN_BYTES = 50
DEFAULT_MTU = 1500
ROUTER_SYSCTL = "net.ipv4.ip_unprivileged_port_start = 80\nnet.ipv4.ip_forward = 1\nnet.ipv4.tcp_keepalive_time = 300\n"
CGROUPS_UNIT = "/etc/systemd/system/blackstart-cgroups.service"
SYSCTL = "/etc/sysctl.d/60-blackstart.conf"
DAEMON = "/etc/docker/daemon.json"
FIREWALL_UNIT = "/etc/systemd/system/blackstart-firewall.service"
RULES = ("firewall.nft", "docker-user.rules")
APT_SOURCES = "/etc/apt/sources.list.d/blackstart.sources"
APT_ROOTS = "/etc/apt/apt.conf.d/60blackstart"
ROOTS = tuple(f"/usr/local/share/ca-certificates/{name}.crt" for name in ("blackstart", "blackstart-extra"))
FOLDERS = (
    ("/etc/blackstart", "root", "0755"),
    (TRUST, "root", "0755"),
    ("/var/lib/blackstart", "root", "0755"),
    ("/var/lib/blackstart/slugs", "root", "0700"),
    ("/var/lib/blackstart/router", "dyno", "0700"),
)


@deploy("Node")
def node() -> None:
    """Everything above, in order."""
    check()
    base()
    trust()
    engine_daemon()
    firewall()
    stacks()


@deploy("Checks")
def check() -> None:
    """Refuse a host that cannot become a node, before anything is changed on it."""
    try:
        check_carried(str(host.name), host.get_fact(facts.Identity), platform().state)
    except HostError as error:
        raise DeployError(str(error)) from error
    release = host.get_fact(facts.OsRelease) or {}
    if release.get("ID") != "debian" or release.get("VERSION_ID") != DEBIAN:
        found = release.get("PRETTY_NAME", "an unknown system")
        raise DeployError(
            f"{host.name} runs {found}, not Debian {DEBIAN}: install that, or take the host out of the inventory"
        )
    free = host.get_fact(facts.FreeMegabytes)
    begun = host.get_fact(Directory, path="/etc/blackstart") is not None
    if free is not None and free < FREE_MB and not begun:
        raise DeployError(
            f"{host.name} has {free} MB free below /var/lib and needs {FREE_MB} MB: free some space, then run this again"
        )
    listening = host.get_fact(facts.ListeningPorts)
    taken = sorted(_ports_needed(begun).intersection(listening or ()))
    if taken:
        ports = ", ".join(str(port) for port in taken)
        raise DeployError(
            f"{host.name}: the platform needs port {ports}, and another program listens there: "
            "find it with `ss -ltnp`, stop it, then run this again"
        )


def _ports_needed(begun: bool) -> set[int]:
    """The ports that must be free now: none on a host that has our own services already, for they listen there."""
    if in_stage0():
        return set() if begun else {POSTGRES_PORT, BUS_PORT, STAGE0_API_PORT, STAGE0_OBJECTS_PORT}
    joined = (host.get_fact(facts.Engine) or {}).get("LocalNodeState") not in (None, "", "inactive")
    return set() if joined else {*ROUTER_PORTS, BUS_PORT, *ENGINE_TCP}


@deploy("Base")
def base() -> None:
    """Whose machine it is, folders and packages."""
    server.user(
        name="Make the user that dynos run as",
        user="dyno",
        uid=DYNO_UID,
        system=True,
        home="/nonexistent",
        shell="/usr/sbin/nologin",
        ensure_home=False,
    )
    for path, owner, mode in host.loop(FOLDERS):
        files.directory(name=f"Make {path}", path=path, user=owner, group=owner, mode=mode)
    _put("whose machine this is", json.dumps(_identity(), sort_keys=True) + "\n", IDENTITY)
    _apt_mirror()
    finish_installation()
    apt.packages(
        name="Install the engine and the firewall",
        packages=PACKAGES,
        update=True,
        cache_time=86400,
        no_recommends=True,
        _env={"DEBIAN_FRONTEND": "noninteractive"},
    )


def _apt_mirror() -> None:
    """Point apt at the inventory's mirror. Its extra roots are needed before there is any package that collects roots."""
    mirror, extra = me().settings.apt_mirror, me().settings.extra_ca_bundle
    if mirror is None:
        return
    changes = [_put("where apt's mirror is", _apt_sources(str(mirror)), APT_SOURCES)]
    url = urlsplit(str(mirror))
    if url.scheme == "https" and extra is not None:
        _put("the extra roots", Path(extra).read_text(), ROOTS[1])
        if host.get_fact(File, path=BUNDLE) is None:
            server.shell(
                name="Collect the roots that are there for apt",
                commands=[
                    f"cat /etc/ssl/certs/ca-certificates.crt {ROOTS[1]} > {BUNDLE} 2> /dev/null || test -s {BUNDLE}"
                ],
            )
        changes.append(
            _put("which roots apt trusts", f'Acquire::https::{url.hostname}::CaInfo "{BUNDLE}";\n', APT_ROOTS)
        )
    read = applied("apt", (APT_SOURCES,))
    server.shell(
        name="Read the mirror's package lists",
        commands=["apt-get update --quiet=2", read.command],
        _if=[read.due(changes)],
    )


@deploy("Interrupted installation")
def finish_installation() -> None:
    """What an earlier run's apt left half done (it was killed, or the disk was full) makes apt refuse all work."""
    whole = host.get_fact(facts.Succeeds, command="sh -c 'test -z \"$(dpkg --audit)$(ls -A /var/lib/dpkg/updates)\"'")
    # The earlier apt may go on without its operator, so dpkg's lock is waited for.
    again = "DEBIAN_FRONTEND=noninteractive dpkg --force-confdef --force-confold --configure --pending"
    server.shell(
        name="Finish an interrupted installation",
        commands=[f"for try in $(seq 240); do {again} && exit 0; sleep 0.5; done; exit 1"],
        _if=[lambda: not whole],
    )


@deploy("Trust")
def trust() -> None:
    """The platform's CA and the inventory's extra roots, for the machine and for dynos."""
    ours = _put("the platform's CA", platform().ca.certificate, f"{TRUST}/ca.pem")
    also = _put("the platform's CA for the machine", platform().ca.certificate, ROOTS[0])
    changes = [ours, also]
    extra = me().settings.extra_ca_bundle
    if extra is not None:
        text = Path(extra).read_text()
        changes.append(_put("the extra roots", text, ROOTS[1]))
    roots = applied("roots", [f"{TRUST}/ca.pem", *(ROOTS if extra is not None else ROOTS[:1])])
    server.shell(
        name="Collect the trusted roots",
        commands=[
            "update-ca-certificates 2>/dev/null",
            f"install -o root -g root -m 0644 /etc/ssl/certs/ca-certificates.crt {BUNDLE}",
            roots.command,
        ],
        _if=[roots.due(changes)],
    )


@deploy("Engine daemon")
def engine_daemon() -> None:
    """Docker, configured; on a systemd-nspawn machine its cgroups are made writable first."""
    cgroups = files.put(
        name="Install the unit that makes cgroups writable",
        src="templates/node/blackstart-cgroups.service",
        dest=CGROUPS_UNIT,
        user="root",
        group="root",
        mode="0644",
        add_deploy_dir=False,
    )
    sysctl = _put("the kernel settings", ROUTER_SYSCTL, SYSCTL)
    daemon = files.template(
        name="Configure the engine's daemon",
        src="templates/node/daemon.json.j2",
        dest=DAEMON,
        user="root",
        group="root",
        mode="0644",
        bridge_address=_bridge_address(str(me().settings.dyno_network)),
        mtu=_mtu(),
    )
    configured = applied("engine", (CGROUPS_UNIT, SYSCTL, DAEMON))
    server.shell(
        name="Apply the engine's configuration",
        commands=[
            f"sysctl -q -p {SYSCTL}",
            "systemctl daemon-reload",
            "systemctl enable --now --quiet blackstart-cgroups.service",
            "systemctl restart docker.service",
            "systemctl enable --quiet docker.service",
            configured.command,
        ],
        _retries=3,  # on cgroup v1 systemd sometimes cannot start a unit ("Failed to spawn executor", seen)
        _retry_delay=1,
        _if=[configured.due((cgroups, sysctl, daemon))],
    )


@deploy("Firewall")
def firewall(*, cut_off: bool = False) -> None:
    """Who may reach the node, and what dynos may reach. With `cut_off` stage 0 is banned; a ban is never lifted."""
    data = _firewall_data(cut_off or bool(host.get_fact(facts.Succeeds, command=f"sh -c {quote(STAGE0_IS_BANNED)}")))
    changes = [
        files.template(
            name=f"Write {name}",
            src=f"templates/node/{name}.j2",
            dest=f"/etc/blackstart/{name}",
            user="root",
            group="root",
            mode="0644",
            network=data,
        )
        for name in host.loop(RULES)
    ]
    changes.append(
        files.put(
            name="Install the firewall's unit",
            src="templates/node/blackstart-firewall.service",
            dest=FIREWALL_UNIT,
            user="root",
            group="root",
            mode="0644",
            add_deploy_dir=False,
        )
    )
    loaded = applied("firewall", (*(f"/etc/blackstart/{name}" for name in RULES), FIREWALL_UNIT))
    server.shell(
        name="Load the firewall",
        commands=[
            "systemctl daemon-reload",
            "systemctl enable --quiet blackstart-firewall.service",
            "systemctl restart blackstart-firewall.service",
            loaded.command,
        ],
        _retries=3,
        _retry_delay=1,
        _if=[loaded.due(changes)],
    )
    systemd.service(name="Keep the firewall loaded", service="blackstart-firewall.service", running=True, enabled=True)


@deploy("Stacks")
def stacks() -> None:
    """The images that dynos run on. The stage-0 machine builds nothing, so it needs only the run stack."""
    operations.bridge_network(name="Make the components' bridge", mtu=_mtu())
    wanted = (platform().stacks.run,) if in_stage0() else (platform().stacks.run, platform().stacks.build)
    for stack in host.loop(wanted):
        _stack(stack)


def _stack(stack: Stack) -> None:
    """Load one stack; its file is uploaded unless the machine sees this host's cache."""
    if stack.name in (host.get_fact(facts.Images) or []):
        return
    path = stack.path_on_machine
    if host.get_fact(File, path=path) is None:
        path = f"/var/lib/blackstart/{stack.path.name}"
        files.put(
            name="Upload the stack",
            src=str(stack.path),
            dest=path,
            user="root",
            group="root",
            mode="0644",
            add_deploy_dir=False,
        )
    operations.image_loaded(name="Load the stack", image=stack.name, commands=stack.load_commands(path))


def _identity() -> dict[str, Any]:
    """Return what this platform's machines carry; its CA and secrets are made first."""
    known = platform()
    return identity(known.state) if known.ca and known.secrets else {}


def _put(what: str, text: str, path: str) -> OperationMeta:
    return files.put(name=f"Write {what}", src=StringIO(text), dest=path, user="root", group="root", mode="0644")


def _apt_sources(mirror: str) -> str:
    release = host.get_fact(facts.OsRelease) or {}
    suite = release["VERSION_CODENAME"]
    return (
        f"Types: deb\nURIs: {mirror}\nSuites: {suite} {suite}-updates\nComponents: main\n"
        "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg\n"
    )


def _mtu() -> int:
    return host.get_fact(facts.OutsideMtu) or DEFAULT_MTU


def overlay_mtu() -> int:
    """Return the MTU of overlay networks on this host, in bytes."""
    return _mtu() - VXLAN_BYTES


def _bridge_address(network: str) -> str:
    """Return the first address of the network, with its prefix length, as Docker's `bip` wants it."""
    parsed = ipaddress.ip_network(network)
    return f"{parsed[1]}/{parsed.prefixlen}"


def _firewall_data(gone: bool) -> dict[str, object]:
    inventory = platform().inventory
    stage0 = inventory.stage0.address
    nodes = [member.address for member in inventory.nodes]
    reachable = [] if gone else [(stage0, STAGE0_OBJECTS_PORT)]
    own = [STAGE0_OBJECTS_PORT] if in_stage0() else []
    return {
        "members": nodes if gone and in_runtime() else [stage0, *nodes],
        "nodes": nodes,
        "banned": [stage0] if gone and in_runtime() else [],
        "inside": [str(me().settings.engine_address_pool), str(me().settings.dyno_network)],
        "dyno_may_reach": reachable,
        "local_tcp": [*ROUTER_PORTS, *own],
        "engine_ports": sorted({*ENGINE_TCP, *ENGINE_UDP}),
        "engine_udp": ENGINE_UDP,
        "member_tcp": [*ENGINE_TCP, BUS_PORT, *own],
        "ssh_port": me().ssh.get("ssh_port", 22),
    }
