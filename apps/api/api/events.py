"""The bus as the API uses it: hints after a write, live output. Losing it loses nothing."""

from __future__ import annotations

import time
from typing import Any

import redis
from redis import asyncio as aioredis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from blackstart.model import bus

REST_SECONDS = 2.0


class Events:
    """Announces changes. After a failure it does not try for two seconds, so that writes stay quick."""

    def __init__(self, url: str | None, ca: str) -> None:
        self._bus: redis.Redis | None = None if url is None else bus.connect(url, ca)
        self._resting_until = 0.0

    def announce(self, kind: str, name: str) -> bool:
        """Tell listeners to look at the database. False when the bus did not take it (they poll, too)."""
        if self._bus is None or time.monotonic() < self._resting_until:
            return False
        if bus.announce(self._bus, kind, name):
            return True
        self._resting_until = time.monotonic() + REST_SECONDS
        return False

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
