"""`/sources`: a place to upload a source to, by presigned URLs."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from fastapi import APIRouter

from api.call import Call, Caller
from api.errors import unavailable
from api.objects import presigned
from blackstart.model.tables import Source

router = APIRouter()
PUT_SECONDS = 3600
GET_SECONDS = 86_400


def source_key(id: uuid.UUID) -> str:
    """Return the object's key of a source."""
    return f"sources/{id}"


@router.post("/sources", status_code=201)
def source_create(call: Caller) -> dict[str, Any]:
    """Make a source. The URLs are signed here; the object store is not asked."""
    return _create(call)


@router.post("/apps/{app}/sources", status_code=201)
def source_create_for_app(call: Caller, app: str) -> dict[str, Any]:
    """Make a source, as older clients do it."""
    call.app(app)
    return _create(call)


def _create(call: Call) -> dict[str, Any]:
    store = call.services.settings.objects
    if store is None:
        raise unavailable("objects_unavailable", "This platform has no object store configured (OBJECTS_PUBLIC_URL).")
    source = Source(id=uuid.uuid4(), owner_id=call.account.id)
    call.session.add(source)
    call.commit("source", str(source.id))
    at, key = datetime.datetime.now(datetime.UTC), source_key(source.id)
    return {
        "id": str(source.id),
        "source_blob": {
            "put_url": presigned(store, "PUT", key, seconds=PUT_SECONDS, at=at),
            "get_url": presigned(store, "GET", key, seconds=GET_SECONDS, at=at),
        },
    }
