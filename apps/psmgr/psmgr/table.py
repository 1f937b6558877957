"""The routing table on the bus, what routers say that they applied, and what may therefore be removed."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable
from typing import Any

import redis

from blackstart.model import bus
from psmgr import routes, spec
from psmgr.desired import WantedApp
from psmgr.engine import Node, Service

log = logging.getLogger(__name__)


class RouteBoard:
    """Publishes the table when it changed, and when the bus lost it."""

    def __init__(self, client: redis.Redis, *, ack_s: float, drain_s: float) -> None:
        self._bus, self._ack_s, self._drain_s = client, ack_s, drain_s
        self._version = 0
        self._table: routes.Table | None = None
        self._heard: dict[str, tuple[routes.Ack, float]] = {}
        self._changed: dict[str, tuple[int, float]] = {}
        self._draining: dict[str, float] = {}
        self._silent_since: float | None = None
        self._missing = True

    @property
    def table(self) -> routes.Table:
        """Return the last table known."""
        return routes.EMPTY if self._table is None else self._table

    @property
    def known(self) -> bool:
        """Return whether the bus was read, so that `table` is what routers use."""
        return self._table is not None

    @property
    def missing(self) -> bool:
        """Return whether the bus, when last read, held no table."""
        return self._missing

    def read(self, nodes: Iterable[Node]) -> bool:
        """Read what the bus holds. Returns False, and changes nothing, while the bus does not answer."""
        known = list(nodes)
        keys = [bus.ROUTES, *(bus.router_key(node.name) for node in known)]
        try:
            values: Any = self._bus.mget(keys)
        except redis.RedisError as error:
            self._tell(error)
            return False
        self._answered()
        found = routes.parse_table(values[0])
        if found is not None and (self._table is None or found[0] > self._version):
            self._use(*found)
        self._hear(known, values[1:])
        # A bus that lost its last second with its power has an older table.
        self._missing = found is None or found[0] < self._version
        return True

    def _hear(self, nodes: list[Node], values: list[str | None]) -> None:
        """Take what routers say. One that falls silent on a node that is up may be slow: it is there for `ack_s` yet."""
        now = time.monotonic()
        heard = {}
        for node, value in zip(nodes, values, strict=True):
            ack = routes.parse_ack(value)
            if ack is not None:
                heard[node.name] = (ack, now)
            elif node.state != "down" and node.name in self._heard and now - self._heard[node.name][1] < self._ack_s:
                heard[node.name] = self._heard[node.name]
        self._heard = heard

    @property
    def _acks(self) -> list[routes.Ack]:
        return [ack for ack, _ in self._heard.values()]

    def publish(self, table: routes.Table) -> bool:
        """Publish `table` unless the bus holds it already; return whether it was written."""
        if table == self._table and not self._missing:
            return False
        version = routes.next_version(self._version, time.time())
        try:
            with self._bus.pipeline(transaction=True) as pipeline:
                pipeline.set(bus.ROUTES, json.dumps({"version": version, **table}, sort_keys=True))
                pipeline.publish(bus.ROUTES, version)
                pipeline.execute()
        except redis.RedisError as error:
            self._tell(error)
            return False
        self._answered()
        self._use(version, table)
        self._missing = False
        log.info("routes version=%d apps=%d", version, len(table["apps"]))
        return True

    def _use(self, version: int, table: routes.Table) -> None:
        """Take `table` for what routers use, and remember since which version each app is routed as it is there."""
        before, now = self.table["apps"], time.monotonic()
        self._changed = {
            app: self._changed[app] if app in self._changed and entry == before.get(app) else (version, now)
            for app, entry in table["apps"].items()
        }
        self._version, self._table = version, table

    def taken(self, planned: routes.Table) -> frozenset[str]:
        """Return the apps whose routes in `planned` every router uses.

        A router that does not acknowledge is waited for `ack_s`, and so is a bus that does not answer.
        """
        if self._silent_since is not None:
            over = time.monotonic() - self._silent_since >= self._ack_s
            return frozenset(planned["apps"]) if over else frozenset()
        published = self.table["apps"]
        return frozenset(
            app for app, entry in planned["apps"].items() if entry == published.get(app) and self._is_taken(app)
        )

    def _is_taken(self, app: str) -> bool:
        version, since = self._changed[app]
        over = time.monotonic() - since >= self._ack_s
        return over or not any(ack.behind(version) for ack in self._acks)

    def proven(self, tasks: Iterable[str]) -> frozenset[str]:
        """Return which of these dynos said that they do their work."""
        ids = list(tasks)
        if not ids:
            return frozenset()
        try:
            values: Any = self._bus.mget([bus.able_key(id_) for id_ in ids])
        except redis.RedisError as error:
            self._tell(error)
            return frozenset()
        return frozenset(id_ for id_, value in zip(ids, values, strict=True) if value is not None)

    def drained(self, apps: Iterable[WantedApp], services: Iterable[Service], planned: routes.Table) -> frozenset[str]:
        """Return the ids of services that may be removed without failing a request. `planned` is the next table."""
        by_id = {str(app.id): app for app in apps}
        ready = routes.ready_ids(planned)
        published = routes.ready_ids(self.table)
        found: set[str] = set()
        draining: dict[str, float] = {}
        for service in services:
            app = by_id.get(service.labels.get(spec.APP_ID, ""))
            if service.labels.get(spec.KIND) != "process":
                continue
            if app is None or not spec.is_routed(app.component, service.labels[spec.PROCESS]):
                found.add(service.id)
                continue
            tasks = frozenset(task.id for task in service.tasks)
            if tasks & (ready | published):
                continue
            since = self._draining.get(service.id, time.monotonic())
            draining[service.id] = since
            if self._may_go(tasks, time.monotonic() - since, ready, published):
                found.add(service.id)
        self._draining = draining
        return frozenset(found)

    def _may_go(self, tasks: frozenset[str], waited_s: float, ready: frozenset[str], published: frozenset[str]) -> bool:
        if not self.known:
            return not any(tasks)  # the routers may use what is not known here
        routed = bool(tasks & routes.routed_ids(self.table))
        return routes.drained(
            tasks,
            ready=ready,
            ready_at_routers=published,
            version=self._version,
            acks=self._acks if routed else (),
            waited_s=waited_s,
            ack_s=self._ack_s,
            drain_s=self._drain_s,
        )

    def _tell(self, error: Exception) -> None:
        if self._silent_since is None:
            log.warning("the bus does not answer, routers go on with the table they have: %s", error)
            self._silent_since = time.monotonic()

    def _answered(self) -> None:
        if self._silent_since is not None:
            log.info("the bus answers again")
            self._silent_since = None
