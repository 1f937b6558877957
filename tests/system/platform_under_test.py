"""The platform that the tests in test_platform*.py share: `up` is made once for all of them."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from blackstart import observe
from blackstart.client import Client, wait_for
from blackstart.inventory import load_inventory
from blackstart.platform import Platform
from blackstart.providers.options import local_platform
from blackstart.sources import SourceTarball, checkout_root, folder_source
from blackstart.state import State

NAME = "tsys"
SUBNET = "10.79.7.0/24"
UP_SECONDS = 1500
COMPONENTS = ["api", "bus", "compile", "objects", "postgres", "psmgr", "router"]
FIXTURES = checkout_root() / "tests" / "fixtures"
DEPLOY_SECONDS = 300


@dataclass
class UnderTest:
    """The platform that `up` made."""

    platform: Platform
    environment: dict[str, str]
    status: dict
    client: Client

    def bootstrap(self, *arguments: str, seconds: int = 300) -> subprocess.CompletedProcess[str]:
        """Run bootstrap.py as an operator does."""
        argv = [sys.executable, "-m", "blackstart", *arguments]
        return subprocess.run(
            argv, cwd=checkout_root(), env=self.environment, capture_output=True, text=True, timeout=seconds
        )

    def get(self, app: str, path: str = "/", *, node: int = 0, seconds: float = 10) -> httpx.Response:
        """Ask the router of a node for an app."""
        host = f"{app}.{self.platform.domain}"
        address = self.platform.node_addresses[node]
        return httpx.get(f"http://{address}{path}", headers={"Host": host}, timeout=seconds, trust_env=False)

    def serves(self, app: str, *, node: int = 0) -> bool | None:
        """Return True when the router of a node has an answer 200 for an app, else None: for `wait_for`."""
        try:
            return True if self.get(app, node=node).status_code == 200 else None
        except httpx.HTTPError:
            return None

    def deploy(self, app: str, folder: Path) -> dict:
        """Build and release a folder; return the release."""
        if self.client.maybe(f"/apps/{app}") is None:
            self.client.call("POST", "/apps", {"name": app})
        source = folder_source(folder)
        build = self.client.build(app, source, version=source.sha256[:12])
        return self.client.deployed(app, build, seconds=DEPLOY_SECONDS)

    def settled(self, app: str) -> dict:
        """Wait until the newest release of an app succeeded, and return it."""
        version = self.client.call("GET", f"/apps/{app}/releases")[-1]["version"]
        release = self.client.released(app, version, seconds=180)
        assert release["status"] == "succeeded", release
        return release

    def failed_build(self, app: str, data: bytes) -> str:
        """Build bytes that cannot be built; return the output."""
        if self.client.maybe(f"/apps/{app}") is None:
            self.client.call("POST", "/apps", {"name": app})
        source = SourceTarball(data=data, sha256=hashlib.sha256(data).hexdigest())
        build = self.client.build(app, source, version="bad")
        ended = self.client.finished_build(app, build["id"], seconds=DEPLOY_SECONDS)
        assert ended["status"] == "failed"
        return "".join(self.client.output(ended))

    def one_off(self, app: str, command: str, *, seconds: float = 120) -> tuple[dict, str]:
        """Run a command in a one-off dyno; return the dyno and its output."""
        dyno = self.client.call("POST", f"/apps/{app}/dynos", {"command": command, "attach": False})
        path = f"/apps/{app}/dynos/{dyno['id']}"

        def ended() -> dict | None:
            now = self.client.call("GET", path)
            return now if now["state"] in ("complete", "failed", "crashed") else None

        done = wait_for(ended, f"the one-off {command!r}", seconds=seconds)
        return done, self.client.text(f"{path}/output")

    def up_dynos(self, app: str, type_: str = "web") -> list[dict]:
        """Return the dynos of a type that are up."""
        dynos = self.client.call("GET", f"/apps/{app}/dynos")
        return [dyno for dyno in dynos if dyno["type"] == type_ and dyno["state"] == "up"]

    def wait_dynos(self, app: str, count: int, *, seconds: float = 120) -> list[dict]:
        """Wait until exactly `count` web dynos are up."""

        def probe() -> list[dict] | None:
            dynos = self.client.call("GET", f"/apps/{app}/dynos")
            up = self.up_dynos(app)
            return up if len(up) == count and len([d for d in dynos if d["type"] == "web"]) == count else None

        return wait_for(probe, f"{count} web dynos of {app}", seconds=seconds)


@contextmanager
def brought_up(folder: Path) -> Iterator[UnderTest]:
    """Bring the platform up from nothing by the operator's command; remove it at the end.

    While you work on a test: $BLACKSTART_TEST_STATE names a state folder to use and keep, with the platform in it.
    """
    kept = os.environ.get("BLACKSTART_TEST_STATE")
    root = folder if kept is None else Path(kept)
    environment = {**os.environ, "BLACKSTART_STATE": str(root), "BLACKSTART_PLATFORM": NAME}
    os.environ.update({"BLACKSTART_STATE": str(root), "BLACKSTART_PLATFORM": NAME})
    argv = [sys.executable, "-m", "blackstart", "up", "--platform", NAME, "--subnet", SUBNET, "--json"]
    state = State.of(NAME)
    try:
        done = subprocess.run(
            argv, cwd=checkout_root(), env=environment, capture_output=True, text=True, timeout=UP_SECONDS
        )
        assert done.returncode == 0, done.stderr[-6000:]
        platform = Platform(load_inventory(checkout_root() / "inventories" / "local.py"), state)
        with observe.answering_client(platform) as client:
            yield UnderTest(platform, environment, json.loads(done.stdout), client)
    finally:
        if kept is None:
            local_platform(state).down()
