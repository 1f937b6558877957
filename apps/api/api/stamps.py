"""Small pieces that several answers share."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from blackstart.model.sizes import size
from blackstart.model.tables import Account, App

STACK = "stack-debian-13"
_NAMES = uuid.UUID("6c1f7c3e-3a0d-5c3c-9c55-2f2b6f0f8f11")


def time_of(value: datetime.datetime) -> str:
    """Return a time as Heroku writes it: `2012-01-01T12:00:00Z`."""
    return value.astimezone(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def named_id(kind: str, name: str) -> str:
    """Return the unchanging id of something that has only a name (a stack, a region, a dyno size)."""
    return str(uuid.uuid5(_NAMES, f"{kind} {name}"))


def named(kind: str, name: str) -> dict[str, Any]:
    """Return `{id, name}` of such a thing."""
    return {"id": named_id(kind, name), "name": name}


def user(account: Account) -> dict[str, Any]:
    """Return an account as other resources name it."""
    return {"id": str(account.id), "email": account.email}


def app_ref(app: App) -> dict[str, Any]:
    """Return an app as other resources name it."""
    return {"id": str(app.id), "name": app.name}


def dyno_size(name: str) -> dict[str, Any]:
    """Return a dyno size as formations name it."""
    return named("dyno size", size(name).name)
