"""What ends a wait early: events of the bus and of the engine. Both are hints: without them it is looked every 2 s."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import redis

from blackstart.model import bus
from psmgr.backoff import delay
from psmgr.engine import Engine, EngineError


class Wake:
    """A flag that listeners raise."""

    def __init__(self) -> None:
        self._flag = threading.Event()
        self.stopping = threading.Event()

    def up(self) -> None:
        """End the present wait, or the next one."""
        self._flag.set()

    def stop(self) -> None:
        """Ask everything to end."""
        self.stopping.set()
        self._flag.set()

    def wait(self, seconds: float) -> bool:
        """Wait until woken, at most `seconds`; return whether it was."""
        woken = self._flag.wait(seconds)
        self._flag.clear()
        return woken


def listen(wake: Wake, client: redis.Redis, engine: Engine) -> None:
    """Start the listeners."""
    for name, work in (("bus", lambda: _bus_events(wake, client)), ("engine", lambda: _engine_events(wake, engine))):
        threading.Thread(target=_forever, args=(wake, work), name=f"events-{name}", daemon=True).start()


def _forever(wake: Wake, work: Callable[[], None]) -> None:
    failures = 0
    while not wake.stopping.is_set():
        try:
            work()
            failures = 0
        except (redis.RedisError, EngineError, OSError):
            failures += 1
        wake.stopping.wait(delay(max(failures, 1)))


def _bus_events(wake: Wake, client: redis.Redis) -> None:
    channel: Any = client.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]
    with channel:
        channel.subscribe(bus.EVENTS)
        while not wake.stopping.is_set():
            if channel.get_message(timeout=5.0) is not None:
                wake.up()


def _engine_events(wake: Wake, engine: Engine) -> None:
    for _ in engine.events():
        wake.up()
        if wake.stopping.is_set():
            return
