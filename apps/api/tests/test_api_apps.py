"""Apps: names, ownership, components, deletion."""

import re
from typing import Any

import httpx
import pytest

COMPONENT = {"name": "postgres", "processes": {"db": {"quantity": 1, "volume": True, "strategy": "recreate"}}}


def test_an_app_is_made_shown_changed_and_listed(alice: httpx.Client) -> None:
    made = alice.post("/apps", json={"name": "shop"})
    assert made.status_code == 201
    app = made.json()
    assert (app["name"], app["web_url"]) == ("shop", "https://shop.black.test/")
    assert app["owner"]["email"] == "alice@example.com"
    assert "component" not in app
    assert alice.get("/apps/shop").json() == app == alice.get(f"/apps/{app['id']}").json()
    assert alice.patch("/apps/shop", json={"maintenance": True}).json()["maintenance"] is True
    for path in ("/apps", "/users/~/apps", "/users/alice@example.com/apps"):
        assert [one["name"] for one in alice.get(path).json()] == ["shop"]


def test_an_app_without_a_name_gets_one_like_herokus(alice: httpx.Client) -> None:
    for made in (alice.post("/apps", json={}), alice.post("/apps")):
        name = made.json()["name"]
        assert re.fullmatch(r"[a-z]+-[a-z]+-[0-9]{5}", name)


BAD_NAMES = [
    "-rf",
    "a;b",
    "a b",
    "ab",
    "a" * 31,
    "Shop",
    "shöp",
    "1shop",
    "shop-",
    "",
    "../x",
    "a\nb",
    "a\0b",
    "$(id)",
    "--",
]


@pytest.mark.parametrize("name", BAD_NAMES)
def test_a_bad_name_is_refused_with_the_rule(alice: httpx.Client, name: str) -> None:
    refused = alice.post("/apps", json={"name": name})
    assert refused.status_code == 422
    assert refused.json()["id"] == "invalid_params"
    assert "3 to 30 characters" in refused.json()["message"]
    assert alice.get("/apps").json() == []


@pytest.mark.parametrize("name", ["-rf", "a;b", "%00", "a%00b", "..%2f", "x" * 3000, "%ff", "shop'--"])
def test_a_bad_name_in_a_path_finds_nothing(alice: httpx.Client, shop: str, name: str) -> None:
    assert alice.get(f"/apps/{name}").status_code in (404, 422)


def test_a_taken_name_is_refused_also_for_its_owner(alice: httpx.Client, bob: httpx.Client) -> None:
    alice.post("/apps", json={"name": "shop"})
    for client in (alice, bob):
        refused = client.post("/apps", json={"name": "shop"})
        assert (refused.status_code, refused.json()["message"]) == (422, "Name shop is already taken.")


@pytest.mark.parametrize("name", ["api", "psmgr", "router", "postgres", "objects", "bus", "compile", "www", "git"])
def test_the_platforms_own_names_are_reserved(alice: httpx.Client, admin: httpx.Client, name: str) -> None:
    for client in (alice, admin):
        refused = client.post("/apps", json={"name": name})
        assert refused.status_code == 422
        assert "reserved" in refused.json()["message"]


def test_a_component_is_made_changed_and_seen_by_operators_only(alice: httpx.Client, admin: httpx.Client) -> None:
    wish = {"name": "postgres", "component": COMPONENT}
    assert alice.post("/apps", json=wish).status_code == 403
    made = admin.post("/apps", json=wish)
    assert made.status_code == 201
    assert made.json()["component"]["processes"]["db"]["strategy"] == "recreate"
    assert alice.get("/apps/postgres").status_code == 404
    assert alice.get("/apps").json() == []
    more = {**COMPONENT, "processes": {"db": {"quantity": 1, "memory_mb": 1024}}}
    changed = admin.patch("/apps/postgres", json={"component": more})
    assert changed.json()["component"]["processes"]["db"]["memory_mb"] == 1024
    assert admin.delete("/apps/postgres").status_code == 403


@pytest.mark.parametrize(
    ("component", "why"),
    [
        ({**COMPONENT, "name": "bus"}, "the component is called 'bus'"),
        ({**COMPONENT, "processes": {"db": {"mode": "x"}}}, "processes.db.mode"),
        ({**COMPONENT, "processes": {"db": {"mounts": ["/etc"]}}}, "processes.db.mounts"),
        ({**COMPONENT, "privileged": True}, "privileged"),
    ],
)
def test_a_wrong_component_is_refused_with_the_keys_path(admin: httpx.Client, component: Any, why: str) -> None:
    refused = admin.post("/apps", json={"name": "postgres", "component": component})
    assert refused.status_code == 422
    assert why in refused.json()["message"]


def test_an_ordinary_app_cannot_become_a_component(alice: httpx.Client, admin: httpx.Client, shop: str) -> None:
    body = {"component": {"name": "shop"}}
    assert alice.patch("/apps/shop", json=body).status_code == 422
    assert admin.patch("/apps/shop", json=body).status_code == 422


def test_a_deleted_app_is_gone_at_once_and_its_name_when_psmgr_is_done(
    alice: httpx.Client, admin: httpx.Client, shop: str, rows: Any
) -> None:
    assert alice.delete("/apps/shop").status_code == 200
    for client in (alice, admin):
        assert client.get("/apps/shop").status_code == 404
        assert client.get("/apps").json() == []
        assert client.post("/apps/shop/dynos", json={"command": "ls"}).status_code == 404
    assert alice.post("/apps", json={"name": "shop"}).status_code == 422
    assert rows.one("SELECT deleting FROM apps WHERE name = 'shop'") == (True,)


def test_a_name_that_psmgr_freed_can_be_taken_again(
    alice: httpx.Client, bob: httpx.Client, shop: str, rows: Any
) -> None:
    alice.patch("/apps/shop/config-vars", json={"A": "1"})
    alice.post("/apps/shop/domains", json={"hostname": "shop.example.com"})
    alice.delete("/apps/shop")
    with rows.engine.begin() as connection:
        # What psmgr does in the end; every other table follows.
        connection.exec_driver_sql("DELETE FROM apps WHERE deleting")
    assert bob.post("/apps", json={"name": "shop"}).status_code == 201
    assert bob.get("/apps/shop/config-vars").json() == {}


def test_renaming_is_refused_with_what_to_do(alice: httpx.Client, shop: str) -> None:
    refused = alice.patch("/apps/shop", json={"name": "other"})
    assert refused.status_code == 422
    assert "cannot be renamed yet" in refused.json()["message"]
    assert alice.patch("/apps/shop", json={"name": "shop"}).status_code == 200


def test_a_write_tells_the_bus(alice: httpx.Client, bus: Any) -> None:
    with bus.client() as client, client.pubsub() as listener:
        listener.subscribe("events")
        assert listener.get_message(timeout=5)["type"] == "subscribe"
        alice.post("/apps", json={"name": "shop"})
        assert listener.get_message(timeout=5)["data"] == '{"kind": "app", "app": "shop"}'
