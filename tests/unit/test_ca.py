"""The platform's CA signs what a strict TLS client accepts, and nothing else is accepted."""

import multiprocessing
import socket
import ssl
import threading

import pytest

from blackstart import ca
from blackstart.ca import ensure_ca, ensure_leaf
from blackstart.state import State


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    return State.of("unit")


def handshake(state, pair, name: str) -> None:
    folder = state.folder / "test"
    folder.mkdir(exist_ok=True)
    (folder / "chain.pem").write_text(pair.certificate + pair.key)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(folder / "chain.pem")
    client = ssl.create_default_context(cafile=str(state.ca_path))
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    ours, theirs = socket.socketpair()

    def serve() -> None:
        try:
            server.wrap_socket(theirs, server_side=True).close()
        except (ssl.SSLError, OSError):
            theirs.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        client.wrap_socket(ours, server_hostname=name).close()
    finally:
        ours.close()
        thread.join(10)


@pytest.mark.parametrize("name", ["api", "api.unit.internal", "10.0.0.1"])
def test_a_leaf_is_good_for_its_names_and_addresses(state, name):
    handshake(state, ensure_leaf(state, "api", hosts=("api", "api.unit.internal", "10.0.0.1")), name)


def test_a_leaf_is_not_good_for_another_name(state):
    with pytest.raises(ssl.SSLCertVerificationError):
        handshake(state, ensure_leaf(state, "api", hosts=("api",)), "objects")


def test_a_leaf_is_kept_until_its_names_change(state):
    first = ensure_leaf(state, "api", hosts=("api",))
    assert ensure_leaf(state, "api", hosts=("api",)) == first
    assert ensure_leaf(state, "api", hosts=("api", "other")) != first


def test_the_ca_is_made_once_and_its_key_is_secret(state):
    assert ensure_ca(state) == ensure_ca(state)
    assert (state.folder / "ca" / "ca.key").stat().st_mode & 0o777 == 0o600


def _make(root: str, results) -> None:
    import os

    os.environ["BLACKSTART_STATE"] = root
    state = State.of("unit")
    results.put((state.secrets(), ensure_ca(state), ensure_leaf(state, "api", hosts=("api",))))


def test_processes_that_start_together_make_one_ca_and_one_set_of_secrets(state):
    """Two deploys of one `up` run side by side."""
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    processes = [context.Process(target=_make, args=(str(state.folder.parent), results)) for _ in range(4)]
    for process in processes:
        process.start()
    made = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join(30)
    assert all(each == made[0] for each in made)
    handshake(state, made[0][2], "api")


def test_a_certificate_that_expires_soon_is_named(state, monkeypatch):
    ensure_leaf(state, "api", hosts=("api.unit.internal",))
    assert ca.expiring(state) == []
    monkeypatch.setattr(ca, "LEAF_DAYS", 30)
    ensure_leaf(state, "bus", hosts=("bus",))
    (said,) = ca.expiring(state)
    assert "the certificate of bus expires on" in said
    assert "run `upgrade`" in said
