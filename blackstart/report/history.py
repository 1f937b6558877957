"""What the journal and the operations tell of past runs. Pure: entries in, runs out."""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass
class StepTime:
    """One step of a run. `result` is `done`, `failed` or `interrupted` (its end was never written)."""

    name: str
    title: str
    started_at: datetime.datetime
    ended_at: datetime.datetime | None = None
    result: str = "interrupted"
    reason: str = ""


@dataclass
class OperationTime:
    """One operation on one host, within a run."""

    step: str
    deploy: str
    name: str
    host: str
    started_at: datetime.datetime
    ended_at: datetime.datetime
    result: str


@dataclass
class PastRun:
    """One run of a command. `result` is as a step's."""

    command: str
    version: str
    started_at: datetime.datetime
    last_seen: datetime.datetime
    result: str = "interrupted"
    reason: str = ""
    steps: list[StepTime] = field(default_factory=list)
    operations: list[OperationTime] = field(default_factory=list)

    @property
    def ended_at(self) -> datetime.datetime:
        """When it ended, or was last heard of."""
        return self.last_seen


def past_runs(journal: Iterable[dict[str, Any]], operations: Iterable[dict[str, Any]]) -> list[PastRun]:
    """Return the runs in the order in which they began; an entry that lacks its data is passed over."""
    runs: list[PastRun] = []
    for entry in journal:
        at, event = _time(entry.get("at")), str(entry.get("event", ""))
        if at is not None:
            _take(runs, at, event, entry)
    _place(runs, operations)
    for run in runs:
        _close(run)
    return runs


def run_that_worked(runs: Sequence[PastRun]) -> PastRun | None:
    """Return the newest run that had anything to do."""
    return next((run for run in reversed(runs) if run.steps), None)


def _take(runs: list[PastRun], at: datetime.datetime, event: str, entry: dict[str, Any]) -> None:
    what, _, ending = event.rpartition(" ")
    if what and what != "step" and ending == "started":
        runs.append(PastRun(what, str(entry.get("version", "")), at, at))
        return
    if not runs:
        return
    run = runs[-1]
    run.last_seen = at
    if what == run.command and ending in ("done", "failed"):
        run.result, run.reason = ending, str(entry.get("reason", ""))
    elif what == "step" and ending == "started":
        name = str(entry.get("step", ""))
        run.steps.append(StepTime(name, str(entry.get("title", name)), at))
    elif what == "step" and ending in ("done", "failed"):
        _end_step(run, at, ending, entry)


def _end_step(run: PastRun, at: datetime.datetime, ending: str, entry: dict[str, Any]) -> None:
    for step in reversed(run.steps):
        if step.name == entry.get("step") and step.ended_at is None:
            step.ended_at, step.result, step.reason = at, ending, str(entry.get("reason", ""))
            return


def _place(runs: list[PastRun], operations: Iterable[dict[str, Any]]) -> None:
    """Give each operation to the last run that began before it."""
    for entry in operations:
        operation = _operation(entry)
        owner = None if operation is None else _owner(runs, operation.started_at)
        if operation is not None and owner is not None:
            owner.operations.append(operation)
            if owner.result == "interrupted":
                owner.last_seen = max(owner.last_seen, operation.ended_at)


def _owner(runs: list[PastRun], at: datetime.datetime) -> PastRun | None:
    return next((run for run in reversed(runs) if run.started_at <= at), None)


def _operation(entry: dict[str, Any]) -> OperationTime | None:
    started = _time(entry.get("started_at"))
    try:
        seconds = datetime.timedelta(seconds=float(entry["seconds"]))
        step, deploy, name, host, result = (str(entry[key]) for key in ("step", "deploy", "name", "host", "result"))
    except (KeyError, TypeError, ValueError):
        return None
    if started is None:
        return None
    return OperationTime(step, deploy, name, host, started, started + seconds, result)


def _close(run: PastRun) -> None:
    """A step whose end was never written lasted until the run was last heard of."""
    for step in run.steps:
        if step.ended_at is None:
            step.ended_at = max(step.started_at, run.last_seen)


def _time(text: object) -> datetime.datetime | None:
    try:
        at = datetime.datetime.fromisoformat(str(text))
    except ValueError:
        return None
    return at if at.tzinfo is not None else at.replace(tzinfo=datetime.UTC)
