"""Who may do what: every route, tried by its owner, by another, by an operator, by nobody."""

import base64
import datetime
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import pytest
from api.main import RESOURCES
from fastapi.routing import APIRoute
from sqlalchemy import update

from blackstart.model.tables import Dyno, Token

OWNER, SELF, ADMIN, PUBLIC = "owner", "self", "admin", "public"
BLOB = {"source_blob": {"url": "https://example.com/x"}}
SLUG = {"process_types": {"web": "x"}, "checksum": "SHA256:" + "d" * 64, "size": 5, "stack": "s"}


@dataclass(frozen=True)
class Row:
    """One route: whose it is, a path to try it at, a body, what an allowed caller gets."""

    route: str
    whose: str
    path: str
    body: Any = None
    good: int = 200

    @property
    def method(self) -> str:
        return self.route.split()[0]


# fmt: off
MATRIX = [
    Row("GET /account", SELF, "/account"),
    Row("GET /users", ADMIN, "/users"),
    Row("POST /users", ADMIN, "/users", {"email": "new@example.com"}, 201),
    Row("GET /users/{user}", OWNER, "/users/alice@example.com"),
    Row("DELETE /users/{user}", ADMIN, "/users/idle@example.com"),
    Row("GET /users/{user}/apps", OWNER, "/users/alice@example.com/apps"),
    Row("GET /apps", SELF, "/apps"),
    Row("POST /apps", SELF, "/apps", {}, 201),
    Row("GET /apps/{app}", OWNER, "/apps/shop"),
    Row("PATCH /apps/{app}", OWNER, "/apps/shop", {"maintenance": True}),
    Row("DELETE /apps/{app}", OWNER, "/apps/shop"),
    Row("POST /sources", SELF, "/sources", None, 201),
    Row("POST /apps/{app}/sources", OWNER, "/apps/shop/sources", None, 201),
    Row("GET /apps/{app}/builds", OWNER, "/apps/shop/builds"),
    Row("POST /apps/{app}/builds", OWNER, "/apps/shop/builds", BLOB, 201),
    Row("GET /apps/{app}/builds/{build}", OWNER, "/apps/shop/builds/$build"),
    Row("DELETE /apps/{app}/builds/{build}", OWNER, "/apps/shop/builds/$build"),
    Row("GET /streams/builds/{build}/{signature}", PUBLIC, "/streams/builds/$build/x", None, 404),
    Row("GET /apps/{app}/slugs/{slug}", OWNER, "/apps/shop/slugs/$slug"),
    Row("GET /apps/{app}/slugs/{slug}/provenance", OWNER, "/apps/shop/slugs/$slug/provenance", None, 404),  # put, not built
    Row("POST /apps/{app}/slugs", ADMIN, "/apps/shop/slugs", SLUG, 201),
    Row("GET /apps/{app}/releases", OWNER, "/apps/shop/releases"),
    Row("POST /apps/{app}/releases", OWNER, "/apps/shop/releases", {"release": "v2"}, 201),
    Row("GET /apps/{app}/releases/{release}", OWNER, "/apps/shop/releases/2"),
    Row("GET /apps/{app}/releases/{release}/config-vars", OWNER, "/apps/shop/releases/2/config-vars"),
    Row("GET /apps/{app}/config-vars", OWNER, "/apps/shop/config-vars"),
    Row("PATCH /apps/{app}/config-vars", OWNER, "/apps/shop/config-vars", {"A": "1"}),
    Row("GET /apps/{app}/formation", OWNER, "/apps/shop/formation"),
    Row("PATCH /apps/{app}/formation", OWNER, "/apps/shop/formation", {"updates": []}),
    Row("GET /apps/{app}/formation/{formation}", OWNER, "/apps/shop/formation/web"),
    Row("PATCH /apps/{app}/formation/{formation}", OWNER, "/apps/shop/formation/web", {"quantity": 1}),
    Row("GET /apps/{app}/dynos", OWNER, "/apps/shop/dynos"),
    Row("POST /apps/{app}/dynos", OWNER, "/apps/shop/dynos", {"command": "ls"}, 201),
    Row("DELETE /apps/{app}/dynos", OWNER, "/apps/shop/dynos", None, 202),
    Row("GET /apps/{app}/dynos/{dyno}", OWNER, "/apps/shop/dynos/run.1000"),
    Row("DELETE /apps/{app}/dynos/{dyno}", OWNER, "/apps/shop/dynos/run.1000", None, 202),
    Row("GET /apps/{app}/dynos/{dyno}/output", OWNER, "/apps/shop/dynos/run.1000/output"),
    Row("POST /apps/{app}/dynos/{dyno}/actions/stop", OWNER, "/apps/shop/dynos/run.1000/actions/stop", None, 202),
    Row("DELETE /apps/{app}/formations/{type}", OWNER, "/apps/shop/formations/web", None, 202),
    Row("POST /apps/{app}/formations/{type}/actions/stop", OWNER, "/apps/shop/formations/web/actions/stop", None, 202),
    Row("GET /apps/{app}/domains", OWNER, "/apps/shop/domains"),
    Row("POST /apps/{app}/domains", OWNER, "/apps/shop/domains", {"hostname": "b.example.com"}, 201),
    Row("GET /apps/{app}/domains/{domain}", OWNER, "/apps/shop/domains/a.example.com"),
    Row("DELETE /apps/{app}/domains/{domain}", OWNER, "/apps/shop/domains/a.example.com"),
    Row("GET /apps/{app}/addons", OWNER, "/apps/shop/addons"),
    Row("GET /apps/{app}/addon-attachments", OWNER, "/apps/shop/addon-attachments"),
    Row("GET /apps/{app}/sni-endpoints", OWNER, "/apps/shop/sni-endpoints"),
    Row("GET /apps/{app}/buildpack-installations", OWNER, "/apps/shop/buildpack-installations"),
    Row("GET /apps/{app}/collaborators", OWNER, "/apps/shop/collaborators"),
    Row("POST /apps/{app}/log-sessions", OWNER, "/apps/shop/log-sessions", {}, 501),
    Row("GET /oauth/authorizations", SELF, "/oauth/authorizations"),
    Row("POST /oauth/authorizations", SELF, "/oauth/authorizations", {"scope": ["global"]}, 201),
    Row("GET /oauth/authorizations/{authorization}", OWNER, "/oauth/authorizations/$token"),
    Row("DELETE /oauth/authorizations/{authorization}", OWNER, "/oauth/authorizations/$token"),
    Row("GET /nodes", ADMIN, "/nodes"),
    Row("GET /platform", SELF, "/platform"),
    Row("GET /health", PUBLIC, "/health"),
]
# fmt: on


def routes() -> Iterator[str]:
    for resource in RESOURCES:
        for route in resource.router.routes:
            assert isinstance(route, APIRoute)
            yield from (f"{method} {route.path}" for method in route.methods or ())


def test_every_route_has_a_row() -> None:
    assert sorted(routes()) == sorted(row.route for row in MATRIX)


@pytest.fixture
def paths(alice: httpx.Client, shop: str, rows: Any) -> dict[str, str]:
    """Things of alice's, and an account that owns nothing."""
    app, release, slug = rows.one("SELECT app_id, id, slug_id FROM releases WHERE version = 2")
    common = {"type": "run", "command": "x", "state": "up", "one_off": True}
    rows.add(Dyno(app_id=app, release_id=release, name="run.1000", **common))
    alice.post("/apps/shop/domains", json={"hostname": "a.example.com"})
    rows.account("idle@example.com")
    token = rows.one("SELECT t.id FROM tokens t JOIN accounts a ON a.id = account_id WHERE email LIKE 'alice%'")[0]
    build = alice.post("/apps/shop/builds", json=BLOB).json()["id"]
    return {"$build": build, "$slug": str(slug), "$token": str(token)}


def call(client: httpx.Client, row: Row, paths: dict[str, str]) -> httpx.Response:
    path = row.path
    for name, value in paths.items():
        path = path.replace(name, value)
    return client.request(row.method, path, json=row.body)


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.route)
def test_another_owner_gets_404_or_403_and_changes_nothing(
    bob: httpx.Client, row: Row, paths: dict[str, str], rows: Any
) -> None:
    answer = call(bob, row, paths)
    if row.whose in (SELF, PUBLIC):
        assert answer.status_code == row.good
        assert "alice" not in answer.text
        assert "shop" not in answer.text
    else:
        assert (answer.status_code, answer.json()["id"]) in ((404, "not_found"), (403, "forbidden"))
        assert answer.status_code == (403 if row.whose == ADMIN else 404)
        state = "SELECT deleting, maintenance, (SELECT count(*) FROM releases), (SELECT count(*) FROM builds) FROM apps"
        assert rows.one(state) == (False, False, 2, 1)


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.route)
def test_nobody_gets_401(nobody: httpx.Client, row: Row, paths: dict[str, str]) -> None:
    answer = call(nobody, row, paths)
    if row.whose == PUBLIC:
        assert answer.status_code == row.good
    else:
        assert (answer.status_code, answer.json()["id"]) == (401, "unauthorized")


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.route)
def test_its_owner_may(alice: httpx.Client, row: Row, paths: dict[str, str]) -> None:
    answer = call(alice, row, paths)
    assert answer.status_code == (403 if row.whose == ADMIN else row.good), answer.text


@pytest.mark.parametrize("row", MATRIX, ids=lambda row: row.route)
def test_an_operator_may(admin: httpx.Client, row: Row, paths: dict[str, str]) -> None:
    answer = call(admin, row, paths)
    assert answer.status_code == row.good, answer.text


@pytest.mark.parametrize("row", [row for row in MATRIX if "{app}" in row.route], ids=lambda row: row.route)
def test_a_component_is_hidden_even_from_an_owner_who_is_no_operator(
    alice: httpx.Client, row: Row, paths: dict[str, str], rows: Any
) -> None:
    with rows.engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE apps SET component = '{"name": "shop"}'""")
    assert call(alice, row, paths).status_code == (403 if row.whose == ADMIN else 404)


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


def test_a_token_works_as_bearer_and_as_a_basic_password(nobody: httpx.Client, rows: Any) -> None:
    token = rows.account("carol@example.com")
    for headers in (
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"bearer {token}"},
        basic("x", token),
        basic("", token),
    ):
        assert nobody.get("/account", headers=headers).json()["email"] == "carol@example.com"


@pytest.mark.parametrize(
    "header", ["", "Bearer", "Bearer x", "Basic", "Basic !!!", "Basic eDp5", "Digest x", "Basic //8="]
)
def test_a_bad_authorization_is_401(nobody: httpx.Client, rows: Any, header: str) -> None:
    rows.account("carol@example.com")
    answer = nobody.get("/account", headers={"Authorization": header})
    assert (answer.status_code, answer.json()["id"]) == (401, "unauthorized")


def test_the_stored_digest_is_no_token(nobody: httpx.Client, rows: Any) -> None:
    rows.account("carol@example.com")
    digest = rows.one("SELECT digest FROM tokens")[0]
    assert nobody.get("/account", headers={"Authorization": f"Bearer {digest}"}).status_code == 401


def test_an_expired_token_is_refused(nobody: httpx.Client, rows: Any) -> None:
    token = rows.account("carol@example.com")
    headers = {"Authorization": f"Bearer {token}"}
    for hours, status in ((1, 200), (-1, 401)):
        at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=hours)
        with rows.engine.begin() as connection:
            connection.execute(update(Token).values(expires_at=at))
        assert nobody.get("/account", headers=headers).status_code == status


def test_login_makes_a_token_that_is_shown_once_and_revoked(nobody: httpx.Client, rows: Any) -> None:
    token = rows.account("carol@example.com")
    body = {"description": "Heroku CLI login", "expires_in": 3600, "scope": ["global"]}
    made = nobody.post("/oauth/authorizations", json=body, headers=basic("carol@example.com", token)).json()
    assert made["user"]["email"] == "carol@example.com"
    assert 3590 <= made["access_token"]["expires_in"] <= 3600
    headers = {"Authorization": f"Bearer {made['access_token']['token']}"}
    listed = nobody.get("/oauth/authorizations", headers=headers).json()
    assert [one["description"] for one in listed] == ["test", "Heroku CLI login"]
    assert not any("token" in one["access_token"] for one in listed)
    assert nobody.delete(f"/oauth/authorizations/{made['id']}", headers=headers).status_code == 200
    assert nobody.get("/account", headers=headers).status_code == 401


def test_a_token_made_by_an_expiring_one_does_not_outlive_it(nobody: httpx.Client, rows: Any) -> None:
    token = rows.account("carol@example.com")
    first = nobody.post("/oauth/authorizations", json={"expires_in": 60}, headers=basic("x", token)).json()
    second = nobody.post("/oauth/authorizations", headers=basic("x", first["access_token"]["token"])).json()
    assert second["access_token"]["expires_in"] <= 60


def test_operators_make_accounts_and_their_first_token(
    admin: httpx.Client, alice: httpx.Client, nobody: httpx.Client
) -> None:
    assert admin.post("/users", json={"email": "Dave@Example.com"}).json()["email"] == "dave@example.com"
    assert admin.post("/users", json={"email": "dave@example.com"}).status_code == 422
    assert admin.post("/users", json={"email": "no"}).status_code == 422
    made = admin.post("/oauth/authorizations", json={"user": "dave@example.com"}).json()
    token = {"Authorization": f"Bearer {made['access_token']['token']}"}
    assert nobody.get("/account", headers=token).json()["admin"] is False
    assert alice.post("/oauth/authorizations", json={"user": "dave@example.com"}).status_code == 404
    nobody.post("/apps", json={"name": "daves"}, headers=token)
    assert "still owns apps" in admin.delete("/users/dave@example.com").json()["message"]
    assert admin.delete("/users/~").status_code == 403


@pytest.mark.parametrize(
    "body", [{"scope": ["read"]}, {"expires_in": 0}, {"expires_in": 10**12}, {"description": "x" * 201}]
)
def test_a_bad_authorization_request_is_refused(alice: httpx.Client, body: Any) -> None:
    assert alice.post("/oauth/authorizations", json=body).status_code == 422


def test_unknown_ids_are_404(alice: httpx.Client, shop: str) -> None:
    for path in (
        f"/apps/{uuid.uuid4()}",
        f"/apps/shop/builds/{uuid.uuid4()}",
        "/apps/shop/builds/x",
        "/apps/shop/slugs/x",
    ):
        assert alice.get(path).status_code == 404
    assert alice.get("/oauth/authorizations/x").status_code == 404
