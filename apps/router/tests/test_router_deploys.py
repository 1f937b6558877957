"""What users see while their dynos come and go: no request fails."""

from __future__ import annotations

import signal
from collections.abc import Callable

from router_harness import Backend, Bus, Load, Router, request, until


def roll(bus: Bus, old: Backend, new: Backend) -> None:
    """Replace `old` by `new` as psmgr does, then stop `old`."""
    bus.applied(bus.table({"shop": [new.entry(), old.entry("drain")]}))
    until(lambda: bus.ack()["servers"].get(old.name, {"sessions": 0})["sessions"] == 0, "the old dyno has no sessions")
    bus.applied(bus.table({"shop": [new.entry()]}))
    until(lambda: old.name not in bus.ack()["servers"], "the old dyno is gone from HAProxy")
    old.process.send_signal(signal.SIGTERM)
    old.process.wait()


def test_twenty_deploys_under_constant_requests_fail_none(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    current = backend("v0")
    bus.table({"shop": [current.entry()]})
    one = router()
    bus.applied(1)
    with Load(one.port, methods=("GET", "POST")) as load:
        for number in range(1, 21):
            new = backend(f"v{number}")
            roll(bus, current, new)
            current = new
            load.more()
    assert load.failures == []
    assert request(one.port).text == "v20 GET"
    assert one.log().count("reloading") == 0


def test_killing_one_of_two_dynos_fails_no_get(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    left, right = backend("left"), backend("right")
    bus.table({"shop": [left.entry(), right.entry()]})
    one = router()
    bus.applied(1)
    with Load(one.port) as load, Load(one.port, fresh=True) as fresh:
        load.more()
        right.process.kill()
        until(lambda: bus.ack()["servers"]["right"]["status"] == "DOWN", "the router sees the dyno down")
        load.more()
        fresh.more()
    assert load.failures == fresh.failures == []


def test_a_killed_dyno_is_used_again_when_it_is_back(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    dyno = backend("one")
    bus.table({"shop": [dyno.entry()]})
    one = router()
    bus.applied(1)
    dyno.process.kill()
    dyno.process.wait()
    until(lambda: request(one.port).status == 503, "the app is crashed")
    assert "H10" in request(one.port).text
    backend("one", dyno.port)
    until(lambda: request(one.port).status == 200, "the app answers again")


def test_a_drained_dyno_keeps_its_request_and_gets_no_other(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    import concurrent.futures

    old, new = backend("old"), backend("new")
    bus.table({"shop": [old.entry()]})
    one = router()
    bus.applied(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        held = pool.submit(request, one.port, "/hold")
        until(lambda: bus.ack()["servers"]["old"]["sessions"] == 1, "the router reports the session")
        bus.applied(bus.table({"shop": [new.entry(), old.entry("drain")]}))
        assert {request(one.port).text for _ in range(10)} == {"new GET"}
        assert bus.ack()["servers"]["old"] == {"status": "DRAIN", "sessions": 1}
        bus.applied(bus.table({"shop": [new.entry()]}))
        assert bus.ack()["servers"]["old"] == {"status": "MAINT", "sessions": 1}
        request(old.port, "/release")
        assert held.result().text == "old GET"
    until(lambda: "old" not in bus.ack()["servers"], "the old dyno is gone from HAProxy")


def test_scaled_to_none_says_so_and_back(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    dyno = backend("one")
    bus.table({"shop": [dyno.entry()]})
    one = router()
    bus.applied(1)
    bus.applied(bus.table({"shop": []}))
    gone = request(one.port)
    assert (gone.status, "H14" in gone.text, gone.headers["content-type"]) == (503, True, "text/plain; charset=utf-8")
    assert request(one.port, headers={"Accept": "text/html"}).text.startswith("<!DOCTYPE html>")
    bus.applied(bus.table({"shop": [dyno.entry()]}))
    assert request(one.port).status == 200


def test_more_apps_than_slots_reload_without_a_failed_request_or_a_lost_websocket(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    from router_harness import websocket

    dyno = backend("one")
    bus.table({"shop": [dyno.entry()]})
    one = router(ROUTER_SLOTS="2")
    bus.applied(1)
    with websocket(one.port) as chat, Load(one.port, fresh=True, methods=("GET", "POST")) as load:
        load.more()
        apps = {"shop": [dyno.entry()]} | {f"app-{number:02d}": [dyno.entry()] for number in range(20)}
        bus.applied(bus.table(apps))
        load.more(200)
        chat.sendall(b"still here")
        assert chat.recv(100) == b"still here"
        assert bus.ack()["servers"]["one"]["sessions"] >= 1
    assert load.failures == []
    assert "reloading HAProxy" in one.log()
    assert {request(one.port, host=f"app-{number:02d}.example").status for number in range(20)} == {200}
