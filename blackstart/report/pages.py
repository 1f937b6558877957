"""The pages as HTML: one file each, no script, nothing loaded from anywhere. Every value is escaped by Jinja."""

from __future__ import annotations

import datetime
import json
from collections import Counter
from functools import cache
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from blackstart.report.timeline import clock, drawing
from blackstart.sources import checkout_root


def report_page(report: dict[str, Any], graph: str | None = None) -> str:
    """Return the page of a report's data (the shape of report.json), with the graph's SVG."""
    known = report["timeline"]
    return (
        _templates()
        .get_template("report.html.j2")
        .render(
            report=report,
            drawing=None if known is None else drawing(known),
            graph=None if graph is None else Markup(graph),  # noqa: S704 - graph_svg() escapes what it draws
        )
    )


def certificate_page(certificate: dict[str, Any]) -> str:
    """Return the page of a teardown certificate (the shape of certificate.json)."""
    return _templates().get_template("certificate.html.j2").render(certificate=certificate)


@cache
def _templates() -> Environment:
    environment = Environment(
        loader=FileSystemLoader(checkout_root() / "templates" / "report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"clock": clock, "when": _when, "pretty": _pretty, "matrix": _matrix}
    return environment


def _when(text: str | None) -> str:
    """Return a time for people, in UTC."""
    if text is None:
        return "unknown"
    return datetime.datetime.fromisoformat(text).astimezone(datetime.UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def _pretty(value: Any) -> str:
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False)


def _matrix(evidence: dict[str, Any]) -> dict[str, Any] | None:
    """Return the columns and rows of a blast-radius matrix, or None where the evidence is none.

    What survives most comes first.
    """
    rows = evidence.get("rows")
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "capabilities" in row for row in rows):
        return None
    works = Counter(name for row in rows for name, cell in row["capabilities"].items() if cell["works"])
    columns = sorted({name for row in rows for name in row["capabilities"]}, key=lambda name: (-works[name], name))
    return {"columns": columns, "rows": rows} if columns else None
