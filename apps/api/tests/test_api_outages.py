"""The database, the bus, the object store away; a control plane that is not in charge; an older schema."""

import socket
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from api import admin as admin_commands
from api.call import inactive
from api.schema import HEAD, migrate
from sqlalchemy.orm import Session


def health(client: httpx.Client) -> Any:
    answer = client.get("/health")
    assert answer.status_code == 200
    return answer.json()


def test_health_says_all_is_well(nobody: httpx.Client, eventually: Callable[..., Any]) -> None:
    well = {
        "status": "ok",
        "database": "ok",
        "bus": "ok",
        "role": "stage-0",
        "stage": "stage-0",
        "epoch": 0,
        "active": True,
    }
    eventually(lambda: health(nobody) == well, "good health")


def test_a_dead_database_is_503_at_once_and_comes_back_by_itself(
    alice: httpx.Client, nobody: httpx.Client, cluster: Any, shop: str, eventually: Callable[..., Any]
) -> None:
    cluster.stop()
    try:
        for _ in range(3):
            started = time.monotonic()
            answer = alice.get("/apps/shop")
            assert (answer.status_code, answer.json()["id"]) == (503, "database_unavailable")
            assert answer.headers["Retry-After"] == "2"
            assert time.monotonic() - started < 3
        eventually(lambda: health(nobody)["status"] == "degraded", "bad health")
        assert health(nobody)["database"] == "no connection"
    finally:
        cluster.start()
    eventually(lambda: alice.get("/apps/shop").status_code == 200, "recovery")
    eventually(lambda: health(nobody)["status"] == "ok", "good health")


def test_it_starts_without_database_and_bus(servers: Any, clients: Any, with_settings: Callable[..., Any]) -> None:
    lost = with_settings(database_url="postgresql+psycopg://x@127.0.0.1:1/x", bus_url="redis://127.0.0.1:1/0")
    client = clients.make("x", servers.start(lost).url)
    found = health(client)
    assert (found["status"], found["database"], found["bus"]) == ("degraded", "no connection", "no connection")
    assert (found["stage"], found["active"]) == (None, False)
    answer = client.get("/account")
    assert answer.status_code == 503
    assert "127.0.0.1" not in answer.text


def test_a_silent_database_holds_nobody_for_long(servers: Any, clients: Any, with_settings: Callable[..., Any]) -> None:
    # An address of TEST-NET-1 would leave this machine; a socket that never accepts does not.

    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        url = f"postgresql+psycopg://x@127.0.0.1:{deaf.getsockname()[1]}/x"
        client = clients.make("x", servers.start(with_settings(database_url=url)).url)
        started = time.monotonic()
        assert client.get("/account").status_code == 503
        assert time.monotonic() - started < 8


def test_a_bus_that_hangs_holds_no_write(
    servers: Any, clients: Any, rows: Any, with_settings: Callable[..., Any]
) -> None:
    with socket.socket() as deaf:
        deaf.bind(("127.0.0.1", 0))
        deaf.listen(1)
        url = f"redis://127.0.0.1:{deaf.getsockname()[1]}/0"
        client = clients.make(rows.account("carol@example.com"), servers.start(with_settings(bus_url=url)).url)
        started = time.monotonic()
        for number in range(5):
            assert client.post("/apps", json={"name": f"app-{number}"}).status_code == 201
        assert time.monotonic() - started < 5


def test_writes_succeed_and_stay_quick_without_the_bus(
    alice: httpx.Client, nobody: httpx.Client, bus: Any, eventually: Callable[..., Any]
) -> None:
    bus.stop()
    started = time.monotonic()
    for number in range(5):
        assert alice.post("/apps", json={"name": f"app-{number}"}).status_code == 201
    assert time.monotonic() - started < 10
    eventually(lambda: health(nobody)["bus"] == "no connection", "bad health")
    bus.start()
    eventually(lambda: health(nobody)["bus"] == "ok", "good health")


def test_it_works_without_any_bus_or_store(
    servers: Any, clients: Any, rows: Any, api: Any, with_settings: Callable[..., Any]
) -> None:
    bare = servers.start(with_settings(bus_url=None, objects=None))
    client = clients.make(rows.account("carol@example.com"), bare.url)
    assert client.post("/apps", json={"name": "shop"}).status_code == 201
    refused = client.post("/sources")
    assert (refused.status_code, refused.json()["id"]) == (503, "objects_unavailable")
    body = {"source_blob": {"url": "https://example.com/x"}}
    build = client.post("/apps/shop/builds", json=body).json()
    rows.set_build(build["id"], status="succeeded", output="done\n")
    assert client.get(build["output_stream_url"]).text == "done\n"


STAGES = [
    ("stage-0", "stage-0", True, True),
    ("stage-0", "moving", True, False),
    ("stage-0", "self-hosted", False, False),
    ("app", "stage-0", False, False),
    ("app", "moving", False, False),
    ("app", "self-hosted", True, True),
]


@pytest.mark.parametrize(("role", "stage", "reads", "writes"), STAGES)
def test_only_the_control_plane_in_charge_acts(
    role: Any, stage: str, reads: bool, writes: bool, servers: Any, clients: Any, rows: Any, with_settings: Any
) -> None:
    token = rows.account("carol@example.com")
    client = clients.make(token, servers.start(with_settings(role=role)).url)
    rows.platform(stage)
    for answer, allowed, good in (
        (client.get("/account"), reads, 200),
        (client.post("/apps", json={"name": "shop"}), writes, 201),
    ):
        assert answer.status_code == (good if allowed else 503)
        assert allowed or answer.json()["id"] == "not_active"
    found = health(client)
    assert (found["role"], found["stage"], found["active"]) == (role, stage, writes)
    assert (inactive(role, stage, writes=False) is None, inactive(role, stage, writes=True) is None) == (reads, writes)


def test_without_a_platform_row_nothing_is_done(alice: httpx.Client, rows: Any) -> None:
    with rows.engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM platform")
    assert alice.get("/account").json()["id"] == "not_active"


def test_moving_waits_for_a_write_under_way_and_none_comes_after(
    alice: httpx.Client, shop: str, rows: Any, eventually: Callable[..., Any]
) -> None:
    waiting = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"
    with Session(rows.engine) as blocker, ThreadPoolExecutor(2) as pool:
        # The write holds the platform's row while it waits for the app's row.
        blocker.connection().exec_driver_sql("SELECT 1 FROM apps FOR UPDATE")
        write = pool.submit(alice.patch, "/apps/shop/config-vars", json={"A": "1"})
        eventually(lambda: rows.one(waiting) == (1,), "the write to wait for the app")
        move = pool.submit(admin_commands.set_stage, rows.engine, "moving", "stage-0")
        eventually(lambda: rows.one(waiting) == (2,), "the move to wait for the write")
        blocker.rollback()
        assert write.result(timeout=20).status_code == 200
        assert move.result(timeout=20) == "stage moving, epoch 1"
    assert alice.patch("/apps/shop/config-vars", json={"A": "2"}).json()["id"] == "not_active"
    assert alice.get("/apps/shop/config-vars").json() == {"A": "1"}


def test_a_database_without_schema_is_said_so_and_used_once_migrated(
    empty_database: str, servers: Any, clients: Any, with_settings: Any, eventually: Callable[..., Any]
) -> None:
    client = clients.make("x", servers.start(with_settings(database_url=empty_database)).url)
    assert health(client)["database"] == "the database has no schema yet; run bin/migrate"
    assert client.get("/account").json()["id"] == "schema_outdated"
    migrate(empty_database)
    eventually(lambda: health(client)["database"] == "ok", "the schema to be found")


@pytest.mark.parametrize(("revision", "status"), [("0000", 503), ("9999", 201)])
def test_an_older_schema_refuses_writes_a_newer_one_not(
    revision: str, status: int, servers: Any, clients: Any, rows: Any, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.database.KNOWN", (HEAD, "0000"))
    token = rows.account("carol@example.com")
    try:
        with rows.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{revision}'")
        client = clients.make(token, servers.start(settings).url)
        assert client.get("/account").status_code == 200
        answer = client.post("/apps", json={"name": "shop"})
        assert answer.status_code == status
        assert status == 201 or answer.json()["id"] == "schema_outdated"
    finally:
        with rows.engine.begin() as connection:
            connection.exec_driver_sql(f"UPDATE alembic_version SET version_num = '{HEAD}'")


def test_config_sealed_with_another_key_is_said_so(alice: httpx.Client, shop: str, rows: Any) -> None:
    with rows.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE releases SET config = 'x'")
    answer = alice.get("/apps/shop/config-vars")
    assert (answer.status_code, answer.json()["id"]) == (500, "wrong_secret_key")
