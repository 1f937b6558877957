"""The database: who may connect, and that it starts whatever the last stop left behind."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from apps.objects.tests.running import (
    UNPRIVILEGED,
    Component,
    Tls,
    folder,
    free_port,
    make_tls,
    object_store,
    running,
    unpack_slug,
    wait_for,
)

PASSWORD = "postgres-password-do-not-show"


def database(where: Path, tls: Tls, **env: str) -> Component:
    """Return a database that is not started yet."""
    where.mkdir(exist_ok=True)
    settings = {
        "POSTGRES_PORT": str(free_port()),
        "POSTGRES_PASSWORD": PASSWORD,
        "TLS_CERT": tls.certificate,
        "TLS_KEY": tls.key,
        "BLACKSTART_CA": str(tls.ca_file),
        **env,
    }
    return Component(unpack_slug("postgres", "database", where), "postgres", settings, where, user=UNPRIVILEGED)


def connect(
    component: Component,
    password: str = PASSWORD,
    user: str = "platform",
    name: str = "platform",
    tls: str = "verify-full",
) -> psycopg.Connection[tuple[object, ...]]:
    return psycopg.connect(
        host="localhost",
        port=component.env["POSTGRES_PORT"],
        user=user,
        password=password,
        dbname=name,
        sslmode=tls,
        sslrootcert=component.env["BLACKSTART_CA"] if tls == "verify-full" else None,
        connect_timeout=10,
        autocommit=True,
    )


def start(component: Component) -> None:
    component.start()
    component.wait_said("postgres: ready")


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with folder() as path:
        yield path


@pytest.fixture(scope="module")
def tls(place: Path) -> Tls:
    return make_tls(place)


@pytest.fixture(scope="module")
def shared(place: Path, tls: Tls) -> Iterator[Component]:
    with running(database(place / "shared", tls)) as component:
        component.wait_said("postgres: ready")
        yield component


@pytest.fixture
def own(tls: Tls) -> Iterator[Component]:
    """A database for one test, started once."""
    with folder() as path, running(database(path / "own", tls)) as component:
        component.wait_said("postgres: ready")
        yield component


def test_settings_are_what_the_readme_promises(shared: Component) -> None:
    with connect(shared) as connection:

        def shown(name: str) -> object:
            row = connection.execute(f"SHOW {name}").fetchone()
            assert row is not None
            return row[0]

        assert shown("data_checksums") == "on"
        assert shown("tcp_keepalives_idle") == "300"
        assert shown("server_encoding") == "UTF8"
        assert connection.execute(
            "SELECT datdba::regrole::text FROM pg_database WHERE datname = 'platform'"
        ).fetchone() == ("platform",)
        assert connection.execute(
            "SELECT rolsuper OR rolcreaterole OR rolcreatedb FROM pg_roles WHERE rolname = current_user"
        ).fetchone() == (False,)


@pytest.mark.parametrize(
    ("user", "name", "tls_mode"),
    [("platform", "platform", "disable"), ("postgres", "postgres", "require"), ("postgres", "platform", "require"),
     ("platform", "postgres", "require"), ("platform", "template1", "require")],
)  # fmt: skip
def test_everything_else_is_rejected(shared: Component, user: str, name: str, tls_mode: str) -> None:
    with pytest.raises(psycopg.OperationalError, match=r"pg_hba\.conf rejects"):
        connect(shared, user=user, name=name, tls=tls_mode)


def test_secrets_are_in_no_command_line_and_no_log(shared: Component) -> None:
    assert PASSWORD not in shared.command_lines()
    assert PASSWORD not in shared.log
    files = [path for path in shared.runtime.iterdir() if path.is_file()]
    assert {path.stat().st_mode & 0o777 for path in files} == {0o600}


def test_without_a_store_it_says_that_nothing_is_archived(shared: Component) -> None:
    assert "OBJECTS_URL is not set: WAL is not archived, there is no backup" in shared.log


def test_a_new_password_meets_an_old_volume(own: Component) -> None:
    assert own.stop() == 0
    own.env["POSTGRES_PASSWORD"] = "another"
    start(own)
    connect(own, "another").close()
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(own)
    assert "another" not in own.log
    assert own.stop() == 0
    start(own)
    assert "password of role platform changed" not in own.log


def test_a_later_epochs_login_acts_as_the_platform_and_then_retires_the_earlier_one(own: Component) -> None:
    with connect(own) as connection:
        connection.execute("CREATE TABLE before (n int)")
    for _ in range(2):
        added = own.run("add-login", "platform_1", stdin="epoch-one\n")
        assert added.returncode == 0, added.stderr
    connect(own).close()
    with connect(own, "epoch-one", user="platform_1") as connection:
        connection.execute("INSERT INTO before VALUES (1)")
        connection.execute("CREATE TABLE after (n int)")
        owners = "SELECT DISTINCT tableowner FROM pg_tables WHERE schemaname = 'public'"
        assert connection.execute(owners).fetchall() == [("platform",)]

    assert own.stop() == 0
    start(own)  # with the old settings: both still log in
    connect(own).close()
    connect(own, "epoch-one", user="platform_1").close()

    assert own.stop() == 0
    own.env |= {"POSTGRES_ROLE": "platform_1", "POSTGRES_PASSWORD": "epoch-one"}
    start(own)
    with pytest.raises(psycopg.OperationalError, match="password authentication failed"):
        connect(own)
    with connect(own, "epoch-one", user="platform_1") as connection:
        assert connection.execute("SELECT count(*) FROM before").fetchone() == (1,)
    assert "epoch-one" not in own.log


def test_no_other_role_can_be_made_a_login(shared: Component) -> None:
    for role in ("postgres", "platform_0", "platform_1; DROP ROLE platform"):
        refused = shared.run("add-login", role, stdin="x\n")
        assert refused.returncode == 1
        assert "is no role of this database" in refused.stderr


def test_acknowledged_rows_survive_a_kill_and_a_stale_pid_file(own: Component) -> None:
    """In a new container the old server's pid belongs to somebody else: here, to this test."""
    with connect(own) as connection:
        connection.execute("CREATE TABLE t (n int PRIMARY KEY)")
        for number in range(50):
            connection.execute("INSERT INTO t VALUES (%s)", [number])
        own.kill()
    pid_file = own.data / "cluster" / "postmaster.pid"
    lines = pid_file.read_text().splitlines()
    pid_file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")
    lock = own.runtime / f".s.PGSQL.{own.env['POSTGRES_PORT']}.lock"
    lock.write_text(f"{os.getpid()}\n")
    start(own)
    with connect(own) as connection:
        assert connection.execute("SELECT count(*) FROM t").fetchone() == (50,)


def test_an_interrupted_first_start_starts_over(tls: Tls) -> None:
    with folder() as path:
        component = database(path / "first", tls)
        unfinished = component.data / "cluster.new"
        component.start()
        wait_for((unfinished / "base").is_dir, "initdb is at work")
        component.kill()
        assert unfinished.is_dir()
        assert not (component.data / "cluster").exists()
        try:
            start(component)
            connect(component).close()
            assert not unfinished.exists()
        finally:
            component.kill()


def test_killed_between_initdb_and_the_first_roles_converges(tls: Tls) -> None:
    with folder() as path:
        component = database(path / "early", tls)
        component.start()
        wait_for((component.data / "cluster").is_dir, "the cluster is in place")
        component.kill()
        try:
            start(component)
            connect(component).close()
        finally:
            component.kill()


def test_killed_supervisor_takes_its_server_with_it_and_the_next_waits_for_that(own: Component) -> None:
    assert own.process is not None
    own.process.send_signal(signal.SIGKILL)  # the supervisor alone
    own.process.wait(10)
    start(own)
    connect(own).close()


def test_stops_fast_with_clients_connected(own: Component) -> None:
    with connect(own):
        assert own.stop() == 0
    state = subprocess.run(
        ["grep", "-c", "database system is shut down", str(own.log_file)], capture_output=True, text=True, check=False
    )
    assert state.stdout.strip() == "1"


def test_a_folder_that_is_no_cluster_is_refused(tls: Tls) -> None:
    with folder() as path:
        component = database(path / "broken", tls)
        (component.data / "cluster").mkdir()
        (component.data / "cluster" / "PG_VERSION").write_text("9\n")
        done = component.run("postgres")
        assert done.returncode == 1
        assert "is of PostgreSQL 9" in done.stderr
        (component.data / "cluster" / "PG_VERSION").unlink()
        done = component.run("postgres")
        assert done.returncode == 1
        assert "no PG_VERSION" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="only root can try")
def test_root_is_refused(tls: Tls) -> None:
    with folder() as path:
        component = database(path / "root", tls)
        component._user = None
        done = component.run("postgres")
        assert done.returncode == 1
        assert "does not run as root" in done.stderr


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_full_disk_is_told_and_nothing_half_made_stays(tls: Tls) -> None:
    with folder() as path:
        component = database(path / "full", tls)
        options = f"size=20m,uid={UNPRIVILEGED},gid={UNPRIVILEGED},mode=700"
        subprocess.run(["mount", "-t", "tmpfs", "-o", options, "none", str(component.data)], check=True)
        try:
            done = component.run("postgres")
            assert done.returncode == 1
            assert f"initdb failed in {component.data}" in done.stderr
            assert "No space left on device" in done.stderr
            assert not (component.data / "cluster.new").exists()
        finally:
            subprocess.run(["umount", str(component.data)], check=True)


def test_goes_on_while_the_store_is_away_and_says_so(place: Path, tls: Tls) -> None:
    """A store that was never there: soft. When it comes, the archive catches up by itself."""
    store = object_store(place / "late-store", tls)
    component = database(
        place / "late",
        tls,
        OBJECTS_URL=store.env["ENDPOINT"],
        OBJECTS_KEY=store.env["OBJECTS_KEY"],
        OBJECTS_SECRET=store.env["OBJECTS_SECRET"],
        OBJECTS_BUCKET=store.env["OBJECTS_BUCKET"],
        BACKUP_PASSPHRASE="passphrase",
    )
    with running(component):
        component.wait_said("postgres: ready")
        with connect(component) as connection:
            connection.execute("CREATE TABLE t AS SELECT 1 AS n")
            component.wait_said("degraded: the object store takes no backup")
            connection.execute("INSERT INTO t VALUES (2)")
        with running(store):
            component.wait_said('"backup": ')
        assert component.stop() == 0
