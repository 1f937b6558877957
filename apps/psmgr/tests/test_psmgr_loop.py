"""The reconcile loop against a real database and bus, on an engine in memory."""

from __future__ import annotations

import dataclasses
import json
import time
from typing import Any

import redis
from sqlalchemy import select, update

from blackstart.model.bus import router_key
from blackstart.model.tables import App, Build, Dyno, Node, Release, Slug


def kinds(world: Any) -> list[str]:
    return [write for write in world.engine.writes if "_fetch_" not in write]


def is_routed(world: Any, task: str) -> bool:
    return {"id": task, "state": "ready"}.items() <= next(
        (server for server in world.routes()["apps"]["shop"]["servers"] if server["id"] == task), {}
    ).items()


def test_a_release_becomes_a_service_and_a_route(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded" and world.routes().get("hosts"))
    service = world.engine.named("tst_shop_web_v1")
    assert world.routes()["hosts"] == {"shop.tst.internal": "shop"}
    (server,) = world.routes()["apps"]["shop"]["servers"]
    assert server == {
        "id": service.tasks[0].id,
        "address": "127.0.0.1",
        "port": service.tasks[0].ports[5000],
        "state": "ready",
    }


def test_a_new_release_takes_over_only_when_routers_know_it(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded" and world.routes().get("hosts"))
    world.ack()
    old = world.engine.named("tst_shop_web_v1").tasks[0].id
    world.release(app, slug="2" * 64)
    world.until(lambda: not is_routed(world, old))
    world.ack(sessions={old: 1})
    world.until(lambda: world.status(app, 2) == "succeeded")
    states = {server["id"]: server["state"] for server in world.routes()["apps"]["shop"]["servers"]}
    assert states[old] == "drain"
    assert sorted(states.values()) == ["drain", "ready"]
    world.step()
    assert world.engine.named("tst_shop_web_v1") is not None
    world.ack(sessions={old: 0})
    world.until(lambda: world.engine.named("tst_shop_web_v1") is None)
    world.until(lambda: len(world.routes()["apps"]["shop"]["servers"]) == 1)


def patient(world: Any) -> None:
    """Let the process manager wait for routers as long as the test lasts."""
    world.settings = dataclasses.replace(world.settings, ack_s=600)
    world.reconciler = world.fresh_reconciler()


def taking_over(world: Any, types: dict[str, str] | None = None) -> tuple[Any, str]:
    """Release `shop` twice: routers know the first, and have been told of the second. Returns the app, and the old dyno."""
    patient(world)
    app = world.app("shop")
    world.release(app, types=types)
    for type_ in set(types or ()) - {"web"}:
        world.scale(app, type_, 1)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.ack()
    old = world.engine.named("tst_shop_web_v1").tasks[0].id
    world.release(app, slug="2" * 64, types=types)
    world.until(lambda: not is_routed(world, old))
    return app, old


def test_a_release_succeeds_once_every_router_uses_it(world: Any) -> None:
    patient(world)
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded")
    assert world.routes()["hosts"] == {"shop.tst.internal": "shop"}
    world.ack()
    world.release(app, slug="2" * 64)
    world.until(lambda: world.engine.named("tst_shop_web_v2"))
    new = world.engine.named("tst_shop_web_v2").tasks[0].id
    world.until(lambda: is_routed(world, new))
    for _ in range(5):
        world.step()
    assert world.status(app, 2) == "pending"
    world.ack()
    world.step()
    assert world.status(app, 2) == "succeeded"


def test_a_router_that_takes_no_table_holds_no_release_for_ever(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.ack()
    world.release(app, slug="2" * 64)
    world.until(lambda: world.status(app, 2) == "succeeded")


def test_other_apps_do_not_hold_a_release_that_routers_use(world: Any) -> None:
    patient(world)
    app, other = world.app("shop"), world.app("other")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.ack()
    world.release(app, slug="2" * 64)
    world.until(lambda: world.engine.named("tst_shop_web_v2"))
    new = world.engine.named("tst_shop_web_v2").tasks[0].id
    world.until(lambda: is_routed(world, new))
    version = world.routes()["version"]
    world.release(other, slug="3" * 64)
    world.until(lambda: "other" in world.routes()["apps"])
    world.ack(behind=world.routes()["version"] - version)
    world.step()
    assert (world.status(app, 2), world.status(other, 1)) == ("succeeded", "pending")


def test_a_release_that_crashes_while_routers_take_it_is_given_up(world: Any) -> None:
    app, old = taking_over(world)
    service = world.engine.named("tst_shop_web_v2")
    crashed = tuple(dataclasses.replace(service.tasks[0], id=f"x{i}", phase="failed", exit_code=1) for i in range(3))
    world.engine.running[service.id] = dataclasses.replace(service, tasks=crashed)
    world.until(lambda: world.status(app, 2) == "failed")
    world.until(lambda: is_routed(world, old))


def test_without_the_bus_no_web_process_is_taken_away(world: Any, monkeypatch: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded" and world.routes().get("hosts"))

    def dead(*_: object, **__: object) -> None:
        raise redis.ConnectionError("the bus is dead")

    with monkeypatch.context() as patch:
        patch.setattr(world.bus, "mget", dead)
        patch.setattr(world.bus, "pipeline", dead)
        world.release(app, slug="2" * 64)
        world.until(lambda: world.status(app, 2) == "succeeded")
        for _ in range(5):
            world.step()
        assert world.engine.named("tst_shop_web_v1") is not None
    world.until(lambda: world.engine.named("tst_shop_web_v1") is None)


def test_the_table_returns_when_the_bus_lost_it(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded" and world.routes().get("hosts"))
    version = world.routes()["version"]
    world.bus.flushall()
    world.until(lambda: world.routes().get("hosts"))
    assert world.routes()["version"] > version


def test_a_crashing_release_fails_and_the_old_one_goes_on(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded" and world.routes().get("hosts"))

    def crash(spec: Any, task: Any) -> Any:
        if not spec.name.endswith("_v2"):
            return task
        return dataclasses.replace(task, phase="failed", exit_code=1, message="task: non-zero exit (1)")

    world.engine.behave = crash
    world.release(app, slug="2" * 64, types={"web": "serve"})
    world.until(lambda: world.engine.named("tst_shop_web_v2"))
    service = world.engine.named("tst_shop_web_v2")
    crashed = tuple(dataclasses.replace(service.tasks[0], id=f"x{i}") for i in range(3))
    world.engine.running[service.id] = dataclasses.replace(service, tasks=crashed)
    before = world.engine.named("tst_shop_web_v1")
    world.until(lambda: world.engine.named("tst_shop_web_v2") is None)
    assert world.status(app, 2) == "failed"
    assert "web crashed 3 times (exit code 1)" in world.failure(app, 2)
    assert world.engine.named("tst_shop_web_v1") == before


def test_a_new_process_manager_re_creates_nothing(world: Any) -> None:
    apps = [world.app(name) for name in ("one", "two")]
    for app in apps:
        world.release(app, types={"web": "serve", "worker": "work"})
        world.scale(app, "worker", 2)
    world.until(lambda: all(world.status(app, 1) == "succeeded" for app in apps))
    world.until(lambda: len(world.routes()["hosts"]) == 2 and not world.reconciler._fetcher.busy)
    before = {s.id: s for s in world.engine.running.values()}
    table, writes = world.routes(), len(kinds(world))
    world.reconciler = world.fresh_reconciler()
    for _ in range(10):
        world.step()
    assert {id_: s for id_, s in world.engine.running.items() if id_ in before} == before
    assert kinds(world)[writes:] == []
    assert world.routes() == table


def test_scaling_changes_the_running_service(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded")
    service = world.engine.named("tst_shop_web_v1")
    world.scale(app, "web", 3)
    world.until(lambda: len(world.routes()["apps"]["shop"]["servers"]) == 3)
    assert world.engine.named("tst_shop_web_v1").id == service.id
    world.scale(app, "web", 0)
    world.until(lambda: world.engine.named("tst_shop_web_v1") is None)


def test_skipped_releases_are_superseded(world: Any) -> None:
    app = world.app("shop")
    for number in (1, 2, 3):
        world.release(app, slug=str(number) * 64)
    world.until(lambda: world.status(app, 3) == "succeeded")
    assert world.failure(app, 1) == "superseded by v3"
    assert world.status(app, 2) == "failed"
    assert not any(name.endswith(("_v1", "_v2")) for name in world.engine.names())


def test_a_deleted_app_leaves_nothing(world: Any) -> None:
    app, other = world.app("shop"), world.app("other")
    world.release(app)
    world.release(other, slug="2" * 64)
    world.store.objects = {
        f"slugs/{'1' * 64}.squashfs": b"x",
        f"slugs/{'2' * 64}.squashfs": b"y",
        f"caches/{app}": b"z",
    }
    world.until(lambda: world.status(app, 1) == "succeeded")
    with world.transaction() as session:
        session.execute(update(App).where(App.id == app).values(deleting=True))
    world.until(lambda: any("_sweep_" in write for write in world.engine.writes))
    assert not any("shop" in name for name in world.engine.names())
    assert list(world.store.objects) == [f"slugs/{'2' * 64}.squashfs"]
    world.until(lambda: list(world.routes()["hosts"]) == ["other.tst.internal"])
    with world.transaction() as session:
        for column in (App.id, Release.app_id, Slug.app_id, Dyno.app_id):
            assert session.scalars(select(column).where(column == app)).all() == []


def test_dynos_and_nodes_are_shown(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.scale(app, "web", 2)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.step()
    with world.transaction() as session:
        rows = session.scalars(select(Dyno).order_by(Dyno.name)).all()
        assert [(row.name, row.state, row.command) for row in rows] == [
            ("web.1", "up", "serve"),
            ("web.2", "up", "serve"),
        ]
        assert [node.name for node in session.scalars(select(Node).order_by(Node.name))] == ["node1", "node2"]
    world.scale(app, "web", 1)
    world.until(lambda: len(world.engine.named("tst_shop_web_v1").tasks) == 1)
    world.step()
    with world.transaction() as session:
        assert session.scalars(select(Dyno.name)).all() == ["web.1"]


def test_one_broken_app_does_not_stop_the_others(world: Any) -> None:
    bad, good = world.app("bad"), world.app("good")
    world.release(bad)
    with world.transaction() as session:
        session.execute(update(Release).where(Release.app_id == bad).values(config=b"1garbage" * 9))
    world.release(good)
    world.until(lambda: world.status(good, 1) == "succeeded")
    assert world.status(bad, 1) == "pending"


def test_where_two_would_share_a_volume_one_is_replaced_in_one_write(world: Any) -> None:
    component = {"name": "postgres", "processes": {"db": {"volume": True, "strategy": "recreate", "quantity": 1}}}
    app = world.app("postgres", component)
    world.release(app, types={"db": "bin/db"})
    world.scale(app, "db", 1)
    world.until(lambda: world.engine.named("tst_postgres_db_v2") or world.status(app, 1) == "succeeded")
    world.release(app, slug="2" * 64, types={"db": "bin/db"})
    world.until(lambda: world.status(app, 2) == "succeeded")
    own = [write for write in kinds(world) if "postgres" in write]
    assert own == ["create tst_postgres_db_v1", "replace tst_postgres_db_v1 by tst_postgres_db_v2"]


def test_what_replaced_the_only_dyno_gets_requests_while_the_engine_still_looks(world: Any) -> None:
    component = {"name": "shop", "processes": {"web": {"volume": True, "strategy": "recreate", "quantity": 1}}}
    app = world.app("shop", component)
    world.release(app)
    world.scale(app, "web", 1)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.release(app, slug="2" * 64)
    world.until(lambda: any("replace" in write for write in world.engine.writes))
    service = world.engine.named("tst_shop_web_v1")
    world.engine.running[service.id] = dataclasses.replace(service, in_change=True)
    world.until(lambda: is_routed(world, service.tasks[0].id))
    assert world.status(app, 2) == "pending"


def test_a_router_that_stops_holds_no_release(world: Any) -> None:
    app, _ = taking_over(world)
    world.step()
    assert world.status(app, 2) == "pending"
    node, *others = world.engine.machines
    before = world.bus.get(router_key(others[0].name))
    world.ack()
    world.bus.set(router_key(node.name), json.dumps(json.loads(before) | {"stopping": True}))
    world.until(lambda: world.status(app, 2) == "succeeded")


def test_a_router_that_fell_silent_is_waited_for(world: Any) -> None:
    app, _ = taking_over(world)
    world.ack()
    world.bus.delete(router_key(world.engine.machines[0].name))
    for _ in range(5):
        world.step()
    assert world.status(app, 2) == "pending"
    assert world.engine.named("tst_shop_web_v1") is not None
    world.ack()
    world.until(lambda: world.status(app, 2) == "succeeded" and world.engine.named("tst_shop_web_v1") is None)


def test_a_bus_that_came_back_with_an_older_table_gets_the_newest(world: Any) -> None:
    app, other = world.app("shop"), world.app("other")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded")
    older = world.bus.get("routes")
    world.release(other, slug="2" * 64)
    world.until(lambda: world.status(other, 1) == "succeeded")
    world.bus.set("routes", older)
    world.until(lambda: "other" in world.routes()["apps"])


def test_a_worker_that_fails_later_does_not_send_requests_back(world: Any) -> None:
    app, old = taking_over(world, {"web": "serve", "worker": "work"})
    worker = world.engine.named("tst_shop_worker_v2")
    young = tuple(dataclasses.replace(task, since=time.time() + 60) for task in worker.tasks)
    world.engine.running[worker.id] = dataclasses.replace(worker, tasks=young)
    for _ in range(3):
        world.step()
    assert not is_routed(world, old)
    assert world.status(app, 2) == "pending"


def test_no_build_is_lost(world: Any) -> None:
    assert world.engine is not None
    with world.transaction() as session:
        assert session.scalars(select(Build)).all() == []


def restart(world: Any, app: Any, *names: str) -> None:
    with world.transaction() as session:
        session.execute(update(Dyno).where(Dyno.app_id == app, Dyno.name.in_(names)).values(stop_requested=True))


def tasks_of(world: Any, name: str) -> dict[int, str]:
    return {task.slot: task.id for task in world.engine.named(name).tasks}


def routed(world: Any) -> int:
    return len(world.routes().get("apps", {}).get("shop", {"servers": []})["servers"])


def marked(world: Any) -> list[str]:
    with world.transaction() as session:
        return list(session.scalars(select(Dyno.name).where(Dyno.stop_requested).order_by(Dyno.name)))


def three_dynos(world: Any) -> tuple[Any, dict[int, str]]:
    """Return an app whose three web dynos are routed, and their tasks."""
    app = world.app("shop")
    world.release(app)
    world.scale(app, "web", 3)
    world.until(lambda: world.status(app, 1) == "succeeded" and routed(world) == 3)
    world.step()
    before = tasks_of(world, "tst_shop_web_v1")
    return app, before


def test_a_restarted_dyno_is_stopped_once_and_only_that_one(world: Any) -> None:
    app, before = three_dynos(world)
    restart(world, app, "web.2")
    world.until(lambda: marked(world) == [])
    for _ in range(5):
        world.step()
    after = tasks_of(world, "tst_shop_web_v1")
    assert {slot for slot in before if before[slot] != after[slot]} == {2}
    assert [write for write in world.engine.writes if "_stop_" in write] == [
        f"create tst_stop_{before[2]}",
        f"remove tst_stop_{before[2]}",
    ]


def test_all_dynos_restart_one_after_another(world: Any) -> None:
    app, before = three_dynos(world)
    restart(world, app, "web.1", "web.2", "web.3")
    fewest = 3
    for _ in range(100):
        world.step()
        fewest = min(fewest, routed(world))
        if not marked(world):
            break
    assert marked(world) == []
    assert not set(before.values()) & set(tasks_of(world, "tst_shop_web_v1").values())
    assert fewest >= 2


def test_a_new_process_manager_goes_on_with_a_restart(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded" and world.routes().get("hosts"))
    world.step()
    before = tasks_of(world, "tst_shop_web_v1")
    restart(world, app, "web.1")
    world.engine.stops = False  # the job was made, and nothing came of it yet
    world.step()
    world.reconciler = world.fresh_reconciler()
    world.step()
    jobs = [service for service in world.engine.running.values() if "_stop_" in service.name]
    assert [job.name for job in jobs] == [f"tst_stop_{before[1]}"]
    world.engine.stops = True
    world.engine.running[jobs[0].id] = dataclasses.replace(jobs[0], created=jobs[0].created - 1000)
    world.until(lambda: marked(world) == [])
    assert before != tasks_of(world, "tst_shop_web_v1")


def test_a_dyno_whose_port_the_engine_forgot_is_restarted(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded" and world.routes().get("hosts"))
    service = world.engine.named("tst_shop_web_v1")
    lost = dataclasses.replace(service.tasks[0], id="unknown", ports={}, since=service.created - 100)
    world.engine.running[service.id] = dataclasses.replace(service, tasks=(lost,))
    world.until(lambda: tasks_of(world, "tst_shop_web_v1")[1] != "unknown")
    world.until(lambda: routed(world) == 1)


def test_the_deadline_of_a_release_outlives_its_process_manager(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded")

    def slow(spec: Any, task: Any) -> Any:
        return dataclasses.replace(task, phase="starting") if spec.name.endswith("_v2") else task

    world.engine.behave = slow
    world.release(app, slug="2" * 64)
    world.until(lambda: world.engine.named("tst_shop_web_v2"))
    service = world.engine.named("tst_shop_web_v2")
    begun = service.created - world.settings.deploy_timeout_s
    world.engine.running[service.id] = dataclasses.replace(service, created=begun - 1)
    world.step()
    assert world.status(app, 2) == "pending"
    world.reconciler = world.fresh_reconciler()
    world.until(lambda: world.status(app, 2) == "failed")
    assert "not healthy within the deadline" in world.failure(app, 2)


def test_a_damaged_slug_fails_its_release_at_once_and_the_old_one_goes_on(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    world.until(lambda: world.status(app, 1) == "succeeded")

    def damaged(spec: Any, task: Any) -> Any:
        return dataclasses.replace(task, phase="failed", exit_code=45) if "_fetch_2" in spec.name else task

    world.engine.behave = damaged
    world.release(app, slug="2" * 64)
    world.until(lambda: world.status(app, 2) == "failed")
    assert "other bytes than its sha256 promises: build the app again" in world.failure(app, 2)
    assert world.engine.named("tst_shop_web_v1") is not None
    world.engine.behave = lambda spec, task: task
    world.release(app, slug="2" * 64)
    world.until(lambda: world.status(app, 3) == "succeeded")
