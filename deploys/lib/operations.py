"""Operations of our own: each yields nothing when the host is already so."""

from __future__ import annotations

from collections.abc import Generator
from typing import Any

from pyinfra import host, inventory
from pyinfra.api import HiddenValue, QuoteString, StringCommand, operation
from pyinfra.api.exceptions import OperationError
from pyinfra.facts.files import Directory

from deploys.lib.facts import (
    Components,
    Engine,
    EngineNodes,
    FreeMegabytes,
    Images,
    JoinToken,
    Networks,
    Stage,
    Succeeds,
)

Commands = Generator[StringCommand, None, None]
WAIT_SECONDS = 60
LOG_MB = 300
ADDRESS_SECONDS = 30
STAGE0_STARTS = (
    "systemctl is-enabled --quiet blackstart-psmgr.service blackstart-api.service blackstart-objects.service"
)
"""Exits 0 while any of stage 0's services would start again."""


@operation()
def meet() -> Commands:
    """Change nothing. All hosts run it, so what stands before it is done on every host before what stands after it.

    pyinfra keeps the order of each host's own operations only; operations of different hosts overlap.
    """
    host.noop("a meeting point")
    yield from ()


@operation()
def engine_started(address: str, pool: str) -> Commands:
    """Make this host the first manager of a new engine.

    + address: the address that other members use, fixed for the engine's life
    + pool: the network that overlay networks are taken from, e.g. 10.210.0.0/16
    """
    if _is_member(host.get_fact(Engine)):
        host.noop("the engine runs here already")
        return
    yield StringCommand(
        "docker swarm init --cert-expiry 8760h --default-addr-pool-mask-length 24",
        "--advertise-addr", QuoteString(address),
        "--default-addr-pool", QuoteString(pool),
        "> /dev/null",
    )  # fmt: skip


@operation()
def engine_joined(address: str) -> Commands:
    """Join this host to the engine as a worker.

    + address: this host's own address
    """
    if _is_member(host.get_fact(Engine)):
        host.noop("this host is a member already")
        return
    manager, token = _manager_and_token()
    yield StringCommand(
        "docker swarm join --advertise-addr", QuoteString(address),
        "--token", HiddenValue(token), QuoteString(f"{manager}:2377"), "> /dev/null",
    )  # fmt: skip


@operation()
def engine_managers(addresses: list[str]) -> Commands:
    """Promote the members with `addresses` to managers and wait until each is reachable. Run on a manager.

    + addresses: the members that must be managers; others are left as they are
    """
    members = _by_address(host.get_fact(EngineNodes))
    wanted = [members[address] for address in addresses if address in members]
    # On a first run the members join in this very run, so the facts do not know them yet: the shell looks again.
    if len(wanted) == len(addresses) and all(_is_reachable_manager(member) for member in wanted):
        host.noop("these members are managers already")
        return
    _require_room(addresses)
    yield StringCommand(_for_each_member(addresses, 'docker node promote "$id"'))
    yield StringCommand(_until_reachable(addresses))


@operation()
def engine_labels(labels: dict[str, str]) -> Commands:
    """Label members of the engine. Run on a manager.

    + labels: label → address of the member that has it
    """
    members = _by_address(host.get_fact(EngineNodes))
    missing = [
        (label, address)
        for label, address in labels.items()
        if members.get(address, {}).get("Spec", {}).get("Labels", {}).get(label) != "true"
    ]
    if not missing:
        host.noop("the labels are set already")
        return
    for label, address in missing:
        yield StringCommand(
            _for_each_member([address], f'docker node update --label-add {label}=true "$id" > /dev/null')
        )


@operation()
def bridge_network(mtu: int) -> Commands:
    """Make the bridge through which components leave their node, before the engine makes it with a wrong MTU.

    + mtu: in bytes
    """
    if "docker_gwbridge" in (host.get_fact(Networks) or []):
        host.noop("docker_gwbridge exists already")
        return
    yield StringCommand(
        "docker network create docker_gwbridge --opt com.docker.network.bridge.name=docker_gwbridge",
        "--opt com.docker.network.bridge.enable_icc=false --opt com.docker.network.bridge.enable_ip_masquerade=true",
        "--opt", QuoteString(f"com.docker.network.driver.mtu={mtu}"), "> /dev/null",
    )  # fmt: skip


@operation()
def overlay_network(network: str, mtu: int) -> Commands:
    """Make the platform's overlay network, which only components join. Run on a manager.

    + network: the platform's name
    + mtu: in bytes; the outside interface's minus 50 for VXLAN
    """
    if network in (host.get_fact(Networks) or []):
        host.noop("the network exists already")
        return
    yield StringCommand(
        "docker network create --driver overlay --attachable",
        "--opt", QuoteString(f"com.docker.network.driver.mtu={mtu}"), QuoteString(network), "> /dev/null",
    )  # fmt: skip


@operation()
def image_loaded(image: str, commands: list[str]) -> Commands:
    """Load a stack image into the engine.

    + image: the image's full name, which holds its digest
    + commands: the shell commands that load it
    """
    if image in (host.get_fact(Images) or []):
        host.noop(f"{image} is loaded already")
        return
    yield from (StringCommand(command) for command in commands)


@operation()
def components_applied(run: str) -> Commands:
    """Bring every component up as an app.

    + run: the command line of `blackstart.components` and its file, the verb left out
    """
    state = host.get_fact(Components, run=run.format(verb="state"))
    if state and all(state.values()):
        host.noop("every component is up as an app already")
        return
    yield StringCommand(run.format(verb="apply"))


def _require_room(addresses: list[str]) -> None:
    """Refuse to promote a machine whose disk is full. Raises OperationError.

    It would count as a manager at once and could never write the engine's log, so that two managers have no majority for
    ever; nothing but a new engine helps then (tried).
    """
    for candidate in inventory:
        free = candidate.get_fact(FreeMegabytes) if candidate.data.get("address") in addresses else None
        if free is not None and free < LOG_MB:
            raise OperationError(
                f"{candidate.name} has {free} MB free below /var/lib, and a manager keeps the engine's log there "
                f"({LOG_MB} MB): free some space, then run this again"
            )


def _is_member(engine: dict[str, Any] | None) -> bool:
    return engine is not None and engine.get("LocalNodeState") == "active"


def _manager_and_token() -> tuple[str, str]:
    """Return a manager's address and the join token, from whichever host of the inventory is a manager."""
    for candidate in inventory:
        token = candidate.get_fact(JoinToken)
        engine = candidate.get_fact(Engine)
        if token and engine is not None:
            return str(engine["NodeAddr"]), token
    raise OperationError("no host of the inventory manages the engine: run deploys/stage0.py first")


def _by_address(members: list[dict[str, Any]] | None) -> dict[str, dict[str, Any]]:
    return {_address(member): member for member in members or []}


def _address(member: dict[str, Any]) -> str:
    """A manager's own address is in its ManagerStatus; its Status.Addr may be 0.0.0.0. Empty just after a join."""
    manager = member.get("ManagerStatus") or {}
    return str(manager.get("Addr", "").rpartition(":")[0] or member["Status"].get("Addr", ""))


def _is_reachable_manager(member: dict[str, Any]) -> bool:
    manager = member.get("ManagerStatus") or {}
    return bool(member["Spec"]["Role"] == "manager" and manager.get("Reachability") == "reachable")


_ADDRESS_OF = "{{if .ManagerStatus}}{{.ManagerStatus.Addr}}{{else}}{{.Status.Addr}}{{end}} {{.ID}}"


def _for_each_member(addresses: list[str], action: str) -> str:
    """Return a shell line that runs `action` with $id for the member of each address, and fails when one stays missing.

    One that has just joined has no address for a moment.
    """
    find = f"docker node ls -q | xargs docker node inspect --format '{_ADDRESS_OF}'"
    lines = []
    for address in addresses:
        pattern = address.replace(".", "\\.")
        lines.append(
            f"for try in $(seq {ADDRESS_SECONDS * 2}); do "
            f"id=$({find} | sed -n 's/^{pattern}\\(:[0-9]*\\)\\{{0,1\\}} //p' | tail -n 1); "
            f'test -n "$id" && break; sleep 0.5; done; test -n "$id" && {action}'
        )
    return " && ".join(f"({line})" for line in lines)


def _until_reachable(addresses: list[str]) -> str:
    """Return a shell line that waits until each address is a reachable manager."""
    checks = " && ".join(
        f"echo \"$managers\" | grep -qE '^{address}:[0-9]+ reachable$'".replace(".", "\\.") for address in addresses
    )
    form = "{{if .ManagerStatus}}{{.ManagerStatus.Addr}} {{.ManagerStatus.Reachability}}{{end}}"
    show = f"docker node ls -q | xargs docker node inspect --format '{form}'"
    return (
        f"for try in $(seq {WAIT_SECONDS * 2}); do managers=$({show}); if {checks}; then exit 0; fi; sleep 0.5; done; "
        f"echo 'not every manager became reachable within {WAIT_SECONDS} s:' >&2; echo \"$managers\" >&2; exit 1"
    )


@operation()
def pivoted(run: str) -> Commands:
    """Do the pivot, or the rest of it. Run on the stage-0 machine.

    + run: the command line of `blackstart.pivot` and its file
    """
    if host.get_fact(Stage) == "moved" and not host.get_fact(Succeeds, command=STAGE0_STARTS):
        host.noop("the pivot is done")
        return
    yield StringCommand(run)


@operation()
def engine_demoted(address: str) -> Commands:
    """Make this manager a worker, once the other managers are reachable.

    + address: this host's address on the engine
    """
    engine = host.get_fact(Engine)
    if engine is None or not engine.get("ControlAvailable"):
        host.noop("this host manages no engine")
        return
    yield StringCommand(_for_each_member([address], 'docker node demote "$id" > /dev/null'))
    yield StringCommand(
        "for try in $(seq 120); do test \"$(docker info --format '{{.Swarm.ControlAvailable}}')\" = false && exit 0; "
        "sleep 0.5; done; exit 1"
    )


@operation()
def engine_removed(address: str) -> Commands:
    """Remove a member from the engine, dead or alive. Run on a manager."""
    if address not in _by_address(host.get_fact(EngineNodes)):
        host.noop("it is no member")
        return
    yield StringCommand(
        _for_each_member([address], 'docker node demote "$id" > /dev/null; docker node rm --force "$id" > /dev/null')
    )


@operation()
def stage0_wiped() -> Commands:
    """Stop stage 0's services and remove their secrets, their data and this machine's membership."""
    engine = host.get_fact(Engine)
    if host.get_fact(Directory, path="/etc/blackstart") is None and not _is_member(engine):
        host.noop("there is nothing of stage 0 left")
        return
    yield StringCommand(
        "systemctl disable --now --quiet blackstart-psmgr.service blackstart-api.service blackstart-objects.service || true"
    )
    yield StringCommand(
        "systemctl disable --now --quiet postgresql.service redis-server.service 'postgresql@17-main.service' || true"
    )
    yield StringCommand("docker swarm leave --force > /dev/null 2>&1 || true")
    yield StringCommand("find /etc/blackstart/stage0 -type f -exec shred -u {} + 2>/dev/null || true")
    yield StringCommand(
        "rm -rf /etc/blackstart /opt/blackstart /var/lib/blackstart /var/lib/postgresql/17/main /var/lib/redis"
        " /etc/systemd/system/blackstart-*.service /etc/apt/sources.list.d/blackstart.sources /etc/apt/apt.conf.d/60blackstart"
        " /usr/local/share/ca-certificates/blackstart*.crt"
    )
    yield StringCommand("update-ca-certificates --fresh > /dev/null 2>&1 || true")
    yield StringCommand("systemctl daemon-reload")
