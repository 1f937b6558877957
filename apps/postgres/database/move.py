"""`bin/move-database`: everything from SOURCE_DATABASE_URL to TARGET_DATABASE_URL, in one transaction, then compared.

Run again after any interruption: a target that is equal already is left alone, one that holds other rows is refused.
Writers of the source must be stopped before. MOVE_TIMEOUT_S (default 1800) bounds each step.
Prints a JSON report. Exit 0: both are equal. Exit 1: failed, the target is as it was. Exit 3: the target holds other
data. Exit 4: moved, but not equal (a writer was not stopped).
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from blackstart.process.failure import ProcessFailed, exit_code_of
from blackstart.process.settings import required, whole_number

from . import settings
from .content import Content, Database, differences
from .urls import libpq_env

REFUSED, UNEQUAL = 3, 4


def main() -> int:
    """Parse the command line and move."""
    parser = argparse.ArgumentParser(prog="bin/move-database", description="Copy a database and prove it equal.")
    parser.add_argument("--replace", action="store_true", help="replace the target's tables even if they hold rows")
    options = parser.parse_args()
    return exit_code_of("move-database", lambda: run(replace=options.replace))


def run(*, replace: bool) -> int:
    """Move unless the target is equal already; report."""
    started = time.monotonic()
    source, target = databases()
    before, found = source.content(), target.content()
    if not differences(before, found):
        return tell(before, moved=False, started=started)
    if not replace and not found.without_rows:
        raise ProcessFailed(
            "the target holds other data than the source: nothing was changed",
            why="; ".join(differences(before, found)),
            fix="if the target's rows may go, run again with --replace",
            code=REFUSED,
        )
    copy(source, target, clean=not found.empty)
    if unequal := differences(before, target.content()):
        raise ProcessFailed(
            "the target is not equal to the source after the move",
            why="; ".join(unequal),
            fix="stop every writer of the source, then run again with --replace",
            code=UNEQUAL,
        )
    return tell(before, moved=True, started=started)


def databases() -> tuple[Database, Database]:
    """Return source and target."""
    programs = settings.programs(os.environ)
    deadline = whole_number(os.environ, "MOVE_TIMEOUT_S", 1800)
    source, target = (
        Database(name.lower(), programs, libpq_env(variable, required(os.environ, variable)), deadline)
        for name, variable in (("SOURCE", "SOURCE_DATABASE_URL"), ("TARGET", "TARGET_DATABASE_URL"))
    )
    return source, target


def copy(source: Database, target: Database, *, clean: bool) -> None:
    """Dump to a file first: a dump cut short must end the move before the target is touched."""
    with tempfile.TemporaryDirectory(prefix="move-database-") as folder:
        dump = Path(folder) / "dump"
        source.run("pg_dump", "--format=custom", "--no-owner", "--no-privileges", f"--file={dump}")
        words = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges"]
        if clean:
            words += ["--clean", "--if-exists"]
        target.run("pg_restore", *words, f"--dbname={target.env['PGDATABASE']}", str(dump))


def tell(content: Content, *, moved: bool, started: float) -> int:
    """Print the report."""
    report: dict[str, Any] = {
        "equal": True,
        "moved": moved,
        "rows": sum(table.rows for table in content.tables.values()),
        "tables": content.summary(),
        "sequences": len(content.sequences),
        "seconds": round(time.monotonic() - started, 2),
    }
    if not moved:
        report["note"] = "the target was equal already"
    json.dump(report, sys.stdout)
    sys.stdout.write("\n")
    return 0
