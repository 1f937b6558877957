"""Names and client of the message bus. Everything on it is a hint or a copy: losing it loses nothing."""

from __future__ import annotations

import json

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

EVENTS = "events"
ROUTES = "routes"
STREAM_SECONDS = 86_400
ABLE_SECONDS = 10
ROUTER_SECONDS = 15
TRUST = "/etc/blackstart/trust/ca.pem"


def build_stream(build_id: object) -> str:
    """Return the key of a build's output."""
    return f"build:{build_id}"


def router_key(node: str) -> str:
    """Return the key in which the router of `node` says what it has applied, for ROUTER_SECONDS."""
    return f"router:{node}"


def able_key(task: str) -> str:
    """Return the key in which a dyno whose process `proves` says that it does its work, for ABLE_SECONDS.

    The process manager of the release before reads it: another name, and no upgrade would ever succeed (tried).
    """
    return f"psmgr:{task}"


def connect(url: str, ca: str = TRUST) -> redis.Redis:
    """Return a client that fails within seconds, never hangs. `url` is `rediss://:password@host:port/0`.

    One retry at once, for a connection that went stale: the client's own default backs off for seconds, and
    whoever announces something must not wait for a dead bus.
    """
    tls = {"ssl_ca_certs": ca} if url.startswith("rediss://") else {}
    return redis.Redis.from_url(
        url,
        decode_responses=True,
        socket_connect_timeout=3,
        socket_timeout=10,
        socket_keepalive=True,
        health_check_interval=30,
        retry=Retry(NoBackoff(), 1),
        **tls,
    )


def announce(bus: redis.Redis, kind: str, name: str) -> bool:
    """Tell listeners to look at the database now. Returns False when the bus did not take it (no harm: they poll)."""
    try:
        bus.publish(EVENTS, json.dumps({"kind": kind, "app": name}))
    except redis.RedisError:
        return False
    return True
