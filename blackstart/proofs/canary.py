"""A canary: a fresh app, compiled, released, served and deleted. What a step or a proof asks of a platform that works."""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Callable
from pathlib import Path

import httpx

from blackstart.client import Client, wait_for
from blackstart.errors import PlatformError
from blackstart.inventory import Host
from blackstart.platform import Platform
from blackstart.sources import folder_source

BUILD_SECONDS = 300.0
ANSWER_SECONDS = 60.0
CANARY_PROCFILE = 'web: python3 -m http.server "$PORT" --directory public\n'


def deploys_an_app(platform: Platform, client: Client, log: Callable[[str], None]) -> dict[str, object]:
    """Compile, release and serve a fresh app through every router, then delete it. Returns the evidence."""
    name, word = f"canary-{secrets.token_hex(4)}", secrets.token_hex(16)
    client.call("POST", "/apps", {"name": name})
    try:
        release = _deploy_canary(client, name, word)
        log(f"{name}: built and released")
        for node in platform.inventory.nodes:
            _answers(platform, node, name, word)
        log(f"{name}: answers through every router")
    finally:
        client.call("DELETE", f"/apps/{name}")
    return {"app": name, "release": release, "routers": list(platform.node_addresses)}


def _deploy_canary(client: Client, name: str, word: str) -> str:
    """Deploy an app that answers `word`; return the id of its release."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "public").mkdir()
        (Path(folder) / "public" / "index.html").write_text(word)
        (Path(folder) / "Procfile").write_text(CANARY_PROCFILE)
        build = client.build(name, folder_source(Path(folder)), version=word[:8])
    return str(client.deployed(name, build, seconds=BUILD_SECONDS)["id"])


def _answers(platform: Platform, node: Host, name: str, word: str) -> None:
    host = f"{name}.{platform.domain}"

    def probe() -> bool | None:
        try:
            got = httpx.get(f"http://{node.address}/", headers={"Host": host}, timeout=5, trust_env=False)
        except httpx.HTTPError as error:
            raise PlatformError(f"the router of {node.name} did not answer for {host}", why=str(error)) from error
        if got.status_code == 200 and got.text.strip() == word:
            return True
        raise PlatformError(f"the router of {node.name} answered {got.status_code} for {host}")

    wait_for(probe, f"{host} through the router of {node.name}", seconds=ANSWER_SECONDS)
