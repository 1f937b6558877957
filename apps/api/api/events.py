"""The bus as the API uses it: hints after a write, live output. Losing it loses nothing."""

from __future__ import annotations

from contextlib import suppress
from queue import Full, Queue
from threading import Thread
from typing import Any

import redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from blackstart.model import bus

WAITING = 1000


class Events:
    """Announces changes from a thread of its own, in order: a write never waits for the bus, however it hangs."""

    def __init__(self, url: str | None, ca: str) -> None:
        self._bus: redis.Redis | None = None if url is None else bus.connect(url, ca)
        self._waiting: Queue[tuple[str, str]] = Queue(WAITING)
        if self._bus is not None:
            Thread(target=self._announce_all, args=(self._bus,), name="events", daemon=True).start()

    def announce(self, kind: str, name: str) -> None:
        """Tell listeners to look at the database, soon. It is a hint: what the bus does not take is dropped."""
        if self._bus is not None:
            with suppress(Full):
                self._waiting.put_nowait((kind, name))

    def _announce_all(self, client: redis.Redis) -> None:
        while True:
            bus.announce(client, *self._waiting.get())

    def alive(self) -> bool:
        """Whether the bus answers now."""
        try:
            return self._bus is not None and bool(self._bus.ping())
        except redis.RedisError:
            return False

    def close(self) -> None:
        """Close the connections."""
        if self._bus is not None:
            self._bus.close()


def stream_reader(url: str, ca: str) -> aioredis.Redis:
    """Return a client for reading streams in the event loop; one connection for each open output."""
    tls: dict[str, Any] = {"ssl_ca_certs": ca} if url.startswith("rediss://") else {}
    return aioredis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=3,
        socket_timeout=10,
        retry=Retry(NoBackoff(), 0),
        **tls,
    )
