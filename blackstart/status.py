"""`status`: what runs and where, measured now."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from blackstart import hold, observe
from blackstart.ca import expiring
from blackstart.client import Client
from blackstart.errors import BlackstartError
from blackstart.platform import Platform

COLUMNS = ("component", "version", "slug", "dyno", "state", "node")
TABLE_WIDTH = 110
LOOK_SECONDS = 3.0
"""Stage 0 is mostly gone, so a look at it must not keep the operator waiting."""


def platform_status(platform: Platform) -> dict[str, Any]:
    """Return the status, shaped as the docs show it (docs/operating.md).

    `stage` is `self-hosted`, `stage-0` (stage 0 answers) or `none`. `problems` says in words what is not as it should be.
    """
    times = platform.state.read_hint("times.json")
    base: dict[str, Any] = {
        "stage": "none",
        "domain": platform.domain,
        "api": f"https://api.{platform.domain}",
        "nodes": [],
        "components": [],
        "stage0": _stage0(platform),
        "elapsed_s": times.get("elapsed_s"),
        "steps": times.get("steps", []),
        "problems": [],
    }
    holds = _held(platform)
    try:
        client = observe.answering_client(platform)
    except (BlackstartError, FileNotFoundError) as error:
        stage = "stage-0" if base["stage0"] is not None else "none"
        return {**base, "stage": stage, "problems": [str(error), *holds]}
    with client:
        status = _with_live(base, client)
    return {**status, "problems": [*status["problems"], *holds, *expiring(platform.state)]}


def _held(platform: Platform) -> list[str]:
    """Return in words what is held. The engine is asked, for the API may be what is held."""
    try:
        found = hold.held(platform, seconds=LOOK_SECONDS)
    except BlackstartError:
        return []
    return [f"{service.app} is held ({service.labels[hold.LABEL]}): `verify` and `up` release it" for service in found]


def _with_live(base: dict[str, Any], client: Client) -> dict[str, Any]:
    live = client.call("GET", "/platform")
    nodes = [{key: node[key] for key in ("name", "address", "state")} for node in client.call("GET", "/nodes")]
    status = {**base, "stage": live["stage"], "nodes": nodes, "components": live["components"]}
    return {**status, "problems": _problems(status)}


def _problems(status: dict[str, Any]) -> list[str]:
    nodes = [f"node {node['name']} is {node['state']}" for node in status["nodes"] if node["state"] != "ready"]
    return nodes + observe.not_up(status)


def _stage0(platform: Platform) -> dict[str, str] | None:
    """Return the stage-0 machine when it answers over SSH and still has stage 0 on it."""
    host = platform.inventory.stage0
    there = observe.has_stage0(host, seconds=LOOK_SECONDS)
    return {"name": host.name, "address": host.address, "state": "up"} if there else None


def print_status(status: dict[str, Any]) -> None:
    """Print the status for people."""
    console = Console(highlight=False, soft_wrap=True)
    console.print(f"stage  [bold]{status['stage']}[/bold]   domain  {status['domain']}   api  {status['api']}")
    for node in status["nodes"]:
        console.print(f"  {node['name']:24} {node['address']:16} {node['state']}")
    table = Table(*(Column(title, no_wrap=True) for title in COLUMNS), box=None, pad_edge=False, padding=(0, 2, 0, 2))
    for component in status["components"]:
        slug = (component["slug"] or "")[:12]
        for place, process in enumerate(component["processes"] or [{"name": "-", "state": "-", "node": "-"}]):
            first = (component["app"], f"v{component['version']}", slug) if place == 0 else ("", "", "")
            table.add_row(*first, process["name"], process["state"], process["node"] or "-")
    if status["components"]:
        console.print(table, width=max(console.width, TABLE_WIDTH))
    for problem in status["problems"]:
        console.print(f"[yellow]![/yellow] {escape(problem)}")
