"""Data for the tests of reports: a run of real steps, real operations, and what a platform would say."""

from __future__ import annotations

from typing import Any

from blackstart.journal import Journal
from blackstart.progress import Progress
from blackstart.proofs.kept import kept
from blackstart.report.history import PastRun, past_runs, run_that_worked
from blackstart.report.timeline import timeline
from blackstart.state import State
from blackstart.steps import Step, run_steps

HOSTS = ["rep-stage0", "rep-node1", "rep-node2", "rep-node3"]

CERTIFICATE: dict[str, Any] = {
    "platform": "rep",
    "domain": "rep.internal",
    "issued_at": "2026-11-25T00:36:50+00:00",
    "blackstart_version": "0.1.0",
    "stage0": {"name": "rep-stage0", "address": "10.79.7.2"},
    "items": [
        {
            "name": "no-connection",
            "holds": True,
            "detail": "no connection to 10.79.7.2 for 30 s while 412 requests were answered",
            "evidence": {"seconds": 30, "requests": 412, "connections": []},
            "seconds": 30.2,
        },
        {
            "name": "restore",
            "holds": True,
            "detail": "a backup taken after the pivot was restored: 14 tables, 93 rows, the same digest",
            "evidence": {"tables": 14, "rows": 93, "digest": "c" * 64},
            "seconds": 21.7,
        },
    ],
    "holds": True,
}


def making(name: str) -> Step[set[str]]:
    """Return a step that puts its name into the world."""
    return Step(name, f"Make {name}", lambda world: world.add(name), lambda world: name in world)


def worked(state: State, *steps: Step[set[str]], world: set[str] | None = None) -> None:
    """Write a run of these steps into the journal, as `up` does."""
    journal = Journal(state.journal_path)
    journal.add("up started", version="1", inventory="x")
    run_steps(
        steps or (making("one"), making("two")),
        set() if world is None else world,
        progress=Progress(quiet=True),
        journal=journal,
    )
    journal.add("up done", seconds=1)


def operation(
    state: State,
    host: str,
    name: str,
    started_at: str,
    *,
    seconds: float = 0.5,
    result: str = "changed",
    step: str = "one",
) -> None:
    """Write an operation as a deploy does."""
    Journal(state.operations_path).add(
        "operation",
        step=step,
        deploy="stage1",
        name=name,
        host=host,
        started_at=started_at,
        seconds=seconds,
        result=result,
    )


def runs_of(state: State) -> list[PastRun]:
    """Return the runs in a state folder."""
    return past_runs(Journal(state.journal_path).entries(), Journal(state.operations_path).entries())


def report_of(state: State, **changes: Any) -> dict[str, Any]:
    """Return a report of the run in `state` on a platform of three nodes."""
    past = run_that_worked(runs_of(state))
    nodes = [{"name": f"rep-node{n}", "address": f"10.79.7.1{n}", "state": "ready"} for n in (1, 2, 3)]
    measured = {"Debian": "Debian GNU/Linux 13 (trixie) (13.8)", "Kernel": "6.12.0", "Engine": "Docker 26.1.5+dfsg1"}
    return {
        "platform": "rep",
        "domain": "rep.internal",
        "command": "up",
        "blackstart_version": "1",
        "started_at": "2026-01-02T03:04:05+00:00",
        "written_at": "2026-01-02T03:14:05+00:00",
        "seconds": 600.0,
        "result": {"good": True, "text": "done"},
        "stage": "self-hosted",
        "problems": [],
        "timeline": None if past is None else timeline(past, HOSTS),
        "runs": [
            {
                "command": "up",
                "started_at": "2026-01-02T03:04:05+00:00",
                "seconds": 600.0,
                "steps": ["machines", "stage-0"],
                "result": "failed",
                "reason": "rep-node2 cannot be reached over SSH as root@10.79.7.12:22",
            }
        ],
        "proofs": kept(state),
        "digests": {
            "components": [{"app": app, "version": 3, "slug": app[0] * 64} for app in ("api", "bus", "compile")],
            "stacks": {"run": "e" * 64, "build": "f" * 64},
        },
        "versions": {
            "operator": {"Python": "3.13.5", "pyinfra": "3.10.0"},
            "components": {"postgres": ["PostgreSQL 17.1", "pgBackRest 2.55.1"]},
        },
        "nodes": [{**nodes[0], **measured}, {**nodes[1], **measured}, {**nodes[2], "unreachable": "over SSH"}],
        "dynos": [
            {"app": "api", "type": "web", "name": "web.1", "state": "up", "node": "rep-node1"},
            {"app": "router", "type": "web", "name": "web.rep-node1", "state": "crashed", "node": "rep-node1"},
        ],
        **changes,
    }
