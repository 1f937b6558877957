"""`/streams`: a build's output as it comes. The secret is in the path; no Authorization is needed.

The bus carries the live text. When it is lost, the text in the database is followed instead: `builds.output` is the
concatenation of the stream's `data`, so what was sent already is skipped by its length.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import anyio
import anyio.to_thread
import redis
from fastapi import APIRouter, Request
from fastapi.responses import StreamingResponse
from redis import asyncio as aioredis
from sqlalchemy import select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from api.call import Services, active_platform, as_uuid, services_of
from api.errors import DatabaseDown, not_found
from blackstart.model.bus import build_stream
from blackstart.model.tables import App, Build

router = APIRouter()
POLL_SECONDS = 1.0
SILENCE_SECONDS = 15.0
LONGEST_SECONDS = 2 * 3600.0
# Nothing to see on a terminal; keeps a silent connection open through the router.
KEEP_ALIVE = "\0"
T = TypeVar("T")


@dataclass(frozen=True)
class Kept:
    """What the database knows of a build's output."""

    output: str
    ended: bool


@router.get("/streams/builds/{build}/{signature}")
async def build_output(request: Request, build: str, signature: str) -> StreamingResponse:
    """Follow a build's output until the build ended."""
    services = services_of(request)
    id = as_uuid(build)
    if id is None or not services.signer.fits(id, signature):
        raise not_found("output stream")
    first = await _in_thread(services, lambda: _kept(services, id))
    if first is None:
        raise not_found("output stream")
    return StreamingResponse(_output(services, id, first), media_type="text/plain; charset=utf-8")


async def _output(services: Services, id: uuid.UUID, kept: Kept) -> AsyncIterator[str]:
    """Yield the text of a build: from the bus while it lasts, else from the database; the rest at its end."""
    sent, position, on_bus = 0, "0-0", services.reader is not None
    started = told = time.monotonic()
    while not kept.ended and time.monotonic() - started < LONGEST_SECONDS:
        live = await _live(services.reader, id, position) if on_bus else None
        if not on_bus:
            await anyio.sleep(POLL_SECONDS)
        # Entries may be gone when the bus comes back, so an output that lost it stays with the database.
        on_bus = live is not None
        if live is not None and (live.text or live.ended):
            position, sent, told = live.position, sent + len(live.text), time.monotonic()
            yield live.text
            if live.ended:
                return
            continue
        kept = await _kept_or(services, id, kept)
        if not on_bus and len(kept.output) > sent and not kept.ended:
            yield kept.output[sent:]
            sent, told = len(kept.output), time.monotonic()
        if time.monotonic() - told > SILENCE_SECONDS:
            told = time.monotonic()
            yield KEEP_ALIVE
    yield kept.output[sent:]


@dataclass(frozen=True)
class Live:
    """New text from the bus, the entry it ends with, and whether the build ended."""

    text: str
    position: str
    ended: bool


async def _live(reader: aioredis.Redis | None, id: uuid.UUID, position: str) -> Live | None:
    """Return what is new on the bus, waiting up to a second; None when the bus is lost."""
    if reader is None:
        return None
    try:
        found = await reader.xread({build_stream(id): position}, count=500, block=int(POLL_SECONDS * 1000))
    except (redis.RedisError, OSError):
        return None
    return read_entries(_entries(found), position)


def read_entries(entries: list[tuple[str, dict[str, str]]], position: str) -> Live:
    """Return the joined text of stream entries."""
    text = "".join(fields.get("data", "") for _, fields in entries)
    ended = any("end" in fields for _, fields in entries)
    return Live(text, entries[-1][0] if entries else position, ended)


def _entries(found: Any) -> list[tuple[str, dict[str, str]]]:
    """Return the entries of the one stream in an XREAD answer: a map (RESP3) or a list of pairs (RESP2)."""
    streams = list(found.values()) if isinstance(found, dict) else [entries for _, entries in found or []]
    flat = [one for entries in streams for one in entries]
    # RESP3 wraps the entries of a stream once more.
    return [
        pair
        for one in flat
        for pair in (one if isinstance(one, list) and one and isinstance(one[0], tuple | list) else [one])
    ]


async def _kept_or(services: Services, id: uuid.UUID, before: Kept) -> Kept:
    """Return what the database knows now; what it knew when it does not answer; an end when the build is gone."""
    try:
        kept = await _in_thread(services, lambda: _kept(services, id))
    except (DBAPIError, PoolTimeout, DatabaseDown):
        return before
    return Kept(before.output, ended=True) if kept is None else kept


def _kept(services: Services, id: uuid.UUID) -> Kept | None:
    with services.database.session() as session:
        active_platform(services, session, writes=False)
        query = select(Build.output, Build.status).join(App).where(Build.id == id, App.deleting.is_(False))
        row = session.execute(query).one_or_none()
    return None if row is None else Kept(row.output, row.status in ("succeeded", "failed"))


async def _in_thread(services: Services, work: Callable[[], T]) -> T:
    """Run `work` in a thread; the watchers of outputs share a few, so that they never hold up other requests."""
    return await anyio.to_thread.run_sync(work, limiter=services.watchers)
