"""One pass: look at what should be and at what is, publish routes, do what the plans say, write down what was seen."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

import redis

from blackstart.model import bus
from blackstart.model.secrets import Sealer
from blackstart.model.tables import Release, now
from psmgr import deletions, health, observe, routes, spec
from psmgr.builds import Builds
from psmgr.desired import Desired, WantedApp, WantedRelease, read_desired
from psmgr.engine import Engine, NameTaken, Node, Service, ServiceSpec
from psmgr.fenced import FencedEngine
from psmgr.fetch import Fetcher, sweep
from psmgr.guard import Guards
from psmgr.leader import Leader
from psmgr.oneoffs import OneOffs
from psmgr.plan import (
    Action,
    Create,
    Drain,
    Facts,
    Fail,
    Fetch,
    Forget,
    Remove,
    Replace,
    Scale,
    Succeed,
    begun_at,
    plan_app,
    serving,
)
from psmgr.restarts import Restarts
from psmgr.settings import Settings
from psmgr.store import Store
from psmgr.table import RouteBoard
from psmgr.trial import NOT_TAKEN, Trial

log = logging.getLogger(__name__)

PROBE_S = 0.5
SWEEP_SPARES_MIN = 60
IDLE_S, BUSY_S, MOVING_S = 2.0, 0.2, 0.02
SOON_S = 0.08  # an event comes before the state it tells of: the engine writes tasks' states every 100 ms
SWEEP_JOB_S = 60.0


class Reconciler:
    """What a leader does, and what it remembers from pass to pass. All of it can be lost."""

    def __init__(
        self,
        settings: Settings,
        engine: Engine,
        client: redis.Redis,
        store: Store,
        stopping: Callable[[], bool],
        trial: Trial | None = None,
        wake: Callable[[], None] = lambda: None,
    ) -> None:
        self._settings, self._raw_engine, self._bus, self._store = settings, engine, client, store
        self._stopping = stopping
        self._sealer = Sealer(settings.secret_key)
        self._guards = Guards()
        self._fetcher = Fetcher(settings, store.slug_url)
        self._board = RouteBoard(client, ack_s=settings.ack_s, drain_s=settings.drain_s)
        lacking = self._fetcher.missing
        self._builds = Builds(settings, store, client, self._sealer, self._guards, lacking, wake)
        self._one_offs = OneOffs(settings, self._sealer, self._guards, lacking)
        self._restarts = Restarts(settings, self._guards)
        self._observer = observe.Observer()
        self._ports = observe.Ports()
        self._healthy: frozenset[str] | None = None
        self._begun: dict[uuid.UUID, float] = {}
        self._network_checked = 0.0
        self._swept = time.monotonic()
        self._sweep_wish: int | None = None
        self._told_broken: dict[str, str] = {}
        self._moved = self._draining = False
        self.trial = Trial() if trial is None else trial
        self.trial.leads()

    def close(self) -> None:
        """Let go of what runs in the background."""
        self._builds.close()

    def step(self, leader: Leader, stage: str, *, woken: bool = False) -> float:
        """Make one pass; return the seconds until the next one is due. `woken`: an event was heard of just before."""
        self._moved = self._draining = False
        engine = FencedEngine(self._raw_engine, leader.check)
        with leader.session() as session:
            desired = read_desired(session, stage)
        self._tell_broken(desired)
        nodes = tuple(engine.nodes())
        self._ensure_network(engine)
        found = engine.services(self._settings.platform)
        with leader.session() as session:
            services = self._ports.complete(found, session)
        self.trial.look(self._settings.task_id, services)
        self._fetcher.observe(services, nodes, self._builds.made, engine)
        self._board.read(nodes)
        healthy = self._probe(services, nodes, desired)
        by_app = _by_app(services)
        facts = self._facts(desired, nodes, services, by_app, healthy)
        served = _serving(desired, by_app, facts)
        planned = routes.routing_table(
            self._settings.domain,
            desired.apps,
            served,
            by_app,
            {node.id: node for node in nodes},
            healthy,
            self._board.table,
            self._restarts.leaving,
        )
        if self._board.known or healthy or planned["hosts"]:
            self._guards.run("routes", partial(self._publish, planned, leader))
        facts = replace(
            facts,
            drained=self._board.drained(desired.apps, services, planned),
            taken=self._board.taken(planned),
        )
        for app in desired.apps:
            self._guards.run(f"app {app.name}", partial(self._app, app, by_app, facts, engine, leader))
        self._orphans(desired, services, engine)
        self._builds.compiler = self._compiler(desired, facts)
        self._builds.step(desired, services, nodes, engine, leader)
        for slug in self._one_offs.step(desired, services, nodes, facts.has, engine, leader):
            self._guards.run(f"fetch {slug}", partial(self._fetch, slug, engine))
        self._restarts.step(desired, services, facts, routes.ready_ids(self._board.table), engine)
        self._write_down(desired, served, by_app, facts, leader)
        self._look_after_nodes(desired, services, engine, leader)
        self.trial.passed()
        if self._moved:
            return MOVING_S
        if not self._waits(desired, services):
            return IDLE_S
        return SOON_S if woken else BUSY_S

    def _waits(self, desired: Desired, services: tuple[Service, ...]) -> bool:
        """Return whether something is under way that the engine does not tell of."""
        if self._draining or self._fetcher.busy or self._builds.busy or desired.builds:
            return True
        if self._one_offs.busy or self._restarts.busy:
            return True
        if any(app.rolling is not None or app.deleting for app in desired.apps):
            return True
        return any(task.phase == "starting" and task.wanted for service in services for task in service.tasks)

    def _ensure_network(self, engine: Engine) -> None:
        if time.monotonic() - self._network_checked > 30 or not self._network_checked:
            mtu = self._settings.network_mtu
            self._guards.run("network", partial(engine.ensure_network, self._settings.platform, mtu))
            self._network_checked = time.monotonic()

    def _probe(self, services: Iterable[Service], nodes: Iterable[Node], desired: Desired) -> frozenset[str]:
        """Return the routed dynos that answered once. What routers use is believed: they check it all the time."""
        if self._healthy is None and self._board.known:
            self._healthy = routes.ready_ids(self._board.table)
        known = self._healthy or frozenset()
        addresses = {node.id: node.address for node in nodes}
        apps = {str(app.id): app for app in desired.apps}
        running, targets = set(), []
        for service in services:
            app = apps.get(service.labels.get(spec.APP_ID, ""))
            if app is None or service.labels.get(spec.KIND) != "process":
                continue
            if not spec.is_routed(app.component, service.labels[spec.PROCESS]):
                continue
            for task in service.tasks:
                if task.phase != "running":
                    continue
                running.add(task.id)
                if task.id not in known:
                    port = task.ports.get(spec.WEB_PORT)
                    if port is not None and addresses.get(task.node_id):
                        targets.append((task.id, (addresses[task.node_id], port)))
                    if (
                        self._settings.role == "app"
                    ):  # stage 0 is not on the platform's network; who answers there is not us
                        targets.extend((task.id, (address, spec.WEB_PORT)) for address in task.addresses)
        answered = health.answering(targets, PROBE_S) if targets else frozenset()
        found = (known & frozenset(running)) | answered
        if self._healthy is not None or self._board.known or answered:
            self._healthy = found
        return found

    def _publish(self, planned: routes.Table, leader: Leader) -> None:
        if planned == self._board.table and self._board.known and not self._board.missing:
            return
        leader.check()
        self._moved |= self._board.publish(planned)

    def _facts(
        self,
        desired: Desired,
        nodes: tuple[Node, ...],
        services: tuple[Service, ...],
        by_app: dict[str, list[Service]],
        healthy: frozenset[str],
    ) -> Facts:
        """Return what is known before the routes are planned."""
        clock = time.time()
        self._begun = {
            app.rolling.id: self._begun.get(app.rolling.id) or begun_at(app.rolling, by_app.get(str(app.id), ()), clock)
            for app in desired.apps
            if app.rolling is not None
        }
        overdue = {id_ for id_, begun in self._begun.items() if clock - begun > self._settings.deploy_timeout_s}
        return Facts(
            now=clock,
            nodes=nodes,
            present=frozenset(self._fetcher.present),
            settled=self._fetcher.settled(),
            healthy=healthy,
            overdue=frozenset(overdue),
            obstacles=dict(self._fetcher.obstacles),
            damaged=frozenset(
                app.rolling.id
                for app in desired.apps
                if app.rolling is not None
                and self._fetcher.damaged.get(app.rolling.slug, 0.0) >= self._begun[app.rolling.id]
            ),
            boot_s=self._settings.boot_timeout_s,
            proven=self._proven(desired, services),
            routed=routes.ready_ids(self._board.table),
        )

    def _proven(self, desired: Desired, services: Iterable[Service]) -> frozenset[str] | None:
        """Return which new process managers could lead. Stage 0 cannot ask those that will: they have another bus."""
        if self._settings.role == "stage-0":
            return None
        rolling = {str(app.id): app.rolling for app in desired.apps if app.rolling is not None}
        asked: list[str] = []
        for service in services:
            release = rolling.get(service.labels.get(spec.APP_ID, ""))
            if release is not None and any(process.proves for process in release.processes):
                asked.extend(task.id for task in service.tasks if task.phase == "running")
        proven = self._board.proven(asked)
        own = self._settings.task_id
        return proven if own is None else proven | {own}  # who leads need not say that it could

    def _app(
        self, app: WantedApp, by_app: dict[str, list[Service]], facts: Facts, engine: Engine, leader: Leader
    ) -> None:
        if app.rolling is not None and self.trial.failed(app.rolling.id):
            self._do(app, Fail(app.rolling.id, app.rolling.version, NOT_TAKEN), engine, leader)
            return
        for action in plan_app(app, by_app.get(str(app.id), ()), facts):
            if self._stopping():
                return
            self._do(app, action, engine, leader)

    def _do(self, app: WantedApp, action: Action, engine: Engine, leader: Leader) -> None:
        match action:
            case Fetch(slug):
                self._fetch(slug, engine)
            case Create():
                self._create(app, action, engine, leader)
            case Replace():
                wanted = self._spec(app, action, leader)
                log.info("replace service=%s by=%s", action.service.name, wanted.name)
                engine.replace(action.service.id, wanted)
                self._moved = True
            case Scale(service, replicas):
                log.info("scale service=%s to=%d", service.name, replicas)
                engine.scale(service.id, replicas)
                self._moved = True
            case Drain():
                self._draining = True  # the routing table says it to the routers
            case Remove(service):
                log.info("remove service=%s", service.name)
                engine.remove(service.id)
                self._moved = True
            case Succeed(release):
                self._succeed(app, release, leader)
            case Fail(release_id, version, reason):
                self._end_release(app, release_id, "failed", reason, leader)
                log.warning("release app=%s v%d failed: %s", app.name, version, reason)
            case Forget(app_id):
                self._forget(app, app_id, leader)

    def _succeed(self, app: WantedApp, release: WantedRelease, leader: Leader) -> None:
        match self.trial.verdict(app.id, release):
            case "good":
                self._end_release(app, release.id, "succeeded", None, leader)
                log.info("release app=%s v%d succeeded", app.name, release.version)
            case "hand over":
                log.info("handing over to app=%s v%d, on trial", app.name, release.version)
            case "not yet":
                pass

    def _fetch(self, slug: str, engine: Engine) -> None:
        self._moved |= self._fetcher.start(slug, engine)

    def _create(self, app: WantedApp, action: Create, engine: Engine, leader: Leader) -> None:
        wanted = self._spec(app, action, leader)
        log.info("create service=%s replicas=%d", wanted.name, wanted.replicas)
        try:
            engine.create(wanted)
        except NameTaken:
            log.info("service=%s exists already", wanted.name)
        self._moved = True

    def _spec(self, app: WantedApp, action: Create | Replace, leader: Leader) -> ServiceSpec:
        with leader.session() as session:
            sealed = session.get_one(Release, action.release.id).config
        return spec.process_spec(
            self._settings,
            app=app.name,
            app_id=str(app.id),
            component=app.component,
            process_type=action.process.type,
            command=action.process.command,
            version=action.release.version,
            slug=action.release.slug,
            stack=action.release.stack,
            quantity=action.process.quantity,
            size=action.process.size,
            config=self._sealer.open(sealed, str(app.id)),
        )

    def _end_release(
        self, app: WantedApp, release_id: uuid.UUID, status: str, reason: str | None, leader: Leader
    ) -> None:
        with leader.session() as session:
            release = session.get(Release, release_id)
            if release is not None and release.status == "pending":
                release.status, release.failure, release.updated_at = status, reason, now()
        bus.announce(self._bus, "release", app.name)
        self._moved = True

    def _forget(self, app: WantedApp, app_id: uuid.UUID, leader: Leader) -> None:
        with leader.session() as session:
            keys = deletions.objects_of(session, app_id)
        self._store.delete(keys)
        leader.check()
        with leader.session() as session:
            deletions.forget_app(session, app_id)
        bus.announce(self._bus, "app", app.name)
        log.info("app=%s is gone", app.name)
        self._sweep_wish = 0
        self._moved = True

    def _orphans(self, desired: Desired, services: Iterable[Service], engine: Engine) -> None:
        """Remove what belongs to an app that is not in the database (any more). An empty one is believed in nothing."""
        known = {str(app.id) for app in desired.apps}
        if desired.broken or not known:
            return
        for service in services:
            app_id = service.labels.get(spec.APP_ID)
            if app_id is not None and app_id not in known:
                log.warning("remove service=%s: its app is not in the database", service.name)
                self._guards.run(f"orphan {service.id}", partial(engine.remove, service.id))

    def _compiler(self, desired: Desired, facts: Facts) -> str | None:
        """Return the compiler's slug when nodes have it. Until it is an app, stage 0 names its seed."""
        release = desired.compiler()
        slug = self._settings.compile_slug if release is None else release.slug
        return slug if slug is not None and facts.has(slug) else None

    def _write_down(
        self,
        desired: Desired,
        served: dict[uuid.UUID, WantedRelease],
        by_app: dict[str, list[Service]],
        facts: Facts,
        leader: Leader,
    ) -> None:
        seen = [
            dyno
            for app in desired.apps
            for dyno in observe.seen_dynos(app, served.get(app.id), by_app.get(str(app.id), ()), facts)
        ]
        nodes = {node.name: node for node in facts.nodes}
        if self._observer.dynos_changed(seen):
            self._guards.run("dynos", partial(self._write_dynos, seen, leader))
        if self._observer.nodes_changed(nodes):
            self._guards.run("nodes", partial(self._write_nodes, nodes, leader))

    def _write_dynos(self, seen: list[observe.Seen], leader: Leader) -> None:
        with leader.session() as session:
            self._observer.write_dynos(session, seen)
        self._observer.remember_dynos(seen)

    def _write_nodes(self, nodes: dict[str, Node], leader: Leader) -> None:
        with leader.session() as session:
            self._observer.write_nodes(session, nodes)
        self._observer.remember_nodes(nodes)

    def _look_after_nodes(
        self, desired: Desired, services: tuple[Service, ...], engine: Engine, leader: Leader
    ) -> None:
        slugs = set(desired.slugs)
        if desired.compiler() is None and self._settings.compile_slug is not None:
            slugs.add(self._settings.compile_slug)
        self._guards.run("top up", partial(self._fetcher.top_up, slugs, engine))
        sweeps = [service for service in services if service.labels.get(spec.KIND) == "sweep"]
        for service in sweeps:
            ended = all(task.phase in ("complete", "failed") for task in service.tasks) and service.tasks
            if (ended and time.time() - service.created > 5) or time.time() - service.created > SWEEP_JOB_S:
                self._guards.run(f"sweep {service.id}", partial(engine.remove, service.id))
        rolling = any(app.rolling is not None for app in desired.apps) or bool(desired.builds)
        due = self._sweep_wish is not None or time.monotonic() - self._swept > self._settings.gc_s
        if due and not sweeps and not rolling and not self._fetcher.busy:
            self._guards.run("sweep", partial(self._sweep, slugs, engine, leader))

    def _sweep(self, slugs: set[str], engine: Engine, leader: Leader) -> None:
        with leader.session() as session:
            keep = deletions.slugs_to_keep(session, slugs)
        spares = SWEEP_SPARES_MIN if self._sweep_wish is None else self._sweep_wish
        sweep(self._settings, engine, keep, spares, int(time.time()))
        self._fetcher.forget(keep)
        self._swept, self._sweep_wish = time.monotonic(), None

    def _tell_broken(self, desired: Desired) -> None:
        for name, why in desired.broken:
            if self._told_broken.get(name) != why:
                log.warning("app=%s is left as it is: %s", name, why)
        self._told_broken = dict(desired.broken)


def _serving(desired: Desired, by_app: dict[str, list[Service]], facts: Facts) -> dict[uuid.UUID, WantedRelease]:
    found = {app.id: serving(app, by_app.get(str(app.id), ()), facts) for app in desired.apps}
    return {app_id: release for app_id, release in found.items() if release is not None}


def _by_app(services: Iterable[Service]) -> dict[str, list[Service]]:
    found: dict[str, list[Service]] = {}
    for service in services:
        app_id = service.labels.get(spec.APP_ID)
        if app_id is not None:
            found.setdefault(app_id, []).append(service)
    return found
