"""Dynos: what runs, one-offs, restarts."""

from typing import Any

import httpx
import pytest

from blackstart.model.tables import Dyno


@pytest.fixture
def running(shop: str, rows: Any) -> None:
    """Two web dynos and an ended one-off, as psmgr writes them."""
    app, release = rows.one("SELECT app_id, id FROM releases WHERE version = 2")
    common = {"app_id": app, "release_id": release, "node": "n1", "command": "x"}
    rows.add(
        Dyno(type="web", name="web.1", state="up", task="t1", **common),
        Dyno(type="web", name="web.2", state="crashed", task="t2", **common),
        Dyno(type="run", name="run.1234", state="complete", one_off=True, exit_code=3, output="hello\n", **common),
    )


def test_dynos_are_listed_without_ended_one_offs(alice: httpx.Client, running: None) -> None:
    listed = alice.get("/apps/shop/dynos").json()
    assert [(one["name"], one["state"]) for one in listed] == [("web.1", "up"), ("web.2", "crashed")]
    assert alice.get("/apps/shop/dynos/web.1").json() == listed[0]
    assert alice.get(f"/apps/shop/dynos/{listed[0]['id']}").json() == listed[0]


def test_an_ended_one_off_is_found_by_name_with_its_output(alice: httpx.Client, running: None) -> None:
    ended = alice.get("/apps/shop/dynos/run.1234").json()
    assert (ended["state"], ended["exit_code"]) == ("complete", 3)
    output = alice.get("/apps/shop/dynos/run.1234/output")
    assert output.text == "hello\n"
    assert (output.headers["Dyno-State"], output.headers["Dyno-Exit-Code"]) == ("complete", "3")
    assert alice.get("/apps/shop/dynos/web.1/output").status_code == 422


def test_a_one_off_is_written_down_for_psmgr(alice: httpx.Client, shop: str, rows: Any) -> None:
    body = {"command": "echo 'a b'; ls", "env": {"TERM": "xterm", "COLUMNS": "80"}, "size": "Standard-2X"}
    made = alice.post("/apps/shop/dynos", json={**body, "attach": False, "time_to_live": 60})
    assert made.status_code == 201
    dyno = made.json()
    assert dyno["name"].startswith("run.")
    assert (dyno["state"], dyno["type"], dyno["release"]["version"]) == ("starting", "run", 2)
    assert dyno["attach_url"] is None
    row = rows.one("SELECT app_id, env, command, state, one_off, size, time_limit_s FROM dynos")
    assert row[2:] == ("echo 'a b'; ls", "pending", True, "standard-2X", 60)
    assert rows.sealer.open(bytes(row[1]), str(row[0])) == {"TERM": "xterm", "COLUMNS": "80"}
    assert [one["name"] for one in alice.get("/apps/shop/dynos").json()] == [dyno["name"]]


def test_attaching_says_what_to_use_instead(alice: httpx.Client, shop: str) -> None:
    refused = alice.post("/apps/shop/dynos", json={"command": "bash", "attach": True})
    assert refused.status_code == 422
    assert "run:detached" in refused.json()["message"]


BAD: list[dict[str, Any]] = [
    {},
    {"command": ""},
    {"command": " "},
    {"command": "a\0b"},
    {"command": ["ls"]},
    {"command": "x" * 20_000},
    {"command": "ls", "size": "huge"},
    {"command": "ls", "type": "-rf"},
    {"command": "ls", "type": "a;b"},
    {"command": "ls", "time_to_live": 0},
    {"command": "ls", "time_to_live": 86_401},
    {"command": "ls", "env": {"PORT": "1"}},
    {"command": "ls", "env": {"BLACKSTART_SLUG": "1"}},
    {"command": "ls", "env": {"A=B": "1"}},
    {"command": "ls", "env": {"A": 1}},
]


@pytest.mark.parametrize("body", BAD)
def test_a_bad_one_off_is_refused(alice: httpx.Client, shop: str, body: dict[str, Any], rows: Any) -> None:
    refused = alice.post("/apps/shop/dynos", json=body)
    assert (refused.status_code, refused.json()["id"]) == (422, "invalid_params")
    assert rows.one("SELECT count(*) FROM dynos") == (0,)


def test_an_app_without_code_runs_nothing(alice: httpx.Client) -> None:
    alice.post("/apps", json={"name": "empty"})
    refused = alice.post("/apps/empty/dynos", json={"command": "ls"})
    assert refused.status_code == 422
    assert "no code yet" in refused.json()["message"]


def test_a_one_off_runs_the_release_that_runs_not_one_that_may_fail(alice: httpx.Client, shop: str, rows: Any) -> None:
    rows.deploy("shop", slug="c", status="pending")
    assert alice.post("/apps/shop/dynos", json={"command": "ls"}).json()["release"]["version"] == 2


@pytest.mark.parametrize(
    ("method", "path", "stopped"),
    [
        ("DELETE", "/dynos", ["web.1", "web.2"]),
        ("DELETE", "/dynos/web.2", ["web.2"]),
        ("POST", "/dynos/web.1/actions/stop", ["web.1"]),
        ("DELETE", "/formations/web", ["web.1", "web.2"]),
        ("POST", "/formations/web/actions/stop", ["web.1", "web.2"]),
        ("POST", "/dynos/run.1234/actions/stop", []),
    ],
)
def test_restart_and_stop_mark_the_dynos_for_psmgr(
    alice: httpx.Client, running: None, rows: Any, method: str, path: str, stopped: list[str]
) -> None:
    answer = alice.request(method, f"/apps/shop{path}")
    assert (answer.status_code, answer.json()) == (202, {})
    marked = rows.one("SELECT coalesce(json_agg(name ORDER BY name), '[]') FROM dynos WHERE stop_requested")[0]
    assert marked == stopped


def test_a_one_off_that_runs_is_stopped(alice: httpx.Client, shop: str, rows: Any) -> None:
    name = alice.post("/apps/shop/dynos", json={"command": "ls"}).json()["name"]
    assert alice.post(f"/apps/shop/dynos/{name}/actions/stop").status_code == 202
    assert rows.one("SELECT stop_requested FROM dynos") == (True,)


@pytest.mark.parametrize("name", ["web.9", "-rf", "6f1a3c52-0000-4000-8000-00000000beef"])
def test_an_unknown_dyno_is_404(alice: httpx.Client, running: None, name: str) -> None:
    for method, path in (("GET", ""), ("DELETE", ""), ("POST", "/actions/stop"), ("GET", "/output")):
        assert alice.request(method, f"/apps/shop/dynos/{name}{path}").status_code == 404
