"""`/apps/x/builds`: the API writes a build down; psmgr starts the compiler."""

from __future__ import annotations

import re
import uuid
from typing import Any
from urllib.parse import urlsplit

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel, StrictBool
from sqlalchemy import select

from api import stamps
from api.call import Call, Caller, as_uuid
from api.errors import invalid, not_found
from api.lists import listing
from api.objects import object_key
from blackstart.model.tables import App, Build, Slug, Source

router = APIRouter()
CHECKSUM = re.compile(r"SHA256:([0-9a-fA-F]{64})", re.IGNORECASE)
MAX_URL = 4096
MAX_VERSION = 200


class SourceBlob(BaseModel):
    """Where the source is. `checksum` is `SHA256:<64 hex>`."""

    url: str
    version: str | None = None
    checksum: str | None = None


class NewBuild(BaseModel):
    """POST /apps/x/builds. With `release` false the slug is stored and not released."""

    source_blob: SourceBlob
    buildpacks: list[dict[str, Any]] | None = None
    release: StrictBool = True


def view(call: Call, build: Build, slug: Slug | None) -> dict[str, Any]:
    """Return a build as the API shows it. Heroku knows no `running`; `failure` is ours."""
    path = f"/streams/builds/{build.id}/{call.services.signer.sign(build.id)}"
    return {
        "id": str(build.id),
        "app": {"id": str(build.app_id)},
        "buildpacks": None
        if slug is None
        else [{"name": str(one.get("name", "")), "url": ""} for one in slug.buildpacks],
        "created_at": stamps.time_of(build.created_at),
        "failure": build.failure,
        "output_stream_url": f"{call.base_url}{path}",
        "release": None if build.release_id is None else {"id": str(build.release_id)},
        "slug": None if build.slug_id is None else {"id": str(build.slug_id)},
        "source_blob": {
            "checksum": build.source_checksum,
            "url": build.source_url,
            "version": build.source_version,
            "version_description": None,
        },
        "stack": stamps.STACK if slug is None else slug.stack,
        "status": "pending" if build.status == "running" else build.status,
        "updated_at": stamps.time_of(build.updated_at),
        "user": stamps.user(build.user),
    }


def _views(call: Call, builds: list[Build]) -> list[dict[str, Any]]:
    ids = [build.slug_id for build in builds if build.slug_id is not None]
    slugs = {slug.id: slug for slug in call.session.scalars(select(Slug).where(Slug.id.in_(ids)))} if ids else {}
    return [view(call, build, None if build.slug_id is None else slugs.get(build.slug_id)) for build in builds]


@router.get("/apps/{app}/builds")
def build_list(call: Caller, app: str) -> JSONResponse:
    """List an app's builds, the oldest first."""
    query = select(Build).where(Build.app_id == call.app(app).id)
    columns = {"created_at": Build.created_at, "id": Build.id, "updated_at": Build.updated_at}
    return listing(call, query, columns, lambda builds: _views(call, list(builds)))


@router.get("/apps/{app}/builds/{build}")
def build_info(call: Caller, app: str, build: str) -> dict[str, Any]:
    """Show a build."""
    return _views(call, [find_build(call, call.app(app), build)])[0]


@router.post("/apps/{app}/builds", status_code=201)
def build_create(call: Caller, app: str, body: NewBuild) -> dict[str, Any]:
    """Ask for a build of a source."""
    found = call.app(app)
    if body.buildpacks:
        raise invalid("buildpacks: choosing buildpacks is not supported yet; they are detected")
    blob = body.source_blob
    build = Build(
        id=uuid.uuid4(),
        app_id=found.id,
        user_id=call.account.id,
        user=call.account,
        status="pending",
        source_url=_url(blob.url),
        source_id=_source_id(call, blob.url),
        source_checksum=_checksum(blob.checksum),
        source_version=_version(blob.version),
        releases=body.release,
    )
    call.session.add(build)
    call.session.flush()
    call.commit("build", found.name)
    return view(call, build, None)


@router.delete("/apps/{app}/builds/{build}")
def build_cancel(call: Caller, app: str, build: str) -> dict[str, Any]:
    """Cancel a build that did not start yet."""
    found = call.app(app)
    one = find_build(call, found, build, lock=True)
    if one.status != "pending":
        raise invalid(f"This build is {one.status}; only one that waits can be cancelled.")
    one.status, one.failure = "failed", "cancelled before it started"
    one.output = " !     Build cancelled\n"
    call.commit("build", found.name)
    return view(call, one, None)


def find_build(call: Call, app: App, identity: str, *, lock: bool = False) -> Build:
    """Return a build of `app`."""
    id = as_uuid(identity)
    query = select(Build).where(Build.app_id == app.id, Build.id == id)
    if lock:
        query = query.with_for_update(of=Build)
    build = None if id is None else call.session.scalar(query)
    if build is None:
        raise not_found("build")
    return build


def _url(value: str) -> str:
    """Return a source's URL when it is plain http(s). The build fetches it inside its own sandbox, not we."""
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good or len(value) > MAX_URL or not value.isascii() or not value.isprintable() or " " in value:
        raise invalid(f"source_blob.url must be an http or https URL of up to {MAX_URL} characters")
    return value


def _source_id(call: Call, url: str) -> uuid.UUID | None:
    """Return which of our sources `url` is; one that belongs to somebody else is not found."""
    store = call.services.settings.objects
    key = None if store is None else object_key(store, url)
    if key is None:
        return None
    kind, _, name = key.partition("/")
    id = as_uuid(name) if kind == "sources" else None
    source = None if id is None else call.session.get(Source, id)
    if source is None or (source.owner_id != call.account.id and not call.account.admin):
        raise not_found("source")
    return source.id


def _checksum(value: str | None) -> str | None:
    if value is None or value == "":
        return None
    match = CHECKSUM.fullmatch(value)
    if match is None:
        raise invalid("source_blob.checksum must be SHA256: and 64 hex digits")
    return f"SHA256:{match[1].lower()}"


def _version(value: str | None) -> str | None:
    if value is not None and (len(value) > MAX_VERSION or not value.isprintable()):
        raise invalid(f"source_blob.version must be up to {MAX_VERSION} printable characters")
    return value
