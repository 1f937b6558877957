"""`/apps/x/domains`: host names that route to an app."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from api import stamps
from api.call import Call, Caller, as_uuid
from api.errors import forbidden, invalid, not_found
from api.lists import listing
from blackstart.model import names
from blackstart.model.tables import App, Domain

router = APIRouter()


class NewDomain(BaseModel):
    """POST /apps/x/domains."""

    hostname: str
    sni_endpoint: str | None = None


def view(call: Call, app: App, domain: Domain) -> dict[str, Any]:
    """Return a host name as the API shows it."""
    return _view(call, app, str(domain.id), domain.hostname, domain, kind="custom")


def own_view(call: Call, app: App) -> dict[str, Any]:
    """Return the host name that every app has, `<app>.<platform domain>`."""
    return _view(call, app, str(uuid.uuid5(app.id, "domain")), own_hostname(call, app), app, kind="heroku")


def own_hostname(call: Call, app: App) -> str:
    """Return the host name that every app has."""
    return f"{app.name}.{call.platform.domain}"


def _view(call: Call, app: App, id: str, hostname: str, row: Domain | App, *, kind: str) -> dict[str, Any]:
    return {
        "id": id,
        "acm_status": None,
        "acm_status_reason": None,
        "app": stamps.app_ref(app),
        "cname": own_hostname(call, app) if kind == "custom" else None,
        "created_at": stamps.time_of(row.created_at),
        "hostname": hostname,
        "kind": kind,
        "sni_endpoint": None,
        "status": "succeeded",
        "updated_at": stamps.time_of(row.updated_at),
    }


@router.get("/apps/{app}/domains")
def domain_list(call: Caller, app: str) -> JSONResponse:
    """List an app's host names, its own first."""
    found = call.app(app)
    query = select(Domain).where(Domain.app_id == found.id)
    columns = {"hostname": Domain.hostname, "id": Domain.id}

    def views(rows: Any) -> list[dict[str, Any]]:
        return [own_view(call, found), *(view(call, found, row) for row in rows)]

    return listing(call, query, columns, views)


@router.get("/apps/{app}/domains/{domain}")
def domain_info(call: Caller, app: str, domain: str) -> dict[str, Any]:
    """Show a host name, by name or id."""
    found = call.app(app)
    if domain in (own_hostname(call, found), str(uuid.uuid5(found.id, "domain"))):
        return own_view(call, found)
    return view(call, found, find_domain(call, found, domain))


@router.post("/apps/{app}/domains", status_code=201)
def domain_create(call: Caller, app: str, body: NewDomain) -> dict[str, Any]:
    """Route a host name to an app."""
    found = call.app(app)
    if body.sni_endpoint is not None:
        raise invalid("sni_endpoint: certificates of your own are not supported yet; send null")
    domain = Domain(id=uuid.uuid4(), app_id=found.id, hostname=_hostname(call, body.hostname))
    try:
        with call.session.begin_nested():
            call.session.add(domain)
    except IntegrityError as error:
        raise invalid(f"Domain {domain.hostname} is already in use.") from error
    call.commit("domain", found.name)
    return view(call, found, domain)


@router.delete("/apps/{app}/domains/{domain}")
def domain_delete(call: Caller, app: str, domain: str) -> dict[str, Any]:
    """Stop routing a host name."""
    found = call.app(app)
    if domain in (own_hostname(call, found), str(uuid.uuid5(found.id, "domain"))):
        raise forbidden("An app's own host name cannot be removed.")
    one = find_domain(call, found, domain)
    shown = view(call, found, one)
    call.session.delete(one)
    call.commit("domain", found.name)
    return shown


def find_domain(call: Call, app: App, identity: str) -> Domain:
    """Return a host name of `app`."""
    id = as_uuid(identity)
    same = Domain.hostname == identity.lower() if id is None else Domain.id == id
    domain = call.session.scalar(select(Domain).where(Domain.app_id == app.id, same))
    if domain is None:
        raise not_found("domain")
    return domain


def _hostname(call: Call, value: str) -> str:
    """Return a host name that an app may have: full, no address, not the platform's own."""
    name, ours = names.domain(value), call.platform.domain
    if "." not in name or name.rpartition(".")[2].isdigit():
        raise invalid(f"domain {name!r} is refused: it must be a full host name such as www.example.com")
    if name == ours or name.endswith(f".{ours}"):
        raise invalid(f"domain {name!r} is refused: {ours} is the platform's own; apps have <app>.{ours} by themselves")
    return name
