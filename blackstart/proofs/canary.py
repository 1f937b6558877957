"""A canary: a fresh app that is compiled, released, served and deleted. What steps and proofs ask of a platform that works."""

from __future__ import annotations

import contextlib
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from blackstart.client import Client, wait_for
from blackstart.errors import PlatformError
from blackstart.inventory import Host
from blackstart.platform import Platform
from blackstart.sources import SourceTarball, folder_source

BUILD_SECONDS = 300.0
ANSWER_SECONDS = 60.0
ASK_SECONDS = 5.0
NAME = re.compile(r"canary-[0-9a-f]{8}")
PROCFILE = 'web: python3 -m http.server "$PORT" --directory public\n'


@dataclass(frozen=True)
class Canary:
    """The app `name`, whose page is a word."""

    platform: Platform
    name: str

    @property
    def host(self) -> str:
        """The name that routers know it by."""
        return f"{self.name}.{self.platform.domain}"

    def build(self, client: Client, word: str) -> dict[str, Any]:
        """Start to compile and release the app with the page `word`."""
        return client.build(self.name, _source(word), version=word[:8])

    def deploy(self, client: Client, word: str) -> dict[str, Any]:
        """Compile and release the app with the page `word`; return the release."""
        return client.deployed(self.name, self.build(client, word), seconds=BUILD_SECONDS)

    def page(self, node: Host) -> str:
        """Return the page as the router of `node` serves it. Raises PlatformError."""
        try:
            got = httpx.get(
                f"http://{node.address}/", headers={"Host": self.host}, timeout=ASK_SECONDS, trust_env=False
            )
        except httpx.HTTPError as error:
            raise PlatformError(f"the router of {node.name} did not answer for {self.host}", why=str(error)) from error
        if got.status_code != 200:
            raise PlatformError(f"the router of {node.name} answered {got.status_code} for {self.host}")
        return got.text.strip()

    def wait_for_page(self, node: Host, *words: str, seconds: float = ANSWER_SECONDS) -> str:
        """Wait until the router of `node` serves one of `words`, and return it."""

        def probe() -> str:
            page = self.page(node)
            if page not in words:
                raise PlatformError(f"the router of {node.name} serves another page for {self.host}")
            return page

        return wait_for(probe, f"{self.host} through the router of {node.name}", seconds=seconds)


def remove_left(client: Client) -> None:
    """Delete the canaries of a run that was killed. Only for `up`, before users have apps."""
    for app in client.call("GET", "/apps"):
        if NAME.fullmatch(str(app["name"])):
            client.call("DELETE", f"/apps/{app['name']}")


@contextlib.contextmanager
def canary(platform: Platform, client: Callable[[], Client]) -> Iterator[Canary]:
    """Make an app, and delete it at the end. `client` gives an open client; the platform may have died in between."""
    app = Canary(platform, f"canary-{secrets.token_hex(4)}")
    with client() as first:
        first.call("POST", "/apps", {"name": app.name})
    try:
        yield app
    finally:
        with client() as last:
            last.call("DELETE", f"/apps/{app.name}")


def new_word() -> str:
    """Return a page that no app had before."""
    return secrets.token_hex(16)


def _source(word: str) -> SourceTarball:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "public").mkdir()
        (Path(folder) / "public" / "index.html").write_text(word)
        (Path(folder) / "Procfile").write_text(PROCFILE)
        return folder_source(Path(folder))
