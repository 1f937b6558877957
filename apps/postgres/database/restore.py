"""`bin/restore`: the database as it was at a point in time, from the object store into an empty data folder.

Run it where the server will run, with the server stopped; `bin/postgres` then replays the WAL and opens it.
Without `--to` everything archived is replayed. Interrupted, it starts over; it never touches an existing cluster.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from datetime import datetime
from typing import Any

from blackstart.process.failure import ProcessFailed, exit_code_of
from blackstart.process.files import remove, sync_tree, take_lock, write_private

from . import cluster, config, settings
from .backup import LONG_S, SHORT_S, report, run_backrest
from .settings import Archive, Paths, Programs

STANZA = re.compile(r"pg-\d+")


def main() -> int:
    """Parse the command line and restore."""
    parser = argparse.ArgumentParser(prog="bin/restore", description="Restore the database from the object store.")
    parser.add_argument("--list", action="store_true", help="only print what the store holds, as JSON")
    parser.add_argument("--cluster", help="which cluster (see --list), needed when the store holds several")
    parser.add_argument("--to", help="the point in time, ISO 8601 with its offset: 2026-05-01T12:00:00+00:00")
    options = parser.parse_args()
    return exit_code_of("restore", lambda: run(listing=options.list, wanted=options.cluster, until=options.to))


def run(*, listing: bool, wanted: str | None, until: str | None) -> int:
    """Choose the cluster, restore it beside, move it into place."""
    archive = settings.archive(os.environ)
    if archive is None:
        raise ProcessFailed("OBJECTS_URL is not set: there is nowhere to restore from")
    target = None if until is None else point_in_time(until)
    paths = settings.paths(os.environ)
    programs = settings.programs(os.environ)
    take_lock(paths.lock, wait_s=0)
    found = stored_clusters(archive, paths, programs)
    if listing:
        answer: Any = [
            {"cluster": entry["name"], "backups": [report(entry["name"], item) for item in entry["backup"]]}
            for entry in found
        ]
    else:
        name = choose([entry["name"] for entry in found if entry["backup"]], wanted)
        restore(archive, paths, programs, name, target)
        answer = {"cluster": name, "to": until, "restored": str(paths.cluster), "next": "start bin/postgres"}
    json.dump(answer, sys.stdout)
    sys.stdout.write("\n")
    return 0


def point_in_time(text: str) -> str:
    """Return `text` as PostgreSQL's recovery target."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise ProcessFailed(f"--to {text!r} is no ISO 8601 time") from error
    if moment.tzinfo is None:
        raise ProcessFailed(f"--to {text!r} has no offset", fix="add one: +00:00")
    return moment.isoformat(sep=" ", timespec="microseconds")


def choose(names: list[str], wanted: str | None) -> str:
    """Return the cluster to restore; a guess among several could bring back the wrong database."""
    if not names:
        raise ProcessFailed("the store holds no base backup of a database", fix="check OBJECTS_URL and OBJECTS_BUCKET")
    if wanted is None and len(names) == 1:
        return names[0]
    if wanted in names:
        return wanted
    raise ProcessFailed(
        f"the store holds {len(names)} clusters: {', '.join(sorted(names))}"
        if wanted is None
        else f"the store holds no cluster {wanted!r}; it holds {', '.join(sorted(names))}",
        fix="choose one with --cluster; --list shows their backups",
    )


def stored_clusters(archive: Archive, paths: Paths, programs: Programs) -> list[dict[str, Any]]:
    """Return `pgbackrest info` of every cluster in the store."""
    write_private(paths.backup_config, config.backup_config(archive, paths, settings.port(os.environ), "pg-0"))
    argv = [str(programs["pgbackrest"]), f"--config={paths.backup_config}", "info", "--output=json"]
    listed: list[dict[str, Any]] = json.loads(run_backrest(argv, programs.env, SHORT_S))
    return [entry for entry in listed if STANZA.fullmatch(entry["name"])]


def restore(archive: Archive, paths: Paths, programs: Programs, name: str, target: str | None) -> None:
    """Bring `name` back into the place of the cluster, ready to replay its WAL."""
    if paths.cluster.exists():
        raise ProcessFailed(
            f"{paths.cluster} already holds a database",
            fix="restore into an empty data folder, or move this one away first",
        )
    remove(paths.unfinished)
    write_private(paths.backup_config, config.backup_config(archive, paths, settings.port(os.environ), name))
    argv = config.backup_argv(programs["pgbackrest"], paths, name)
    command = config.restore_command(programs["pgbackrest"], paths, name)
    options = [f"--pg1-path={paths.unfinished}", f"--recovery-option=restore_command={command}"]
    if target is not None:
        options += ["--type=time", f"--target={target}", "--target-action=promote"]
    run_backrest([*argv, *options, "restore"], programs.env, LONG_S)
    sync_tree(paths.unfinished)
    cluster.install(paths)
