"""Builds: each one is a one-off dyno of `compile` that holds nothing but presigned URLs of its own.

What it says about itself is checked: the slug's digest against the bytes stored, names and stack against ours.
"""

from __future__ import annotations

import json
import logging
import time
import uuid
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import redis
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.orm import Session

from blackstart.model import bus, names, provenance
from blackstart.model.releases import config_of, create_release, lock_app
from blackstart.model.secrets import Sealer
from blackstart.model.tables import App, Build, Release, Slug
from psmgr import output, spec
from psmgr.desired import Desired, WantedBuild
from psmgr.engine import Engine, EngineError, EngineRefused, NameTaken, Node, Service, Task
from psmgr.fetch import Made
from psmgr.guard import Guards
from psmgr.leader import Leader
from psmgr.plan import SLUG_EXITS
from psmgr.settings import Settings
from psmgr.store import ObjectMissing, ObjectTooLarge, Store, build_keys, cache_key, slug_key, source_key

log = logging.getLogger(__name__)

GRACE_S = 60
LOST = "the first attempt was lost with the engine's state; this is the second"
VERIFY_TRIES_S = 600.0
REASONS = {
    1: "push rejected, failed to compile app: the output says why",
    2: "push rejected: the source cannot be read: the output says why",
    3: "push rejected: the build took longer than its limit of {timeout} seconds",
    4: "the platform failed during the build on {node}, not the app: the output says how; build again",
    137: "the build was killed: it used more memory than its limit of {memory} MB, or it was stopped",
}


class Result(BaseModel):
    """A build's `result.json`. It was written by whatever ran in the build, so nothing in it is taken on trust."""

    model_config = ConfigDict(frozen=True)
    slug: str = Field(pattern=r"^[0-9a-f]{64}$")
    size: int = Field(ge=0)
    process_types: dict[str, str] = Field(max_length=100)
    buildpacks: list[dict[str, object]] = Field(max_length=50)
    stack: str
    source_sha256: str = Field(pattern=r"^[0-9a-f]{64}$")


@dataclass(frozen=True)
class Outcome:
    """How a build ended: with a result, or with the reason of its failure. `compiler` is the slug that built it."""

    output: str
    result: Result | None = None
    size: int = 0
    failure: str | None = None
    compiler: str | None = None


class Builds:
    """Starts, follows and ends builds.

    `lacking` says which nodes have not a slug; `wake` is called, in any thread, when there is something to settle.
    """

    def __init__(
        self,
        settings: Settings,
        store: Store,
        client: redis.Redis,
        sealer: Sealer,
        guards: Guards,
        lacking: Callable[[str], tuple[Node, ...]],
        wake: Callable[[], None],
    ) -> None:
        self._settings, self._store, self._bus, self._sealer, self._guards = settings, store, client, sealer, guards
        self._lacking, self._wake = lacking, wake
        self._pool = ThreadPoolExecutor(4, thread_name_prefix="build")
        self._forwarders: dict[str, output.Forwarder] = {}
        self._ending: dict[str, Future[Outcome]] = {}
        self._free = 0
        self.compiler: str | None = None
        # Builds whose slug the nodes wait for, and which slug each became.
        self._early: set[str] = set()
        self.made: dict[str, Made] = {}

    def close(self) -> None:
        """Stop following. Builds go on; a successor follows them."""
        for forwarder in self._forwarders.values():
            forwarder.stop()
        self._pool.shutdown(wait=False, cancel_futures=True)

    @property
    def busy(self) -> bool:
        """Return whether a build runs."""
        return bool(self._forwarders or self._ending)

    def step(
        self, desired: Desired, services: Iterable[Service], nodes: Iterable[Node], engine: Engine, leader: Leader
    ) -> None:
        """Do what can be done now for each build. `self.compiler` is the slug builds run with, when nodes have it."""
        running = {service.labels[spec.BUILD]: service for service in services if spec.BUILD in service.labels}
        down = {node.id for node in nodes if node.state == "down"}
        early = {service.labels[spec.MADE_BY]: service for service in services if spec.MADE_BY in service.labels}
        wanted = {str(build.id): build for build in desired.builds}
        for id_ in sorted({*running, *early, *self.made} - wanted.keys()):
            work = partial(self._clear, id_, running.get(id_), early.get(id_), engine, leader)
            self._guards.run(f"build {id_}", work)
        self._free = self._settings.builds_at_once - len(running.keys() & wanted.keys())
        for id_, build in wanted.items():
            work = partial(self._one, build, running.get(id_), early.get(id_), down, engine, leader)
            self._guards.run(f"build {id_}", work)

    def _one(
        self,
        build: WantedBuild,
        service: Service | None,
        early: Service | None,
        down: set[str],
        engine: Engine,
        leader: Leader,
    ) -> None:
        if early is not None and any(task.phase == "failed" for task in early.tasks):
            engine.remove(early.id)  # the engine would start it again and again; the slug is fetched when it is there
        if service is not None:
            self._follow(build, service, down, engine, leader)
        elif str(build.id) in self._ending:
            self._settle(build, engine, leader)
        elif build.status == "running":
            self._lost(build, early, engine, leader)
        elif self._free > 0 and self._start(build, engine, leader):
            self._free -= 1

    def _start(self, build: WantedBuild, engine: Engine, leader: Leader) -> bool:
        if self.compiler is None:
            return False
        attempt = 2 if build.second_attempt else 1
        with leader.session() as session:
            row = session.get_one(Build, build.id)
            env = self._environment(row)
        job = spec.build_spec(
            self._settings,
            app=build.app,
            app_id=str(build.app_id),
            build_id=str(build.id),
            attempt=attempt,
            slug=self.compiler,
            env=env,
            lacking=self._lacking(self.compiler),
        )
        try:
            engine.create(job)
        except NameTaken:
            log.info("build=%s is started already", build.id)
        with leader.session() as session:
            session.get_one(Build, build.id).status = "running"
        log.info("build=%s app=%s started attempt=%d", build.id, build.app, attempt)
        return True

    def _environment(self, row: Build) -> dict[str, str]:
        seconds = self._settings.build_timeout_s + 10 * GRACE_S
        slug, result = build_keys(row.id)
        source = row.source_url
        if row.source_id is not None:
            source = self._store.public_get(source_key(row.source_id), seconds)
        return {
            "SOURCE_URL": source,
            "SOURCE_SHA256": (row.source_checksum or "").removeprefix("SHA256:").removeprefix("sha256:").lower(),
            "SLUG_PUT_URL": self._store.public_put(slug, seconds),
            "RESULT_PUT_URL": self._store.public_put(result, seconds),
            "CACHE_GET_URL": self._store.public_get(cache_key(row.app_id), seconds),
            "CACHE_PUT_URL": self._store.public_put(cache_key(row.app_id), seconds),
            "STACK": self._settings.stack,
            "BUILD_TIMEOUT": str(self._settings.build_timeout_s),
            **dict(self._settings.package_sources),
        }

    def _follow(self, build: WantedBuild, service: Service, down: set[str], engine: Engine, leader: Leader) -> None:
        id_ = str(build.id)
        if build.status == "pending":
            with leader.session() as session:
                session.get_one(Build, build.id).status = "running"
        task = last_task(service)
        phase = "starting" if task is None else task.phase
        if id_ not in self._forwarders and phase != "starting" and id_ not in self._ending:
            forwarder = output.Forwarder(engine, self._bus, service.id, bus.build_stream(id_), self._wake)
            self._forwarders[id_] = forwarder
            forwarder.start()
        if build.releases and phase == "running" and id_ not in self._early and self._speaks(id_):
            self._fetch_early(id_, engine)
        if id_ in self._ending:
            self._settle(build, engine, leader)
        elif task is not None and phase == "failed" and task.exit_code in SLUG_EXITS:
            self._drop(id_)  # its node lacks the compiler's slug: the build did not begin, and begins elsewhere
            engine.remove(service.id)
        elif task is not None and phase in ("complete", "failed"):
            self._end(id_, self._outcome, service, task, engine)
        elif task is not None and (task.node_id in down or phase == "stopped"):
            self._drop(id_)
            engine.remove(service.id)
        elif time.time() - service.created > self._settings.build_timeout_s + GRACE_S:
            self._end(id_, self._overtime, service, task, engine)

    def _speaks(self, id_: str) -> bool:
        forwarder = self._forwarders.get(id_)
        return forwarder is not None and forwarder.said

    def _fetch_early(self, id_: str, engine: Engine) -> None:
        """Let every node wait for the slug. Not before the build speaks: the jobs' start would slow the build's own.

        It only saves time: where the engine refuses it, the slug is fetched later.
        """
        seconds = self._settings.build_timeout_s + GRACE_S
        url = self._store.made_url(id_, seconds + GRACE_S)
        self._early.add(id_)
        try:
            engine.create(spec.early_fetch_spec(self._settings, build_id=id_, url=url, seconds=seconds))
        except EngineRefused as error:
            log.info("build=%s: no node waits for its slug: %s", id_, error)

    def _end(self, id_: str, work: Callable[..., Outcome], *arguments: Any) -> None:
        """Find out in the background how the build ended."""
        future = self._ending[id_] = self._pool.submit(work, id_, *arguments)
        future.add_done_callback(lambda _: self._wake())

    def _overtime(self, id_: str, service: Service, task: Task | None, engine: Engine) -> Outcome:
        text = self._output(id_, service, engine)
        why = REASONS[3].format(timeout=self._settings.build_timeout_s)
        if task is None or task.phase == "starting":
            told = "no node had room for it" if task is None or not task.message else task.message
            why = f"the build did not start within {self._settings.build_timeout_s} seconds: {told}"
        return Outcome(text, failure=why)

    def _output(self, id_: str, service: Service, engine: Engine) -> str:
        try:
            whole = engine.log(service.id)
        except EngineError as error:
            log.warning("build=%s: its output cannot be read: %s", id_, error)
            whole = b""
        forwarder = self._forwarders.get(id_)
        if forwarder is not None:
            forwarder.finish(whole)
        return output.kept(whole)

    def _outcome(self, id_: str, service: Service, task: Task, engine: Engine) -> Outcome:
        text = self._output(id_, service, engine)
        if task.phase == "failed":
            reason = REASONS.get(task.exit_code or -1)
            if reason is None:
                return Outcome(text, failure=f"the build failed (exit code {task.exit_code}): {task.message}")
            node = next((node.name for node in engine.nodes() if node.id == task.node_id), "a node that is gone")
            limits = {"timeout": self._settings.build_timeout_s, "memory": self._settings.build_memory_mb}
            return Outcome(text, failure=reason.format(node=node, **limits))
        return self._verified(id_, text, service.labels.get(spec.SLUG))

    def _verified(self, id_: str, text: str, compiler: str | None) -> Outcome:
        """Check what the build stored. Raises StoreUnavailable: then it is tried again."""
        slug, result_key = build_keys(id_)
        try:
            result = parse_result(self._store.read(result_key), self._settings.stack)
            digest, size = self._store.digest(slug)
        except ObjectMissing as error:
            return Outcome(text, failure=f"the build ended without a slug: {error}")
        except (ResultRefused, ObjectTooLarge) as error:
            return Outcome(text, failure=str(error))
        if digest != result.slug:
            return Outcome(text, failure=f"the stored slug has the sha256 {digest}, the build said {result.slug}")
        target = slug_key(digest)
        if not self._store.exists(target):
            self._store.copy(slug, target)
        return Outcome(text, result=result, size=size, compiler=compiler)

    def _settle(self, build: WantedBuild, engine: Engine, leader: Leader) -> None:
        id_ = str(build.id)
        future = self._ending[id_]
        if not future.done():
            return
        try:
            outcome = future.result()
        except Exception:
            del self._ending[id_]  # the next step tries again
            raise
        leader.check()
        status = self._record(build, outcome, leader)
        del self._ending[id_]
        self._drop(id_)
        output.end_stream(self._bus, bus.build_stream(id_), status)
        bus.announce(self._bus, "build", build.app)
        log.info("build=%s app=%s %s %s", id_, build.app, status, outcome.failure or "")

    def _record(self, build: WantedBuild, outcome: Outcome, leader: Leader) -> str:
        with leader.session() as session:
            row = session.get_one(Build, build.id)
            app = session.get_one(App, row.app_id)
            lock_app(session, app)
            row.output, row.failure = outcome.output, outcome.failure
            result = outcome.result
            if result is None:
                row.status = "failed"
                return row.status
            slug = Slug(
                id=uuid.uuid4(),
                app_id=row.app_id,
                sha256=result.slug,
                size=outcome.size,
                stack=result.stack,
                source_sha256=result.source_sha256,
                source_version=row.source_version,
                process_types=result.process_types,
                buildpacks=list(result.buildpacks),
                provenance=self._provenance(app.name, result, outcome.compiler),
            )
            session.add(slug)
            session.flush()
            row.status, row.slug_id = "succeeded", slug.id
            self.made[str(row.id)] = Made(slug.sha256, time.time())
            if row.releases:
                row.release_id = self._release(session, app, row, slug).id
            return row.status

    def _provenance(self, app: str, result: Result, compiler: str | None) -> dict[str, Any] | None:
        """Return the statement of a build; None where its compiler is not known (a process manager before this began it)."""
        if compiler is None:
            return None
        made = provenance.Made(
            app=app,
            slug=result.slug,
            source=result.source_sha256,
            stacks=(result.stack, self._settings.stack_build),
            buildpacks=provenance.buildpacks(result.buildpacks),
            builder=provenance.Builder(provenance.COMPILER, compiler),
        )
        return provenance.statement(made)

    def _release(self, session: Session, app: App, row: Build, slug: Slug) -> Release:
        return create_release(
            session,
            self._sealer,
            app,
            user=row.user,
            description=f"Deploy {(row.source_version or slug.sha256)[:12]}",
            slug=slug,
            config=config_of(session, self._sealer, app),
        )

    def _lost(self, build: WantedBuild, early: Service | None, engine: Engine, leader: Leader) -> None:
        """Let it be built a second time, and forget what the first attempt stored: nodes may have taken it."""
        if early is not None:
            engine.remove(early.id)
        self._early.discard(str(build.id))
        self._store.delete(build_keys(build.id))
        with leader.session() as session:
            row = session.get_one(Build, build.id)
            if build.second_attempt:
                row.status, row.failure = "failed", "the build was lost twice with the engine's state: build again"
            else:
                row.status, row.failure = "pending", LOST
        log.warning("build=%s app=%s was lost", build.id, build.app)
        if build.second_attempt:
            output.end_stream(self._bus, bus.build_stream(build.id), "failed")

    def _clear(self, id_: str, service: Service | None, early: Service | None, engine: Engine, leader: Leader) -> None:
        """The build's row has ended: remove what is left of it, but not before every node has its slug."""
        future = self._ending.pop(id_, None)
        if future is not None:
            future.cancel()
        self._drop(id_)
        with leader.session() as session:
            row = session.get(Build, uuid.UUID(id_))
            status = None if row is None else row.status
            slug = None if row is None or row.slug_id is None else session.get_one(Slug, row.slug_id).sha256
        if status in ("succeeded", "failed"):
            output.end_stream(self._bus, bus.build_stream(id_), status)
        if early is not None and slug is not None:
            self.made.setdefault(id_, Made(slug, time.time()))  # a successor learns it here
            return
        self.made.pop(id_, None)
        self._early.discard(id_)
        self._store.delete(build_keys(id_))
        for left in (early, service):
            if left is not None:
                engine.remove(left.id)

    def _drop(self, id_: str) -> None:
        forwarder = self._forwarders.pop(id_, None)
        if forwarder is not None:
            forwarder.stop()


class ResultRefused(ValueError):
    """A build's result.json is not valid."""


def parse_result(data: bytes, stack: str) -> Result:
    """Return the result in `data`. Raises ResultRefused."""
    try:
        result = Result.model_validate(json.loads(data))
        for type_ in result.process_types:
            names.process_type(type_)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ResultRefused(f"the build's result.json is refused: {where}: {first['msg']}") from error
    except ValueError as error:
        raise ResultRefused(f"the build's result.json is refused: {error}") from error
    if result.stack != stack:
        raise ResultRefused(f"the build's result.json is refused: stack: {result.stack[:80]!r} is not {stack}")
    return result


def last_task(service: Service) -> Task | None:
    """Return the newest task of a job."""
    return max(service.tasks, key=lambda task: task.since, default=None)
