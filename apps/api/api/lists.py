"""Lists and their `Range` header: `version ..; order=desc,max=15`, `id abc..def; max=1000`.

A complete list is 200. A cut one is 206 with `Next-Range`, which continues it.
"""

from __future__ import annotations

import datetime
import re
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.responses import JSONResponse
from sqlalchemy import Select
from sqlalchemy.orm import InstrumentedAttribute

from api.call import Call
from api.errors import ApiError

MAX = 1000
RANGE = re.compile(r"(?P<attribute>[a-z_]+)\s+(?P<first>\]?[^\s.;]*)\.\.(?P<last>[^\s;]*)\s*(;\s*(?P<options>.*))?")
T = TypeVar("T")


@dataclass(frozen=True)
class Slice:
    """The part of a list that is asked for. `after` excludes `first` itself (a `]` before it, as Heroku writes it)."""

    attribute: str
    first: str
    last: str
    after: bool
    descending: bool
    max: int


def parse_range(header: str | None, attributes: Sequence[str]) -> Slice:
    """Return what the Range header asks for; without one, the whole list by its first attribute. Raises 416."""
    if header is None:
        return Slice(attributes[0], "", "", after=False, descending=False, max=MAX)
    match = RANGE.fullmatch(header.strip())
    if match is None or match["attribute"] not in attributes:
        raise _no_range(attributes)
    options = dict(_option(part, attributes) for part in (match["options"] or "").split(",") if part.strip(" ;"))
    first = match["first"]
    return Slice(
        attribute=match["attribute"],
        first=first.removeprefix("]"),
        last=match["last"],
        after=first.startswith("]"),
        descending=options.get("order", "asc") == "desc",
        max=_max(options.get("max", str(MAX)), attributes),
    )


def listing(
    call: Call,
    query: Select[T],
    columns: dict[str, InstrumentedAttribute[Any]],
    view: Callable[[Sequence[T]], list[dict[str, Any]]],
) -> JSONResponse:
    """Return the asked part of `query`; `columns` are those that the list can be sorted by, the default first."""
    wanted = parse_range(call.range, list(columns))
    column = columns[wanted.attribute]
    for bound, is_first in ((wanted.first, True), (wanted.last, False)):
        if bound:
            query = query.where(_within(column, _value(column, bound, list(columns)), wanted, is_first=is_first))
    query = query.order_by(column.desc() if wanted.descending else column.asc()).limit(wanted.max + 1)
    rows = call.session.scalars(query).unique().all()
    shown = rows[: wanted.max]
    headers = {"Accept-Ranges": ", ".join(columns)}
    if shown:
        headers["Content-Range"] = f"{wanted.attribute} {_text(shown[0], column)}..{_text(shown[-1], column)}"
    if len(rows) > wanted.max:
        order = f"order=desc,max={wanted.max}" if wanted.descending else f"max={wanted.max}"
        headers["Next-Range"] = f"{wanted.attribute} ]{_text(shown[-1], column)}..{wanted.last}; {order}"
    return JSONResponse(view(shown), 206 if "Next-Range" in headers else 200, headers=headers)


def _within(column: InstrumentedAttribute[Any], value: Any, wanted: Slice, *, is_first: bool) -> Any:
    upwards = is_first != wanted.descending
    if is_first and wanted.after:
        return column > value if upwards else column < value
    return column >= value if upwards else column <= value


def _text(row: object, column: InstrumentedAttribute[Any]) -> str:
    value = getattr(row, column.key)
    return value.isoformat() if isinstance(value, datetime.datetime) else str(value)


def _value(column: InstrumentedAttribute[Any], text: str, attributes: Sequence[str]) -> Any:
    kind = column.type.python_type
    try:
        if kind is uuid.UUID:
            return uuid.UUID(text)
        if kind is datetime.datetime:
            return datetime.datetime.fromisoformat(text)
        return int(text) if kind is int else text
    except ValueError as error:
        raise _no_range(attributes) from error


def _option(text: str, attributes: Sequence[str]) -> tuple[str, str]:
    key, equals, value = text.strip(" ;").partition("=")
    if not equals or key not in ("order", "max"):
        raise _no_range(attributes)
    return key, value.strip()


def _max(text: str, attributes: Sequence[str]) -> int:
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MAX:
        raise _no_range(attributes)
    return int(text)


def _no_range(attributes: Sequence[str]) -> ApiError:
    return ApiError(
        416,
        "requested_range_not_satisfiable",
        f"The Range header must be like `{attributes[0]} ..; order=desc,max=100`, by one of {', '.join(attributes)},"
        f" with max from 1 to {MAX}.",
    )
