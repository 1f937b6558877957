"""Resources whose time comes later: lists that are empty, and one plain refusal."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from api import stamps
from api.call import Caller
from api.errors import ApiError

router = APIRouter()


@router.get("/apps/{app}/addons")
def addon_list(call: Caller, app: str) -> list[dict[str, Any]]:
    """List add-ons: none yet."""
    call.app(app)
    return []


@router.get("/apps/{app}/addon-attachments")
def addon_attachment_list(call: Caller, app: str) -> list[dict[str, Any]]:
    """List add-on attachments: none yet."""
    call.app(app)
    return []


@router.get("/apps/{app}/sni-endpoints")
def sni_endpoint_list(call: Caller, app: str) -> list[dict[str, Any]]:
    """List certificates: none yet."""
    call.app(app)
    return []


@router.get("/apps/{app}/buildpack-installations")
def buildpack_list(call: Caller, app: str) -> list[dict[str, Any]]:
    """List chosen buildpacks: none, they are detected."""
    call.app(app)
    return []


@router.get("/apps/{app}/collaborators")
def collaborator_list(call: Caller, app: str) -> list[dict[str, Any]]:
    """List who may touch the app: its owner."""
    found = call.app(app)
    times = {"created_at": stamps.time_of(found.created_at), "updated_at": stamps.time_of(found.updated_at)}
    return [
        {"id": str(found.id), "app": stamps.app_ref(found), "role": "owner", "user": stamps.user(found.owner), **times}
    ]


@router.post("/apps/{app}/log-sessions")
def log_session_create(call: Caller, app: str) -> dict[str, Any]:
    """Refuse: logs come with a later component."""
    call.app(app)
    raise ApiError(501, "not_implemented", "Logs are not available yet. The output of builds and one-off dynos is.")
