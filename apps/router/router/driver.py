"""The loop: take tables, make HAProxy agree with the newest good one, keep HAProxy alive, report.

Level-triggered: every round compares what HAProxy has with what the table wants, so a lost command, a restarted
HAProxy or a restarted driver all heal in the same way.
"""

from __future__ import annotations

import logging
import os
import queue
import signal
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from types import FrameType

from router import store
from router.ack import Report, report
from router.bus import Announcer, Backoff, Listener
from router.config import Paths, Shape
from router.haproxy import HAProxy, HAProxyFailed
from router.plan import Actual, Plan, Wanted, assign, plan, pool_size, wanted
from router.runtime import RuntimeFailed
from router.settings import SettingRefused, Settings, from_environment
from router.table import EMPTY, Table, TableRefused, successor

LOG = logging.getLogger("router")
REFRESH_SECONDS = 3.0
PENDING_SECONDS = 0.5
STEADY_SECONDS = 10.0  # a HAProxy that lived this long is started again at once
HANDOVER = "listeners.sock"


class Driver:
    """The router of one node."""

    def __init__(self, settings: Settings, run: Path) -> None:
        self.settings = settings
        self.table = _stored(settings.state)
        self.applied = 0
        self.error = ""
        self._unsaved = False
        self._held: dict[str, str] = {}
        self._shape = Shape(0, tls=False)
        self._backoff = Backoff()
        self._started = self._retry = 0.0
        self._inbox: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._stops = 0
        self._pending = True
        handover = settings.state / HANDOVER if os.access(settings.state, os.W_OK) else None
        self.haproxy = HAProxy(settings, Paths(run, handover))
        self._links = _links(settings, self._inbox.put)

    def run(self) -> int:
        """Serve until SIGTERM. Returns the exit code."""
        signal.signal(signal.SIGTERM, self._on_stop)
        signal.signal(signal.SIGINT, self._on_stop)
        signal.signal(signal.SIGCHLD, lambda *_: self._inbox.put(None))
        self._round()
        for link in self._links:
            link.start()
        while self._stops == 0:
            self._take(self._delay())
            if self._stops == 0:
                self._round()
        return self._stop()

    def _on_stop(self, number: int, frame: FrameType | None) -> None:
        self._stops += 1
        self._inbox.put(None)

    def _delay(self) -> float:
        if not self.haproxy.alive:
            return max(0.0, self._retry - time.monotonic())
        return PENDING_SECONDS if self._pending else REFRESH_SECONDS

    def _take(self, seconds: float) -> None:
        """Wait for a table, a signal or `seconds`, then take everything that came."""
        try:
            texts = [self._inbox.get(timeout=seconds)]
        except queue.Empty:
            return
        while not self._inbox.empty():
            texts.append(self._inbox.get())
        for text in texts:
            if text is not None:
                self._offer(text)

    def _offer(self, text: str) -> None:
        try:
            table = successor(self.table, text)
        except TableRefused as error:
            self.error = f"table refused: {error}"
            LOG.error("%s; version %d stays in use", self.error, self.table.version)
            return
        self.error = ""
        if table.version > self.table.version:
            self.table = table
            self._unsaved = True

    def _round(self) -> None:
        """One pass of the loop; whatever fails is said and tried again in the next."""
        self._pending = True
        try:
            if not self.haproxy.alive:
                if time.monotonic() < self._retry:
                    return
                self._start()
            self._apply()
        except (HAProxyFailed, RuntimeFailed) as error:
            LOG.error("%s", error)

    def _start(self) -> None:
        if time.monotonic() - self._started > STEADY_SECONDS:
            self._backoff.reset()
        self._started = time.monotonic()
        self._retry = self._started + self._backoff.next()
        self._held = {}
        self._shape = Shape(pool_size(len(self.table.apps), self.settings.least_slots), tls=self.settings.ca.is_file())
        self.haproxy.start(self._shape, self._want(Actual()))
        LOG.info("HAProxy serves version %d (%d apps)", self.table.version, len(self.table.apps))

    def _apply(self) -> None:
        actual = self._actual()
        want = self._fitted(actual)
        todo = self._plan(want, actual)
        if todo.changes or todo.removals:
            self._tell(todo)
            actual = self._actual()
            todo = self._plan(want, actual)
        if todo.settled:
            self._settle()
        elif not self.error:
            LOG.error("HAProxy did not take all changes of version %d: %s", self.table.version, todo.changes[0])
        self._pending = not todo.settled or bool(todo.removals) or todo.waiting or self._unsaved
        self._announce(actual)

    def _settle(self) -> None:
        """The table holds: to disk first, then it may be acknowledged."""
        if self._unsaved:
            try:
                store.save(self.settings.state, self.table)
            except store.StoreFailed as error:
                self.error = str(error)
                LOG.error("%s; the table is in use, but would be lost with this node", error)
            else:
                self._unsaved = False
        if self.applied != self.table.version:
            self.applied = self.table.version
            LOG.info("version %d is applied", self.applied)

    def _tell(self, todo: Plan) -> None:
        for remark in self.haproxy.runtime.send([*todo.changes, *todo.removals]):
            LOG.warning("HAProxy: %s", remark)

    def _fitted(self, actual: Actual) -> Wanted:
        """Return what the table wants; reload first when the configuration has too few slots or a CA came or went."""
        tls = self.settings.ca.is_file()
        slots = assign(self._held, set(self.table.apps), set(actual.servers), self._shape.slots)
        if slots is None or tls != self._shape.tls:
            self._held = {}
            shape = Shape(max(self._shape.slots, pool_size(len(self.table.apps), self.settings.least_slots)), tls)
            LOG.info("reloading HAProxy with %d slots", shape.slots)
            self._shape, before = shape, self._shape
            try:
                self.haproxy.reload(shape, self._want(Actual()))
            except HAProxyFailed:
                self._shape = before
                raise
            return self._want(self._actual())
        return self._want(actual)

    def _want(self, actual: Actual) -> Wanted:
        slots = assign(self._held, set(self.table.apps), set(actual.servers), self._shape.slots)
        if slots is None:
            raise HAProxyFailed(f"{self._shape.slots} slots are too few for {len(self.table.apps)} apps")
        self._held = slots
        return wanted(self.table, slots, tls=self._shape.tls)

    def _plan(self, want: Wanted, actual: Actual) -> Plan:
        return plan(want, actual, map_path=str(self.haproxy.paths.hosts), ca=str(self.settings.ca))

    def _actual(self) -> Actual:
        return self.haproxy.runtime.actual(str(self.haproxy.paths.hosts))

    def _announce(self, actual: Actual) -> None:
        old = self.haproxy.runtime.old_sessions(self.haproxy.processes().old_workers)
        self._send(report(self.applied, actual, old, error=self.error))

    def _send(self, one: Report) -> None:
        for link in self._links:
            if isinstance(link, Announcer):
                link.announce(one)

    def _stop(self) -> int:
        """Stop accepting, let requests finish; end after the time that is left to them, or at a second signal."""
        LOG.info("stopping: requests have %d s to finish", self.settings.timeouts.stop)
        asked = self._stops
        self.haproxy.stop_softly()
        deadline = time.monotonic() + self.settings.timeouts.stop
        while self.haproxy.alive and time.monotonic() < deadline and self._stops == asked:
            self._take(PENDING_SECONDS)
            self._report_stopping()
        self.haproxy.kill()
        for link in self._links:
            link.end()
            if isinstance(link, Announcer) and self._stops == asked:
                link.withdraw()
        return 0

    def _report_stopping(self) -> None:
        try:
            processes = self.haproxy.processes()
        except HAProxyFailed:
            return
        old = self.haproxy.runtime.old_sessions((*processes.workers, *processes.old_workers))
        self._send(report(self.applied, Actual(), old, stopping=True))


def _stored(folder: Path) -> Table:
    try:
        return store.load(folder)
    except store.StoreFailed as error:
        LOG.error("%s; starting without routes until the bus brings some", error)
        return EMPTY


def _links(settings: Settings, deliver: Callable[[str], None]) -> list[Listener | Announcer]:
    if not settings.bus_url:
        LOG.warning("BUS_URL is not set: only the table on disk is served")
        return []
    ca = str(settings.ca)
    return [
        Listener(settings.bus_url, ca, deliver),
        Announcer(settings.bus_url, ca, settings.node, uuid.uuid4().hex, settings.task),
    ]


def main(env: Mapping[str, str]) -> int:
    """Run the router as `env` says. Returns the exit code."""
    logging.basicConfig(level=logging.INFO, format="router: %(message)s", stream=sys.stdout)
    try:
        settings = from_environment(env)
        with tempfile.TemporaryDirectory(prefix="router-") as run:
            return Driver(settings, Path(run)).run()
    except (SettingRefused, HAProxyFailed) as error:
        LOG.error("%s", error)
        return 2
