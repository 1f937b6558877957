"""What probes work on while a row of the matrix is measured."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import httpx

from blackstart.client import Client, wait_for
from blackstart.errors import BlackstartError, HostError, PlatformError
from blackstart.inventory import Host
from blackstart.platform import Platform
from blackstart.proofs.blast_radius.matrix import Measured
from blackstart.proofs.blast_radius.subjects import Subjects
from blackstart.remote import Remote

T = TypeVar("T")
REQUEST_SECONDS = 5.0
FIRST_SECONDS = 90.0
"""How long a probe may take while nothing is stopped; later it gets LEAST_SECONDS and SLOWER times what it took then."""
LEAST_SECONDS, SLOWER = 12.0, 2.0


@dataclass
class Scene:
    """One row: where to ask, and how long each capability may take. `cells` fills up while probes run."""

    platform: Platform
    remotes: Mapping[str, Remote]
    subjects: Subjects
    number: int
    entry: Host
    client: Client
    put_url: str
    patience: Mapping[str, float]
    cells: dict[str, Measured] = field(default_factory=dict)
    started: float = field(default_factory=time.monotonic)

    @property
    def word(self) -> str:
        """Return a word of this row only, to know its own release, config and one-off by."""
        return f"row-{self.number}"

    def works(self, name: str, detail: str) -> None:
        """Note that a capability works."""
        self.cells[name] = Measured(True, time.monotonic() - self.started, detail)

    def stops(self, name: str, detail: str) -> None:
        """Note that a capability does not work."""
        self.cells[name] = Measured(False, time.monotonic() - self.started, detail)

    def wait(self, name: str, what: str, probe: Callable[[], T | None]) -> T:
        """Wait for what shows that the capability `name` works, as long as it may take since the row began."""
        left = self.started + self.patience.get(name, FIRST_SECONDS) - time.monotonic()
        return wait_for(probe, what, seconds=max(left, 1.0))

    def answer(self, app: str) -> dict[str, str]:
        """Return what `app` answers through the router of the entry node. Raises PlatformError."""
        host = f"{app}.{self.platform.domain}"
        try:
            got = self._http.get(f"http://{self.entry.address}/", headers={"Host": host})
        except httpx.HTTPError as error:
            raise PlatformError(f"no answer for {host}", why=type(error).__name__) from error
        if got.status_code != 200:
            raise PlatformError(f"{host} answers {got.status_code}")
        answered: dict[str, str] = got.json()
        return answered

    def containers(self, app: str, process: str) -> dict[str, Remote]:
        """Return the running containers of a process type, and the node of each."""
        return running_containers(self.remotes, app, process)

    def __post_init__(self) -> None:
        limits = httpx.Limits(max_keepalive_connections=0)
        self._http = httpx.Client(timeout=REQUEST_SECONDS, trust_env=False, limits=limits)

    def close(self) -> None:
        """Close the connections."""
        self._http.close()
        self.client.close()


def running_containers(remotes: Mapping[str, Remote], app: str, process: str | None = None) -> dict[str, Remote]:
    """Return the running containers of an app's lasting processes (of one type), and the node of each."""
    labels = [f"blackstart.app={app}", "blackstart.kind=process"]
    labels += [] if process is None else [f"blackstart.process={process}"]
    flags = [flag for label in labels for flag in ("--filter", f"label={label}")]
    found: dict[str, Remote] = {}
    for remote in remotes.values():
        ids = remote.check(["docker", "ps", "--quiet", "--no-trunc", *flags]).split()
        found.update(dict.fromkeys(ids, remote))
    return found


def told(error: BlackstartError) -> str:
    """Return an error on one line."""
    return "; ".join(part for part in (error.what, error.why.splitlines()[0] if error.why else "") if part)[:300]


def as_platform_error(remote: Remote, argv: list[str], *, stdin: str = "") -> str:
    """Run a command that may fail while one waits for it: its failure is a PlatformError."""
    try:
        return remote.check(argv, stdin=stdin)
    except HostError as error:
        raise PlatformError(error.what, why=error.why) from error
