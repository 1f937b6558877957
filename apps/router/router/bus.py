"""The bus: two threads, one that brings tables, one that takes reports. Neither ever stops the router.

A dead bus is said once, and once when it is back; in between each thread retries with capped, jittered back-off.
"""

from __future__ import annotations

import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import redis

from blackstart.model.bus import ABLE_SECONDS, ROUTER_SECONDS, ROUTES, able_key, connect, router_key
from router.ack import Report, merged, parse

LOG = logging.getLogger("router")
POLL_SECONDS = 5.0
FAILURES = (redis.RedisError, OSError, ValueError)


@dataclass
class Backoff:
    """Delays of 0.2 s doubling to 5 s, each jittered by up to a half."""

    least: float = 0.2
    most: float = 5.0
    tries: int = 0

    def next(self) -> float:
        """Return the next delay in seconds."""
        delay = min(self.most, self.least * float(2**self.tries))
        self.tries = min(self.tries + 1, 16)
        return delay * random.uniform(0.5, 1.0)  # noqa: S311 - jitter, no secret

    def reset(self) -> None:
        """Start again from the shortest delay."""
        self.tries = 0


class Link(threading.Thread):
    """A thread that keeps one connection to the bus and says once when it is lost or back."""

    def __init__(self, name: str, url: str, ca: str) -> None:
        super().__init__(name=name, daemon=True)
        self._url, self._ca = url, ca
        self._ended = threading.Event()
        self._lost = False

    def end(self) -> None:
        """Ask the thread to end."""
        self._ended.set()

    def run(self) -> None:
        """Serve until `end`."""
        backoff = Backoff()
        while not self._ended.is_set():
            try:
                with contextlib.closing(connect(self._url, self._ca)) as client:
                    client.ping()
                    if self._lost:
                        self._lost = False
                        LOG.warning("bus: %s is connected again", self.name)
                    backoff.reset()
                    self.serve(client)
            except FAILURES as error:
                if not self._lost:
                    self._lost = True
                    LOG.warning("bus: %s has no connection, goes on without and retries: %s", self.name, error)
                self._ended.wait(backoff.next())

    def serve(self, client: redis.Redis) -> None:
        """Use `client` until it fails or the thread is to end."""
        raise NotImplementedError


class Listener(Link):
    """Hands each new text of the key `routes` to `deliver`, on the channel's hint and every few seconds."""

    def __init__(self, url: str, ca: str, deliver: Callable[[str], None]) -> None:
        super().__init__("listener", url, ca)
        self._deliver = deliver
        self._seen = ""

    def serve(self, client: redis.Redis) -> None:
        with client.pubsub(ignore_subscribe_messages=True) as channel:  # type: ignore[no-untyped-call]
            channel.subscribe(ROUTES)
            while not self._ended.is_set():
                self._fetch(client)
                # Returns at the hint or after the poll's interval. It also returns early for the subscription's own
                # confirmation, which costs one more look.
                channel.get_message(timeout=POLL_SECONDS)

    def _fetch(self, client: redis.Redis) -> None:
        text = client.get(ROUTES)
        if isinstance(text, str) and text != self._seen:
            self._seen = text
            self._deliver(text)


class Announcer(Link):
    """Writes the newest report to `router:<node>`, merged with those of other routers on the node."""

    def __init__(self, url: str, ca: str, node: str, instance: str, task: str = "") -> None:
        super().__init__("announcer", url, ca)
        self._node, self._instance, self._task = node, instance, task
        self._ready = threading.Event()
        self._report: Report | None = None

    def announce(self, report: Report) -> None:
        """Take `report` in place of one that was not written yet."""
        self._report = report
        self._ready.set()

    def serve(self, client: redis.Redis) -> None:
        while not self._ended.is_set():
            if self._ready.wait(1.0):
                self._ready.clear()
                report = self._report
                if report is not None:
                    self._write(client, report)

    def _write(self, client: redis.Redis, own: Report) -> None:
        index, now = f"routers-of:{self._node}", time.time()
        member = f"router-instance:{self._node}:{self._instance}"
        pipe = client.pipeline()
        pipe.set(member, own.dump(), ex=ROUTER_SECONDS)
        pipe.zadd(index, {member: now})
        pipe.zremrangebyscore(index, 0, now - ROUTER_SECONDS)
        pipe.expire(index, ROUTER_SECONDS)
        if self._task and own.version > 0 and not own.error and not own.stopping:
            pipe.set(able_key(self._task), "able", ex=ABLE_SECONDS)
        pipe.zrange(index, 0, -1)
        others = [name for name in pipe.execute()[-1] if name != member]
        texts = client.mget(others) if others else []
        both = merged([own, *(parse(text) for text in texts if isinstance(text, str))])
        client.set(router_key(self._node), both.dump(), ex=ROUTER_SECONDS)

    def withdraw(self) -> None:
        """Take this router's own report back: it has stopped. Best effort; it expires by itself."""
        with contextlib.suppress(*FAILURES), contextlib.closing(connect(self._url, self._ca)) as client:
            member = f"router-instance:{self._node}:{self._instance}"
            client.delete(member)
            client.zrem(f"routers-of:{self._node}", member)
