"""Does a web dyno answer? A TCP connection to its published port, from outside the dyno."""

from __future__ import annotations

import errno
import select
import socket
import time
from collections.abc import Iterable

CONNECT_S = 1.0
Address = tuple[str, int]


def answering(targets: Iterable[tuple[str, Address]], timeout: float = CONNECT_S) -> frozenset[str]:
    """Return the ids of the targets (id, address) of which one address takes a connection in time. All at once."""
    pending: dict[int, tuple[str, socket.socket]] = {}
    poller, waiting, answered = select.poll(), set[int](), set[str]()
    try:
        for id_, address in targets:
            family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            pending[sock.fileno()] = (id_, sock)
            # An error told here is told once: the poll below would find none.
            if sock.connect_ex(address) in (0, errno.EINPROGRESS):
                poller.register(sock, select.POLLOUT)
                waiting.add(sock.fileno())
        deadline = time.monotonic() + timeout
        while waiting:
            left = deadline - time.monotonic()
            ready = poller.poll(left * 1000) if left > 0 else []
            if not ready:
                break
            for fd, _ in ready:
                poller.unregister(fd)
                waiting.discard(fd)
                if pending[fd][1].getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                    answered.add(pending[fd][0])
    finally:
        for _, sock in pending.values():
            sock.close()
    return frozenset(answered)
