"""The apps whose life is measured: small, of this proof only, and gone after it."""

from __future__ import annotations

import contextlib
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from blackstart.client import Client, wait_for
from blackstart.errors import PlatformError
from blackstart.sources import SourceTarball, folder_source

BUILD_SECONDS = 300.0
GONE_SECONDS = 90.0
ROLES = ("steady", "victim", "changed", "deployed")
OURS = re.compile(rf"blast-[0-9a-f]{{8}}-({'|'.join(ROLES)})")
FOLDER = Path(__file__).parent / "app"


@dataclass(frozen=True)
class Subjects:
    """The names of the apps: one gets traffic all the time, one loses its dyno, one is configured, one is deployed."""

    steady: str
    victim: str
    changed: str
    deployed: str

    @classmethod
    def fresh(cls) -> Subjects:
        """Return names that no app has."""
        word = secrets.token_hex(4)
        return cls(*(f"blast-{word}-{role}" for role in ROLES))

    @property
    def names(self) -> tuple[str, ...]:
        """Return all names."""
        return (self.steady, self.victim, self.changed, self.deployed)


def subject_source(release: str) -> SourceTarball:
    """Return the source of an app that answers with `release`."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__"))
        (Path(folder) / "release").write_text(release)
        return folder_source(Path(folder))


@contextlib.contextmanager
def deployed_subjects(client: Client) -> Iterator[Subjects]:
    """Deploy the apps; delete them, and those that an earlier, killed run left, at the end."""
    remove_leftovers(client)
    subjects = Subjects.fresh()
    try:
        with ThreadPoolExecutor(max_workers=len(subjects.names)) as pool:
            list(pool.map(lambda name: _deploy(client, name), subjects.names))
        yield subjects
    finally:
        client.wait_until_up(seconds=GONE_SECONDS)
        remove_leftovers(client)


def _deploy(client: Client, name: str) -> None:
    client.call("POST", "/apps", {"name": name})
    build = client.build(name, subject_source("first"), version="first")
    client.deployed(name, build, seconds=BUILD_SECONDS)


def remove_leftovers(client: Client) -> None:
    """Delete the apps of this proof, whichever run made them, and wait until they are gone."""
    names = [app["name"] for app in client.call("GET", "/apps") if OURS.fullmatch(app["name"])]
    for name in names:
        client.call("DELETE", f"/apps/{name}")
    wait_for(lambda: _gone(client, names), "the apps of the proof to be gone", seconds=GONE_SECONDS)


def _gone(client: Client, names: list[str]) -> bool:
    for name in names:
        if client.maybe(f"/apps/{name}") is not None:
            raise PlatformError(f"{name} is still there")
    return True
