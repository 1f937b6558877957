"""`/platform` (ours): which platform this is, its stage, and for operators what its components run."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from sqlalchemy import select

from api.apps import running_releases
from api.call import Call, Caller
from blackstart.model.tables import App, Dyno

router = APIRouter()


@router.get("/platform")
def platform_info(call: Caller) -> dict[str, Any]:
    """Show the platform."""
    shown: dict[str, Any] = {
        "name": call.platform.name,
        "domain": call.platform.domain,
        "stage": call.platform.stage,
        "epoch": call.platform.epoch,
    }
    if call.account.admin:
        shown["components"] = _components(call)
    return shown


def _components(call: Call) -> list[dict[str, Any]]:
    query = select(App).where(App.component.is_not(None), App.deleting.is_(False)).order_by(App.name)
    apps = list(call.session.scalars(query))
    ids = [app.id for app in apps]
    current = running_releases(call.session, ids)
    dynos = list(
        call.session.scalars(select(Dyno).where(Dyno.app_id.in_(ids), Dyno.one_off.is_(False)).order_by(Dyno.name))
    )
    return [
        {
            "app": app.name,
            "version": None if app.id not in current else current[app.id].version,
            "slug": _sha256(current[app.id].slug if app.id in current else None),
            "processes": [
                {"type": dyno.type, "name": dyno.name, "state": dyno.state, "node": dyno.node}
                for dyno in dynos
                if dyno.app_id == app.id
            ],
        }
        for app in apps
    ]


def _sha256(slug: Any) -> str | None:
    return None if slug is None else str(slug.sha256)
