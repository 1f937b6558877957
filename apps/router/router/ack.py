"""What this node's routers have applied, as `psmgr` reads it. Pure.

While a node runs two routers (an upgrade), each keeps its own report and the node's acknowledgement is their sum, so
that a dyno is not stopped while the old router still has a request on it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from router.plan import Actual, server_id


@dataclass(frozen=True)
class Report:
    """One router's report. `error`: why the newest table was not taken; empty when all is well."""

    version: int
    servers: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    error: str = ""
    stopping: bool = False

    def dump(self) -> str:
        """Return the report as `router:<node>` holds it."""
        value: dict[str, Any] = {
            "version": self.version,
            "servers": {name: {"status": status, "sessions": count} for name, (status, count) in self.servers.items()},
        }
        if self.error:
            value["error"] = self.error
        if self.stopping:
            value["stopping"] = True
        return json.dumps(value, sort_keys=True)


def parse(text: str) -> Report:
    """Return the report in `text`, written by `dump`."""
    value = json.loads(text)
    servers = {name: (str(entry["status"]), int(entry["sessions"])) for name, entry in value["servers"].items()}
    return Report(int(value["version"]), servers, str(value.get("error", "")), bool(value.get("stopping", False)))


def report(version: int, actual: Actual, old: Mapping[str, int], *, error: str = "", stopping: bool = False) -> Report:
    """Return the report for what the worker has and the sessions that `old` workers still hold, by server name."""
    servers: dict[str, tuple[str, int]] = {}
    for group in actual.servers.values():
        for name, live in group.items():
            servers[server_id(name)] = (live.status, live.sessions + old.get(name, 0))
    for name, count in old.items():
        if count and server_id(name) not in servers:
            servers[server_id(name)] = ("MAINT", count)
    return Report(version, servers, error, stopping)


def merged(reports: Iterable[Report]) -> Report:
    """Return one report for a node: the lowest version and the sums; a stopping router counts only by its sessions."""
    every = list(reports)
    leading = [one for one in every if not one.stopping] or every
    servers: dict[str, tuple[str, int]] = {}
    for one in sorted(every, key=lambda each: each.stopping):
        for name, (status, count) in one.servers.items():
            if name in servers:
                servers[name] = (servers[name][0], servers[name][1] + count)
            elif not one.stopping or count:
                servers[name] = (status, count)
    error = next((one.error for one in leading if one.error), "")
    return Report(min(one.version for one in leading), servers, error, all(one.stopping for one in every))
