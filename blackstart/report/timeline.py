"""The timeline of a run: its data, and where each bar of the drawing goes. Pure."""

from __future__ import annotations

import datetime
from dataclasses import dataclass
from typing import Any

from blackstart.report.history import OperationTime, PastRun, StepTime

STEPS_ROW = "steps"
NARROWEST = 0.15
"""Percent: a bar of a few milliseconds must still be seen."""

TICKS_AT_MOST = 6
TICK_SECONDS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 21600, 86400)
COLOURS = 8
LETTER_PIXELS, INSIDE_PIXELS = 7.0, 14.0
NARROW_PIXELS, WIDE_PIXELS = 330.0, 900.0
"""How wide the drawing is on a telephone and on a desk, to know where a label fits into its bar."""


@dataclass(frozen=True)
class Bar:
    """One bar: `x` and `width` in percent; `colour` is a step's place; `label` is shown where it fits (`label_on`)."""

    x: float
    width: float
    colour: int
    result: str
    title: str
    label: str = ""
    label_on: str = ""


@dataclass(frozen=True)
class Row:
    """One line of bars, with what its heading says; `more` where there is room."""

    name: str
    note: str
    more: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True)
class Tick:
    """A mark on the axis: where (percent) and what it says."""

    x: float
    text: str
    anchor: str


@dataclass(frozen=True)
class Drawing:
    """All of it."""

    rows: tuple[Row, ...]
    ticks: tuple[Tick, ...]
    seconds: float


def timeline(run: PastRun, hosts: list[str]) -> dict[str, Any]:
    """Return the run as the report's JSON has it; `hosts` gives the order of those that had something to do."""
    known = list(dict.fromkeys([*hosts, *(operation.host for operation in run.operations)]))
    return {
        "command": run.command,
        "blackstart_version": run.version,
        "started_at": _iso(run.started_at),
        "ended_at": _iso(run.ended_at),
        "seconds": _seconds(run.started_at, run.ended_at),
        "result": run.result,
        "reason": run.reason,
        "steps": [_step(run, step) for step in run.steps],
        "hosts": [
            {"name": host, "operations": [_operation(run, each) for each in run.operations if each.host == host]}
            for host in known
            if any(each.host == host for each in run.operations)
        ],
    }


def drawing(timeline: dict[str, Any]) -> Drawing:
    """Return where everything goes, from a timeline's JSON."""
    steps, hosts = timeline["steps"], timeline["hosts"]
    ends = [each["offset"] + each["seconds"] for each in [*steps, *(op for host in hosts for op in host["operations"])]]
    total = max([timeline["seconds"], *ends, 0.001])
    colours = {step["name"]: place % COLOURS for place, step in enumerate(steps)}
    rows = [Row(STEPS_ROW, f"{len(steps)} in {clock(timeline['seconds'])}", "", _step_bars(steps, colours, total))]
    rows += [Row(host["name"], *_notes(host), _operation_bars(host, colours, total)) for host in hosts]
    return Drawing(tuple(rows), _ticks(total), total)


def clock(seconds: float) -> str:
    """Return a duration for people: `0.4 s`, `12 s`, `3 min 04 s`, `2 h 05 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _step(run: PastRun, step: StepTime) -> dict[str, Any]:
    return {
        "name": step.name,
        "title": step.title,
        "offset": _seconds(run.started_at, step.started_at),
        "seconds": _seconds(step.started_at, step.ended_at or step.started_at),
        "result": step.result,
        "reason": step.reason,
    }


def _operation(run: PastRun, operation: OperationTime) -> dict[str, Any]:
    return {
        "step": operation.step,
        "deploy": operation.deploy,
        "name": operation.name,
        "offset": _seconds(run.started_at, operation.started_at),
        "seconds": _seconds(operation.started_at, operation.ended_at),
        "result": operation.result,
    }


def _step_bars(steps: list[dict[str, Any]], colours: dict[str, int], total: float) -> tuple[Bar, ...]:
    return tuple(
        _bar(
            step,
            colours[step["name"]],
            total,
            title=f"{step['title']}: {step['result']}, {clock(step['seconds'])}",
            label=step["name"],
        )
        for step in steps
    )


def _operation_bars(host: dict[str, Any], colours: dict[str, int], total: float) -> tuple[Bar, ...]:
    return tuple(
        _bar(
            each,
            colours.get(each["step"], COLOURS - 1),
            total,
            title=f"{each['name']} ({each['step']}): {each['result']}, {clock(each['seconds'])}",
        )
        for each in host["operations"]
        if each["result"] != "skipped"
    )


def _bar(each: dict[str, Any], colour: int, total: float, *, title: str, label: str = "") -> Bar:
    width = min(100.0, max(NARROWEST, 100 * each["seconds"] / total))
    x = min(100 * each["offset"] / total, 100 - width)
    needed = len(label) * LETTER_PIXELS + INSIDE_PIXELS
    fits = {"all": width / 100 * NARROW_PIXELS >= needed, "wide": width / 100 * WIDE_PIXELS >= needed}
    label_on = next((where for where, does in fits.items() if does), "") if label else ""
    return Bar(round(max(0.0, x), 3), round(width, 3), colour, each["result"].replace(" ", "-"), title, label, label_on)


def _notes(host: dict[str, Any]) -> tuple[str, str]:
    operations = [each for each in host["operations"] if each["result"] not in ("skipped", "read")]
    changed = sum(1 for each in operations if each["result"] == "changed")
    failed = sum(1 for each in operations if each["result"] == "failed")
    busy = sum(each["seconds"] for each in host["operations"])
    note = f"{changed} of {len(operations)} changed" + (f", {failed} failed" if failed else "")
    return note, f" something; busy for {clock(busy)}"


def _ticks(total: float) -> tuple[Tick, ...]:
    every = next((step for step in TICK_SECONDS if total / step <= TICKS_AT_MOST), TICK_SECONDS[-1])
    marks = [every * place for place in range(int(total // every) + 1)]
    return tuple(Tick(round(100 * at / total, 3), _tick_text(at), _anchor(100 * at / total)) for at in marks)


def _tick_text(seconds: int) -> str:
    hours, minutes = divmod(seconds // 60, 60)
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


def _anchor(x: float) -> str:
    return "start" if x < 4 else "end" if x > 96 else "middle"


def _seconds(start: datetime.datetime, end: datetime.datetime) -> float:
    return round((end - start).total_seconds(), 2)


def _iso(at: datetime.datetime) -> str:
    return at.isoformat(timespec="seconds")
