"""Black start: every node loses its power at once, in the middle of writes and a deploy, and all comes back by itself.

What is looked at: every component up, an app served through every router, every row that the API acknowledged before, every
release and slug, and the interrupted deploy, which must end or leave the release before it serving.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from blackstart import observe, power
from blackstart.client import Client, wait_for
from blackstart.errors import BlackstartError, PlatformError, ProofError
from blackstart.inventory import Host
from blackstart.proofs import Proof
from blackstart.proofs.canary import Canary, canary, new_word
from blackstart.remote import connected
from blackstart.rolling import NEWEST_RELEASES_FIRST
from blackstart.run import Run

NAME = "black-start"
WITNESS = "black-start witness"
BACK_SECONDS = 300.0
BUILD_SECONDS = 120.0
ENDED_SECONDS = 420.0
ACKNOWLEDGED = 10
POLL_SECONDS = 0.5
BUILD_LABEL = "label=blackstart.kind=build"


def prove(run: Run) -> Proof:
    """Cut the power of every node and give it back. Raises ProofError when something does not come back or is lost."""
    log, platform = run.log(NAME), run.platform

    def client() -> Client:
        return observe.answering_client(platform)

    with canary(platform, client) as app, _witnesses(run) as witnesses:
        first, second = new_word(), new_word()
        with client() as before:
            app.deploy(before, first)
            slugs, releases = _slugs(before), _releases(before)
            dynos = len(observe.engine_snapshot(platform.inventory.nodes).containers)
            build = app.build(before, second)
        witnesses.wait(ACKNOWLEDGED)
        _wait_for_build(run)
        log("a build runs and rows are written: every node loses its power now")
        power.cut(run)
        began = time.monotonic()
        order = power.give_back(run)
        times = _wait_until_back(run, app, (first, second), dynos, began)
        log(f"everything is back after {max(times.values()):.1f} s")
        with client() as after:
            lost = _lost(after, witnesses.acknowledged, slugs) + _changed(releases, _releases(after))
            ended = _ended_deploy(after, app, build)
        served = {
            node.name: app.wait_for_page(node, *_pages(ended, first, second)) for node in platform.inventory.nodes
        }
    evidence = {
        "started in order": order,
        "seconds until": times,
        "rows acknowledged": len(witnesses.acknowledged),
        "slugs": len(slugs),
        "releases": len(releases),
        "interrupted deploy": ended,
        "routers that serve": sorted(served),
    }
    if lost:
        return Proof(NAME, holds=False, detail=f"lost: {', '.join(lost)}", evidence={**evidence, "lost": lost})
    return Proof(
        NAME,
        holds=True,
        detail=f"all nodes killed at once, all back after {max(times.values()):.1f} s; {len(witnesses.acknowledged)} rows and "
        f"{len(slugs)} slugs, {len(releases)} releases were kept; the interrupted deploy {ended}",
        evidence=evidence,
    )


def _pages(ended: str, first: str, second: str) -> tuple[str, ...]:
    return (second,) if ended == "succeeded" else (first,)


# --- rows that were acknowledged -------------------------------------------------------------------------------------


@dataclass
class Witnesses:
    """Rows that the API said are written: ids of authorizations."""

    acknowledged: list[str] = field(default_factory=list)

    def wait(self, count: int) -> None:
        """Wait until so many rows are written."""
        wait_for(
            lambda: True if len(self.acknowledged) >= count else None, f"{count} acknowledged writes", seconds=60.0
        )


@contextmanager
def _witnesses(run: Run) -> Iterator[Witnesses]:
    """Write rows, one after another, until the platform goes; revoke them at the end."""
    witnesses, stop = Witnesses(), threading.Event()

    def write() -> None:
        try:
            with observe.answering_client(run.platform) as client:
                while not stop.is_set():
                    row = client.call("POST", "/oauth/authorizations", {"description": WITNESS, "expires_in": 3600})
                    witnesses.acknowledged.append(row["id"])
        except PlatformError:
            return  # the power is gone

    writer = threading.Thread(target=write, name="witnesses", daemon=True)
    writer.start()
    try:
        yield witnesses
    finally:
        stop.set()
        writer.join(60)
        with observe.answering_client(run.platform) as client:
            for row in witnesses.acknowledged:
                if client.maybe(f"/oauth/authorizations/{row}") is not None:
                    client.call("DELETE", f"/oauth/authorizations/{row}")


# --- before ----------------------------------------------------------------------------------------------------------


def _wait_for_build(run: Run) -> None:
    """Wait until a build's dyno runs on some node."""

    def probe() -> bool:
        for node in run.platform.inventory.nodes:
            with connected(node) as remote:
                if remote.check(["docker", "ps", "--quiet", "--filter", BUILD_LABEL]).strip():
                    return True
        raise PlatformError("no build runs")

    wait_for(probe, "the build to run", seconds=BUILD_SECONDS, poll=0.1)


def _slugs(client: Client) -> dict[str, str]:
    """Return `{path of a slug in the API: its checksum}` for the newest release of every app."""
    slugs = {}
    for app in client.call("GET", "/apps"):
        release = _newest(client, app["name"])
        if release is not None and release["slug"] is not None:
            path = f"/apps/{app['name']}/slugs/{release['slug']['id']}"
            slugs[path] = str(client.call("GET", path)["checksum"])
    return slugs


def _releases(client: Client) -> dict[str, str]:
    """Return `{"<app> v<version>": "<status> <slug>"}` for every release that has ended."""
    ended = {}
    for app in client.call("GET", "/apps"):
        for release in client.call("GET", f"/apps/{app['name']}/releases", headers=NEWEST_RELEASES_FIRST):
            if release["status"] != "pending":
                slug = release["slug"]["id"] if release["slug"] else "no slug"
                ended[f"{app['name']} v{release['version']}"] = f"{release['status']} {slug}"
    return ended


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Name each release that is gone, or is not what it was."""
    return [f"release {name}" for name, was in before.items() if after.get(name) != was]


def _newest(client: Client, app: str) -> dict[str, Any] | None:
    releases = client.call("GET", f"/apps/{app}/releases")
    return releases[-1] if releases else None


# --- after -----------------------------------------------------------------------------------------------------------


def _serves(app: Canary, node: Host, words: tuple[str, ...]) -> bool:
    return app.page(node) in words


def _wait_until_back(run: Run, app: Canary, words: tuple[str, ...], dynos: int, began: float) -> dict[str, float]:
    """Wait until every router serves the app, and components and dynos are up; return the seconds that each took.

    The API may say `up` of what it saw before; so the containers on the nodes are counted too.
    """
    times: dict[str, float] = {}
    nodes = run.platform.inventory.nodes
    probes: dict[str, Callable[[], bool]] = {
        f"{node.name} serves": partial(_serves, app, node, words) for node in nodes
    }
    probes["every dyno runs"] = lambda: len(observe.engine_snapshot(nodes).containers) >= dynos
    probes["every component is up"] = lambda: observe.all_up(run.platform)
    while missing := [name for name in probes if name not in times]:
        for name in missing:
            if observe.holds(probes[name]):
                times[name] = round(time.monotonic() - began, 1)
        if time.monotonic() - began > BACK_SECONDS:
            raise ProofError(
                f"not everything came back within {BACK_SECONDS:.0f} s",
                why=f"missing: {', '.join(missing)}",
                fix="look at `python3 bootstrap.py status`, and at the machines' journals",
            )
        time.sleep(POLL_SECONDS)
    return times


def _lost(client: Client, rows: list[str], slugs: dict[str, str]) -> list[str]:
    """Return what was there and is not: rows that were acknowledged, slugs whose bytes are not what they were."""
    lost = [f"row {row}" for row in rows if client.maybe(f"/oauth/authorizations/{row}") is None]
    return lost + [path for path, checksum in slugs.items() if _checksum(client, path) != checksum]


def _checksum(client: Client, path: str) -> str | None:
    """Return the digest of a slug's bytes in the object store; None when it is gone."""
    try:
        slug = client.call("GET", path)
        return f"SHA256:{hashlib.sha256(client.download(slug['blob']['url'])).hexdigest()}"
    except BlackstartError:
        return None


def _ended_deploy(client: Client, app: Canary, build: dict[str, Any]) -> str:
    """Wait until the interrupted deploy ended; return how: `succeeded`, or `rolled back`."""
    ended = client.finished_build(app.name, build["id"], seconds=ENDED_SECONDS)
    if ended["status"] != "succeeded":
        return "rolled back"
    release = client.released(app.name, ended["release"]["id"], seconds=ENDED_SECONDS)
    return "succeeded" if release["status"] == "succeeded" else "rolled back"
