"""Load counts what was answered and what was not, each by name."""

from __future__ import annotations

import http.server
import threading
from types import SimpleNamespace

import pytest

from blackstart.client import wait_for
from blackstart.load import Load


class Answers(http.server.BaseHTTPRequestHandler):
    """200 for the app `good`, 503 for every other."""

    def do_GET(self) -> None:
        self.send_response(200 if self.headers["Host"] == "good.example.internal" else 503)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def router():
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def asked(app: str, address: str) -> Load:
    platform = SimpleNamespace(domain="example.internal", node_addresses=(address,))
    with Load(platform, app) as load:
        wait_for(lambda: True if load.answers.total() > 5 else None, "answers", seconds=30)
    return load


def test_answers_are_counted(router):
    load = asked("good", router)
    assert load.failures == {}
    assert load.answers["200"] > 5


def test_failures_are_named(router):
    assert set(asked("bad", router).failures) == {"503"}


def test_a_router_that_is_away_is_a_failure():
    load = asked("good", "127.0.0.1:1")
    assert load.answers["200"] == 0
    assert all(name.startswith("ConnectError") for name in load.failures)
