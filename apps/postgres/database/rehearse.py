"""`bin/rehearse`: proves that the newest backup can be restored, beside the running database and without touching it.

Restores into a scratch folder, replays all archived WAL, opens the result where only this program can reach it, and reads every
table. Nothing is archived meanwhile: a rehearsal never writes to the store. Prints a JSON report.
Exit 0: it was restored and read, and holds the row asked for. Exit 1: the message says what failed.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from blackstart.process import children
from blackstart.process.children import Signals
from blackstart.process.failure import ProcessFailed, exit_code_of
from blackstart.process.files import take_lock, write_private

from . import config, restore, serve, settings, sql
from .content import Content, Database
from .settings import DATABASE, SUPERUSER, Archive, Paths, Programs

READ_S = 600.0
ROW = re.compile(r"([a-z_]{1,63})=([0-9a-f-]{36})")


def main() -> int:
    """Parse the command line and rehearse."""
    parser = argparse.ArgumentParser(prog="bin/rehearse", description="Restore the newest backup beside, and read it.")
    parser.add_argument("--cluster", help="which cluster, needed when the store holds several (bin/restore --list)")
    parser.add_argument("--holds", metavar="TABLE=ID", help="a row that must be there")
    options = parser.parse_args()
    return exit_code_of("rehearse", lambda: run(wanted=options.cluster, row=options.holds))


def run(*, wanted: str | None, row: str | None) -> int:
    """Restore, open, read, report; the scratch folder is gone afterwards."""
    archive = settings.archive(os.environ)
    if archive is None:
        raise ProcessFailed("OBJECTS_URL is not set: there is nothing to restore from")
    query = None if row is None else row_query(row)
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rehearsal-") as folder:
        paths = _scratch(Path(folder))
        name, content = _restored(archive, paths, wanted, query, row)
    report = {
        "cluster": name,
        "tables": content.summary(),
        "holds": row,
        "seconds": round(time.monotonic() - started, 1),
    }
    json.dump(report, sys.stdout)
    sys.stdout.write("\n")
    return 0


def row_query(row: str) -> str:
    """Return the statement that counts the row `TABLE=ID`."""
    match = ROW.fullmatch(row)
    if match is None:
        raise ProcessFailed(
            f"--holds {row!r} is not TABLE=ID", fix="for example tokens=01234567-89ab-cdef-0123-456789abcdef"
        )
    return f"SELECT count(*) FROM public.{match[1]} WHERE id = '{match[2]}'"  # noqa: S608 - both parts are checked


def _scratch(folder: Path) -> Paths:
    paths = Paths(folder / "data", folder / "run")
    for made in (paths.data, paths.runtime):
        made.mkdir(mode=0o700)
    return paths


def _restored(
    archive: Archive, paths: Paths, wanted: str | None, query: str | None, row: str | None
) -> tuple[str, Content]:
    """Return the cluster's name and everything in it."""
    programs, port = settings.programs(os.environ), settings.port(os.environ)
    lock = take_lock(paths.lock, wait_s=0)
    found = restore.stored_clusters(archive, paths, programs)
    name = restore.choose([entry["name"] for entry in found if entry["backup"]], wanted)
    restore.restore(archive, paths, programs, name, None)
    write_private(paths.identities, config.identities(settings.user_name()))
    write_private(paths.access, config.local_access_rules())
    write_private(paths.config, config.rehearsal_config(paths, port))
    with Signals() as signals:
        server = serve.start(paths, programs, lock)
        try:
            if not serve.wait_ready(signals, server, sql.Superuser(paths, programs, port)):
                raise ProcessFailed("the restored database did not open", why=children.end_of(server))
            return name, _read(paths, programs, port, query, row)
        finally:
            children.stop(server, signal.SIGINT, within_s=serve.STOP_WITHIN_S)


def _read(paths: Paths, programs: Programs, port: int, query: str | None, row: str | None) -> Content:
    variables = {"PGHOST": str(paths.runtime), "PGPORT": str(port), "PGUSER": SUPERUSER, "PGDATABASE": DATABASE}
    database = Database("restored database", programs, variables, READ_S)
    if (
        query is not None
        and database.run("psql", "-X", "-qAt", "-v", "ON_ERROR_STOP=1", statement=query).strip() != "1"
    ):
        raise ProcessFailed(
            f"the restored database does not hold {row}",
            why="it was written before the backup was taken, or its WAL was not archived",
            fix="look at the database's log for archive errors, and back up again",
        )
    return database.content()
