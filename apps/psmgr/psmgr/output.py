"""The output of builds, forwarded live from the engine to the bus. Losing the bus loses the live view only."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Any

import redis

from blackstart.model import bus
from psmgr.engine import Engine, EngineError

log = logging.getLogger(__name__)
KEPT = 1_000_000
CHUNK = 32_768


class Forwarder(threading.Thread):
    """Follows a service's log and appends it to a stream, from where a predecessor left off."""

    def __init__(
        self, engine: Engine, client: redis.Redis, service_id: str, stream: str, wake: Callable[[], None] = lambda: None
    ) -> None:
        super().__init__(name=f"output-{stream}", daemon=True)
        self._engine, self._client, self._service_id, self._stream = engine, client, service_id, stream
        self._over = threading.Event()
        self._lock = threading.Lock()
        self._seen = bytearray()
        self._sent: int | None = None
        self._wake = wake

    @property
    def said(self) -> bool:
        """Return whether there is any output yet. `wake` is called when there is."""
        return bool(self._seen)

    def run(self) -> None:
        """Follow until told to stop. A connection that breaks is made anew; the log starts from its beginning."""
        while not self._over.is_set():
            position = 0
            try:
                for chunk in self._engine.follow(self._service_id):
                    position += len(chunk)
                    self._take(chunk, position)
                    if self._over.is_set():
                        return
            except EngineError as error:
                log.debug("output of %s: %s", self._stream, error)
            self._over.wait(1.0)

    def finish(self, whole: bytes) -> None:
        """Send what is missing of the whole log, and stop."""
        self._over.set()
        with self._lock:
            if len(whole) > len(self._seen):
                self._seen = bytearray(whole)
            self._send()

    def stop(self) -> None:
        """Stop without a last word."""
        self._over.set()

    def _take(self, chunk: bytes, position: int) -> None:
        with self._lock:
            fresh, first = position - len(self._seen), not self._seen
            if fresh > 0:
                self._seen += chunk[-fresh:]
            if first:
                self._wake()
            self._send()

    def _send(self) -> None:
        try:
            if self._sent is None:
                self._sent = sent_bytes(self._client, self._stream)
            while self._sent < len(self._seen):
                text, size = whole_characters(bytes(self._seen[self._sent : self._sent + CHUNK]))
                if size == 0:
                    return
                self._client.xadd(self._stream, {"data": text})
                self._sent += size
            self._client.expire(self._stream, bus.STREAM_SECONDS)
        except redis.RedisError as error:
            log.debug("output of %s does not reach the bus: %s", self._stream, error)


def sent_bytes(client: redis.Redis, stream: str) -> int:
    """Return how many bytes of output the stream holds."""
    entries: Any = client.xrange(stream)
    return sum(len(entry.get("data", "").encode()) for _, entry in entries)


def end_stream(client: redis.Redis, stream: str, status: str) -> None:
    """Say on the stream that nothing follows, unless it was said. Without the bus, readers see it in the database."""
    try:
        last: Any = client.xrevrange(stream, count=1)
        if last and "end" in last[0][1]:
            return
        client.xadd(stream, {"end": status})
        client.expire(stream, bus.STREAM_SECONDS)
    except redis.RedisError as error:
        log.debug("the end of %s does not reach the bus: %s", stream, error)


def whole_characters(data: bytes) -> tuple[str, int]:
    """Return the text in `data` up to its last whole UTF-8 character, and how many bytes that is.

    Bytes that are no UTF-8 become one question mark each, so that lengths stay the same.
    """
    cut = len(data)
    for back in range(1, min(4, len(data)) + 1):
        byte = data[-back]
        if byte & 0xC0 == 0x80:
            continue
        needs = 1 if byte < 0x80 else 2 if byte >> 5 == 6 else 3 if byte >> 4 == 14 else 4 if byte >> 3 == 30 else 1
        if needs > back:
            cut = len(data) - back
        break
    return printable(data[:cut]), cut


def printable(data: bytes) -> str:
    """Return `data` as text that any store takes: no NUL, one `?` for each byte that is no UTF-8."""
    text = data.decode(errors="surrogateescape")
    return "".join("?" if "\udc80" <= char <= "\udcff" or char == "\0" else char for char in text)


def kept(data: bytes) -> str:
    """Return what is stored of an output: all, or its start and its end."""
    if len(data) <= KEPT:
        return printable(data)
    half = KEPT // 2
    return printable(data[:half]) + f"\n[… {len(data) - KEPT} bytes left out …]\n" + printable(data[-half:])
