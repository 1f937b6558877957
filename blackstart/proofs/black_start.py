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
            newest = _newest_releases(before)
            slugs, releases = _slugs(before, newest), _ended(newest)
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
            lost = _lost(after, witnesses.acknowledged, slugs) + _changed(releases, _ended(_newest_releases(after)))
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


def _newest_releases(client: Client) -> dict[str, list[dict[str, Any]]]:
    """Return each app's releases, newest first, as far as one page of the API goes."""
    return {
        app["name"]: client.call("GET", f"/apps/{app['name']}/releases", headers=NEWEST_RELEASES_FIRST)
        for app in client.call("GET", "/apps")
    }


def _slugs(client: Client, releases: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return `{path of a slug in the API: its checksum}` for the newest release of every app."""
    newest = {app: listed[0]["slug"] for app, listed in releases.items() if listed and listed[0]["slug"]}
    paths = [f"/apps/{app}/slugs/{slug['id']}" for app, slug in newest.items()]
    return {path: str(client.call("GET", path)["checksum"]) for path in paths}


def _ended(releases: dict[str, list[dict[str, Any]]]) -> dict[str, str]:
    """Return `{"<app> v<version>": "<status> <slug>"}` for every release that has ended."""
    return {
        f"{app} v{release['version']}": f"{release['status']} {(release['slug'] or {}).get('id', 'no slug')}"
        for app, listed in releases.items()
        for release in listed
        if release["status"] != "pending"
    }


def _changed(before: dict[str, str], after: dict[str, str]) -> list[str]:
    """Name each release that is gone, or is not what it was."""
    return [f"release {name}" for name, was in before.items() if after.get(name) != was]


# --- after -----------------------------------------------------------------------------------------------------------


def _serves(app: Canary, node: Host, words: tuple[str, ...]) -> bool:
    return app.page(node) in words


def _wait_until_back(run: Run, app: Canary, words: tuple[str, ...], dynos: int, began: float) -> dict[str, float]:
    """Wait until every router serves the app, and components and dynos are up; return the seconds that each took.

    The API may say `up` of what it saw before; so the containers on the nodes are counted too. That takes an SSH session to
    every node and work of its engine, and the API's answer a query: each is asked once the cheaper ones before it hold, for
    what looks on takes from what comes back.
    """
    times: dict[str, float] = {}
    nodes = run.platform.inventory.nodes
    serving: dict[str, Callable[[], bool]] = {
        f"{node.name} serves": partial(_serves, app, node, words) for node in nodes
    }
    stages: tuple[dict[str, Callable[[], bool]], ...] = (
        serving,
        {"every component is up": lambda: observe.all_up(run.platform)},
        {"every dyno runs": lambda: len(observe.engine_snapshot(nodes).containers) >= dynos},
    )
    for probes in stages:
        _hold_all(probes, times, began)
    return times


def _hold_all(probes: dict[str, Callable[[], bool]], times: dict[str, float], began: float) -> None:
    """Write into `times` when each of `probes` held first. Raises ProofError when one does not within BACK_SECONDS."""
    while True:
        for name, probe in probes.items():
            if name not in times and observe.holds(probe):
                times[name] = round(time.monotonic() - began, 1)
        missing = [name for name in probes if name not in times]
        if not missing:
            return
        if time.monotonic() - began > BACK_SECONDS:
            raise ProofError(
                f"not everything came back within {BACK_SECONDS:.0f} s",
                why=f"missing: {', '.join(missing)}",
                fix="look at `python3 bootstrap.py status`, and at the machines' journals",
            )
        time.sleep(POLL_SECONDS)


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
