"""`/apps/x/releases`: the numbered versions of an app, rollback among them."""

from __future__ import annotations

import uuid
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, model_validator
from sqlalchemy import select

from api import stamps
from api.apps import running_releases
from api.call import Call, Caller, as_uuid
from api.config_changes import changed_config
from api.errors import invalid, not_found
from api.lists import listing
from api.slugs import find_slug
from blackstart.model.releases import config_of, create_release
from blackstart.model.tables import App, Release, Slug

router = APIRouter()
MAX_DESCRIPTION = 300
MAX_VERSION = 2**31 - 1


class NewRelease(BaseModel):
    """POST /apps/x/releases: `{release}` is a rollback, `{slug}` a deploy of a slug that exists.

    With a slug, `config_vars` (ours) changes the config in the same release: the dynos are replaced once.
    """

    release: str | int | None = None
    slug: str | None = None
    description: str | None = None
    config_vars: dict[str, str | None] = {}

    @model_validator(mode="after")
    def _one_of_both(self) -> NewRelease:
        if (self.release is None) == (self.slug is None):
            raise ValueError("give either release (to roll back to it) or slug (to deploy it)")
        if self.release is not None and self.config_vars:
            raise ValueError("config_vars: a rollback brings the config of its release")
        return self


def view(app: App, release: Release, current: uuid.UUID | None) -> dict[str, Any]:
    """Return a release as the API shows it; `failure` is ours."""
    return {
        "id": str(release.id),
        "addon_plan_names": [],
        "app": stamps.app_ref(app),
        "artifacts": [] if release.slug_id is None else [{"type": "slug", "id": str(release.slug_id)}],
        "created_at": stamps.time_of(release.created_at),
        "current": release.id == current,
        "description": release.description,
        "eligible_for_rollback": release.slug_id is not None and release.status == "succeeded",
        "failure": release.failure,
        "output_stream_url": None,
        "slug": None if release.slug_id is None else {"id": str(release.slug_id)},
        "status": release.status,
        "updated_at": stamps.time_of(release.updated_at),
        "user": stamps.user(release.user),
        "version": release.version,
    }


def current_id(call: Call, app: App) -> uuid.UUID | None:
    """Return the id of the release that runs."""
    release = running_releases(call.session, [app.id]).get(app.id)
    return None if release is None else release.id


@router.get("/apps/{app}/releases")
def release_list(call: Caller, app: str) -> JSONResponse:
    """List an app's releases."""
    found = call.app(app)
    current = current_id(call, found)
    query = select(Release).where(Release.app_id == found.id)
    columns = {"version": Release.version, "id": Release.id}
    return listing(call, query, columns, lambda releases: [view(found, release, current) for release in releases])


@router.get("/apps/{app}/releases/{release}")
def release_info(call: Caller, app: str, release: str) -> dict[str, Any]:
    """Show a release, by its id or version (`5` or `v5`)."""
    found = call.app(app)
    return view(found, find_release(call, found, release), current_id(call, found))


@router.post("/apps/{app}/releases", status_code=201)
def release_create(call: Caller, app: str, body: NewRelease) -> dict[str, Any]:
    """Roll back to a release (its slug and its config), or deploy a slug with the present config."""
    found = call.app(app, lock=True)
    if body.release is not None:
        slug, config, description = _rollback(call, found, str(body.release))
    else:
        slug = find_slug(call, found, body.slug or "")
        config = changed_config(config_of(call.session, call.services.sealer, found), body.config_vars)
        description = f"Deploy {slug.sha256[:8]}"
    release = create_release(
        call.session,
        call.services.sealer,
        found,
        user=call.account,
        description=_description(body.description) or description,
        slug=slug,
        config=config,
    )
    call.commit("release", found.name)
    call.session.refresh(release)
    return view(found, release, current_id(call, found))


def find_release(call: Call, app: App, identity: str) -> Release:
    """Return a release of `app` by id or version."""
    id, number = as_uuid(identity), identity.removeprefix("v")
    query = select(Release).where(Release.app_id == app.id)
    if id is not None:
        release = call.session.scalar(query.where(Release.id == id))
    elif number.isascii() and number.isdigit() and len(number) <= 10 and int(number) <= MAX_VERSION:
        release = call.session.scalar(query.where(Release.version == int(number)))
    else:
        release = None
    if release is None:
        raise not_found("release")
    return release


def _rollback(call: Call, app: App, identity: str) -> tuple[Slug, dict[str, str], str]:
    target = find_release(call, app, identity)
    if target.slug is None:
        raise invalid(f"Cannot roll back to v{target.version}: it has no code.")
    if target.status != "succeeded":
        raise invalid(f"Cannot roll back to v{target.version}: it is {target.status}.")
    return target.slug, call.services.sealer.open(target.config, str(app.id)), f"Rollback to v{target.version}"


def _description(value: str | None) -> str | None:
    if value is not None and (len(value) > MAX_DESCRIPTION or not value.isprintable()):
        raise invalid(f"description must be up to {MAX_DESCRIPTION} printable characters")
    return value
