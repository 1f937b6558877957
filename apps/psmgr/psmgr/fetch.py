"""Slugs on nodes: a dyno starts from its node's own disk, so each slug is brought there first, by a job.

The job of a build's slug begins while the build runs and waits for it, so that a deploy does not wait for the job's start.

What is where is remembered in memory only. A process manager that takes over learns it from the dynos that run,
and asks the nodes for the rest (a job on a node that has the slug ends at once, without any network).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from psmgr import spec
from psmgr.backoff import delay
from psmgr.engine import Engine, EngineError, NameTaken, Node, Service, ServiceSpec, Task
from psmgr.plan import SLUG_DAMAGED, SLUG_EXITS
from psmgr.settings import Settings

log = logging.getLogger(__name__)

JOB_GRACE_S = 20.0  # a job ends by itself before it is given up
AT_ONCE = 2
TRIES_BEFORE_SETTLED = 2
LONG_TRY = 0.6  # of the time that a job has

NO_SPACE = "curl ended with 23"  # it could not write what it got

Url = Callable[[str], str]


@dataclass(frozen=True)
class Made:
    """The slug that a build became, and since when that is known (Unix time, seconds)."""

    slug: str
    at: float


class Fetcher:
    """Starts and ends fetch jobs, and knows which node has which slug."""

    def __init__(self, settings: Settings, url: Url) -> None:
        self._settings, self._url = settings, url
        self._ready: tuple[Node, ...] = ()
        self._jobs: tuple[tuple[str, Service], ...] = ()
        self._started: set[str] = set()
        self._tries: dict[str, tuple[int, float]] = {}
        # When it was last seen there: a dyno that missed it says so for as long as the engine remembers the dyno.
        self.present: dict[tuple[str, str], float] = {}
        # When a dyno missed it there: one that began before still runs, and proves nothing.
        self._missed: dict[tuple[str, str], float] = {}
        self.obstacles: dict[str, str] = {}
        # Slugs whose bytes in the object store are not those that their name promises, and when that was asked last.
        self.damaged: dict[str, float] = {}

    @property
    def busy(self) -> bool:
        """Return whether a job runs."""
        return bool(self._jobs or self._started)

    def settled(self) -> frozenset[str]:
        """Return the slugs tried on every ready node, more than once, and there on some."""
        ready = {node.id for node in self._ready}
        tried = {slug for slug, (tries, _) in self._tries.items() if tries >= TRIES_BEFORE_SETTLED}
        return frozenset(slug for node, slug in self.present if slug in tried and node in ready)

    def observe(
        self, services: Iterable[Service], nodes: Iterable[Node], made: Mapping[str, Made], engine: Engine
    ) -> None:
        """Learn from the services' tasks, and remove jobs that ended. `made` says which slug a build became."""
        nodes = tuple(nodes)
        self._ready = tuple(node for node in nodes if node.state == "ready")
        known = {node.id for node in nodes}
        self.present = {pair: seen for pair, seen in self.present.items() if pair[0] in known}
        self._missed = {pair: seen for pair, seen in self._missed.items() if pair[0] in known}
        self._started = set()
        jobs = []
        for service in services:
            by = made.get(service.labels.get(spec.MADE_BY, ""))
            slug = service.labels.get(spec.SLUG) if by is None else by.slug
            if slug is None:
                continue
            if service.labels.get(spec.KIND) == "fetch":
                began = service.created if by is None else by.at
                jobs.append((slug, service, time.time() - began))
            else:
                self._learn(slug, service.tasks)
        self._jobs = tuple((slug, service) for slug, service, age in jobs if not self._end(slug, service, age, engine))

    def missing(self, slug: str) -> tuple[Node, ...]:
        """Return the ready nodes not known to have `slug`."""
        return tuple(node for node in self._ready if (node.id, slug) not in self.present)

    def start(self, slug: str, engine: Engine) -> bool:
        """Start the job for `slug` where it is missing; return whether one was started."""
        missing = self.missing(slug)
        tries, not_before = self._tries.get(slug, (0, 0.0))
        runs = slug in self._started or any(slug == job for job, _ in self._jobs)
        if not missing or runs or time.monotonic() < not_before:
            return False
        try:
            engine.create(self._job(slug, missing))
        except NameTaken:
            return False
        finally:
            self._started.add(slug)
        log.info("fetch slug=%s nodes=%s try=%d", slug[:12], ",".join(node.name for node in missing), tries + 1)
        return True

    def top_up(self, slugs: Iterable[str], engine: Engine) -> None:
        """Bring what may be needed onto nodes that lack it (a fresh node lacks all), a few at a time."""
        for slug in sorted(slugs):
            if len(self._jobs) + len(self._started) >= AT_ONCE:
                return
            if self.start(slug, engine):
                return

    def forget(self, keep: frozenset[str]) -> None:
        """Know nothing any more of slugs that may have been removed from the nodes."""
        self.present = {pair: seen for pair, seen in self.present.items() if pair[1] in keep}
        self._missed = {pair: seen for pair, seen in self._missed.items() if pair[1] in keep}
        self._tries = {slug: value for slug, value in self._tries.items() if slug in keep}
        self.obstacles = {slug: value for slug, value in self.obstacles.items() if slug in keep}

    def _job(self, slug: str, missing: tuple[Node, ...]) -> ServiceSpec:
        only = missing[0].id if len(missing) == 1 and len(self._ready) > 1 else None
        return spec.fetch_spec(self._settings, slug=slug, url=self._url(slug), node_id=only)

    def _learn(self, slug: str, tasks: Iterable[Task]) -> None:
        for task in sorted(tasks, key=lambda task: task.since):
            if task.phase == "running":
                self._saw((task.node_id, slug), task.since)
            elif (
                task.phase == "failed" and task.exit_code in SLUG_EXITS and task.since > self._seen(task.node_id, slug)
            ):
                self.present.pop((task.node_id, slug), None)
                self._missed[task.node_id, slug] = task.since

    def _seen(self, node: str, slug: str) -> float:
        pair = node, slug
        return max(self.present.get(pair, 0.0), self._missed.get(pair, 0.0))

    def _saw(self, pair: tuple[str, str], when: float) -> None:
        if when > self._missed.get(pair, 0.0):
            self.present[pair] = max(when, self.present.get(pair, 0.0))

    def _end(self, slug: str, service: Service, age: float, engine: Engine) -> bool:
        """Remove the job if it ended or had its time; return whether it was. `age` is that of its work, in seconds.

        A job that waits for a build's slug has no task on a node that came after it, and none again where one failed: the
        job made for the slug itself serves these.
        """
        only, early = service.labels.get(spec.NODE), spec.MADE_BY in service.labels
        targets = {node.id: node for node in self._ready if only in (None, node.id)}
        done = {task.node_id: task.since for task in service.tasks if task.phase == "complete"}
        failed = {task.node_id: task for task in service.tasks if task.phase == "failed" and task.node_id not in done}
        for node, since in done.items():
            self._saw((node, slug), since)
        waits = targets.keys() - done.keys() - failed.keys()
        if early:
            waits &= {task.node_id for task in service.tasks if task.phase in ("starting", "running") and task.wanted}
        in_time = age < self._settings.fetch_timeout_s + (0.0 if early else JOB_GRACE_S)
        if waits and in_time:
            return False
        late = [node.name for id_, node in targets.items() if id_ not in done]
        if late and early and in_time:
            log.info("fetch slug=%s did not come early to %s", slug[:12], ", ".join(sorted(late)))
        elif late:
            # A job tries again by itself, so one that took long tried more than once.
            long = age > LONG_TRY * self._settings.fetch_timeout_s
            tries = self._tries.get(slug, (0, 0.0))[0] + (TRIES_BEFORE_SETTLED if long else 1)
            self._tries[slug] = (tries, time.monotonic() + delay(tries, cap=60.0))
            why = _reason(service, failed, engine)
            self.obstacles[slug] = f"the slug could not be fetched on {', '.join(sorted(late))}: {why}"
            log.warning("fetch slug=%s failed: %s", slug[:12], self.obstacles[slug])
            if not done and failed and all(task.exit_code == SLUG_DAMAGED for task in failed.values()):
                self.damaged[slug] = service.created
        else:
            self._tries.pop(slug, None)
            self.obstacles.pop(slug, None)
            self.damaged.pop(slug, None)
        engine.remove(service.id)
        return True


def _reason(service: Service, failed: dict[str, Task], engine: Engine) -> str:
    """Return why nodes have no slug, in words that say what to do where one can know it."""
    if any(task.exit_code == SLUG_DAMAGED for task in failed.values()):
        return "the object store holds other bytes than its sha256 promises: build the app again"
    try:
        said = engine.log(service.id).decode(errors="replace").strip().splitlines()
    except EngineError:
        said = []
    if any(NO_SPACE in line for line in said):
        return "the disk of the slug cache is full: free space below /var/lib/blackstart/slugs on the node"
    last = said[-1].removeprefix("dyno: ") if said else ""
    return last or next((task.message for task in failed.values() if task.message), "over time")


def sweep(settings: Settings, engine: Engine, keep: frozenset[str], older_than_min: int, number: int) -> None:
    """Start the job that removes all other slugs from the nodes' caches."""
    try:
        engine.create(spec.sweep_spec(settings, keep=keep, older_than_min=older_than_min, number=number))
    except NameTaken:
        log.debug("a sweep runs already")
