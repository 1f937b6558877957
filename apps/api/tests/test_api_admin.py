"""The operator's helper."""

import io
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from api.admin import main
from api.schema import HEAD, migrate
from sqlalchemy import create_engine, pool

TOKEN = "t" * 43


def run(url: str, *arguments: str, stdin: str = "", monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
    return main(arguments, {"DATABASE_URL": url})


def test_init_is_repeatable_and_replaces_the_bootstrap_token(
    rows: Any, nobody: Any, database: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    init = ("init", "--name", "black", "--domain", "black.test")
    for token in (TOKEN, TOKEN, "u" * 43):
        assert run(database, *init, stdin=f"{token}\n", monkeypatch=monkeypatch) == 0
    assert "stage stage-0, operator operator@black.test" in capsys.readouterr().out
    for token, status in ((TOKEN, 401), ("u" * 43, 200)):
        answer = nobody.get("/account", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == status
    assert answer.json()["admin"] is True
    assert rows.one("SELECT count(*) FROM tokens") == (1,)


@pytest.mark.parametrize(
    ("arguments", "stdin", "why"),
    [
        (("init", "--name", "other", "--domain", "black.test"), TOKEN, "belongs to platform black"),
        (("init", "--name", "-rf", "--domain", "black.test"), TOKEN, "--name"),
        (("init", "--name", "a;b", "--domain", "black.test"), TOKEN, "platform name"),
        (("init", "--name", "black", "--domain", "black.test"), "short", "at least 32"),
        (("stage", "self-hosted", "--from", "moving"), "", "the stage is stage-0, not moving"),
    ],
)
def test_wrong_orders_are_refused_with_a_reason(
    arguments: tuple[str, ...],
    stdin: str,
    why: str,
    rows: Any,
    database: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    try:
        code = run(database, *arguments, stdin=stdin, monkeypatch=monkeypatch)
    except SystemExit as stop:
        code = int(str(stop.code))
    assert code != 0
    assert why in capsys.readouterr().err
    assert rows.one("SELECT stage, epoch FROM platform") == ("stage-0", 0)


def test_each_change_of_the_stage_raises_the_epoch(rows: Any, database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage, epoch in (("moving", 1), ("moving", 1), ("self-hosted", 2)):
        assert run(database, "stage", stage, monkeypatch=monkeypatch) == 0
        assert rows.one("SELECT stage, epoch FROM platform") == (stage, epoch)


def test_two_migrations_at_once_make_one_schema(empty_database: str) -> None:
    with ThreadPoolExecutor(1) as executor:
        other = executor.submit(migrate, empty_database)
        done = Path(__file__).resolve().parent.parent / "bin" / "migrate"
        subprocess.run([done], env=_env(empty_database), check=True, capture_output=True)
        other.result(timeout=30)
    with create_engine(empty_database, poolclass=pool.NullPool).connect() as connection:
        assert connection.exec_driver_sql("SELECT version_num FROM alembic_version").all() == [(HEAD,)]


def test_a_missing_database_is_an_error_without_a_trace(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = "postgresql+psycopg://x:hidden@127.0.0.1:1/x"
    assert run(url, "stage", "moving", monkeypatch=monkeypatch) == 1
    assert main(["migrate"], {}) == 1
    error = capsys.readouterr().err
    assert "no connection" in error
    assert "DATABASE_URL is not set" in error
    assert "hidden" not in error


def _env(url: str) -> dict[str, str]:
    import sys

    return {"DATABASE_URL": url, "PATH": f"{Path(sys.executable).parent}:/usr/bin:/bin"}
