"""The engine on Docker Swarm, through the Docker SDK's low-level client. The pitfalls named here were met.

- An image is never looked up or pulled: no digest is resolved, and the images' host (`127.0.0.1:1`) refuses at once.
- Virtual addresses route to stopping tasks, and need IPVS: endpoint mode `dnsrr` everywhere, ports in mode `host`.
- A service without a network is on the node's default bridge.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import docker
import docker.errors
import requests

from psmgr.engine import (
    EngineRefused,
    EngineUnavailable,
    Mode,
    Mount,
    NameTaken,
    Node,
    Service,
    ServiceSpec,
    Task,
    TaskPhase,
)
from psmgr.spec import PLATFORM, VERSION

TIMEOUT_S = 10
STARTING = ("new", "pending", "assigned", "accepted", "preparing", "ready", "starting", "allocated")
PHASES: dict[str, TaskPhase] = {
    **dict.fromkeys(STARTING, "starting"),
    "running": "running",
    "complete": "complete",
    "failed": "failed",
    "rejected": "failed",
}
WANTED = ("running", "complete", "ready", "accepted")
MONITOR_S = 10  # a replaced dyno that fails within it is replaced back
# Asked every second until it succeeds once. Failures count after a minute; three in a row and the dyno has failed.
CHECK = {
    "StartPeriod": 60 * 10**9,
    "StartInterval": 10**9,
    "Interval": 10 * 10**9,
    "Timeout": 10 * 10**9,
    "Retries": 3,
}
# Of all that the engine tells, what may change a plan: a health check's three events every few seconds do not.
EVENTS = {
    "type": ["service", "node", "container"],
    "event": ["create", "update", "remove", "start", "die", "health_status"],
}

# A cordoned node gets no dyno. Swarm's own "drain" and "pause" would also keep it from joining a container to the
# platform's network (tried), which stage 0 does while the state moves.
CORDONED = "blackstart.cordoned"
NOT_CORDONED = f"node.labels.{CORDONED}!=true"


class Swarm:
    """Docker Swarm, on a manager's socket."""

    def __init__(self, host: str) -> None:
        self._host = host
        self._client: docker.APIClient | None = None

    def nodes(self) -> list[Node]:
        """Return every machine of the swarm."""
        return [node_from(raw) for raw in self._get("/nodes")]

    def services(self, platform: str) -> list[Service]:
        """Return the services that carry the platform's label, with their tasks."""
        raw_services = self._get("/services", {"filters": f'{{"label": ["{PLATFORM}={platform}"]}}'})
        tasks: dict[str, list[Task]] = {}
        if raw_services:
            for raw in self._get("/tasks"):
                tasks.setdefault(raw["ServiceID"], []).append(task_from(raw))
        return [service_from(raw, tasks.get(raw["ID"], [])) for raw in raw_services]

    def create(self, spec: ServiceSpec) -> str:
        """Start a service; return its id."""
        created: dict[str, str] = self._call("POST", "/services/create", body=service_body(spec)).json()
        return created["ID"]

    def scale(self, service_id: str, replicas: int) -> None:
        """Change the number of tasks in place: the task template stays, so no running task is replaced."""
        raw = self._get(f"/services/{service_id}")
        body = raw["Spec"]
        body["Mode"]["Replicated"]["Replicas"] = replicas
        params = {"version": str(raw["Version"]["Index"])}
        self._call("POST", f"/services/{service_id}/update", params=params, body=body)

    def replace(self, service_id: str, spec: ServiceSpec) -> None:
        """Change a service in one write. Swarm cannot rename one, so it keeps its first name; labels say what it is."""
        raw = self._get(f"/services/{service_id}")
        body = service_body(spec) | {"Name": raw["Spec"]["Name"]}
        params = {"version": str(raw["Version"]["Index"])}
        self._call("POST", f"/services/{service_id}/update", params=params, body=body)

    def remove(self, service_id: str) -> None:
        """Remove a service; its tasks get SIGTERM and their grace time."""
        self._call("DELETE", f"/services/{service_id}", missing_ok=True)

    def ensure_network(self, name: str, mtu: int | None) -> None:
        """Make the overlay network when it is missing."""
        found = self._get("/networks", {"filters": f'{{"name": ["{name}"], "driver": ["overlay"]}}'})
        if any(raw["Name"] == name for raw in found):
            return
        options = {} if mtu is None else {"com.docker.network.driver.mtu": str(mtu)}
        body = {"Name": name, "Driver": "overlay", "CheckDuplicate": True, "Options": options}
        self._call("POST", "/networks/create", body=body)

    def log(self, service_id: str) -> bytes:
        """Return what the service has printed so far (what the log driver still keeps)."""
        with _translated():
            client = _connected(self._host, timeout=30)
            try:
                chunks = client.service_logs(service_id, stdout=True, stderr=True, follow=False, is_tty=False)
                return b"".join(chunks)
            finally:
                client.close()

    def follow(self, service_id: str) -> Iterator[bytes]:
        """Yield the service's output as it comes, on a connection of its own."""
        with _translated():
            client = _connected(self._host, timeout=30)
            try:
                yield from client.service_logs(service_id, stdout=True, stderr=True, follow=True, is_tty=False)
            finally:
                client.close()

    def events(self) -> Iterator[None]:
        """Yield at every change of a service or node, and at a container's of this manager's own node."""
        with _translated():
            client = _connected(self._host, timeout=TIMEOUT_S)
            try:
                for _ in client.events(filters=EVENTS):
                    yield None
            finally:
                client.close()

    def _get(self, path: str, params: Mapping[str, str] | None = None) -> Any:
        return self._call("GET", path, params=params).json()

    def _call(
        self,
        method: str,
        path: str,
        *,
        params: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
        missing_ok: bool = False,
    ) -> requests.Response:
        with _translated():
            if self._client is None:
                self._client = _connected(self._host, timeout=TIMEOUT_S)
            url = f"{self._client.base_url}/v{self._client.api_version}{path}"
            try:
                answer = self._client.request(method, url, params=params, json=body, timeout=TIMEOUT_S)
            except requests.RequestException:
                self._client.close()
                self._client = None
                raise
        if answer.status_code < 400 or (missing_ok and answer.status_code == 404):
            return answer
        raise _refusal(method, path, answer)


def _connected(host: str, timeout: int) -> docker.APIClient:
    return docker.APIClient(base_url=host, version="auto", timeout=timeout)


def _refusal(method: str, path: str, answer: requests.Response) -> Exception:
    try:
        reason = str(answer.json().get("message", answer.text))
    except ValueError:
        reason = answer.text[:500]
    text = f"the engine refused {method} {path}: {reason}"
    if answer.status_code == 409:
        return NameTaken(text)
    # 503 is "this node is not a swarm manager", or a swarm without a leader: it may come back.
    return EngineUnavailable(text) if answer.status_code >= 500 and "manager" in reason else EngineRefused(text)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (requests.RequestException, docker.errors.DockerException, OSError) as error:
        raise EngineUnavailable(f"the engine does not answer: {error}") from error


def service_body(spec: ServiceSpec) -> dict[str, Any]:
    """Return the body of Swarm's `POST /services/create` for `spec`."""
    container: dict[str, Any] = {
        "Image": spec.image,
        "Command": list(spec.command),
        "Env": [f"{key}={value}" for key, value in sorted(spec.env.items())],
        "Labels": dict(sorted(spec.labels.items())),
        "Mounts": [_mount(mount) for mount in spec.mounts],
        "StopGracePeriod": spec.stop_grace_s * 10**9,
        "CapabilityDrop": ["ALL"],
        "CapabilityAdd": [f"CAP_{name}" for name in spec.capabilities],
        "Init": False,
    }
    if spec.check:
        container["Healthcheck"] = {"Test": ["CMD", *spec.check], **CHECK}
    if spec.hosts:
        container["Hosts"] = list(spec.hosts)
    template: dict[str, Any] = {
        "ContainerSpec": container,
        "Resources": {
            "Limits": {
                "MemoryBytes": spec.limits.memory_mb << 20,
                "NanoCPUs": int(spec.limits.cpus * 10**9),
                "Pids": spec.limits.pids,
            },
            "Reservations": {"MemoryBytes": spec.limits.reserved_memory_mb << 20},
        },
        "RestartPolicy": _restart(spec),
        "Placement": {"Constraints": [*spec.constraints, NOT_CORDONED]},
        "LogDriver": {"Name": "local", "Options": {"max-size": "5m", "max-file": "2"}},
    }
    if spec.network is not None:
        aliases = [] if spec.alias is None else [spec.alias]
        template["Networks"] = [{"Target": spec.network, "Aliases": aliases}]
    body = {
        "Name": spec.name,
        "Labels": dict(sorted(spec.labels.items())),
        "TaskTemplate": template,
        "Mode": _mode(spec),
    }
    if spec.replaceable:
        order = {"Parallelism": 0, "Order": "stop-first", "Monitor": MONITOR_S * 10**9, "MaxFailureRatio": 0}
        body["UpdateConfig"] = order | {"FailureAction": "rollback"}
        body["RollbackConfig"] = order | {"FailureAction": "continue"}
    if spec.mode in ("replicated", "global"):
        ports = [
            {"Protocol": "tcp", "PublishMode": "host", "TargetPort": port.target, "PublishedPort": port.published}
            for port in spec.ports
        ]
        body["EndpointSpec"] = {"Mode": "dnsrr", "Ports": ports}
    return body


def _mode(spec: ServiceSpec) -> dict[str, Any]:
    modes: dict[Mode, dict[str, Any]] = {
        "replicated": {"Replicated": {"Replicas": spec.replicas}},
        "global": {"Global": {}},
        "job": {"ReplicatedJob": {"MaxConcurrent": 1, "TotalCompletions": 1}},
        "global-job": {"GlobalJob": {}},
    }
    return modes[spec.mode]


def _restart(spec: ServiceSpec) -> dict[str, Any]:
    if spec.restart_delay_s is None:
        return {"Condition": "none"}
    return {"Condition": "any", "Delay": spec.restart_delay_s * 10**9}


def _mount(mount: Mount) -> dict[str, Any]:
    return {"Type": mount.kind, "Source": mount.source, "Target": mount.target, "ReadOnly": mount.read_only}


def node_from(raw: Mapping[str, Any]) -> Node:
    """Return the node in Swarm's JSON."""
    status, spec = raw.get("Status", {}), raw["Spec"]
    address = status.get("Addr", "")
    if address in ("", "0.0.0.0"):  # noqa: S104 (what Swarm reports, not what we bind)
        address = raw.get("ManagerStatus", {}).get("Addr", "").rpartition(":")[0]
    ready = status.get("State") == "ready"
    active = spec.get("Availability") == "active" and spec.get("Labels", {}).get(CORDONED) != "true"
    return Node(
        id=raw["ID"],
        name=raw.get("Description", {}).get("Hostname", raw["ID"]),
        address=address,
        role="manager" if spec.get("Role") == "manager" else "worker",
        state="down" if not ready else "ready" if active else "drained",
    )


def service_from(raw: Mapping[str, Any], tasks: list[Task]) -> Service:
    """Return the service in Swarm's JSON with `tasks`."""
    mode, replicas = _read_mode(raw["Spec"]["Mode"])
    change = (raw.get("UpdateStatus") or {}).get("State", "")
    name = raw["Spec"]["Name"]
    tasks = [replace(task, container=container_name(name, task)) for task in tasks]
    return Service(
        id=raw["ID"],
        name=name,
        labels=raw["Spec"].get("Labels", {}),
        mode=mode,
        replicas=replicas,
        created=unix_time(raw["CreatedAt"]),
        went_back=change.startswith("rollback"),
        in_change=change in ("updating", "rollback_started"),
        tasks=tuple(sorted(tasks, key=lambda task: (task.slot, task.since, task.id))),
    )


def container_name(service: str, task: Task) -> str:
    """Return the name Swarm gives a task's container. Its status holds the id too, but is forgotten with the ports."""
    return f"{service}.{task.slot or task.node_id}.{task.id}"


def _read_mode(raw: Mapping[str, Any]) -> tuple[Mode, int | None]:
    if "Replicated" in raw:
        return "replicated", raw["Replicated"].get("Replicas", 1)
    if "ReplicatedJob" in raw:
        return "job", 1
    return ("global-job", None) if "GlobalJob" in raw else ("global", None)


def task_from(raw: Mapping[str, Any]) -> Task:
    """Return the task in Swarm's JSON."""
    status = raw.get("Status", {})
    state = status.get("State", "new")
    ports = status.get("PortStatus", {}).get("Ports") or []
    attached = raw.get("NetworksAttachments") or []
    overlays = [net for net in attached if net.get("Network", {}).get("Spec", {}).get("Name") not in ("host", "bridge")]
    return Task(
        id=raw["ID"],
        slot=raw.get("Slot", 0),
        node_id=raw.get("NodeID", ""),
        phase=PHASES.get(state, "stopped"),
        wanted=raw.get("DesiredState") in WANTED,
        since=unix_time(status.get("Timestamp", raw["CreatedAt"])),
        exit_code=status.get("ContainerStatus", {}).get("ExitCode") if state in ("complete", "failed") else None,
        message=status.get("Err", "") or status.get("Message", ""),
        ports={port["TargetPort"]: port["PublishedPort"] for port in ports if port.get("PublishedPort")},
        version=(raw.get("Spec", {}).get("ContainerSpec", {}).get("Labels") or {}).get(VERSION, ""),
        addresses=tuple(address.partition("/")[0] for net in overlays for address in net.get("Addresses") or []),
    )


def unix_time(text: str) -> float:
    """Return the seconds since 1970 of a time as Go writes it (RFC 3339, up to nine digits of a second)."""
    cut = re.sub(r"(\.\d{6})\d*", r"\1", text).replace("Z", "+00:00")
    if re.search(r"\.\d{1,5}(?=[+-])", cut) is not None:
        cut = re.sub(r"\.(\d{1,5})(?=[+-])", lambda match: f".{match[1]:0<6}", cut)
    return datetime.datetime.fromisoformat(cut).timestamp()
