"""The app whose life is measured: it says which release, config and dyno answers."""

import json
import os
import pathlib
import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

ANSWER = {
    "release": pathlib.Path("release").read_text(),
    "config": os.environ.get("WORD", ""),
    "dyno": socket.gethostname(),
}


class Handler(BaseHTTPRequestHandler):
    """Answers every GET with ANSWER."""

    def do_GET(self) -> None:
        """Answer."""
        body = json.dumps(ANSWER).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: requests are counted by who sends them."""


if __name__ == "__main__":
    ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler).serve_forever()
