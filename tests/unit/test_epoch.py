"""What a stage 0 that is started again learns from the platform's routers."""

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from blackstart.ca import ensure_leaf
from blackstart.model.epoch import EpochWatch, epoch_at
from blackstart.state import State

DOMAIN = "unit.internal"


class Router:
    """A router with an API behind it: answers `/health` over TLS, for the API's name only."""

    def __init__(self, state: State, *, certificate_for: str, health: object) -> None:
        asked = self.asked = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked.append((self.path, self.headers["Host"]))
                body = json.dumps(health).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        pair = ensure_leaf(state, "api", hosts=(certificate_for,))
        chain = state.folder / "chain.pem"
        chain.write_text(pair.certificate + pair.key)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(chain)
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    @property
    def port(self) -> int:
        return self.server.server_address[1]


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    return State.of("unit")


@pytest.fixture
def asked_at(state):
    routers = []

    def ask(health: object, *, certificate_for: str = f"api.{DOMAIN}") -> int:
        routers.append(Router(state, certificate_for=certificate_for, health=health))
        return epoch_at("127.0.0.1", DOMAIN, str(state.ca_path), port=routers[-1].port)

    yield ask
    for router in routers:
        router.server.shutdown()
        router.server.server_close()


def test_a_router_that_knows_a_later_epoch_is_believed(asked_at):
    assert asked_at({"stage": "self-hosted", "epoch": 1}) == 1


@pytest.mark.parametrize("health", [{"epoch": None}, {}, [], "no", {"epoch": "1"}])
def test_an_answer_without_an_epoch_says_nothing(asked_at, health):
    assert asked_at(health) == 0


def test_somebody_elses_certificate_says_nothing(asked_at):
    assert asked_at({"epoch": 1}, certificate_for="api.other.internal") == 0


def test_nobody_there_says_nothing(state):
    ensure_leaf(state, "api", hosts=("api",))
    watch = EpochWatch(["127.0.0.1"], DOMAIN, str(state.ca_path))
    watch.look()
    assert (watch.seen, watch.reason) == (0, "")


def test_what_was_seen_once_stays_true(state):
    watch = EpochWatch([], DOMAIN, str(state.ca_path))
    watch.seen = 1
    watch.look()
    assert "epoch 1" in watch.reason
