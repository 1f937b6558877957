"""The pure parts of the database component."""

from __future__ import annotations

import base64
import importlib
import sys
from pathlib import Path
from typing import Any

import pytest

from blackstart.process.failure import ProcessFailed


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a module of this component, as its programs do."""
    monkeypatch.syspath_prepend(str(Path(__file__).resolve().parents[1]))
    yield lambda name: importlib.import_module(f"database.{name}")
    for name in [name for name in sys.modules if name.split(".")[0] == "database"]:
        del sys.modules[name]


def test_verifier_is_what_postgresql_stores(module: Any) -> None:
    """RFC 7677's example: password "pencil", its salt and iteration count."""
    scram = module("scram")
    stored = scram.verifier("pencil", salt=base64.b64decode("W22ZaJ0SNY7soEsUEjb6gQ=="))
    assert stored.startswith("SCRAM-SHA-256$4096:W22ZaJ0SNY7soEsUEjb6gQ==$")
    assert stored.endswith(":wfPLwcE6nTWhTAmQ7tl2KeoiWGPlZqQxSrmfPwDl2dU=")
    assert scram.matches("pencil", stored)
    assert not scram.matches("Pencil", stored)
    assert not scram.matches("pencil", "none")


def test_a_password_that_normalisation_would_change_is_refused(module: Any) -> None:
    with pytest.raises(ProcessFailed, match="printable ASCII"):
        module("scram").verifier("geheim\u00df")


def test_url_becomes_variables_for_libpq(module: Any) -> None:
    libpq_env = module("urls").libpq_env
    url = "postgresql+psycopg://platform:p%40ss%2Fw@postgres:5433/platform?sslmode=verify-full&sslrootcert=/ca.pem"
    assert libpq_env("X", url) == {
        "PGHOST": "postgres",
        "PGPORT": "5433",
        "PGUSER": "platform",
        "PGPASSWORD": "p@ss/w",
        "PGDATABASE": "platform",
        "PGCONNECT_TIMEOUT": "10",
        "PGSSLMODE": "verify-full",
        "PGSSLROOTCERT": "/ca.pem",
    }


@pytest.mark.parametrize("url", ["", "mysql://h/d", "postgresql://h", "postgresql://h/d?passfile=/etc/passwd"])
def test_url_that_is_none_is_refused(module: Any, url: str) -> None:
    with pytest.raises(ProcessFailed, match="DATABASE_URL"):
        module("urls").libpq_env("DATABASE_URL", url)


def test_differences_name_tables(module: Any) -> None:
    content = module("content")
    table = content.Table
    source = content.Content("s", {"a": table(1, "x"), "b": table(2, "y"), "c": table(1, "z")}, {"q": "1"})
    target = content.Content("t", {"a": table(1, "x"), "b": table(3, "y"), "d": table(0, "")}, {"q": "2"})
    assert content.differences(source, source) == []
    assert content.differences(source, target) == [
        "table b has 2 rows in the source, 3 in the target",
        "table c is only in the source",
        "table d is only in the target",
        "sequence q is at another value in the target",
        "the schemas differ (pg_dump --schema-only)",
    ]


@pytest.mark.parametrize(("text", "message"), [("yesterday", "no ISO 8601 time"), ("2026-01-01T10:00:00", "no offset")])
def test_point_in_time_must_be_exact(module: Any, text: str, message: str) -> None:
    with pytest.raises(ProcessFailed, match=message):
        module("restore").point_in_time(text)


def test_restore_does_not_guess_among_clusters(module: Any) -> None:
    choose = module("restore").choose
    assert choose(["pg-1"], None) == "pg-1"
    assert choose(["pg-1", "pg-2"], "pg-2") == "pg-2"
    for names, wanted in ((["pg-1", "pg-2"], None), (["pg-1"], "pg-3"), ([], None)):
        with pytest.raises(ProcessFailed, match="the store holds"):
            choose(names, wanted)


def test_a_path_that_a_shell_would_read_is_refused(module: Any) -> None:
    with pytest.raises(ProcessFailed, match="cannot carry"):
        module("config").shell_word(Path("/tmp/a b;c"))
