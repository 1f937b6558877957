"""The report at the end of `up`, `upgrade` and `verify`: `report.json` and one self-contained `report.html`.

<state>/<platform>/report/report.html, report.json              the newest
                          report-<UTC>.html, report-<UTC>.json  it and earlier ones, the newest KEPT_AT_MOST of them
"""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackstart import __version__
from blackstart.errors import BlackstartError, StopRequested
from blackstart.graph import read_graph
from blackstart.graph_svg import graph_svg
from blackstart.journal import Journal
from blackstart.masking import Masker
from blackstart.platform import Platform
from blackstart.proofs.kept import kept
from blackstart.report.history import PastRun, past_runs, run_that_worked
from blackstart.report.measured import node_versions, operator_versions, stack_digests
from blackstart.report.pages import certificate_page, report_page
from blackstart.report.timeline import timeline
from blackstart.run import Run
from blackstart.sources import checkout_root
from blackstart.state import State, write_durably
from blackstart.status import platform_status

KEPT_AT_MOST = 20
SHOWN_RUNS = 10
PAGE, DATA = "report.html", "report.json"


@dataclass
class Ending:
    """How the command ended, as far as it says so itself. `status` saves a second look at the platform."""

    good: bool = True
    text: str = ""
    status: dict[str, Any] | None = None


@contextlib.contextmanager
def reported(run: Run, command: str, **fields: Any) -> Iterator[Ending]:
    """Write the command's begin (with `fields`) and end into the journal, and a report at its end, also when it fails.

    A report that cannot be written is said, and changes nothing about how the command ends.
    """
    journal = Journal(run.platform.state.journal_path)
    journal.add(f"{command} started", version=__version__, inventory=run.inventory_argument, **fields)
    ending = Ending()
    try:
        yield ending
    except StopRequested:
        journal.add(f"{command} failed", reason="stopped by the operator")
        raise
    except BlackstartError as error:
        journal.add(f"{command} failed", reason=error.what)
        _try_report(run, command, Ending(good=False, text=error.what))
        run.progress.say(report_line(run.platform.state))
        raise
    journal.add(f"{command} done", seconds=round(run.progress.elapsed, 1))
    _try_report(run, command, ending)


def report_line(state: State) -> str:
    """Return the line that says where the newest report is."""
    return f"Report  {state.report_folder / PAGE}"


def _try_report(run: Run, command: str, ending: Ending) -> None:
    try:
        write_report(run.platform.state, gathered(run.platform, command, ending))
    except (BlackstartError, OSError) as error:
        run.progress.say(f"the report could not be written: {error}")


def gathered(platform: Platform, command: str, ending: Ending) -> dict[str, Any]:
    """Return the report's data: what the state folder knows, and what the platform says now."""
    state = platform.state
    journal, operations = Journal(state.journal_path), Journal(state.operations_path)
    runs = past_runs(journal.entries(), operations.entries())
    status = ending.status if ending.status is not None else platform_status(platform)
    nodes, components = node_versions(platform)
    return {
        **head(platform, command, ending, runs),
        "stage": status["stage"],
        "problems": status["problems"],
        "timeline": _timeline(platform, runs),
        "runs": [_run_line(past) for past in runs[-SHOWN_RUNS:]],
        "proofs": kept(state),
        "digests": {
            "components": [{key: each[key] for key in ("app", "version", "slug")} for each in status["components"]],
            "stacks": stack_digests(platform),
        },
        "versions": {"operator": operator_versions(), "components": components},
        "nodes": [{**node, **nodes.get(node["name"], {})} for node in _nodes(platform, status)],
        "dynos": [{"app": each["app"], **process} for each in status["components"] for process in each["processes"]],
    }


def head(platform: Platform, command: str, ending: Ending, runs: Sequence[PastRun]) -> dict[str, Any]:
    """Return what the report says first."""
    last = runs[-1] if runs else None
    worked = last is not None and bool(last.steps)
    text = ending.text or ("done" if worked else "everything was so already")
    return {
        "platform": platform.name,
        "domain": platform.domain,
        "command": command,
        "blackstart_version": __version__,
        "started_at": last.started_at.isoformat(timespec="seconds") if last is not None else None,
        "written_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "seconds": round((last.ended_at - last.started_at).total_seconds(), 1) if last is not None else None,
        "result": {"good": ending.good, "text": text},
    }


def write_report(state: State, report: dict[str, Any]) -> Path:
    """Write the report durably, 0600, without secrets, and remove the oldest ones. Returns the page's path."""
    report = Masker.of(state).masked(report)
    data, page = (json.dumps(report, indent=1) + "\n").encode(), report_page(report, _graph()).encode()
    folder, stamp = state.report_folder, _stamp(report["written_at"])
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, content in ((f"report-{stamp}.json", data), (f"report-{stamp}.html", page), (DATA, data), (PAGE, page)):
        write_durably(folder / name, content)
    for suffix in ("json", "html"):
        for old in sorted(folder.glob(f"report-*.{suffix}"))[:-KEPT_AT_MOST]:
            old.unlink(missing_ok=True)
    return folder / PAGE


def write_certificate(state: State, certificate: dict[str, Any]) -> Path:
    """Write the teardown certificate durably, as `certificate.json` and as a page. Returns the page's path."""
    certificate = Masker.of(state).masked(certificate)
    state.write_json("certificate.json", certificate)
    path = state.folder / "certificate.html"
    write_durably(path, certificate_page(certificate).encode())
    return path


def _graph() -> str | None:
    """Return the drawing of this checkout's graph; None when it cannot be read (`graph` says why)."""
    try:
        return graph_svg(read_graph(checkout_root()))
    except BlackstartError:
        return None


def _timeline(platform: Platform, runs: Sequence[PastRun]) -> dict[str, Any] | None:
    worked = run_that_worked(runs)
    hosts = [host.name for host in platform.inventory.hosts]
    return None if worked is None else timeline(worked, hosts)


def _run_line(past: PastRun) -> dict[str, Any]:
    return {
        "command": past.command,
        "started_at": past.started_at.isoformat(timespec="seconds"),
        "seconds": round((past.ended_at - past.started_at).total_seconds(), 1),
        "steps": [step.name for step in past.steps],
        "result": past.result,
        "reason": past.reason,
    }


def _nodes(platform: Platform, status: dict[str, Any]) -> list[dict[str, Any]]:
    """The nodes as the platform lists them, else as the inventory does."""
    listed: list[dict[str, Any]] = status["nodes"]
    known = {node["name"] for node in listed}
    hosts = platform.inventory.nodes
    return listed + [
        {"name": host.name, "address": host.address, "state": "not listed"} for host in hosts if host.name not in known
    ]


def _stamp(written_at: str) -> str:
    return datetime.datetime.fromisoformat(written_at).astimezone(datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
