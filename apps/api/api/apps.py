"""`/apps`: apps and their owners; the platform's own components are apps, too."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import Select, func, select, tuple_
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from api import stamps
from api.account import find_account
from api.call import Call, Caller
from api.errors import forbidden, invalid
from api.lists import listing
from api.wordlist import generated_name
from blackstart.model import names
from blackstart.model.component import load_component
from blackstart.model.releases import create_release
from blackstart.model.tables import App, Release

router = APIRouter()
# The components of DESIGN.md, present and later, and hosts that the platform itself answers at.
RESERVED = frozenset(
    (
        *("api", "psmgr", "compile", "router", "postgres", "objects", "bus", "logs", "rendezvous", "git", "cron"),
        *("addons", "shogun", "pgbackups", "www", "status", "docs", "dashboard", "admin", "platform", "data"),
    )
)


class NewApp(BaseModel):
    """POST /apps. `component` (ours) is the content of a component.toml."""

    name: str | None = None
    component: dict[str, Any] | None = None


class ChangedApp(BaseModel):
    """PATCH /apps/x."""

    name: str | None = None
    maintenance: bool | None = None
    component: dict[str, Any] | None = None


def view(app: App, domain: str, current: Release | None) -> dict[str, Any]:
    """Return an app as the API shows it; `current` is its newest release that runs."""
    slug = None if current is None else current.slug
    shown: dict[str, Any] = {
        "id": str(app.id),
        "name": app.name,
        "acm": False,
        "archived_at": None,
        "build_stack": stamps.named("stack", stamps.STACK),
        "buildpack_provided_description": _buildpack_names(current),
        "created_at": stamps.time_of(app.created_at),
        "git_url": f"https://git.{domain}/{app.name}.git",
        "internal_routing": None,
        "maintenance": app.maintenance,
        "organization": None,
        "owner": stamps.user(app.owner),
        "region": stamps.named("region", "here"),
        "released_at": None if current is None else stamps.time_of(current.created_at),
        "repo_size": None,
        "slug_size": None if slug is None else slug.size,
        "space": None,
        "stack": stamps.named("stack", stamps.STACK),
        "team": None,
        "updated_at": stamps.time_of(app.updated_at),
        "web_url": f"https://{app.name}.{domain}/",
    }
    if app.component is not None:
        shown["component"] = app.component
    return shown


def views(call: Call, apps: Sequence[App]) -> list[dict[str, Any]]:
    """Return several apps as the API shows them."""
    current = running_releases(call.session, [app.id for app in apps])
    return [view(app, call.platform.domain, current.get(app.id)) for app in apps]


def running_releases(session: Session, apps: Sequence[uuid.UUID]) -> dict[uuid.UUID, Release]:
    """Return the newest succeeded release of each of `apps` that has one."""
    newest = (
        select(Release.app_id, func.max(Release.version))
        .where(Release.app_id.in_(apps), Release.status == "succeeded")
        .group_by(Release.app_id)
    )
    query = select(Release).where(tuple_(Release.app_id, Release.version).in_(newest))
    return {release.app_id: release for release in session.scalars(query)}


@router.get("/apps")
def app_list(call: Caller) -> JSONResponse:
    """List the caller's apps; an operator sees all."""
    query = select(App)
    return _list(call, query if call.account.admin else query.where(App.owner_id == call.account.id))


@router.get("/users/{user}/apps")
def app_list_owned(call: Caller, user: str) -> JSONResponse:
    """List the apps that an account owns."""
    return _list(call, select(App).where(App.owner_id == find_account(call, user).id))


@router.get("/apps/{app}")
def app_info(call: Caller, app: str) -> dict[str, Any]:
    """Show an app."""
    return views(call, [call.app(app)])[0]


@router.post("/apps", status_code=201)
def app_create(call: Caller, body: NewApp | None = None) -> dict[str, Any]:
    """Make an app, with a release v1 without code."""
    wish = NewApp() if body is None else body
    component = _component(call, wish.component, wish.name, newer=False)
    app = _insert(call, wish.name, component)
    create_release(
        call.session, call.services.sealer, app, user=call.account, description="Initial release", slug=None, config={}
    )
    call.commit("app", app.name)
    return views(call, [app])[0]


@router.patch("/apps/{app}")
def app_update(call: Caller, app: str, body: ChangedApp) -> dict[str, Any]:
    """Change an app's maintenance mode, or (operators) a component's description."""
    found = call.app(app, lock=True)
    if body.name is not None and body.name != found.name:
        names.app_name(body.name)
        raise invalid("An app cannot be renamed yet. Create an app with the new name and delete this one.")
    if body.component is not None and found.component is None:
        raise invalid(f"{found.name} is not a component; only a new app can be made one")
    if body.component is not None:
        found.component = _component(call, body.component, found.name)
    if body.maintenance is not None:
        found.maintenance = body.maintenance
    call.commit("app", found.name)
    return views(call, [found])[0]


@router.delete("/apps/{app}")
def app_delete(call: Caller, app: str) -> dict[str, Any]:
    """Delete an app: it is gone for its owner at once; psmgr removes what runs, then its data, then frees the name."""
    found = call.app(app, lock=True)
    if found.component is not None:
        raise forbidden(f"{found.name} is a component: the platform cannot be without it.")
    shown = views(call, [found])[0]
    found.deleting = True
    call.commit("app", found.name)
    return shown


def _list(call: Call, query: Select[App]) -> JSONResponse:
    query = query.where(App.deleting.is_(False))
    if not call.account.admin:
        query = query.where(App.component.is_(None))
    columns = {"name": App.name, "id": App.id, "updated_at": App.updated_at}
    return listing(call, query, columns, lambda apps: views(call, apps))


def _component(
    call: Call, value: dict[str, Any] | None, name: str | None, *, newer: bool = True
) -> dict[str, Any] | None:
    """Return the checked description of a component. Only operators give one."""
    if value is None:
        return None
    call.require_admin()
    component = load_component(value, newer=newer)
    if component.name != name:
        raise invalid(f"component.toml: name: the component is called {component.name!r}, the app {name!r}")
    return component.model_dump(mode="json")


def _insert(call: Call, name: str | None, component: dict[str, Any] | None) -> App:
    if name is not None and names.app_name(name) in RESERVED and component is None:
        raise invalid(f"Name {name} is reserved for the platform.")
    for _ in range(5 if name is None else 1):
        app = App(id=uuid.uuid4(), name=name or generated_name(), owner_id=call.account.id, component=component)
        try:
            with call.session.begin_nested():
                call.session.add(app)
        except IntegrityError:
            continue
        return app
    raise invalid(f"Name {name} is already taken." if name is not None else "No free name was found; try again.")


def _buildpack_names(release: Release | None) -> str | None:
    if release is None or release.slug is None:
        return None
    return ", ".join(str(buildpack.get("name", "?")) for buildpack in release.slug.buildpacks) or None
