"""The platform's epoch, as a stage 0 must know it before it acts.

Stage 0 is epoch 0. The pivot writes the marker of epoch 1 into the platform's object store, once, with a conditional put,
and then the number into the platform's database; the API says it to anybody at `/health`, through every router. So a
stage 0 that is started again asks the routers, with no credential but the platform's CA: where one knows a later
epoch, another control plane is in charge and this one does nothing. Where none answers, it cannot tell: the first
bootstrap looks the same. Then it is held by what it has: its own stores, an engine that knows it no more, and
credentials that the platform refuses.
"""

from __future__ import annotations

import http.client
import json
import logging
import socket
import ssl
import threading
from collections.abc import Iterable

log = logging.getLogger(__name__)
LOOK_SECONDS = 5.0
ANSWER_SECONDS = 1.5
HTTPS = 443
ANSWER_BYTES = 65_536


class EpochWatch:
    """Looks for a later epoch at the start and every few seconds. What was seen once stays true."""

    def __init__(self, addresses: Iterable[str], domain: str, ca: str) -> None:
        self._addresses, self._domain, self._ca = tuple(addresses), domain, ca
        self.seen = 0

    def start(self) -> None:
        """Look once, then go on looking in the background."""
        self.look()
        threading.Thread(target=self._watch, name="epoch", daemon=True).start()

    def look(self) -> None:
        """Ask every router; remember the highest epoch."""
        for address in self._addresses:
            epoch = epoch_at(address, self._domain, self._ca)
            if epoch > self.seen:
                self.seen = epoch
                log.warning("%s", self.reason)

    @property
    def reason(self) -> str:
        """Return why this stage 0 must not act; empty while nothing is known against it."""
        if not self.seen:
            return ""
        return (
            f"the platform is in epoch {self.seen} and runs its own control plane; this stage 0 (epoch 0) does nothing"
        )

    def _watch(self) -> None:
        pause = threading.Event()
        while not self.seen:
            pause.wait(LOOK_SECONDS)
            self.look()


def epoch_at(address: str, domain: str, ca: str, *, port: int = HTTPS) -> int:
    """Return the epoch that the API behind a router says, 0 where none answers or it does not know."""
    host = f"api.{domain}"
    asked = f"GET /health HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
    try:
        context = ssl.create_default_context(cafile=ca)
        with (
            socket.create_connection((address, port), timeout=ANSWER_SECONDS) as plain,
            context.wrap_socket(plain, server_hostname=host) as secure,
        ):
            secure.sendall(asked)
            response = http.client.HTTPResponse(secure)
            response.begin()
            epoch = json.loads(response.read(ANSWER_BYTES))["epoch"]
    except (OSError, ValueError, KeyError, TypeError, http.client.HTTPException):
        return 0
    return epoch if isinstance(epoch, int) else 0
