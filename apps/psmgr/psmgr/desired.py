"""What should run, read from the database in one transaction."""

from __future__ import annotations

import uuid
from dataclasses import dataclass

from sqlalchemy import func, select, tuple_
from sqlalchemy.orm import Session

from blackstart.model.component import Component, load_component
from blackstart.model.tables import App, Build, Domain, Dyno, Formation, Platform, Release, Slug

COMPILER = "compile"


@dataclass(frozen=True)
class WantedProcess:
    """A process type with at least one dyno."""

    type: str
    command: str
    quantity: int
    size: str = "standard-1X"
    recreate: bool = False
    routed: bool = False
    everywhere: bool = False
    managers: bool = False
    proves: bool = False


@dataclass(frozen=True)
class WantedRelease:
    """A release with a slug, and the process types that should run of it."""

    id: uuid.UUID
    version: int
    status: str
    slug: str
    stack: str
    processes: tuple[WantedProcess, ...]


@dataclass(frozen=True)
class WantedApp:
    """An app: what serves (`current`), what should take over (`rolling`), what was skipped."""

    id: uuid.UUID
    name: str
    component: Component | None = None
    deleting: bool = False
    maintenance: bool = False
    current: WantedRelease | None = None
    rolling: WantedRelease | None = None
    superseded: tuple[tuple[uuid.UUID, int], ...] = ()
    hostnames: tuple[str, ...] = ()


@dataclass(frozen=True)
class WantedBuild:
    """A build that has not ended."""

    id: uuid.UUID
    app_id: uuid.UUID
    app: str
    status: str
    second_attempt: bool
    releases: bool


@dataclass(frozen=True)
class WantedOneOff:
    """A one-off dyno that has not ended."""

    id: uuid.UUID
    app_id: uuid.UUID
    app: str
    name: str
    state: str
    stop_requested: bool
    time_limit_s: int | None
    slug: str | None


@dataclass(frozen=True)
class Desired:
    """Everything that should be. `restarts` are the task ids of the formation's dynos that are to be restarted."""

    stage: str
    apps: tuple[WantedApp, ...] = ()
    builds: tuple[WantedBuild, ...] = ()
    one_offs: tuple[WantedOneOff, ...] = ()
    restarts: frozenset[str] = frozenset()
    broken: tuple[tuple[str, str], ...] = ()

    @property
    def slugs(self) -> frozenset[str]:
        """Return the slugs that a dyno may need at any moment."""
        releases = [release for app in self.apps for release in (app.current, app.rolling) if not app.deleting]
        return frozenset(release.slug for release in releases if release is not None)

    def compiler(self) -> WantedRelease | None:
        """Return the compiler's release that builds run with."""
        return next((app.current for app in self.apps if app.name == COMPILER and not app.deleting), None)


def read_stage(session: Session) -> str | None:
    """Return the platform's stage, or None while its row is missing."""
    return session.scalar(select(Platform.stage).where(Platform.id == 1))


def read_desired(session: Session, stage: str) -> Desired:
    """Return what should run. An app whose rows make no sense is left out, and named in `broken`."""
    releases = _releases(session)
    formations: dict[uuid.UUID, list[Formation]] = {}
    for formation in session.scalars(select(Formation)):
        formations.setdefault(formation.app_id, []).append(formation)
    hostnames: dict[uuid.UUID, list[str]] = {}
    for app_id, hostname in session.execute(select(Domain.app_id, Domain.hostname)):
        hostnames.setdefault(app_id, []).append(hostname)
    apps, broken = [], []
    for app in session.scalars(select(App).order_by(App.name)):
        try:
            wanted = wanted_app(app, releases.get(app.id, []), formations.get(app.id, []), hostnames.get(app.id, []))
        except ValueError as error:
            broken.append((app.name, str(error)))
        else:
            apps.append(wanted)
    return Desired(stage, tuple(apps), _builds(session), _one_offs(session), _restarts(session), tuple(broken))


def wanted_app(
    app: App, releases: list[tuple[Release, Slug]], formations: list[Formation], hostnames: list[str]
) -> WantedApp:
    """Return what should run of `app`. `releases` holds its pending ones and the newest that succeeded."""
    component = None if app.component is None else load_component(app.component)
    ordered = sorted(releases, key=lambda pair: pair[0].version, reverse=True)
    current = next((pair for pair in ordered if pair[0].status == "succeeded"), None)
    newest = ordered[0] if ordered else None
    rolling = newest if newest is not None and newest[0].status == "pending" else None
    skipped = [pair[0] for pair in ordered if pair[0].status == "pending" and pair is not rolling]
    return WantedApp(
        id=app.id,
        name=app.name,
        component=component,
        deleting=app.deleting,
        maintenance=app.maintenance,
        current=None if current is None else _release(component, *current, formations),
        rolling=None if rolling is None else _release(component, *rolling, formations),
        superseded=tuple((release.id, release.version) for release in skipped),
        hostnames=tuple(sorted(hostnames)),
    )


def _release(component: Component | None, release: Release, slug: Slug, formations: list[Formation]) -> WantedRelease:
    processes = []
    for formation in sorted(formations, key=lambda row: row.type):
        command = slug.process_types.get(formation.type)
        if command is not None and formation.quantity > 0:
            processes.append(_process(component, formation, command))
    return WantedRelease(release.id, release.version, release.status, slug.sha256, slug.stack, tuple(processes))


def _process(component: Component | None, formation: Formation, command: str) -> WantedProcess:
    own = None if component is None else component.process(formation.type)
    routed = formation.type == "web" and (own is None or own.network != "host")
    return WantedProcess(
        type=formation.type,
        command=command,
        quantity=formation.quantity,
        size=formation.size,
        recreate=own is not None and own.strategy == "recreate",
        routed=routed,
        everywhere=own is not None and own.mode == "global",
        managers=own is not None and own.managers,
        proves=own is not None and (own.proves or own.engine_socket),
    )


def _releases(session: Session) -> dict[uuid.UUID, list[tuple[Release, Slug]]]:
    newest = (
        select(Release.app_id, func.max(Release.version))
        .where(Release.status == "succeeded", Release.slug_id.is_not(None))
        .group_by(Release.app_id)
    )
    query = (
        select(Release, Slug)
        .join(Slug, Slug.id == Release.slug_id)
        .where((Release.status == "pending") | tuple_(Release.app_id, Release.version).in_(newest))
    )
    found: dict[uuid.UUID, list[tuple[Release, Slug]]] = {}
    for release, slug in session.execute(query):
        found.setdefault(release.app_id, []).append((release, slug))
    return found


def _builds(session: Session) -> tuple[WantedBuild, ...]:
    query = (
        select(Build.id, Build.app_id, App.name, Build.status, Build.failure, Build.releases)
        .join(App, App.id == Build.app_id)
        .where(Build.status.in_(("pending", "running")), ~App.deleting)
        .order_by(Build.created_at, Build.id)
    )
    return tuple(
        WantedBuild(id_, app_id, app, status, failure is not None, releases)
        for id_, app_id, app, status, failure, releases in session.execute(query)
    )


def _one_offs(session: Session) -> tuple[WantedOneOff, ...]:
    query = (
        select(Dyno, App.name, Slug.sha256)
        .join(App, App.id == Dyno.app_id)
        .outerjoin(Release, Release.id == Dyno.release_id)
        .outerjoin(Slug, Slug.id == Release.slug_id)
        .where(Dyno.one_off, Dyno.state.in_(("pending", "starting", "up")), ~App.deleting)
        .order_by(Dyno.created_at, Dyno.id)
    )
    return tuple(
        WantedOneOff(dyno.id, dyno.app_id, app, dyno.name, dyno.state, dyno.stop_requested, dyno.time_limit_s, slug)
        for dyno, app, slug in session.execute(query)
    )


def _restarts(session: Session) -> frozenset[str]:
    query = select(Dyno.task).where(~Dyno.one_off, Dyno.stop_requested, Dyno.task.is_not(None))
    return frozenset(task for task in session.scalars(query) if task is not None)
