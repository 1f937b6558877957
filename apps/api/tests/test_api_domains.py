"""Domains."""

import httpx
import pytest


def test_a_domain_is_added_shown_and_removed(alice: httpx.Client, shop: str) -> None:
    made = alice.post("/apps/shop/domains", json={"hostname": "WWW.Example.com", "sni_endpoint": None})
    assert made.status_code == 201
    domain = made.json()
    assert (domain["hostname"], domain["kind"], domain["cname"]) == ("www.example.com", "custom", "shop.black.test")
    listed = alice.get("/apps/shop/domains", headers={"Range": "id ..; max=1000;"})
    assert listed.status_code == 200
    assert [one["hostname"] for one in listed.json()] == ["shop.black.test", "www.example.com"]
    for name in ("www.example.com", domain["id"]):
        assert alice.get(f"/apps/shop/domains/{name}").json() == domain
    assert alice.delete("/apps/shop/domains/www.example.com").json() == domain
    assert alice.get("/apps/shop/domains/www.example.com").status_code == 404


def test_the_apps_own_host_name_stays(alice: httpx.Client, shop: str) -> None:
    own = alice.get("/apps/shop/domains").json()[0]
    assert (own["kind"], own["cname"]) == ("heroku", None)
    for name in ("shop.black.test", own["id"]):
        assert alice.get(f"/apps/shop/domains/{name}").json() == own
        assert alice.delete(f"/apps/shop/domains/{name}").status_code == 403


BAD = ["", "-rf", "a;b.com", "a b.com", "localhost", "10.77.0.11", "*.example.com", "ü.example.com", "a..b", "x" * 254]
OURS = ["black.test", "api.black.test", "shop.black.test", "OTHER.black.TEST"]


@pytest.mark.parametrize("name", [*BAD, *OURS, "example.com.", "a.com/x", "a.com:80", "a.com\n"])
def test_a_bad_host_name_or_the_platforms_own_is_refused(alice: httpx.Client, shop: str, name: str) -> None:
    refused = alice.post("/apps/shop/domains", json={"hostname": name})
    assert (refused.status_code, refused.json()["id"]) == (422, "invalid_params")
    assert len(alice.get("/apps/shop/domains").json()) == 1


def test_a_domain_belongs_to_one_app(alice: httpx.Client, bob: httpx.Client, shop: str) -> None:
    alice.post("/apps/shop/domains", json={"hostname": "www.example.com"})
    bob.post("/apps", json={"name": "thief"})
    for client, app in ((bob, "thief"), (alice, "shop")):
        refused = client.post(f"/apps/{app}/domains", json={"hostname": "www.example.com"})
        assert (refused.status_code, refused.json()["message"]) == (422, "Domain www.example.com is already in use.")
    assert bob.delete("/apps/thief/domains/www.example.com").status_code == 404
