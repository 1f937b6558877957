"""Bringing one component of a live platform to what a checkout says, through the platform's own API.

The platform compiles it (`build`), then its process manager replaces the release that runs (`roll`): the new one must be
healthy or the old one stays. Nothing is remembered here: what is there already is taken up, so a run that was killed goes on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from blackstart.client import Client, wait_for
from blackstart.components import BUILD_SECONDS, formation_quantity
from blackstart.errors import BlackstartError, PlatformError
from blackstart.model.component import load_component
from blackstart.platform import Platform
from blackstart.sources import SourceTarball, component_source, read_component

ROLL_SECONDS = 600.0
"""More than any release takes: the process manager gives it up long before."""

UP_SECONDS = 180.0
BEGIN_SECONDS = 120.0
LOOK_SECONDS = 60.0
COMPILER = "compile"
NEWEST_FIRST = {"Range": "created_at ..; order=desc,max=200"}
NEWEST_RELEASES_FIRST = {"Range": "version ..; order=desc,max=200"}

Log = Callable[[str], None]
ConfigVars = dict[str, str | None]
"""A change of config vars as the API takes it: None takes one away."""

Correction = Callable[[dict[str, str]], ConfigVars]
"""From the config vars that a component has to the change that makes them right; nothing when they are."""


@dataclass(frozen=True)
class Target:
    """What a component should be."""

    name: str
    source: SourceTarball
    stack: str
    description: dict[str, Any]
    config: dict[str, str] = field(repr=False)


def target_of(platform: Platform, root: Path, name: str) -> Target:
    """Return what the component `name` of the checkout `root` should be on `platform`."""
    return Target(
        name=name,
        source=component_source(root, name),
        stack=platform.stacks.run.name,
        description=read_component(root, name).model_dump(mode="json"),
        config=platform.component_config(name),
    )


@dataclass(frozen=True)
class Running:
    """What a component is: the release that serves, and the newest one, which may be pending or failed."""

    version: int
    slug: str
    newest: dict[str, Any]


def running(client: Client, name: str) -> Running:
    """Return what runs of a component. Raises PlatformError when it never ran."""
    releases = _asked(client, f"/apps/{name}/releases", headers=NEWEST_RELEASES_FIRST)
    current = next((release for release in releases if release["current"] and release["slug"]), None)
    if current is None:
        raise PlatformError(f"the component {name} has no release that runs", fix="run `up` to the end first")
    return Running(version=int(current["version"]), slug=str(current["slug"]["id"]), newest=releases[0])


def is_current(client: Client, target: Target) -> bool:
    """Whether what runs was built from this source on this stack, with this config, described like this."""
    now = running(client, target.name)
    return (
        now.slug in _slugs_of(client, target) and not config_changes(client, target) and _is_described(client, target)
    )


def built_slug(client: Client, target: Target) -> str | None:
    """Return the newest slug that the platform compiled from this source on this stack."""
    return next(iter(_slugs_of(client, target)), None)


def _slugs_of(client: Client, target: Target) -> list[str]:
    """Return the ids of the slugs of this source on this stack, the newest first."""
    builds = _asked(client, f"/apps/{target.name}/builds", headers=NEWEST_FIRST)
    checksum = f"SHA256:{target.source.sha256}"
    return [
        str(build["slug"]["id"])
        for build in builds
        if build["status"] == "succeeded"
        and build["slug"] is not None
        and build["source_blob"]["checksum"] == checksum
        and build["stack"] == target.stack
    ]


def config_changes(client: Client, target: Target) -> ConfigVars:
    """Return the config vars to set. What an operator set besides stays."""
    return _changes(client, target.name, differing(target.config))


def differing(wanted: dict[str, str]) -> Correction:
    """Return the correction that sets the `wanted` config vars and leaves all others."""
    return lambda have: {key: value for key, value in wanted.items() if have.get(key) != value}


def is_to_change(client: Client, name: str, correct: Correction) -> bool:
    """Whether the config of a component is not right, whatever serves."""
    return bool(_changes(client, name, correct))


def is_configured(client: Client, name: str, correct: Correction) -> bool:
    """Whether a component serves with the right config: a release that failed after it, of an upgrade say, changes nothing."""
    return not _changes(client, name, correct) and running(client, name).newest["status"] != "pending"


def configure(client: Client, corrections: dict[str, Correction], log: Log) -> None:
    """Correct components' config side by side, each name's in turn, and wait until every one serves with it.

    Raises PlatformError; what ran before goes on.
    """
    before = {name: running(client, name) for name in corrections}
    for name, correct in corrections.items():
        wait_for(partial(_correct, client, name, correct), f"the config of {name}", seconds=BEGIN_SECONDS)
    for name, correct in corrections.items():
        release = client.released(name, int(running(client, name).newest["version"]), seconds=ROLL_SECONDS)
        if not is_configured(client, name, correct):
            raise _not_replaced(client, name, release, before[name])
        log(f"{name} v{running(client, name).version} serves with the new config")


def _correct(client: Client, name: str, correct: Correction) -> bool:
    """Change what differs. It may be called again: a router that hands over closes the connection in the middle (seen)."""
    changes = _changes(client, name, correct)
    if changes:
        client.call("PATCH", f"/apps/{name}/config-vars", changes)
    return True


def _changes(client: Client, name: str, correct: Correction) -> ConfigVars:
    return correct(_asked(client, f"/apps/{name}/config-vars"))


def _is_described(client: Client, target: Target) -> bool:
    return bool(_asked(client, f"/apps/{target.name}")["component"] == target.description)


def build(client: Client, targets: list[Target], log: Log) -> None:
    """Compile the targets on the platform, and release nothing. Raises PlatformError with the end of the output."""
    builds = []
    for target in targets:
        builds.append(
            (target, client.build(target.name, target.source, version=target.source.sha256[:12], release=False))
        )
        log(f"{target.name}: is being compiled")
    for target, begun in builds:
        ended = client.finished_build(target.name, begun["id"], seconds=BUILD_SECONDS)
        if ended["status"] != "succeeded":
            raise PlatformError(
                f"the component {target.name} could not be built; nothing was replaced",
                why=f"{ended.get('failure') or ''}\n{''.join(client.output(ended))[-3000:]}".strip(),
                fix=f"correct apps/{target.name}, then run this again",
            )
        log(f"{target.name}: compiled")


def roll(client: Client, target: Target, log: Log) -> None:
    """Replace what runs by the slug that was built, with the config of the target. Raises PlatformError; the old one stays."""
    before = running(client, target.name)
    slugs = _slugs_of(client, target)
    if not slugs:
        raise PlatformError(f"the component {target.name} is not built", fix="run this again")
    slug = before.slug if before.slug in slugs else slugs[0]
    with _described(client, target) as describe_again:
        if before.slug != slug or config_changes(client, target):
            version = _begun(client, target, slug, before)
            log(f"v{before.version} is being replaced by v{version}")
            _require_success(client, target.name, version, before)
            _require_compiler(client, target, before, log)
        describe_again()
    _scale_new_processes(client, target)
    wait_up(client, target.name)
    log(f"v{running(client, target.name).version} serves")


@contextlib.contextmanager
def _described(client: Client, target: Target) -> Iterator[Callable[[], None]]:
    """Describe the component as the target does; as it was before, when the block fails.

    Yields what describes it once more: an older API passes over what it does not know, and the new one takes it.
    """
    had = _asked(client, f"/apps/{target.name}")["component"]

    def describe(description: dict[str, Any]) -> None:
        def described() -> bool:
            if _asked(client, f"/apps/{target.name}")["component"] != description:
                client.call("PATCH", f"/apps/{target.name}", {"component": description})
            return True

        wait_for(described, f"the description of {target.name}", seconds=LOOK_SECONDS)

    describe(target.description)
    try:
        yield lambda: describe(target.description)
    except BlackstartError:
        with contextlib.suppress(BlackstartError):
            describe(had)
        raise


def _begun(client: Client, target: Target, slug: str, before: Running) -> int:
    """Start the release, or take up one that an earlier run started; return its version."""
    start = int(before.newest["version"])

    def begin() -> int | None:
        newest = running(client, target.name).newest
        ours = newest["slug"] is not None and newest["slug"]["id"] == slug and not config_changes(client, target)
        if ours and (newest["status"] == "pending" or int(newest["version"]) > start):
            return int(newest["version"])
        # An answer that was lost is no reason to start a second one: the next look finds the first.
        body = {"slug": slug, "config_vars": config_changes(client, target), "description": _description(target)}
        return int(client.call("POST", f"/apps/{target.name}/releases", body)["version"])

    return wait_for(begin, f"a new release of {target.name}", seconds=BEGIN_SECONDS)


def _description(target: Target) -> str:
    return f"Upgrade to {target.source.sha256[:12]}"


def _require_success(client: Client, name: str, version: int, before: Running) -> None:
    release = client.released(name, version, seconds=ROLL_SECONDS)
    if release["status"] != "succeeded":
        raise _not_replaced(client, name, release, before)


def _not_replaced(client: Client, name: str, release: dict[str, Any], before: Running) -> PlatformError:
    up = _is_up_again(client, name)
    version = release["version"]
    return PlatformError(
        f"the component {name} was not upgraded: v{version} failed, v{before.version} {'serves on' if up else 'is to come back'}",
        why=str(release.get("failure") or "the process manager gave no reason"),
        fix=(
            f"correct apps/{name} and run this again; to look closer: `bootstrap.py api GET /apps/{name}/releases/{version}`, "
            f"`bootstrap.py status`, and on a node `docker service ps --no-trunc` of its services"
        ),
    )


def _is_up_again(client: Client, name: str) -> bool:
    try:
        wait_up(client, name)
    except PlatformError:
        return False
    return True


def wait_up(client: Client, name: str) -> None:
    """Wait until every dyno of what serves is up."""

    def up() -> bool | None:
        components = client.call("GET", "/platform")["components"]
        processes = next(component["processes"] for component in components if component["app"] == name)
        down = [f"{process['name']} is {process['state']}" for process in processes if process["state"] != "up"]
        if down:
            raise PlatformError(f"{name}: {', '.join(down)}")
        return True

    wait_for(up, f"the component {name} to be up", seconds=UP_SECONDS)


def _require_compiler(client: Client, target: Target, before: Running, log: Log) -> None:
    """A compiler is healthy when it compiles: it has no dyno that could be asked. Raises PlatformError; the old one is back."""
    if target.name != COMPILER:
        return
    log("the new compiler compiles itself")
    try:
        build(client, [target], log)
    except PlatformError as error:
        back = client.call("POST", f"/apps/{COMPILER}/releases", {"release": str(before.version)})
        client.released(COMPILER, back["version"], seconds=ROLL_SECONDS)
        raise PlatformError(
            f"the component {COMPILER} was not upgraded: the new one does not compile, "
            f"v{back['version']} serves (it is v{before.version} again)",
            why=error.why or error.what,
            fix=f"correct apps/{COMPILER} and run this again",
        ) from error


def _scale_new_processes(client: Client, target: Target) -> None:
    """Start process types that the component did not have. A number of dynos that an operator chose stays."""
    processes = read_processes(target)
    have = {entry["type"]: int(entry["quantity"]) for entry in _asked(client, f"/apps/{target.name}/formation")}
    updates = [
        {"type": type_, "quantity": count} for type_, count in processes.items() if count and not have.get(type_)
    ]
    if updates:
        client.call("PATCH", f"/apps/{target.name}/formation", {"updates": updates})


def read_processes(target: Target) -> dict[str, int]:
    """Return how many dynos of each process type the target's description asks for."""
    component = load_component(target.description)
    return {type_: formation_quantity(process) for type_, process in component.processes.items()}


def _asked(client: Client, path: str, *, headers: dict[str, str] | None = None) -> Any:
    """Return the answer to GET `path`, asked again while the API is being replaced or its database is away."""
    return wait_for(lambda: client.call("GET", path, headers=headers), f"GET {path}", seconds=LOOK_SECONDS)
