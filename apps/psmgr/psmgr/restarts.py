"""Restarting dynos of the formation: the one that is asked for is stopped, and the engine starts it anew.

Level-triggered: the wish is in the dyno's row, beside its task's id, until the row has another task. One dyno of a
process type is stopped at a time, the next one when it is back; routers stop using it first. So two or more serve
all the while.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterable, Mapping
from functools import partial

from psmgr import spec
from psmgr.builds import last_task
from psmgr.desired import Desired, WantedApp
from psmgr.engine import Engine, NameTaken, Service, Task
from psmgr.guard import Guards
from psmgr.observe import newest_tasks
from psmgr.plan import Facts, is_up
from psmgr.settings import Settings

log = logging.getLogger(__name__)

# The engine tells a port as soon as the dyno runs. One that it does not tell for so long, it forgot.
FORGOTTEN_S = 30.0
# How long a job that did its work waits to be seen to have done it, and how long any job may take.
SEEN_S, JOB_S = 15.0, 120.0


class Restarts:
    """Starts and ends the jobs that stop dynos. `leaving` are the ids of those that the routers should leave alone."""

    def __init__(self, settings: Settings, guards: Guards) -> None:
        self._settings, self._guards = settings, guards
        self.busy = False
        self.leaving: frozenset[str] = frozenset()

    def step(
        self,
        desired: Desired,
        services: Iterable[Service],
        facts: Facts,
        used: frozenset[str],
        engine: Engine,
    ) -> None:
        """Do what can be done now. Routers use the dynos `used` (ids)."""
        services = tuple(services)
        jobs = {s.labels[spec.TASK]: s for s in services if s.labels.get(spec.KIND) == "stop"}
        apps = {str(app.id): app for app in desired.apps if not app.deleting}
        running = {task.id for service in services for task in service.tasks if _runs(task)}
        for id_, job in list(jobs.items()):
            if id_ not in running or _is_over(job, time.time()):
                self._guards.run(f"stop {id_}", partial(engine.remove, job.id))
        stopped = to_stop(desired.restarts, apps, services, frozenset(jobs), facts)
        self.leaving = frozenset(jobs) | {task.id for _, task in stopped}
        for service, task in stopped:
            others = {other.id for other in service.tasks if other.id != task.id}
            if task.id in used and others & used:
                continue  # the next routing table, which knows who leaves, lets the routers drain it first
            self._guards.run(f"restart {task.id}", partial(self._stop, service, task, engine))
        self.busy = bool(jobs or stopped or desired.restarts)

    def _stop(self, service: Service, task: Task, engine: Engine) -> None:
        log.info("restart service=%s slot=%d task=%s", service.name, task.slot, task.id)
        try:
            engine.create(spec.stop_spec(self._settings, task))
        except NameTaken:
            log.debug("task=%s is being stopped already", task.id)


def to_stop(
    asked: frozenset[str],
    apps: Mapping[str, WantedApp],
    services: Iterable[Service],
    being_stopped: frozenset[str],
    facts: Facts,
) -> list[tuple[Service, Task]]:
    """Return the dynos to stop now: of each process type at most one, and none while another one of it starts."""
    found = []
    for service in services:
        app = apps.get(service.labels.get(spec.APP_ID, ""))
        if app is None or service.labels.get(spec.KIND) != "process":
            continue
        routed = spec.is_routed(app.component, service.labels[spec.PROCESS])
        tasks = list(newest_tasks(service).values())
        due = [task for task in tasks if _runs(task) and (task.id in asked or (routed and _is_lost(task, facts)))]
        held = any(task.id in being_stopped for task in tasks) or any(
            _is_starting(task, routed, facts) for task in tasks if task not in due
        )
        if due and not held:
            found.append((service, min(due, key=lambda task: (task.slot, task.id))))
    return found


def _runs(task: Task) -> bool:
    return task.phase == "running" and task.wanted


def _is_starting(task: Task, routed: bool, facts: Facts) -> bool:
    if task.phase == "starting":
        return True
    return task.phase == "running" and not is_up(task, routed, facts) and facts.now - task.since < facts.boot_s


def _is_lost(task: Task, facts: Facts) -> bool:
    """Return whether the engine forgot where the dyno listens, before anybody kept it: no router can reach it."""
    return spec.WEB_PORT not in task.ports and facts.now - task.since > FORGOTTEN_S


def _is_over(job: Service, now: float) -> bool:
    """Return whether the job ended without effect, or takes too long: then it is made anew."""
    task = last_task(job)
    ended = task is not None and task.phase in ("complete", "failed") and now - task.since > SEEN_S
    return ended or now - job.created > JOB_S
