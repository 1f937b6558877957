"""A new API brings the schema of the platform in charge to its own, or ends and leaves it as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from alembic import command
from api.catch_up import StartRefused, catch_up
from api.schema import HEAD, alembic_config
from sqlalchemy import create_engine, make_url, pool, text

PLATFORM = (
    "INSERT INTO platform (id, name, domain, stage, epoch, settings) VALUES (1, 'p', 'p.internal', :stage, 0, '{}')"
)


@pytest.fixture
def older(empty_database: str) -> Callable[[str], str]:
    """Makes a database of the first schema, whose platform is in a stage."""

    def make(stage: str) -> str:
        command.upgrade(alembic_config(empty_database), "0001")
        with create_engine(empty_database, poolclass=pool.NullPool).begin() as connection:
            connection.execute(text(PLATFORM), {"stage": stage})
        return empty_database

    return make


def revision(url: str) -> str:
    with create_engine(url, poolclass=pool.NullPool).connect() as connection:
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))


def test_an_older_schema_is_moved(older: Callable[[str], str], with_settings: Any) -> None:
    url = older("self-hosted")
    catch_up(with_settings(database_url=url, role="app"))
    assert revision(url) == HEAD
    catch_up(with_settings(database_url=url, role="app"))
    assert revision(url) == HEAD


@pytest.mark.parametrize(("stage", "role"), [("stage-0", "app"), ("moving", "app"), ("self-hosted", "stage-0")])
def test_only_the_control_plane_in_charge_moves_it(
    stage: str, role: str, older: Callable[[str], str], with_settings: Any
) -> None:
    url = older(stage)
    catch_up(with_settings(database_url=url, role=role))
    assert revision(url) == "0001"


def test_an_empty_database_stays_empty(empty_database: str, with_settings: Any) -> None:
    catch_up(with_settings(database_url=empty_database, role="app"))
    with create_engine(empty_database, poolclass=pool.NullPool).connect() as connection:
        assert connection.scalar(text("SELECT to_regclass('alembic_version')")) is None


def test_a_migration_that_fails_changes_nothing(older: Callable[[str], str], with_settings: Any) -> None:
    url = older("self-hosted")
    with create_engine(url, poolclass=pool.NullPool).begin() as connection:
        connection.execute(text("ALTER TABLE builds ADD COLUMN releases integer"))
    with pytest.raises(StartRefused, match="the schema stays 0001"):
        catch_up(with_settings(database_url=url, role="app"))
    assert revision(url) == "0001"


def test_an_api_that_the_database_refuses_does_not_start(empty_database: str, with_settings: Any) -> None:
    wrong = make_url(empty_database).set(username="nobody_knows", password="x")
    with pytest.raises(StartRefused, match="check DATABASE_URL"):
        catch_up(with_settings(database_url=wrong.render_as_string(hide_password=False), role="app"))


def test_an_absent_database_is_no_reason_not_to_start(with_settings: Any) -> None:
    catch_up(with_settings(database_url="postgresql+psycopg://a:b@127.0.0.1:1/platform", role="app"))
