"""Constant requests to an app through the routers of some nodes, and what was answered."""

from __future__ import annotations

import itertools
import threading
from collections import Counter
from types import TracebackType

import httpx

from blackstart.platform import Platform

PAUSE_SECONDS = 0.05
REQUEST_SECONDS = 30.0
END_SECONDS = 60.0


class Load:
    """Asks until the block ends, through each router, over one connection that is kept and over ever new ones.

    `answers` counts status codes and, by name and message, what failed. `pause` is between two requests of a connection.
    """

    def __init__(
        self, platform: Platform, app: str, *, addresses: tuple[str, ...] = (), pause: float = PAUSE_SECONDS
    ) -> None:
        self.answers: Counter[str] = Counter()
        self._stop, self._pause = threading.Event(), pause
        host = {"Host": f"{app}.{platform.domain}"}
        self._threads = [
            threading.Thread(target=self._ask, args=(f"http://{address}/", host, kept), daemon=True)
            for address, kept in itertools.product(addresses or platform.node_addresses, (True, False))
        ]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(END_SECONDS)

    @property
    def failures(self) -> dict[str, int]:
        """Every answer but 200, and how often."""
        return {answer: count for answer, count in self.answers.items() if answer != "200"}

    def _ask(self, url: str, headers: dict[str, str], kept: bool) -> None:
        limits = httpx.Limits(max_keepalive_connections=1 if kept else 0)
        with httpx.Client(headers=headers, timeout=REQUEST_SECONDS, trust_env=False, limits=limits) as client:
            while not self._stop.wait(self._pause):
                try:
                    self.answers[str(client.get(url).status_code)] += 1
                except httpx.HTTPError as error:
                    self.answers[f"{type(error).__name__}: {error}"] += 1
