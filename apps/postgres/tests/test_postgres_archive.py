"""The archive: continuous, encrypted, and good for a point in time on another machine."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from apps.objects.tests.running import STORE_BUCKET, Component, Tls, folder, make_tls, object_store, running, wait_for
from apps.objects.tests.test_objects_store import client, wait_open
from apps.postgres.tests.test_postgres_server import connect, database, start

PASSPHRASE = "backup-passphrase-do-not-show"
MARKER = "a-row-that-must-not-be-readable-in-the-store"


@dataclass(frozen=True)
class Site:
    """A database that archives into a store."""

    path: Path
    tls: Tls
    store: Component
    database: Component

    def another(self, name: str, **change: str) -> Component:
        """Return a database with the same settings and an empty data folder."""
        names = ("OBJECTS_URL", "OBJECTS_KEY", "OBJECTS_SECRET", "OBJECTS_BUCKET", "BACKUP_PASSPHRASE")
        return database(self.path / name, self.tls, **({key: self.database.env[key] for key in names} | change))


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    with folder() as path:
        tls = make_tls(path)
        with running(object_store(path / "store", tls)) as store:
            wait_open(store)
            component = database(
                path / "db",
                tls,
                OBJECTS_URL=store.env["ENDPOINT"],
                OBJECTS_KEY=store.env["OBJECTS_KEY"],
                OBJECTS_SECRET=store.env["OBJECTS_SECRET"],
                OBJECTS_BUCKET=STORE_BUCKET,
                BACKUP_PASSPHRASE=PASSPHRASE,
            )
            with running(component):
                component.wait_said('"backup": ')  # the first base backup takes itself
                yield Site(path, tls, store, component)


def rows(component: Component) -> list[Any]:
    with connect(component) as connection:
        return connection.execute("SELECT n, text FROM t ORDER BY n").fetchall()


def moment_after_rows(component: Component, numbers: range) -> str:
    """Insert rows, one transaction each; return the time after the last."""
    with connect(component) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS t (n int PRIMARY KEY, text text)")
        for number in numbers:
            connection.execute("INSERT INTO t VALUES (%s, %s)", [number, MARKER])
        row = connection.execute("SELECT clock_timestamp()").fetchone()
    assert row is not None
    return str(row[0].isoformat())  # type: ignore[attr-defined]


def archived(component: Component) -> bool:
    """Whether every finished WAL segment is in the store."""
    return not list((component.data / "cluster" / "pg_wal" / "archive_status").glob("*.ready"))


def finished(component: Component) -> int:
    """Return when its first base backup ended, in whole seconds."""
    line = next(line for line in component.log.splitlines() if line.startswith("{"))
    return int(json.loads(line)["finished"])


def test_a_rehearsal_reads_a_restored_copy_and_writes_nothing_to_the_store(site: Site) -> None:
    """Comes first: the copies that other tests restore and start archive a timeline of their own into the same store."""
    row = str(uuid.uuid4())
    with connect(site.database) as connection:
        connection.execute("CREATE TABLE IF NOT EXISTS tokens (id uuid PRIMARY KEY)")
        connection.execute("INSERT INTO tokens VALUES (%s)", [row])
    assert site.database.run("backup").returncode == 0
    listing = stored(site)

    elsewhere = site.another("rehearsal")
    done = elsewhere.run("rehearse", "--holds", f"tokens={row}")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["tables"]["public.tokens"]["rows"] == 1
    assert stored(site) == listing

    missing = elsewhere.run("rehearse", "--holds", f"tokens={uuid.uuid4()}")
    assert missing.returncode == 1
    assert "does not hold" in missing.stderr


def test_restores_a_point_in_time_elsewhere(site: Site) -> None:
    # a base backup's end is known to the second: a point in time must be later
    wait_for(lambda: time.time() > finished(site.database) + 1, "the second of the backup is over")
    moment = moment_after_rows(site.database, range(100))
    before = rows(site.database)
    with connect(site.database) as connection:
        connection.execute("DELETE FROM t WHERE n < 50")  # the mistake
    assert site.database.stop() == 0  # stopping archives the rest
    start(site.database)
    wait_for(lambda: archived(site.database), "all WAL is archived")

    for name, words, expected in (("then", ("--to", moment), before), ("now", (), rows(site.database))):
        elsewhere = site.another(name)
        done = elsewhere.run("restore", *words)
        assert done.returncode == 0, done.stderr
        with running(elsewhere):
            elsewhere.wait_said("postgres: ready")
            assert rows(elsewhere) == expected
            with connect(elsewhere) as connection:  # open for writing, with the same role and password
                connection.execute("INSERT INTO t VALUES (1000, 'after the restore')")


def test_takes_a_backup_when_asked(site: Site) -> None:
    done = site.database.run("backup")
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["stored_bytes"] > 0
    listed = json.loads(site.another("list").run("restore", "--list").stdout)
    assert [entry["cluster"] for entry in listed] == [report["cluster"]]
    assert report in listed[0]["backups"]


def test_what_the_store_holds_is_encrypted(site: Site) -> None:
    moment_after_rows(site.database, range(2000, 2050))
    s3 = client(site.store)
    keys = [
        entry["Key"]
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=STORE_BUCKET)
        for entry in page.get("Contents", [])
    ]
    assert keys
    assert all(key.startswith("wal/") for key in keys)
    for key in keys:
        head = s3.get_object(Bucket=STORE_BUCKET, Key=key)["Body"].read()
        assert head.startswith(b"Salted__"), key  # OpenSSL's mark of an encrypted file
        assert MARKER.encode() not in head


def test_another_passphrase_restores_nothing(site: Site) -> None:
    elsewhere = site.another("wrong", BACKUP_PASSPHRASE="wrong")
    done = elsewhere.run("restore")
    assert done.returncode == 1
    assert not (elsewhere.data / "cluster").exists()


def test_never_restores_over_a_database(site: Site) -> None:
    elsewhere = site.another("occupied")
    (elsewhere.data / "cluster").mkdir()
    done = elsewhere.run("restore")
    assert done.returncode == 1
    assert "already holds a database" in done.stderr


def test_secrets_are_in_no_command_line_and_no_log(site: Site) -> None:
    text = site.database.command_lines() + site.database.log
    for secret in (PASSPHRASE, site.database.env["OBJECTS_SECRET"], site.database.env["POSTGRES_PASSWORD"]):
        assert secret not in text


def test_goes_on_while_the_store_is_down_and_catches_up(site: Site) -> None:
    site.store.kill()
    moment_after_rows(site.database, range(3000, 3100))
    with connect(site.database) as connection:
        connection.execute("CREATE TABLE big AS SELECT n, repeat('x', 500) AS x FROM generate_series(1, 40000) AS n")
    wait_for(lambda: not archived(site.database), "WAL waits for the store")
    site.store.start()
    wait_open(site.store)
    wait_for(lambda: archived(site.database), "the archive caught up", within_s=120)


def test_stops_in_time_though_the_store_is_down(site: Site) -> None:
    site.store.kill()
    moment_after_rows(site.database, range(4000, 4010))
    assert site.database.stop() == 0
    assert "stopped with WAL that is not archived yet" in site.database.log
    site.store.start()
    wait_open(site.store)
    start(site.database)
    assert len(rows(site.database)) >= 10
    wait_for(lambda: archived(site.database), "the archive caught up")


@pytest.mark.parametrize("row", ["tokens", "tokens=1; DROP TABLE tokens", "-x=1"])
def test_a_rehearsal_refuses_a_row_that_is_none(site: Site, row: str) -> None:
    done = site.database.run("rehearse", f"--holds={row}")
    assert done.returncode == 1
    assert "is not TABLE=ID" in done.stderr


def stored(site: Site) -> set[str]:
    """Return the names of all objects but WAL, which the live database goes on to archive."""
    pages = client(site.store).get_paginator("list_objects_v2").paginate(Bucket=STORE_BUCKET)
    names = {entry["Key"] for page in pages for entry in page.get("Contents", [])}
    return {name for name in names if "/archive/" not in name or name.endswith(".history")}
