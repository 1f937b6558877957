"""The application: its parts put together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from anyio import CapacityLimiter
from fastapi import FastAPI

from api import (
    account,
    apps,
    builds,
    config_vars,
    domains,
    dynos,
    formations,
    health,
    later,
    nodes,
    oauth,
    platform,
    releases,
    slugs,
    sources,
    streams,
)
from api.call import Services
from api.database import Database
from api.errors import install_handlers
from api.events import Events, stream_reader
from api.middleware import Around
from api.settings import Settings
from api.signing import Signer
from blackstart.model.epoch import EpochWatch
from blackstart.model.secrets import Sealer

RESOURCES = (
    account,
    apps,
    builds,
    config_vars,
    domains,
    dynos,
    formations,
    health,
    later,
    nodes,
    oauth,
    platform,
    releases,
    slugs,
    sources,
    streams,
)
WATCHER_THREADS = 4


def create_app(settings: Settings) -> FastAPI:
    """Return the API. It connects to nothing before the first request."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        services = make_services(settings)
        services.watchers = CapacityLimiter(WATCHER_THREADS)
        if settings.bus_url is not None:
            services.reader = stream_reader(settings.bus_url, settings.ca)
        if settings.role == "stage-0":
            services.epochs = EpochWatch(settings.node_addresses, settings.domain, settings.ca)
            await anyio.to_thread.run_sync(services.epochs.start)
        app.state.services, app.state.health = services, health.Health()
        yield
        if services.reader is not None:
            await services.reader.aclose()
        services.events.close()
        services.database.close()

    app = FastAPI(
        title="Blackstart Platform API",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        strict_content_type=False,
    )
    for resource in RESOURCES:
        app.include_router(resource.router)
    install_handlers(app)
    app.add_middleware(Around)
    return app


def make_services(settings: Settings) -> Services:
    """Return what the requests share."""
    return Services(
        settings=settings,
        database=Database(settings.database_url),
        events=Events(settings.bus_url, settings.ca),
        sealer=Sealer(settings.secret_key),
        signer=Signer(settings.secret_key),
    )
