"""What the router survives."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path

from router_harness import Backend, Bus, Load, Router, children, request, until


def serving(bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]) -> Router:
    bus.table({"shop": [backend("one").entry()]})
    one = router()
    bus.applied(1)
    return one


def test_the_bus_dead_at_boot_leaves_the_last_good_table(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    first = serving(bus, router, backend)
    first.stop()
    first.process.wait()
    bus.stop()
    second = router()
    assert request(second.port).text == "one GET"
    second.says("has no connection")


def test_the_bus_may_die_and_come_back(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    one = serving(bus, router, backend)
    new = backend("two")
    bus.stop()
    one.says("listener has no connection")
    one.says("announcer has no connection")
    assert request(one.port).text == "one GET"
    bus.start()
    bus.applied(bus.table({"shop": [new.entry()]}))
    assert request(one.port).text == "two GET"
    assert one.log().count("listener has no connection") == one.log().count("announcer has no connection") == 1


def test_a_malformed_table_is_refused_and_reported(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    one = serving(bus, router, backend)
    for text in ("{", "[]", json.dumps({"version": 9, "hosts": {"a;b": "shop"}, "apps": {}})):
        bus.text(text)
        until(lambda: "error" in bus.ack(), "the refusal is reported")
        assert bus.ack()["version"] == 1
        assert request(one.port).text == "one GET"
        bus.applied(bus.table({"shop": [backend("one").entry()]}, version=1))
    one.says("hosts: 'a;b' is not a host name")


def test_an_older_table_is_refused_and_reported(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    dyno = backend("one")
    bus.table({"shop": [dyno.entry()]}, version=7)
    one = router()
    bus.applied(7)
    bus.table({"shop": []}, version=6)
    until(lambda: "older" in bus.ack().get("error", ""), "the refusal is reported")
    assert request(one.port).status == 200
    bus.applied(bus.table({"shop": []}, version=8))
    assert "error" not in bus.ack()


def test_haproxy_killed_comes_back_with_its_table(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    one = serving(bus, router, backend)
    bus.applied(bus.table({"shop": [backend("two").entry()]}))
    (master,) = one.masters()
    (worker,) = children(master)
    os.kill(worker, signal.SIGKILL)
    until(lambda: one.masters() not in ([master], []), "a new HAProxy runs")
    one.says("HAProxy serves version 2")
    assert request(one.port).text == "two GET"
    until(lambda: bus.ack()["servers"].keys() == {"two"}, "the new HAProxy is reported")


def test_the_drivers_own_sigkill_leaves_no_haproxy_and_the_next_one_serves(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    one = serving(bus, router, backend)
    (master,) = one.masters()
    one.process.kill()
    one.process.wait()
    until(lambda: ended(master), "the left-over HAProxy ends")
    two = router()
    assert request(two.port).text == "one GET"


def test_a_driver_restarted_after_sigkill_while_a_request_runs_loses_none(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    dyno = backend("one")
    bus.table({"shop": [dyno.entry()]})
    one = router()
    bus.applied(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        held = pool.submit(request, one.port, "/hold")
        until(lambda: bus.ack()["servers"]["one"]["sessions"] == 1, "the request is on the dyno")
        one.process.kill()
        one.process.wait()
        two = router()
        assert request(two.port).text == "one GET"
        request(dyno.port, "/release")
        assert held.result().text == "one GET"


def test_sigterm_finishes_the_request_in_flight(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    dyno = backend("one")
    bus.table({"shop": [dyno.entry()]})
    one = router()
    bus.applied(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        held = pool.submit(request, one.port, "/hold")
        until(lambda: bus.ack()["servers"]["one"]["sessions"] == 1, "the request is on the dyno")
        one.stop()
        until(lambda: refused(one.port), "no new connection is accepted")
        request(dyno.port, "/release")
        assert held.result().text == "one GET"
    assert one.process.wait(20) == 0


def test_sigterm_ends_within_its_time_though_a_request_never_does(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    bus.table({"shop": [backend("one").entry()]})
    one = router(ROUTER_STOP_SECONDS="1")
    bus.applied(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        held = pool.submit(request, one.port, "/hold")
        until(lambda: bus.ack()["servers"]["one"]["sessions"] == 1, "the request is on the dyno")
        one.stop()
        assert one.process.wait(20) == 0
        assert held.exception() is not None


def test_two_routers_on_the_same_ports_hand_over_without_a_failed_request(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    current = serving(bus, router, backend)
    with (
        Load(current.port, fresh=True, methods=("GET", "POST")) as load,
        Load(current.port, methods=("GET", "POST")) as kept,
    ):
        for _ in range(4):
            load.more()
            new = router()
            load.more()
            current.stop()
            assert current.process.wait(30) == 0
            load.more()
            kept.more()
            current = new
    assert load.failures == kept.failures == []


def test_while_two_routers_run_the_sessions_of_both_are_reported(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    dyno = backend("one")
    bus.table({"shop": [dyno.entry()]})
    old = router()
    bus.applied(1)
    with concurrent.futures.ThreadPoolExecutor() as pool:
        held = pool.submit(request, old.port, "/hold")
        until(lambda: bus.ack()["servers"]["one"]["sessions"] == 1, "the request is on the dyno")
        router()
        old.stop()
        bus.applied(bus.table({"shop": [backend("two").entry()]}))
        assert bus.ack()["servers"]["one"]["sessions"] == 1
        request(dyno.port, "/release")
        assert held.result().text == "one GET"
    until(lambda: bus.ack()["servers"].keys() == {"two"}, "the old router's session is gone")


def test_a_damaged_table_on_disk_does_not_stop_the_router(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend], tmp_path: Path
) -> None:
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "routes.json").write_text('{"version": 3, "ho')
    one = serving(bus, router, backend)
    one.says("routes.json cannot be read")
    assert request(one.port).text == "one GET"


def test_a_state_folder_that_is_missing_is_said_and_survived(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend], tmp_path: Path
) -> None:
    bus.table({"shop": [backend("one").entry()]})
    one = router(ROUTER_STATE=str(tmp_path / "nowhere"))
    bus.applied(1)
    assert request(one.port).text == "one GET"
    until(lambda: "cannot be written" in bus.ack().get("error", ""), "the disk's failure is reported")


def refused(port: int) -> bool:
    try:
        request(port, timeout=1)
    except OSError:
        return True
    return False


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
