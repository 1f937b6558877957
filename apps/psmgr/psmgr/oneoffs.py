"""One-off dynos: a row that asks for one becomes a job; how it ends is written back to the row."""

from __future__ import annotations

import logging
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from functools import partial

from blackstart.model.component import load_component
from blackstart.model.secrets import Sealer
from blackstart.model.tables import Dyno
from psmgr import output, spec
from psmgr.builds import last_task
from psmgr.desired import Desired, WantedOneOff
from psmgr.engine import Engine, EngineError, NameTaken, Node, Service, ServiceSpec, Task
from psmgr.guard import Guards
from psmgr.leader import Leader
from psmgr.plan import SLUG_EXITS
from psmgr.settings import Settings

log = logging.getLogger(__name__)
STOPPED_EXIT = 143
NOT_BEGUN = 4  # so often a dyno that found no slug on its node is started on another


class OneOffs:
    """Starts, watches and ends one-off dynos. `lacking` says which nodes have not a slug."""

    def __init__(
        self, settings: Settings, sealer: Sealer, guards: Guards, lacking: Callable[[str], tuple[Node, ...]]
    ) -> None:
        self._settings, self._sealer, self._guards, self._lacking = settings, sealer, guards, lacking
        self._not_begun: Counter[str] = Counter()
        self.busy = False

    def step(
        self,
        desired: Desired,
        services: Iterable[Service],
        nodes: Iterable[Node],
        has: Callable[[str], bool],
        engine: Engine,
        leader: Leader,
    ) -> frozenset[str]:
        """Do what can be done now; return the slugs that are missing on the nodes."""
        existing = {service.labels[spec.DYNO_ID]: service for service in services if spec.DYNO_ID in service.labels}
        names = {node.id: node for node in nodes}
        wanted = {str(dyno.id): dyno for dyno in desired.one_offs}
        missing: set[str] = set()
        for id_, service in existing.items():
            if id_ not in wanted:
                self._guards.run(f"one-off {id_}", partial(engine.remove, service.id))
        for id_, dyno in wanted.items():
            if id_ not in existing and dyno.slug is not None and not dyno.stop_requested and not has(dyno.slug):
                missing.add(dyno.slug)
                continue
            work = partial(self._one, dyno, existing.get(id_), names, engine, leader)
            self._guards.run(f"one-off {id_}", work)
        self.busy = bool(wanted)
        self._not_begun = Counter({id_: times for id_, times in self._not_begun.items() if id_ in wanted})
        return frozenset(missing)

    def _one(
        self, dyno: WantedOneOff, service: Service | None, nodes: dict[str, Node], engine: Engine, leader: Leader
    ) -> None:
        if service is None:
            self._without_service(dyno, engine, leader)
            return
        task = last_task(service)
        if task is not None and task.phase in ("complete", "failed"):
            self._end(dyno, service, task, engine, leader)
        elif dyno.stop_requested:
            self._stop(dyno, service, "stopped on request", engine, leader)
        elif dyno.time_limit_s is not None and time.time() - service.created > dyno.time_limit_s:
            self._stop(dyno, service, f"stopped: it ran longer than its limit of {dyno.time_limit_s} s", engine, leader)
        elif task is not None and nodes.get(task.node_id) is not None and nodes[task.node_id].state == "down":
            self._stop(dyno, service, f"lost with its node {nodes[task.node_id].name}", engine, leader)
        else:
            self._running(dyno, task, nodes, leader)

    def _without_service(self, dyno: WantedOneOff, engine: Engine, leader: Leader) -> None:
        if dyno.stop_requested:
            self._write(dyno, leader, state="failed", exit_code=STOPPED_EXIT)
        elif dyno.slug is None:
            self._write(dyno, leader, state="failed", text="the app has no slug yet: build it first\n")
        elif dyno.state != "pending":
            self._write(dyno, leader, state="failed", text="lost with the engine's state\n")
        else:
            try:
                engine.create(self._spec(dyno, leader))
            except NameTaken:
                log.info("one-off %s is started already", dyno.id)
            self._write(dyno, leader, state="starting")
            log.info("one-off app=%s dyno=%s started", dyno.app, dyno.name)

    def _spec(self, dyno: WantedOneOff, leader: Leader) -> ServiceSpec:
        with leader.session() as session:
            row = session.get_one(Dyno, dyno.id)
            app, release = row.app, row.release
            if release is None or release.slug is None:
                raise ValueError("the one-off's release has no slug")
            config = self._sealer.open(release.config, str(app.id))
            own = {} if row.env is None else self._sealer.open(row.env, str(app.id))
            return spec.one_off_spec(
                self._settings,
                app=app.name,
                app_id=str(app.id),
                component=None if app.component is None else load_component(app.component),
                process_type=row.type,
                dyno_id=str(row.id),
                dyno_name=row.name,
                command=row.command,
                slug=release.slug.sha256,
                stack=release.slug.stack,
                size=row.size,
                config=config | own,
                lacking=self._lacking(release.slug.sha256),
            )

    def _running(self, dyno: WantedOneOff, task: Task | None, nodes: dict[str, Node], leader: Leader) -> None:
        state = "up" if task is not None and task.phase == "running" else "starting"
        if state != dyno.state and task is not None:
            node = nodes.get(task.node_id)
            self._write(dyno, leader, state=state, task=task.id, node=None if node is None else node.name)

    def _end(self, dyno: WantedOneOff, service: Service, task: Task, engine: Engine, leader: Leader) -> None:
        text = self._output(service, engine)
        if _never_began(task, text) and self._not_begun[str(dyno.id)] < NOT_BEGUN:
            self._not_begun[str(dyno.id)] += 1
            self._write(dyno, leader, state="pending")
            engine.remove(service.id)
            log.info("one-off app=%s dyno=%s begins elsewhere: its node had no slug", dyno.app, dyno.name)
            return
        if task.phase == "failed" and task.exit_code is None:
            text += f"{task.message}\n"
        state = "complete" if task.phase == "complete" else "failed"
        code = 0 if task.phase == "complete" else task.exit_code
        self._write(dyno, leader, state=state, exit_code=code, text=text, task=task.id)
        engine.remove(service.id)
        log.info("one-off app=%s dyno=%s %s exit=%s", dyno.app, dyno.name, state, code)

    def _stop(self, dyno: WantedOneOff, service: Service, why: str, engine: Engine, leader: Leader) -> None:
        text = self._output(service, engine)
        self._write(dyno, leader, state="failed", exit_code=STOPPED_EXIT, text=f"{text}{why}\n")
        engine.remove(service.id)
        log.info("one-off app=%s dyno=%s %s", dyno.app, dyno.name, why)

    def _output(self, service: Service, engine: Engine) -> str:
        try:
            return output.kept(engine.log(service.id))
        except EngineError as error:
            log.warning("the output of %s cannot be read: %s", service.name, error)
            return ""

    def _write(
        self,
        dyno: WantedOneOff,
        leader: Leader,
        *,
        state: str,
        exit_code: int | None = None,
        text: str | None = None,
        task: str | None = None,
        node: str | None = None,
    ) -> None:
        leader.check()
        with leader.session() as session:
            row = session.get(Dyno, uuid.UUID(str(dyno.id)))
            if row is None:
                return
            row.state = state
            row.exit_code = exit_code if exit_code is not None else row.exit_code
            row.output = text if text is not None else row.output
            row.task = task if task is not None else row.task
            row.node = node if node is not None else row.node


def _never_began(task: Task, text: str) -> bool:
    """Return whether the slug was missing. The command may end with the same status: only the dyno's words tell."""
    return task.phase == "failed" and task.exit_code in SLUG_EXITS and text.startswith("dyno: slug ")
