"""A real HTTP server that keeps what is put, answers with what it was told to, and counts."""

from __future__ import annotations

import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self


class FakeStore:
    """An object store by presigned URLs: any path can be put and got. `failures[(method, path)]` are statuses to answer first."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.failures: dict[tuple[str, str], list[int]] = {}
        self.requests: Counter[tuple[str, str]] = Counter()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    def url(self, path: str) -> str:
        """Return the address of an object."""
        return f"http://127.0.0.1:{self._server.server_address[1]}/{path}?signature=SECRET-SIGNATURE"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _handler(store: FakeStore) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            if not self._fails():
                body = store.objects.get(self._path())
                self._answer(404 if body is None else 200, body or b"")

        def do_PUT(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            if not self._fails():
                store.objects[self._path()] = body
                self._answer(200, b"")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

        def _path(self) -> str:
            return self.path.partition("?")[0].lstrip("/")

        def _fails(self) -> bool:
            key = (self.command, self._path())
            store.requests[key] += 1
            waiting = store.failures.get(key)
            if not waiting:
                return False
            self._answer(waiting.pop(0), b"")
            return True

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    return Handler
