"""`/apps/x/slugs`: compiled apps."""

from __future__ import annotations

import datetime
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from sqlalchemy import select

from api import stamps
from api.call import Call, Caller, as_uuid
from api.errors import invalid, not_found, unavailable
from api.objects import presigned
from blackstart.model import names
from blackstart.model.tables import App, Slug

router = APIRouter()
GET_SECONDS = 3600
PUT_SECONDS = 3600
STATEMENT = "https://in-toto.io/Statement/v1"


class NewSlug(BaseModel):
    """POST /apps/x/slugs. `checksum` is `SHA256:<hex>` of the squashfs image that the caller then puts.

    `provenance` is an in-toto statement of that image, kept as it is.
    """

    process_types: dict[str, str]
    checksum: str
    size: int = Field(ge=1)
    stack: str = Field(max_length=200)
    source_checksum: str | None = None
    commit: str | None = Field(default=None, max_length=200)
    buildpack_provided_description: str | None = None
    provenance: dict[str, Any] | None = None


def find_slug(call: Call, app: App, identity: str) -> Slug:
    """Return a slug of `app`."""
    id = as_uuid(identity)
    slug = None if id is None else call.session.scalar(select(Slug).where(Slug.app_id == app.id, Slug.id == id))
    if slug is None:
        raise not_found("slug")
    return slug


def view(call: Call, slug: Slug) -> dict[str, Any]:
    """Return a slug as the API shows it; its blob is a squashfs image."""
    store = call.services.settings.objects
    key, at = f"slugs/{slug.sha256}.squashfs", datetime.datetime.now(datetime.UTC)
    url = "" if store is None else presigned(store, "GET", key, seconds=GET_SECONDS, at=at)
    return {
        "id": str(slug.id),
        "blob": {"method": "GET", "url": url},
        "buildpack_provided_description": ", ".join(str(one.get("name", "?")) for one in slug.buildpacks) or None,
        "checksum": f"SHA256:{slug.sha256}",
        "commit": slug.source_version,
        "commit_description": None,
        "created_at": stamps.time_of(slug.created_at),
        "deleted_at": None,
        "process_types": slug.process_types,
        "size": slug.size,
        "stack": stamps.named("stack", slug.stack),
        "updated_at": stamps.time_of(slug.updated_at),
    }


@router.get("/apps/{app}/slugs/{slug}")
def slug_info(call: Caller, app: str, slug: str) -> dict[str, Any]:
    """Show a slug."""
    return view(call, find_slug(call, call.app(app), slug))


@router.get("/apps/{app}/slugs/{slug}/provenance")
def slug_provenance(call: Caller, app: str, slug: str) -> dict[str, Any]:
    """Show how a slug was made: an in-toto statement with a SLSA provenance predicate."""
    found = find_slug(call, call.app(app), slug)
    if found.provenance is None:
        raise not_found("provenance")
    return found.provenance


@router.post("/apps/{app}/slugs", status_code=201)
def slug_create(call: Caller, app: str, body: NewSlug) -> dict[str, Any]:
    """Make a slug that was compiled elsewhere (operators: the platform did not see its source)."""
    call.require_admin()
    found, store = call.app(app), call.services.settings.objects
    if store is None:
        raise unavailable("objects_unavailable", "This platform has no object store configured (OBJECTS_PUBLIC_URL).")
    slug = Slug(
        app_id=found.id,
        sha256=_digest("checksum", body.checksum),
        size=body.size,
        stack=body.stack,
        source_sha256=_digest("source_checksum", body.source_checksum or body.checksum),
        source_version=body.commit,
        process_types=_process_types(body.process_types),
        buildpacks=[{"name": body.buildpack_provided_description or "elsewhere", "version": "1"}],
        provenance=_provenance(body.provenance, _digest("checksum", body.checksum)),
    )
    call.session.add(slug)
    call.session.flush()
    shown, at = view(call, slug), datetime.datetime.now(datetime.UTC)
    url = presigned(store, "PUT", f"slugs/{slug.sha256}.squashfs", seconds=PUT_SECONDS, at=at)
    call.commit("slug", found.name)
    return {**shown, "blob": {"method": "PUT", "url": url}}


def _digest(field: str, value: str) -> str:
    try:
        return names.sha256(value.removeprefix("SHA256:"))
    except names.NameRefused as error:
        raise invalid(f"{field}: {error}") from error


def _provenance(value: dict[str, Any] | None, sha256: str) -> dict[str, Any] | None:
    """Return the statement when it is one of this very slug."""
    if value is None:
        return None
    subjects = value.get("subject")
    if value.get("_type") != STATEMENT or not isinstance(subjects, list) or len(subjects) != 1:
        raise invalid(f"provenance must be an in-toto statement ({STATEMENT}) of one subject")
    if not isinstance(subjects[0], dict) or subjects[0].get("digest") != {"sha256": sha256}:
        raise invalid("provenance: its subject is another slug than the checksum's")
    return value


def _process_types(value: dict[str, str]) -> dict[str, str]:
    if not value:
        raise invalid("process_types is empty: a slug has at least one")
    try:
        return {names.process_type(type_): command for type_, command in value.items()}
    except names.NameRefused as error:
        raise invalid(f"process_types: {error}") from error
