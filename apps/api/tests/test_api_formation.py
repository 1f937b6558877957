"""Formation: scaling."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from api.errors import ApiError
from api.formations import new_quantity


def quantities(client: httpx.Client) -> dict[str, int]:
    return {one["type"]: one["quantity"] for one in client.get("/apps/shop/formation").json()}


def test_a_first_release_runs_one_web_dyno(alice: httpx.Client, shop: str) -> None:
    assert quantities(alice) == {"web": 1, "worker": 0}
    web = alice.get("/apps/shop/formation/web").json()
    assert (web["command"], web["size"]) == ("gunicorn app:app", "standard-1X")
    assert alice.get(f"/apps/shop/formation/{web['id']}").json() == web


@pytest.mark.parametrize(("wish", "then"), [("3", 3), (3, 3), ("+1", 2), ("-1", 0), ("0", 0), (0, 0)])
def test_scaling_takes_numbers_text_and_steps(alice: httpx.Client, shop: str, wish: Any, then: int) -> None:
    updates = [{"type": "web", "quantity": wish}]
    changed = alice.patch("/apps/shop/formation", json={"updates": updates})
    assert [(one["type"], one["quantity"]) for one in changed.json()] == [("web", then)]
    assert quantities(alice)["web"] == then
    assert alice.patch("/apps/shop/formation/worker", json={"quantity": "2"}).json()["quantity"] == 2


@pytest.mark.parametrize(
    "size", [{"size": "Standard-2X"}, {"dyno_size": "standard-2x"}, {"dyno_size": {"name": "standard-2X"}}]
)
def test_a_size_is_set_by_any_of_its_spellings(alice: httpx.Client, shop: str, size: Any) -> None:
    assert alice.patch("/apps/shop/formation/web", json=size).json()["size"] == "standard-2X"
    assert quantities(alice)["web"] == 1


def test_an_unknown_type_is_404_and_nothing_of_the_batch_is_done(alice: httpx.Client, shop: str) -> None:
    updates = [{"type": "web", "quantity": 5}, {"type": "nope", "quantity": 1}]
    refused = alice.patch("/apps/shop/formation", json={"updates": updates})
    assert refused.status_code == 404
    assert refused.json()["message"] == "Couldn't find that process type (nope) in shop. It has web, worker."
    assert quantities(alice)["web"] == 1


BAD = [
    {"quantity": "x"},
    {"quantity": -1},
    {"quantity": "-2"},
    {"quantity": 101},
    {"quantity": "1e3"},
    {"size": "huge"},
]


@pytest.mark.parametrize("change", [*BAD, {"quantity": 1.5}, {"quantity": "+"}, {"quantity": ""}, {"quantity": [1]}])
def test_a_bad_quantity_or_size_is_refused(alice: httpx.Client, shop: str, change: Any) -> None:
    refused = alice.patch("/apps/shop/formation/web", json=change)
    assert (refused.status_code, refused.json()["id"]) == (422, "invalid_params")
    assert quantities(alice) == {"web": 1, "worker": 0}


@pytest.mark.parametrize("body", [{}, {"updates": "x"}, {"updates": [{"quantity": 1}]}, [], None])
def test_a_bad_batch_is_refused(alice: httpx.Client, shop: str, body: Any) -> None:
    assert alice.patch("/apps/shop/formation", json=body).status_code == 422


def test_types_that_the_present_slug_lacks_are_hidden_and_return(alice: httpx.Client, shop: str, rows: Any) -> None:
    alice.patch("/apps/shop/formation/worker", json={"quantity": 3})
    rows.deploy("shop", {"web": "new"}, slug="c")
    assert quantities(alice) == {"web": 1}
    assert alice.get("/apps/shop/formation/worker").status_code == 404
    alice.post("/apps/shop/releases", json={"release": 2})
    assert quantities(alice) == {"web": 1, "worker": 3}


def test_steps_at_once_all_count(alice: httpx.Client, shop: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: alice.patch("/apps/shop/formation/worker", json={"quantity": "+1"}), range(20)))
    assert quantities(alice)["worker"] == 20


def test_quantities_are_computed_without_a_database() -> None:
    assert [new_quantity(3, wish) for wish in (0, "7", "+2", "-3")] == [0, 7, 5, 0]
    with pytest.raises(ApiError, match="0 to 100"):
        new_quantity(99, "+2")
