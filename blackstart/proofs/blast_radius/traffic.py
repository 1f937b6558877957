"""Requests to an app through every router, all the time, each on a connection of its own: what users see."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import httpx

from blackstart.proofs.blast_radius.matrix import Measured

REQUEST_SECONDS = 10.0
PAUSE_SECONDS = 0.2


@dataclass
class Traffic:
    """What was sent so far, and what failed, in words."""

    started: float = field(default_factory=time.monotonic)
    sent: int = 0
    failures: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def measured(self) -> Measured:
        """Return the outcome: it works when every request was answered."""
        seconds = time.monotonic() - self.started
        with self.lock:
            sent, failures = self.sent, list(self.failures)
        text = f"{sent} requests, {len(failures)} failed"
        return Measured(sent > 0 and not failures, seconds, f"{text}; first: {failures[0]}" if failures else text)

    def note(self, failure: str | None) -> None:
        """Count one request."""
        with self.lock:
            self.sent += 1
            if failure is not None:
                self.failures.append(failure)


@contextlib.contextmanager
def flowing(addresses: Sequence[str], host: str) -> Iterator[Traffic]:
    """Send requests for `host` through the routers at `addresses` until the block ends."""
    traffic, stop = Traffic(), threading.Event()
    threads = [
        threading.Thread(target=_flow, args=(address, host, traffic, stop), daemon=True) for address in addresses
    ]
    for thread in threads:
        thread.start()
    try:
        yield traffic
    finally:
        stop.set()
        for thread in threads:
            thread.join(REQUEST_SECONDS * 2)


def _flow(address: str, host: str, traffic: Traffic, stop: threading.Event) -> None:
    limits = httpx.Limits(max_keepalive_connections=0)
    with httpx.Client(timeout=REQUEST_SECONDS, trust_env=False, limits=limits) as client:
        while not stop.wait(PAUSE_SECONDS):
            try:
                code = client.get(f"http://{address}/", headers={"Host": host}).status_code
            except httpx.HTTPError as error:
                traffic.note(f"{address}: {type(error).__name__}")
            else:
                traffic.note(None if code == 200 else f"{address}: {code}")
