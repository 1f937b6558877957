"""Bringing the platform's own components onto it as apps, through the API, whichever stage serves it.

Run on the stage-0 machine by deploys/stage1.py: `python -m blackstart.components apply FILE`, where FILE (0600) is JSON:
`{"endpoint": {"host","address","port"}, "token": "…", "ca": "/path", "root": "/checkout", "stack": "<image>",
"config": {"<component>": {"KEY": "value"}}}`. `state FILE` prints what needs nothing more; `check FILE` also exits 1
unless that is everything.
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackstart.client import Client, Endpoint, wait_for
from blackstart.errors import BlackstartError, PlatformError
from blackstart.graph import component_order
from blackstart.model.component import Process
from blackstart.sources import SourceTarball, component_source, read_component

BUILD_SECONDS = 1200.0
HEALTHY_SECONDS = 240.0
API_SECONDS = 60.0


@dataclass(frozen=True)
class Plan:
    """What to bring up, and through which API."""

    root: Path
    stack: str
    config: dict[str, dict[str, str]]

    @property
    def order(self) -> list[str]:
        """The components, each after those that it needs."""
        return component_order(self.root)


def apply(client: Client, plan: Plan) -> None:
    """Create, configure, build, release and scale every component; what is so already is left alone."""
    for name in plan.order:
        _ensure_app(client, plan, name)
        _ensure_config(client, name, plan.config.get(name, {}))
    builds = {name: _start_build(client, plan, name) for name in plan.order}
    for name, build in builds.items():
        if build is not None:
            _finish_build(client, name, build)
    for name in plan.order:
        _ensure_formation(client, plan, name)
    for name in plan.order:
        _wait_healthy(client, plan, name)


def state(client: Client, plan: Plan) -> dict[str, bool]:
    """Return for each component whether nothing is to be done for it."""
    return {name: _is_current(client, plan, name) for name in plan.order}


def _is_current(client: Client, plan: Plan, name: str) -> bool:
    if client.maybe(f"/apps/{name}") is None:
        return False
    have = client.call("GET", f"/apps/{name}/config-vars")
    if any(have.get(key) != value for key, value in plan.config.get(name, {}).items()):
        return False
    if not _is_built(client, plan, name, component_source(plan.root, name)):
        return False
    return _missing_dynos(client, plan, name) is None


def _ensure_app(client: Client, plan: Plan, name: str) -> None:
    if client.maybe(f"/apps/{name}") is None:
        description = read_component(plan.root, name).model_dump(mode="json")
        client.call("POST", "/apps", {"name": name, "component": description})
        say(name, "created")


def _ensure_config(client: Client, name: str, config: dict[str, str]) -> None:
    have = client.call("GET", f"/apps/{name}/config-vars")
    changed = {key: value for key, value in config.items() if have.get(key) != value}
    if changed:
        client.call("PATCH", f"/apps/{name}/config-vars", changed)
        say(name, f"configured: {', '.join(sorted(changed))}")


def _is_built(client: Client, plan: Plan, name: str, source: SourceTarball) -> bool:
    """Whether the newest build that was to be released is of this very source on this very stack, and was."""
    builds = [build for build in client.call("GET", f"/apps/{name}/builds") if _is_for_release(build)]
    return any(build["status"] == "succeeded" and _made_of(build, source, plan.stack) for build in builds[-1:])


def _is_for_release(build: dict[str, Any]) -> bool:
    """Whether the build made a release, or failed to: one that was asked for a slug only says nothing about what runs."""
    return build["status"] != "succeeded" or build["release"] is not None


def _made_of(build: dict[str, Any], source: SourceTarball, stack: str) -> bool:
    return bool(
        build["source_blob"]["checksum"] == f"SHA256:{source.sha256}" and build["stack"] in (stack, "stack-debian-13")
    )


def _start_build(client: Client, plan: Plan, name: str) -> dict[str, Any] | None:
    source = component_source(plan.root, name)
    if _is_built(client, plan, name, source):
        return None
    for build in client.call("GET", f"/apps/{name}/builds")[-1:]:
        if build["status"] == "pending" and _made_of(build, source, plan.stack):
            return dict(build)  # an earlier run began it and was killed
    return client.build(name, source, version=source.sha256[:12])


def _finish_build(client: Client, name: str, build: dict[str, Any]) -> None:
    started = time.monotonic()
    ended = client.finished_build(name, build["id"], seconds=BUILD_SECONDS)
    if ended["status"] == "failed":
        output = "".join(client.output(ended))
        raise PlatformError(f"the component {name} could not be built", why=output[-3000:] or "its output is empty")
    say(name, f"built ({time.monotonic() - started:.1f} s more)")


def _ensure_formation(client: Client, plan: Plan, name: str) -> None:
    component = read_component(plan.root, name)
    have = {entry["type"]: int(entry["quantity"]) for entry in client.call("GET", f"/apps/{name}/formation")}
    updates = [
        {"type": type_, "quantity": formation_quantity(process)}
        for type_, process in component.processes.items()
        if have.get(type_, 0) != formation_quantity(process)
    ]
    if updates:
        client.call("PATCH", f"/apps/{name}/formation", {"updates": updates})
        say(name, "scaled: " + ", ".join(f"{update['type']}={update['quantity']}" for update in updates))


def formation_quantity(process: Process) -> int:
    """Return a process type's quantity in the formation; one that runs on every node is just on."""
    return 1 if process.mode == "global" else process.quantity


def _ready_nodes(client: Client) -> int:
    return sum(1 for node in client.call("GET", "/nodes") if node["state"] == "ready")


def _missing_dynos(client: Client, plan: Plan, name: str) -> str | None:
    """Return what is not up yet, or None when every dyno of the component is up."""
    dynos = client.call("GET", f"/apps/{name}/dynos")
    for type_, process in read_component(plan.root, name).processes.items():
        up = sum(1 for dyno in dynos if dyno["type"] == type_ and dyno["state"] == "up")
        wanted = _ready_nodes(client) if process.mode == "global" else process.quantity
        if up < wanted:
            states = ", ".join(f"{dyno['name']} {dyno['state']}" for dyno in dynos) or "no dyno"
            return f"{name}: {up} of {wanted} {type_} dynos are up ({states})"
    return None


def _wait_healthy(client: Client, plan: Plan, name: str) -> None:
    def healthy() -> bool | None:
        missing = _missing_dynos(client, plan, name)
        if missing is not None:
            raise PlatformError(missing)
        return True

    wait_for(healthy, f"the component {name} to be up", seconds=HEALTHY_SECONDS)
    say(name, "up")


def say(name: str, what: str) -> None:
    """Print one line of progress."""
    print(f"-----> {name}: {what}", flush=True)


def read_order(path: Path) -> tuple[Client, Plan]:
    """Return the client and the plan in an order file (its shape is in the module's docstring)."""
    order = json.loads(path.read_text())
    plan = Plan(root=Path(order["root"]), stack=order["stack"], config=order["config"])
    return Client(Endpoint(**order["endpoint"]), token=order["token"], ca=Path(order["ca"])), plan


def main(arguments: list[str]) -> int:
    """Run a verb on an order file; exit 1 with a reason when it fails (`check`: when something is to be done)."""
    verb, path = arguments
    try:
        client, plan = read_order(Path(path))
        with client:
            if verb == "apply":
                client.wait_until_up(seconds=API_SECONDS)
                apply(client, plan)
                return 0
            now = state(client, plan)
    except BlackstartError as error:
        print(str(error), file=sys.stderr)
        return 1
    print(json.dumps(now))
    return 0 if verb == "state" or all(now.values()) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
