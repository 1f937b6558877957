"""Config vars, releases, rollback, slugs."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from blackstart.seed import seed_statement


def versions(client: httpx.Client, **headers: str) -> list[int]:
    return [release["version"] for release in client.get("/apps/shop/releases", headers=headers).json()]


def test_setting_config_makes_a_release_with_the_same_slug(alice: httpx.Client, shop: str, rows: Any) -> None:
    answer = alice.patch("/apps/shop/config-vars", json={"A": "1", "B": "ü\n2", "C": ""})
    assert answer.json() == {"A": "1", "B": "ü\n2", "C": ""} == alice.get("/apps/shop/config-vars").json()
    release = alice.get("/apps/shop/releases/3").json()
    assert (release["description"], release["status"]) == ("Set A, B, C config vars", "pending")
    assert release["slug"] == alice.get("/apps/shop/releases/v2").json()["slug"]
    stored = rows.one("SELECT config FROM releases WHERE version = 3")[0]
    assert "ü".encode() not in bytes(stored)


def test_null_removes_and_the_release_says_so(alice: httpx.Client, shop: str) -> None:
    alice.patch("/apps/shop/config-vars", json={"A": "1", "B": "2"})
    assert alice.patch("/apps/shop/config-vars", json={"A": None, "C": "3"}).json() == {"B": "2", "C": "3"}
    assert alice.get("/apps/shop/releases/4").json()["description"] == "Set C and remove A config vars"
    alice.patch("/apps/shop/config-vars", json={"B": None})
    assert alice.get("/apps/shop/releases/5").json()["description"] == "Remove B config vars"


@pytest.mark.parametrize("change", [{}, {"A": "1"}, {"NOPE": None}])
def test_a_change_that_changes_nothing_makes_no_release(alice: httpx.Client, shop: str, change: Any) -> None:
    alice.patch("/apps/shop/config-vars", json={"A": "1"})
    assert alice.patch("/apps/shop/config-vars", json=change).json() == {"A": "1"}
    assert versions(alice) == [1, 2, 3]


@pytest.mark.parametrize("key", ["PORT", "DYNO", "BLACKSTART_SLUG", "a-b", "1A", "A B", "A=B", "", "Ä", "A" * 129])
def test_a_reserved_or_bad_config_name_is_refused(alice: httpx.Client, shop: str, key: str) -> None:
    refused = alice.patch("/apps/shop/config-vars", json={key: "x", "OK": "1"})
    assert (refused.status_code, refused.json()["id"]) == (422, "invalid_params")
    assert alice.get("/apps/shop/config-vars").json() == {}


@pytest.mark.parametrize("body", [{"A": 1}, {"A": {"b": "c"}}, ["A"], "A", {"A": "a\0b"}, {"A": "x" * 70_000}])
def test_a_bad_config_value_is_refused(alice: httpx.Client, shop: str, body: Any) -> None:
    assert alice.patch("/apps/shop/config-vars", json=body).status_code == 422
    assert versions(alice) == [1, 2]


def test_a_slug_is_released_with_a_changed_config_at_once(alice: httpx.Client, shop: str, rows: Any) -> None:
    alice.patch("/apps/shop/config-vars", json={"A": "1", "B": "2"})
    slug = alice.get("/apps/shop/releases/2").json()["slug"]["id"]
    body = {"slug": slug, "config_vars": {"A": None, "C": "3"}}
    assert alice.post("/apps/shop/releases", json=body).json()["version"] == 4
    assert alice.get("/apps/shop/config-vars").json() == {"B": "2", "C": "3"}
    assert versions(alice) == [1, 2, 3, 4]
    for bad in ({"slug": slug, "config_vars": {"a-b": "1"}}, {"release": 2, "config_vars": {"A": "1"}}):
        assert alice.post("/apps/shop/releases", json=bad).status_code == 422


def test_rollback_restores_slug_and_config(alice: httpx.Client, shop: str, rows: Any) -> None:
    alice.patch("/apps/shop/config-vars", json={"A": "old"})
    rows.set_release("shop", 3, "succeeded")
    rows.deploy("shop", {"web": "new"}, slug="c")
    alice.patch("/apps/shop/config-vars", json={"A": "new"})
    target = alice.get("/apps/shop/releases/3").json()
    for number, name in enumerate((target["id"], 3, "3", "v3"), start=6):
        made = alice.post("/apps/shop/releases", json={"release": name})
        assert made.status_code == 201
        release = made.json()
        assert (release["version"], release["description"]) == (number, "Rollback to v3")
        assert release["slug"] == target["slug"]
        assert release["status"] == "pending"
        assert alice.get("/apps/shop/config-vars").json() == {"A": "old"}
    assert alice.get("/apps/shop/releases/4/config-vars").json() == {"A": "old"}
    assert alice.get("/apps/shop/releases/5/config-vars").json() == {"A": "new"}


def test_rollback_to_what_never_ran_is_refused(alice: httpx.Client, shop: str, rows: Any) -> None:
    rows.deploy("shop", slug="c", status="failed")
    for version, why in ((1, "has no code"), (3, "is failed")):
        refused = alice.post("/apps/shop/releases", json={"release": version})
        assert refused.status_code == 422
        assert why in refused.json()["message"]
    assert alice.post("/apps/shop/releases", json={"release": 99}).status_code == 404


def test_a_slug_is_shown_and_released_again(alice: httpx.Client, bob: httpx.Client, shop: str, rows: Any) -> None:
    alice.patch("/apps/shop/config-vars", json={"A": "1"})
    slug = alice.get("/apps/shop/releases/2").json()["slug"]["id"]
    shown = alice.get(f"/apps/shop/slugs/{slug}").json()
    assert shown["process_types"] == {"web": "gunicorn app:app", "worker": "python worker.py"}
    assert shown["checksum"] == "SHA256:" + "a" * 64
    assert shown["blob"]["url"].startswith("https://objects.black.test/black/slugs/" + "a" * 64 + ".squashfs?")
    made = alice.post("/apps/shop/releases", json={"slug": slug}).json()
    assert (made["version"], made["description"]) == (4, "Deploy aaaaaaaa")
    assert alice.get("/apps/shop/releases/4/config-vars").json() == {"A": "1"}
    bob.post("/apps", json={"name": "other"})
    assert bob.post("/apps/other/releases", json={"slug": slug}).status_code == 404
    assert bob.get(f"/apps/other/slugs/{slug}").status_code == 404


@pytest.mark.parametrize(
    "body", [{}, {"release": "v1", "slug": "x"}, {"release": None}, {"slug": "-rf"}, {"release": "-1"}]
)
def test_a_bad_release_is_refused(alice: httpx.Client, shop: str, body: Any) -> None:
    assert alice.post("/apps/shop/releases", json=body).status_code in (404, 422)
    assert versions(alice) == [1, 2]


def test_current_is_the_newest_that_succeeded(alice: httpx.Client, shop: str, rows: Any) -> None:
    rows.deploy("shop", slug="c", status="pending")
    assert [one["current"] for one in alice.get("/apps/shop/releases").json()] == [False, True, False]
    rows.set_release("shop", 3, "failed")
    assert [one["current"] for one in alice.get("/apps/shop/releases").json()] == [False, True, False]


def test_config_after_a_failed_release_is_that_of_the_one_before(alice: httpx.Client, shop: str, rows: Any) -> None:
    alice.patch("/apps/shop/config-vars", json={"A": "bad"})
    rows.set_release("shop", 3, "failed")
    assert alice.get("/apps/shop/config-vars").json() == {}


def test_the_list_obeys_the_clis_range(alice: httpx.Client, shop: str) -> None:
    for value in "123":
        alice.patch("/apps/shop/config-vars", json={"A": value})
    newest = alice.get("/apps/shop/releases", headers={"Range": "version ..; order=desc,max=1"})
    assert (newest.status_code, [one["version"] for one in newest.json()]) == (206, [5])
    assert newest.headers["Next-Range"] == "version ]5..; order=desc,max=1"
    rest = alice.get("/apps/shop/releases", headers={"Range": newest.headers["Next-Range"]})
    assert [one["version"] for one in rest.json()] == [4]
    whole = alice.get("/apps/shop/releases", headers={"Range": "version ..; order=desc,max=15"})
    assert (whole.status_code, [one["version"] for one in whole.json()]) == (200, [5, 4, 3, 2, 1])
    assert "Next-Range" not in whole.headers
    assert versions(alice, Range="version 2..3; max=10;") == [2, 3]
    assert versions(alice, Range="version ]2..; max=2") == [3, 4]


def test_following_next_range_gives_each_once(alice: httpx.Client) -> None:
    for number in range(7):
        alice.post("/apps", json={"name": f"app-{number}"})
    seen, range_ = [], "name ..; max=3"
    while range_:
        answer = alice.get("/apps", headers={"Range": range_})
        seen += [one["name"] for one in answer.json()]
        range_ = answer.headers.get("Next-Range", "")
    assert seen == [f"app-{number}" for number in range(7)]


@pytest.mark.parametrize(
    "range_", ["x", "slug ..", "version a..", "version ..; max=0", "version ..; max=1001", "version ..; x=1", "id 1.."]
)
def test_a_bad_range_is_416(alice: httpx.Client, shop: str, range_: str) -> None:
    refused = alice.get("/apps/shop/releases", headers={"Range": range_})
    assert (refused.status_code, refused.json()["id"]) == (416, "requested_range_not_satisfiable")


def test_releases_made_at_once_have_no_twin_no_gap_and_lose_nothing(alice: httpx.Client, shop: str) -> None:
    def change(number: int) -> int:
        return alice.patch("/apps/shop/config-vars", json={f"K{number}": "x"}).status_code

    with ThreadPoolExecutor(8) as pool:
        assert set(pool.map(change, range(24))) == {200}
    assert versions(alice) == list(range(1, 27))
    assert set(alice.get("/apps/shop/config-vars").json()) == {f"K{number}" for number in range(24)}


def test_the_provenance_of_a_slug_is_kept_and_shown(alice: httpx.Client, admin: httpx.Client, shop: str) -> None:
    said = seed_statement("d" * 64, "e" * 64)
    body = {"process_types": {"web": "x"}, "checksum": "SHA256:" + "d" * 64, "size": 5, "stack": "s"}
    made = admin.post("/apps/shop/slugs", json={**body, "provenance": said})
    assert made.status_code == 201
    assert alice.get(f"/apps/shop/slugs/{made.json()['id']}/provenance").json() == said
    unknown = admin.post("/apps/shop/slugs", json=body).json()["id"]
    missing = alice.get(f"/apps/shop/slugs/{unknown}/provenance")
    assert (missing.status_code, missing.json()["message"]) == (404, "Couldn't find that provenance.")
    for wrong in (seed_statement("f" * 64, "e" * 64), {**said, "_type": "x"}, {**said, "subject": []}, "x"):
        assert admin.post("/apps/shop/slugs", json={**body, "provenance": wrong}).status_code == 422


def test_an_operator_releases_a_slug_that_was_compiled_elsewhere(
    alice: httpx.Client, admin: httpx.Client, shop: str
) -> None:
    body = {"process_types": {"web": "x"}, "checksum": "SHA256:" + "d" * 64, "size": 5, "stack": "s"}
    assert alice.post("/apps/shop/slugs", json=body).status_code == 403
    made = admin.post("/apps/shop/slugs", json=body)
    assert made.status_code == 201
    assert made.json()["blob"]["method"] == "PUT"
    assert "/slugs/" + "d" * 64 + ".squashfs?" in made.json()["blob"]["url"]
    assert admin.post("/apps/shop/releases", json={"slug": made.json()["id"]}).status_code == 201
    bad: list[dict[str, Any]] = [{"checksum": "x"}, {"size": 0}, {"process_types": {}}, {"process_types": {"-rf": "x"}}]
    for wrong in bad:
        assert admin.post("/apps/shop/slugs", json={**body, **wrong}).status_code == 422
