"""What is really there: the truth that steps verify and `status` prints."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from blackstart.client import CALL_SECONDS, STORE_SECONDS, Client, Endpoint
from blackstart.errors import BlackstartError, PlatformError, ProofError
from blackstart.inventory import Host
from blackstart.platform import Platform
from blackstart.remote import connected

LOOK_SECONDS = 5.0

STAGE0_IS_BANNED = "grep -A 3 'set banned' /etc/blackstart/firewall.nft | grep -q elements"
"""Exits 0 on a node whose firewall cuts stage 0 off (templates/node/firewall.nft.j2)."""


def node_endpoint(platform: Platform, node: Host) -> Endpoint:
    """Return the platform's API as the router of `node` serves it."""
    return Endpoint(host=f"api.{platform.domain}", address=node.address)


def node_client(
    platform: Platform, node: Host, *, seconds: float = CALL_SECONDS, store_seconds: float = STORE_SECONDS
) -> Client:
    """Return a client of the platform's API through the router of `node`, with the deadlines of `Client`."""
    token, ca = platform.secrets["api_token"], platform.state.ca_path
    return Client(node_endpoint(platform, node), token=token, ca=ca, seconds=seconds, store_seconds=store_seconds)


def live_platform(platform: Platform) -> dict[str, Any] | None:
    """Return what the self-hosted API says of the platform, through whichever router answers; None when none does."""
    if not platform.state.ca_path.exists():
        return None
    for node in platform.inventory.nodes:
        with node_client(platform, node) as client:
            try:
                answer: dict[str, Any] = client.call("GET", "/platform")
            except PlatformError:
                continue
            return answer
    return None


def is_self_hosted(platform: Platform) -> bool:
    """Whether the platform runs its own control plane."""
    live = live_platform(platform)
    return live is not None and live["stage"] == "self-hosted"


def all_up(platform: Platform) -> bool:
    """Whether every component is up, as the API says through the router of every node."""
    for node in platform.inventory.nodes:
        with node_client(platform, node) as client:
            if not holds(lambda client=client: not not_up(client.call("GET", "/platform"))):
                return False
    return True


def not_up(live: dict[str, Any]) -> list[str]:
    """Name every process of `live` (what the API says of the platform) that is not up, and its state."""
    return [
        f"{component['app']}: {process['name']} is {process['state']}"
        for component in live["components"]
        for process in component["processes"]
        if process["state"] != "up"
    ]


def stage0_stage(stage0: Host) -> str | None:
    """Return the stage in stage 0's own database (`stage-0`, `moving`, `moved`), None where there is none or no answer."""
    query = ["runuser", "-u", "postgres", "--", "psql", "-d", "platform", "-qtA", "--no-psqlrc", "--command"]
    try:
        with connected(stage0, seconds=LOOK_SECONDS) as remote:
            return remote.run([*query, "SELECT stage FROM platform"]).out.strip() or None
    except BlackstartError:
        return None


def bans_stage0(node: Host) -> bool:
    """Whether the node's firewall cuts stage 0 off. False when it does not answer."""
    try:
        with connected(node, seconds=LOOK_SECONDS) as remote:
            return remote.run(["sh", "-c", STAGE0_IS_BANNED]).code == 0
    except BlackstartError:
        return False


def has_stage0(host: Host, *, seconds: float = LOOK_SECONDS) -> bool:
    """Whether the machine answers over SSH within `seconds` and has stage 0 on it."""
    try:
        with connected(host, seconds=seconds) as remote:
            return remote.run(["test", "-d", "/etc/blackstart/stage0"]).code == 0
    except BlackstartError:
        return False


def is_wiped(stage0: Host) -> bool | None:
    """Whether nothing of stage 0 is left on its machine; None when the machine does not answer."""
    try:
        with connected(stage0, seconds=LOOK_SECONDS) as remote:
            return remote.run(["test", "-e", "/etc/blackstart"]).code != 0
    except BlackstartError:
        return None


def handed_over(stage0: Host | None, nodes: tuple[Host, ...]) -> bool:
    """Whether the pivot was done, as the machines tell while no API answers.

    Stage 0 says it itself; when it is gone, the nodes do: they cut it off only after the pivot.
    """
    stage = None if stage0 is None else stage0_stage(stage0)
    return stage == "moved" if stage is not None else any(bans_stage0(node) for node in nodes)


def answering_client(platform: Platform) -> Client:
    """Return a client through the first router that answers. Raises PlatformError."""
    for node in platform.inventory.nodes:
        client = node_client(platform, node)
        try:
            client.call("GET", "/platform")
        except PlatformError:
            client.close()
            continue
        return client
    raise PlatformError(
        f"no router of {platform.name} answers for the API",
        why=f"asked: {', '.join(platform.node_addresses)}",
        fix="look at `python3 bootstrap.py status`",
    )


@dataclass(frozen=True)
class EngineSnapshot:
    """Every lasting service, running task and container: `{id: when it began}`. Equal ones: nothing was re-created."""

    services: dict[str, str]
    tasks: dict[str, str]
    containers: dict[str, str]

    def lost(self, later: EngineSnapshot) -> list[str]:
        """Return what this snapshot has and `later` lacks or has with another start."""
        gone = [f"service {key}" for key, value in self.services.items() if later.services.get(key) != value]
        gone += [f"task {key}" for key, value in self.tasks.items() if later.tasks.get(key) != value]
        return gone + [
            f"container {key}" for key, value in self.containers.items() if later.containers.get(key) != value
        ]


def engine_snapshot(nodes: tuple[Host, ...]) -> EngineSnapshot:
    """Return the engine's lasting services and tasks as the first node (a manager) knows them, and each node's containers.

    A task's own time stamp is not looked at: the engine renews it whenever another of its managers leads.
    """
    with connected(nodes[0]) as remote:
        # Jobs come and go, also between two of these commands; processes stay.
        listing = ["docker", "service", "ls", "-q", "--filter", "label=blackstart.kind=process"]
        services = remote.check(listing).split()
        if not services:
            return EngineSnapshot({}, {}, {})
        described = json.loads(remote.check(["docker", "service", "inspect", *services]))
        filters = ["--filter", "desired-state=running"]
        listed = remote.check(["docker", "service", "ps", "-q", "--no-trunc", *filters, *services]).split()
        tasks = json.loads(remote.check(["docker", "inspect", "--type", "task", *listed])) if listed else []
    running = [task for task in tasks if task["Status"]["State"] == "running"]
    containers = {task["Status"]["ContainerStatus"]["ContainerID"] for task in running}
    started = {key: value for node in nodes for key, value in _containers(node).items() if key in containers}
    return EngineSnapshot(
        services={each["Spec"]["Name"]: f"{each['ID']} {each['CreatedAt']}" for each in described},
        tasks={
            task["ID"]: f"{task['Status']['ContainerStatus']['ContainerID']} {task['CreatedAt']}" for task in running
        },
        containers=started,
    )


def _containers(node: Host) -> dict[str, str]:
    """Return the node's running containers and when each started."""
    with connected(node) as remote:
        ids = remote.check(["docker", "ps", "-q", "--no-trunc"]).split()
        lines = remote.check(["docker", "inspect", "--format", "{{.Id}} {{.State.StartedAt}}", *ids]) if ids else ""
    return dict(line.split() for line in lines.splitlines() if line)


def engine_managers(node: Host) -> list[str]:
    """Return the addresses of the engine's reachable managers, as `node` knows them."""
    with connected(node) as remote:
        ids = remote.check(["docker", "node", "ls", "-q", "--filter", "role=manager"]).split()
        members = json.loads(remote.check(["docker", "node", "inspect", *ids]))
    return sorted(
        member["ManagerStatus"]["Addr"].rpartition(":")[0]
        for member in members
        if member.get("ManagerStatus", {}).get("Reachability") == "reachable"
    )


def engine_member_addresses(node: Host) -> set[str]:
    """Return the addresses of all members of the engine, as `node` knows them; empty where it manages none."""
    with connected(node) as remote:
        result = remote.run(["docker", "node", "ls", "-q"])
        if result.code != 0:
            return set()
        members = json.loads(remote.check(["docker", "node", "inspect", *result.out.split()]))
    return {
        (member.get("ManagerStatus") or {}).get("Addr", "").rpartition(":")[0] or member["Status"]["Addr"]
        for member in members
    }


def require(condition: bool, what: str, *, why: str = "", fix: str = "") -> None:
    """Raise ProofError unless `condition` holds."""
    if not condition:
        raise ProofError(what, why=why, fix=fix)


def holds(probe: Any) -> bool:
    """Whether `probe()` is true; an error means that it is not."""
    try:
        return bool(probe())
    except BlackstartError:
        return False
