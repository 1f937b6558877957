"""What a database holds, in a form that two databases can be compared by."""

from __future__ import annotations

import hashlib
import re
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from blackstart.process.failure import ProcessFailed

from .settings import Programs

STATEMENT_TIMEOUT_S = 600
# The one table that may hold rows before the move: a schema made by migrations alone is still empty.
MIGRATIONS_TABLE = "public.alembic_version"

TABLES = """
SELECT format('%I.%I', n.nspname, c.relname),
       coalesce((SELECT string_agg(format('%I', a.attname), ', ' ORDER BY k.place)
                 FROM pg_index i CROSS JOIN LATERAL unnest(i.indkey) WITH ORDINALITY AS k(attnum, place)
                 JOIN pg_attribute a ON a.attrelid = c.oid AND a.attnum = k.attnum
                 WHERE i.indrelid = c.oid AND i.indisprimary), 't::text COLLATE "C"')
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'm') AND c.relpersistence <> 't'
  AND n.nspname NOT IN ('pg_catalog', 'information_schema') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY 1
"""
SEQUENCES = """
SELECT format('%I.%I', schemaname, sequencename), coalesce(last_value::text, 'unused') FROM pg_sequences ORDER BY 1
"""


@dataclass(frozen=True)
class Table:
    """The rows of one table: how many, and the sha256 of them all in key order."""

    rows: int
    sha256: str


@dataclass(frozen=True)
class Content:
    """Everything in a database."""

    schema: str
    tables: dict[str, Table]
    sequences: dict[str, str] = field(default_factory=dict)

    @property
    def empty(self) -> bool:
        """Whether nothing is there, not even a table."""
        return not self.tables and not self.sequences

    @property
    def without_rows(self) -> bool:
        """Whether no table but the migrations' own has a row."""
        return all(table.rows == 0 for name, table in self.tables.items() if name != MIGRATIONS_TABLE)

    def summary(self) -> dict[str, Any]:
        """Return the tables for a report."""
        return {name: {"rows": table.rows, "sha256": table.sha256} for name, table in self.tables.items()}


def differences(source: Content, target: Content) -> list[str]:
    """Return what is not equal, in words."""
    found = []
    for name in sorted(source.tables.keys() | target.tables.keys()):
        ours, theirs = source.tables.get(name), target.tables.get(name)
        if ours is None or theirs is None:
            found.append(f"table {name} is only in the {'target' if ours is None else 'source'}")
        elif ours.rows != theirs.rows:
            found.append(f"table {name} has {ours.rows} rows in the source, {theirs.rows} in the target")
        elif ours != theirs:
            found.append(f"table {name} has other content in the target")
    for name in sorted(source.sequences.keys() | target.sequences.keys()):
        if source.sequences.get(name) != target.sequences.get(name):
            found.append(f"sequence {name} is at another value in the target")
    if source.schema != target.schema:
        found.append("the schemas differ (pg_dump --schema-only)")
    return found


class Database:
    """One of the two databases, reached with PostgreSQL's own programs."""

    def __init__(self, name: str, programs: Programs, variables: Mapping[str, str], deadline_s: float) -> None:
        self.name = name
        self.programs = programs
        timeouts = f"-c statement_timeout={STATEMENT_TIMEOUT_S}s -c lock_timeout=60s"
        self.env = programs.env | dict(variables) | {"PGOPTIONS": timeouts}
        self._deadline_s = deadline_s

    def content(self) -> Content:
        """Read everything."""
        tables = {name: self._table(name, order) for name, order in self._pairs(TABLES)}
        return Content(self._schema(), tables, dict(self._pairs(SEQUENCES)))

    def _pairs(self, statement: str) -> list[tuple[str, str]]:
        rows = self.run("psql", "-X", "-qAt", "-F", "\t", "-v", "ON_ERROR_STOP=1", statement=statement).splitlines()
        return [(left, right) for left, _, right in (row.partition("\t") for row in rows)]

    def _table(self, name: str, order: str) -> Table:
        """Hash the rows as they stream: COPY's text form has one line per row."""
        digest, rows = hashlib.sha256(), 0
        statement = f"COPY (SELECT * FROM {name} AS t ORDER BY {order}) TO STDOUT"  # noqa: S608 - names from the catalog
        reader = subprocess.Popen(
            [str(self.programs["psql"]), "-X", "-q", "-v", "ON_ERROR_STOP=1", "-c", statement],
            env=self.env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        with reader:
            if reader.stdout is None or reader.stderr is None:
                raise ProcessFailed("psql has no output")
            while block := reader.stdout.read(1 << 20):
                digest.update(block)
                rows += block.count(b"\n")
            errors = reader.stderr.read().decode(errors="replace").strip()
        if reader.returncode != 0:
            raise ProcessFailed(f"table {name} of the {self.name} cannot be read", why=errors)
        return Table(rows, digest.hexdigest())

    def _schema(self) -> str:
        """Return the sha256 of the schema; comments carry versions, \\restrict lines a random word."""
        text = self.run("pg_dump", "--schema-only", "--no-owner", "--no-privileges")
        lines = [line for line in text.splitlines() if line and not re.match(r"--|\\(un)?restrict ", line)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()

    def run(self, name: str, *words: str, statement: str | None = None) -> str:
        """Run one of PostgreSQL's programs against this database; raises ProcessFailed."""
        try:
            done = subprocess.run(
                [str(self.programs[name]), *words], env=self.env, input=statement or "", capture_output=True,
                text=True, check=False, timeout=self._deadline_s,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise ProcessFailed(f"{name} on the {self.name} did not end within {self._deadline_s:.0f} s") from error
        if done.returncode != 0:
            raise ProcessFailed(f"{name} on the {self.name} failed", why=done.stderr.strip())
        return done.stdout
