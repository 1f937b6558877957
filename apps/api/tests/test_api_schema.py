"""Answers have the types of Heroku's public schema; the migrated database has the tables of the model."""

import json
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, pool

from blackstart.model.tables import Base, Dyno

SCHEMA = json.loads((Path(__file__).parent / "data" / "heroku_schema.json").read_text())
# What Heroku shows and we leave out.
LEFT_OUT = {
    "account": {"country_of_residence", "default_organization", "default_team", "identity_provider", "sms_number"},
    "app": {"generation"},
    "build": {"generation"},
    "collaborator": {"permissions"},
    "slug": set[str](),
}


@pytest.fixture
def paths(alice: httpx.Client, shop: str, rows: Any) -> dict[str, Any]:
    app, release, slug = rows.one("SELECT app_id, id, slug_id FROM releases WHERE version = 2")
    common = {"app_id": app, "release_id": release, "command": "x", "state": "up"}
    rows.add(Dyno(type="web", name="web.1", node="n1", task="t", **common))
    alice.patch("/apps/shop/config-vars", json={"A": "1"})
    alice.post("/apps/shop/domains", json={"hostname": "a.example.com"})
    build = alice.post("/apps/shop/builds", json={"source_blob": {"url": "https://example.com/x"}}).json()["id"]
    rows.set_build(build, status="succeeded", slug_id=slug, release_id=release)
    alice.post("/apps/shop/builds", json={"source_blob": {"url": "https://example.com/x"}})
    return {
        "account": "/account",
        "app": "/apps",
        "build": "/apps/shop/builds",
        "collaborator": "/apps/shop/collaborators",
        "config-var/definitions/config_vars": "/apps/shop/config-vars",
        "domain": "/apps/shop/domains",
        "dyno": "/apps/shop/dynos",
        "formation": "/apps/shop/formation",
        "oauth-authorization": "/oauth/authorizations",
        "release": "/apps/shop/releases",
        "slug": f"/apps/shop/slugs/{slug}",
        "source": None,
    }


def test_every_answer_has_herokus_types_and_fields(alice: httpx.Client, paths: dict[str, Any]) -> None:
    for resource, path in paths.items():
        answer = alice.post("/sources") if path is None else alice.get(path)
        found = answer.json() if isinstance(answer.json(), list) else [answer.json()]
        assert found, f"no {resource} to look at"
        validator = jsonschema.Draft4Validator({**SCHEMA, "$ref": f"#/definitions/{resource}"})
        for one in found:
            problems = [f"{list(error.path)}: {error.message}" for error in validator.iter_errors(one)]
            assert problems == [], resource
            properties = SCHEMA["definitions"].get(resource, {}).get("properties", {})
            assert set(properties) - set(one) <= LEFT_OUT.get(resource, set()), resource


def test_the_migrations_make_the_models_tables(database: str) -> None:
    engine = create_engine(database, poolclass=pool.NullPool)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Base.metadata) == []
