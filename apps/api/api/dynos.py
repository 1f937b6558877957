"""`/apps/x/dynos`: what runs, as psmgr last saw it, and one-off dynos."""

from __future__ import annotations

import secrets
import uuid
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse, PlainTextResponse
from pydantic import BaseModel
from sqlalchemy import ColumnElement, and_, or_, select, update

from api import stamps
from api.call import Call, Caller, as_uuid
from api.errors import invalid, not_found
from api.lists import listing
from blackstart.model import names, sizes
from blackstart.model.tables import App, Dyno, Release, now

router = APIRouter()
ENDED = ("complete", "failed")
MAX_COMMAND = 16 * 1024
MAX_ENV = 32 * 1024
LONGEST_SECONDS = 86_400


class NewDyno(BaseModel):
    """POST /apps/x/dynos."""

    command: str
    attach: bool = False
    env: dict[str, str] = {}
    size: str | None = None
    type: str = "run"
    time_to_live: int | None = None
    force_no_tty: bool | None = None


def view(app: App, dyno: Dyno) -> dict[str, Any]:
    """Return a dyno as the API shows it; `exit_code` and `node` are ours."""
    return {
        "id": str(dyno.id),
        "app": stamps.app_ref(app),
        "attach_url": None,
        "command": dyno.command,
        "created_at": stamps.time_of(dyno.created_at),
        "exit_code": dyno.exit_code,
        "name": dyno.name,
        "node": dyno.node,
        "release": None if dyno.release is None else {"id": str(dyno.release.id), "version": dyno.release.version},
        "size": dyno.size,
        "state": "starting" if dyno.state == "pending" else dyno.state,
        "type": dyno.type,
        "updated_at": stamps.time_of(dyno.updated_at),
    }


@router.get("/apps/{app}/dynos")
def dyno_list(call: Caller, app: str) -> JSONResponse:
    """List the dynos that run or should; ended one-offs are found by name only."""
    found = call.app(app)
    query = select(Dyno).where(Dyno.app_id == found.id, or_(Dyno.one_off.is_(False), Dyno.state.not_in(ENDED)))
    columns = {"name": Dyno.name, "id": Dyno.id, "updated_at": Dyno.updated_at}
    return listing(call, query, columns, lambda rows: [view(found, row) for row in rows])


@router.get("/apps/{app}/dynos/{dyno}")
def dyno_info(call: Caller, app: str, dyno: str) -> dict[str, Any]:
    """Show a dyno, also an ended one-off."""
    found = call.app(app)
    return view(found, find_dyno(call, found, dyno))


@router.get("/apps/{app}/dynos/{dyno}/output")
def dyno_output(call: Caller, app: str, dyno: str) -> PlainTextResponse:
    """Return the output of a one-off so far (ours). Its state and exit code are in the headers."""
    one = find_dyno(call, call.app(app), dyno)
    if not one.one_off:
        raise invalid(f"{one.name} is not a one-off; its output is in the app's logs")
    headers = {"Dyno-State": one.state}
    if one.exit_code is not None:
        headers["Dyno-Exit-Code"] = str(one.exit_code)
    return PlainTextResponse(one.output, headers=headers)


@router.post("/apps/{app}/dynos", status_code=201)
def dyno_create(call: Caller, app: str, body: NewDyno) -> dict[str, Any]:
    """Ask for a one-off dyno."""
    if body.attach:
        raise invalid("Attaching to a one-off is not possible yet: use attach:false (`heroku run:detached`).")
    found = call.app(app, lock=True)
    release = _runnable_release(call, found)
    dyno = Dyno(
        id=uuid.uuid4(),
        app_id=found.id,
        release_id=release.id,
        release=release,
        type=names.process_type(body.type),
        name=_free_name(call, found, body.type),
        command=_command(body.command),
        one_off=True,
        env=call.services.sealer.seal(_env(body.env), str(found.id)),
        size=sizes.size(body.size or sizes.DEFAULT).name,
        state="pending",
        output="",
        time_limit_s=_time_limit(body.time_to_live),
    )
    call.session.add(dyno)
    call.session.flush()
    call.commit("dyno", found.name)
    return view(found, dyno)


@router.delete("/apps/{app}/dynos", status_code=202)
def dyno_restart_all(call: Caller, app: str) -> dict[str, Any]:
    """Restart all dynos of the formation; one-offs go on."""
    found = call.app(app)
    return _stop(call, found, and_(Dyno.app_id == found.id, Dyno.one_off.is_(False)))


@router.delete("/apps/{app}/dynos/{dyno}", status_code=202)
def dyno_restart(call: Caller, app: str, dyno: str) -> dict[str, Any]:
    """Restart a dyno; a one-off is stopped."""
    return _stop_one(call, app, dyno)


@router.post("/apps/{app}/dynos/{dyno}/actions/stop", status_code=202)
def dyno_stop(call: Caller, app: str, dyno: str) -> dict[str, Any]:
    """Stop a dyno. One of the formation comes back; scale to have fewer."""
    return _stop_one(call, app, dyno)


@router.delete("/apps/{app}/formations/{type}", status_code=202)
def formation_restart(call: Caller, app: str, type: str) -> dict[str, Any]:
    """Restart the dynos of a process type."""
    return _stop_type(call, app, type)


@router.post("/apps/{app}/formations/{type}/actions/stop", status_code=202)
def formation_stop(call: Caller, app: str, type: str) -> dict[str, Any]:
    """Stop the dynos of a process type, one-offs of it among them."""
    return _stop_type(call, app, type)


def find_dyno(call: Call, app: App, identity: str) -> Dyno:
    """Return a dyno of `app` by name or id; of several with one name the newest."""
    id = as_uuid(identity)
    same = Dyno.name == identity if id is None else Dyno.id == id
    dyno = call.session.scalar(
        select(Dyno).where(Dyno.app_id == app.id, same).order_by(Dyno.created_at.desc()).limit(1)
    )
    if dyno is None:
        raise not_found("dyno")
    return dyno


def _stop_one(call: Call, app: str, dyno: str) -> dict[str, Any]:
    found = call.app(app)
    return _stop(call, found, Dyno.id == find_dyno(call, found, dyno).id)


def _stop_type(call: Call, app: str, type_: str) -> dict[str, Any]:
    found = call.app(app)
    return _stop(call, found, and_(Dyno.app_id == found.id, Dyno.type == names.process_type(type_)))


def _stop(call: Call, app: App, which: ColumnElement[bool]) -> dict[str, Any]:
    """Mark dynos to be stopped: psmgr ends the task, and the engine replaces it where the formation wants it."""
    ended = and_(Dyno.one_off.is_(True), Dyno.state.in_(ENDED))
    call.session.execute(update(Dyno).where(which, ~ended).values(stop_requested=True, updated_at=now()))
    call.commit("dyno", app.name)
    return {}


def _runnable_release(call: Call, app: App) -> Release:
    """Return the release that runs; before the first one succeeded, the newest that may."""
    query = (
        select(Release).where(Release.app_id == app.id, Release.slug_id.is_not(None)).order_by(Release.version.desc())
    )
    for status in ("succeeded", "pending"):
        release = call.session.scalar(query.where(Release.status == status).limit(1))
        if release is not None:
            return release
    raise invalid(f"{app.name} has no code yet: deploy it first.")


def _free_name(call: Call, app: App, type_: str) -> str:
    taken = set(call.session.scalars(select(Dyno.name).where(Dyno.app_id == app.id, Dyno.type == type_)))
    for _ in range(100):
        name = f"{type_}.{1000 + secrets.randbelow(9000)}"
        if name not in taken:
            return name
    raise invalid(f"{app.name} has too many dynos of type {type_}")


def _command(value: str) -> str:
    if value.strip() == "" or "\0" in value or len(value.encode()) > MAX_COMMAND:
        raise invalid(f"command must be 1 to {MAX_COMMAND} bytes, without NUL")
    return value


def _env(values: dict[str, str]) -> dict[str, str]:
    for key, value in values.items():
        names.config_key(key)
        if "\0" in value:
            raise invalid(f"env.{key} holds a NUL, which no environment can carry")
    if sum(len(key) + len(value.encode()) for key, value in values.items()) > MAX_ENV:
        raise invalid(f"env can hold {MAX_ENV} bytes")
    return values


def _time_limit(seconds: int | None) -> int | None:
    if seconds is not None and not 1 <= seconds <= LONGEST_SECONDS:
        raise invalid(f"time_to_live must be 1 to {LONGEST_SECONDS} seconds")
    return seconds
