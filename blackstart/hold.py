"""An operator's hold: a component stays stopped, though the process manager is level-triggered.

A held service carries the engine's label `blackstart.held`; the process manager neither starts, changes nor removes what
has it (apps/psmgr/psmgr/plan.py). The label's value says what to put back, so that a hold can be released by anybody,
also when whoever made it was killed:

replicas=2             it ran that many dynos, and runs none now
constraint=node.id!=X  it runs everywhere but on one node (or nowhere), for as long as it has this placement constraint

The engine carries both out without touching any other dyno. It is asked over its own API, through `docker system
dial-stdio`: `docker service update` sorts mounts, `docker service inspect` fills in defaults, and for either difference
the engine replaces every dyno of the service (tried).
"""

from __future__ import annotations

import copy
import http.client
import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote

from blackstart import observe
from blackstart.client import wait_for
from blackstart.errors import HostError, PlatformError
from blackstart.platform import Platform
from blackstart.remote import CONNECT_SECONDS, Remote, connected

T = TypeVar("T")
Spec = dict[str, Any]
LABEL = "blackstart.held"
REPLICAS, CONSTRAINT = "replicas", "constraint"
NOWHERE = "node.id==held"
UP_SECONDS = 180.0


@dataclass(frozen=True)
class Service:
    """A component's service: its id, the version of its description at the engine, and the description."""

    id: str
    version: int
    spec: Spec

    @property
    def name(self) -> str:
        """Return its name."""
        return str(self.spec["Name"])

    @property
    def app(self) -> str:
        """Return the component's name."""
        return str(self.labels.get("blackstart.app", self.name))

    @property
    def labels(self) -> dict[str, str]:
        """Return its labels."""
        return self.spec.get("Labels") or {}


def held_spec(spec: Spec, node_id: str | None) -> Spec:
    """Return the description of a stopped service: one that runs on every node stops on `node_id` only (None: on all)."""
    new = copy.deepcopy(spec)
    replicated = new["Mode"].get("Replicated")
    if replicated is not None:
        undo = f"{REPLICAS}={replicated.get('Replicas', 1)}"
        replicated["Replicas"] = 0
    else:
        constraint = NOWHERE if node_id is None else f"node.id!={node_id}"
        undo = f"{CONSTRAINT}={constraint}"
        placement = new["TaskTemplate"].setdefault("Placement", {})
        placement["Constraints"] = [*(placement.get("Constraints") or ()), constraint]
    new["Labels"] = {**(new.get("Labels") or {}), LABEL: undo}
    return new


def released_spec(spec: Spec) -> Spec:
    """Return the description as it was before the hold. Raises HostError where no hold wrote the label."""
    new = copy.deepcopy(spec)
    written = new["Labels"].pop(LABEL)
    kind, _, value = written.partition("=")
    if kind == REPLICAS and value.isdigit() and "Replicated" in new["Mode"]:
        new["Mode"]["Replicated"]["Replicas"] = int(value)
    elif kind == CONSTRAINT and value:
        placement = new["TaskTemplate"].get("Placement") or {}
        placement["Constraints"] = [each for each in placement.get("Constraints") or () if each != value]
    else:
        raise HostError(
            f"the service {spec['Name']} has the label {LABEL}={written}, which says nothing about how to release it",
            fix=f"scale it as it was, and remove the label: docker service update --label-rm {LABEL} {spec['Name']}",
        )
    return new


def services(remote: Remote, platform: str, *filters: str) -> list[Service]:
    """Return the platform's lasting services that have all labels in `filters`. `remote` is an engine manager."""
    labels = [f"blackstart.platform={platform}", "blackstart.kind=process", *filters]
    found = _engine(remote, "GET", f"/services?filters={quote(json.dumps({'label': labels}))}")
    return sorted(
        (Service(raw["ID"], raw["Version"]["Index"], raw["Spec"]) for raw in found), key=lambda service: service.name
    )


def hold(remote: Remote, platform: str, app: str, *, node_id: str | None = None) -> None:
    """Stop the component `app` until it is released. What is held already stays as it is."""
    for service in services(remote, platform, f"blackstart.app={app}"):
        if LABEL not in service.labels:
            _update(remote, service, held_spec(service.spec, node_id))


def release(remote: Remote, platform: str) -> list[str]:
    """Release everything that is held; return the names of the services."""
    found = services(remote, platform, LABEL)
    for service in found:
        _update(remote, service, released_spec(service.spec))
    return [service.name for service in found]


def missing(remote: Remote, platform: str) -> list[str]:
    """Return the lasting services that run another number of dynos than they should, as `name 1/2`."""
    labels = (f"blackstart.platform={platform}", "blackstart.kind=process")
    flags = [flag for label in labels for flag in ("--filter", f"label={label}")]
    lines = remote.check(["docker", "service", "ls", *flags, "--format", "{{.Name}} {{.Replicas}}"]).splitlines()
    counts = (line.split()[:2] for line in lines)
    return [f"{name} {count}" for name, count in counts if len(set(count.split("/"))) > 1]


def wait_until_up(platform: Platform, *, seconds: float = UP_SECONDS) -> None:
    """Wait until the engine runs every dyno, and every router serves an API that says so. Raises PlatformError."""
    wait_for(lambda: _on_manager(platform, partial(_all_run, platform.name)), "every dyno to run", seconds=seconds)
    wait_for(lambda: observe.all_up(platform) or None, "every component to be up", seconds=seconds)


def _all_run(platform: str, remote: Remote) -> bool:
    if left := missing(remote, platform):
        raise PlatformError(f"not what it should be: {', '.join(left)}")
    return True


def held(platform: Platform, *, seconds: float = CONNECT_SECONDS) -> list[Service]:
    """Return what is held. Raises HostError when no manager of the engine can be reached within `seconds`."""
    return _on_manager(platform, lambda remote: services(remote, platform.name, LABEL), seconds=seconds)


def release_all(platform: Platform, *, seconds: float = CONNECT_SECONDS) -> list[str]:
    """Release everything that is held, whoever held it. Raises HostError when no manager can be reached within `seconds`."""
    return _on_manager(platform, lambda remote: release(remote, platform.name), seconds=seconds)


def _on_manager(platform: Platform, work: Callable[[Remote], T], *, seconds: float = CONNECT_SECONDS) -> T:
    """Do `work` on the first manager that can. Raises HostError when none can, PlatformError as `work` does."""
    problems: list[str] = []
    for host in platform.managers:
        try:
            with connected(host, seconds=seconds) as remote:
                return work(remote)
        except HostError as error:
            problems.append(str(error))
    raise HostError(f"no manager of {platform.name}'s engine answers", why="; ".join(problems))


def _update(remote: Remote, service: Service, spec: Spec) -> None:
    """Write a service's description. The engine refuses it when somebody else wrote since it was read."""
    _engine(remote, "POST", f"/services/{service.id}/update?version={service.version}", spec)


def _engine(remote: Remote, method: str, path: str, body: Spec | None = None) -> Any:
    """Return the engine's answer to a request over its own API. Raises HostError when it refuses or does not answer."""
    sent = b"" if body is None else json.dumps(body).encode()
    lines = (
        f"{method} {path} HTTP/1.1",
        "Host: engine",
        "Connection: close",
        "Content-Type: application/json",
        f"Content-Length: {len(sent)}",
    )
    head = "".join(f"{line}\r\n" for line in (*lines, "")).encode()
    received: Any = _Received(remote.talk(["docker", "system", "dial-stdio"], head + sent))
    answer = http.client.HTTPResponse(received, method=method)
    try:
        answer.begin()
        text = answer.read().decode(errors="replace")
    except (http.client.HTTPException, OSError) as error:
        raise HostError(
            f"{remote.host.name}: the engine did not answer", why=f"{type(error).__name__}: {error}"
        ) from error
    if answer.status >= 400:
        raise HostError(f"{remote.host.name}: the engine refused {method} {path} ({answer.status})", why=text[:500])
    return json.loads(text)


class _Received:
    """What came over a connection that is closed, as http.client wants to read it."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def makefile(self, *_: Any, **__: Any) -> io.BytesIO:
        """Return the bytes as a file."""
        return io.BytesIO(self._data)
