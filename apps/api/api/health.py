"""`/health`: answers always, without a token, and says what is missing."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import APIRouter, Request
from sqlalchemy import select
from sqlalchemy.exc import SQLAlchemyError

from api.call import Services, inactive, services_of
from api.errors import DatabaseDown, reason
from blackstart.model.tables import Platform

router = APIRouter()
FRESH_SECONDS = 1.0


@dataclass
class Health:
    """The last finding, kept for a second: callers without a token cannot load the database."""

    threads: CapacityLimiter = field(default_factory=lambda: CapacityLimiter(2))
    lock: Lock = field(default_factory=Lock)
    found: dict[str, Any] = field(default_factory=dict)
    at: float = float("-inf")

    def latest(self, services: Services) -> dict[str, Any]:
        """Return the finding, looking anew when it is old."""
        with self.lock:
            if time.monotonic() - self.at > FRESH_SECONDS:
                self.found, self.at = look(services), time.monotonic()
            return self.found


@router.get("/health")
async def health(request: Request) -> dict[str, Any]:
    """Say how the API is: `ok` or `degraded`, and why. Always 200: a restart would not help."""
    keeper: Health = request.app.state.health
    return await anyio.to_thread.run_sync(keeper.latest, services_of(request), limiter=keeper.threads)


def look(services: Services) -> dict[str, Any]:
    """Return the state of the API and of what it needs."""
    database, stage, epoch = _database(services)
    bus = (
        "ok"
        if services.events.alive()
        else ("not configured" if services.settings.bus_url is None else "no connection")
    )
    problem = None if stage is None else services.later_epoch or inactive(services.settings.role, stage, writes=True)
    good = database == "ok" and bus == "ok"
    return {
        "status": "ok" if good else "degraded",
        "database": database,
        "bus": bus,
        "role": services.settings.role,
        "stage": stage,
        "epoch": epoch,
        "active": stage is not None and problem is None,
    }


def _database(services: Services) -> tuple[str, str | None, int | None]:
    try:
        with services.database.session() as session:
            problem = services.database.schema_problem(session)
            platform = session.scalar(select(Platform)) if problem is None else None
            if platform is None:
                return problem or "ok", None, None
            return "ok", platform.stage, platform.epoch
    except DatabaseDown as error:
        return str(error), None, None
    except SQLAlchemyError as error:
        return reason(error), None, None
