"""`/apps/x/formation`: how many dynos of each process type."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import select

from api import stamps
from api.call import Call, Caller, as_uuid
from api.errors import ApiError, invalid
from api.lists import listing
from blackstart.model.releases import current_release
from blackstart.model.sizes import size as known_size
from blackstart.model.tables import App, Formation

router = APIRouter()
MAX_QUANTITY = 100
QUANTITY = re.compile(r"(?P<sign>[+-]?)(?P<number>[0-9]{1,4})")


class SizeRef(BaseModel):
    """A dyno size by name, as the schema's `dyno_size` has it."""

    name: str


class FormationChange(BaseModel):
    """PATCH /apps/x/formation/web. The CLI sends quantities as text, also `+1` and `-1`."""

    quantity: int | str | None = None
    size: str | None = None
    dyno_size: str | SizeRef | None = None


class TypedChange(FormationChange):
    """One of the updates of a batch."""

    type: str


class Batch(BaseModel):
    """PATCH /apps/x/formation."""

    updates: list[TypedChange]


def view(app: App, formation: Formation, process_types: dict[str, str]) -> dict[str, Any]:
    """Return a formation as the API shows it."""
    return {
        "id": str(formation.id),
        "app": stamps.app_ref(app),
        "command": process_types.get(formation.type, ""),
        "created_at": stamps.time_of(formation.created_at),
        "dyno_size": stamps.dyno_size(formation.size),
        "quantity": formation.quantity,
        "size": formation.size,
        "type": formation.type,
        "updated_at": stamps.time_of(formation.updated_at),
    }


def process_types(call: Call, app: App) -> dict[str, str]:
    """Return the commands of the app's newest release by process type."""
    release = current_release(call.session, app)
    return {} if release is None or release.slug is None else release.slug.process_types


@router.get("/apps/{app}/formation")
def formation_list(call: Caller, app: str) -> JSONResponse:
    """List the formation of the app's present process types."""
    found = call.app(app)
    types = process_types(call, found)
    query = select(Formation).where(Formation.app_id == found.id, Formation.type.in_(types))
    columns = {"type": Formation.type, "id": Formation.id, "updated_at": Formation.updated_at}
    return listing(call, query, columns, lambda rows: [view(found, row, types) for row in rows])


@router.get("/apps/{app}/formation/{formation}")
def formation_info(call: Caller, app: str, formation: str) -> dict[str, Any]:
    """Show one process type's formation."""
    found = call.app(app)
    types = process_types(call, found)
    return view(found, find_formation(call, found, formation, types), types)


@router.patch("/apps/{app}/formation")
def formation_batch_update(call: Caller, app: str, body: Batch) -> list[dict[str, Any]]:
    """Scale several process types: all or none."""
    found = call.app(app, lock=True)
    types = process_types(call, found)
    changed = [_change(call, found, update.type, update, types) for update in body.updates]
    call.commit("formation", found.name)
    return [view(found, formation, types) for formation in changed]


@router.patch("/apps/{app}/formation/{formation}")
def formation_update(call: Caller, app: str, formation: str, body: FormationChange) -> dict[str, Any]:
    """Scale one process type."""
    found = call.app(app, lock=True)
    types = process_types(call, found)
    changed = _change(call, found, formation, body, types)
    call.commit("formation", found.name)
    return view(found, changed, types)


def find_formation(call: Call, app: App, identity: str, types: dict[str, str]) -> Formation:
    """Return the formation of a present process type, by type or id."""
    id = as_uuid(identity)
    same = Formation.type == identity if id is None else Formation.id == id
    query = select(Formation).where(Formation.app_id == app.id, same, Formation.type.in_(types))
    formation = call.session.scalar(query)
    if formation is None:
        there = f"It has {', '.join(sorted(types))}." if types else "It has no code yet."
        raise ApiError(404, "not_found", f"Couldn't find that process type ({identity[:80]}) in {app.name}. {there}")
    return formation


def new_quantity(before: int, wish: int | str) -> int:
    """Return the quantity after `wish`: a number, or `+n` and `-n` from the present one. Raises 422."""
    match = QUANTITY.fullmatch(str(wish))
    after = -1
    if match is not None:
        number = int(match["number"])
        after = {"": number, "+": before + number, "-": before - number}[match["sign"]]
    if isinstance(wish, int):
        after = wish
    if not 0 <= after <= MAX_QUANTITY:
        raise invalid(f"quantity {str(wish)[:20]!r} is refused: allowed are 0 to {MAX_QUANTITY} dynos, or +n and -n")
    return after


def _change(call: Call, app: App, identity: str, change: FormationChange, types: dict[str, str]) -> Formation:
    formation = find_formation(call, app, identity, types)
    if change.quantity is not None:
        formation.quantity = new_quantity(formation.quantity, change.quantity)
    wish = change.size or (change.dyno_size.name if isinstance(change.dyno_size, SizeRef) else change.dyno_size)
    if wish:
        formation.size = known_size(wish).name
    call.session.flush()
    return formation
