"""psql as the superuser, over the unix socket. Statements go through standard input, never the process list."""

from __future__ import annotations

import subprocess

from blackstart.process.failure import ProcessFailed

from . import scram
from .settings import DATABASE, ROLE, SUPERUSER, Paths, Programs


class Superuser:
    """Runs SQL in the server of this machine."""

    def __init__(self, paths: Paths, programs: Programs, port: int) -> None:
        self._argv = [str(programs["psql"]), "-X", "-qAt", "-v", "ON_ERROR_STOP=1", "-d", "postgres"]
        self._env = programs.env | {
            "PGHOST": str(paths.runtime),
            "PGPORT": str(port),
            "PGUSER": SUPERUSER,
            "PGCONNECT_TIMEOUT": "10",
            # a failing ALTER ROLE would log its statement
            "PGOPTIONS": "-c log_min_error_statement=panic -c statement_timeout=60s",
        }

    def run(self, statement: str) -> str:
        """Return what `statement` prints; raises ProcessFailed."""
        done = subprocess.run(
            self._argv, env=self._env, input=statement, capture_output=True, text=True, check=False, timeout=120
        )
        if done.returncode != 0:
            raise ProcessFailed("the database refused a statement", why=done.stderr.strip())
        return done.stdout.strip()

    def ready(self) -> bool:
        """Return whether the server takes writes (it is up, and any recovery is over)."""
        try:
            return self.run("SELECT pg_is_in_recovery()") == "f"
        except ProcessFailed:
            return False


def converge(superuser: Superuser, password: str) -> list[str]:
    """Make role, password and database as they should be; return what was changed."""
    changed = []
    stored = superuser.run(f"SELECT coalesce(rolpassword, 'none') FROM pg_authid WHERE rolname = '{ROLE}'")  # noqa: S608
    if not stored:
        superuser.run(f"CREATE ROLE {ROLE} LOGIN PASSWORD '{scram.verifier(password)}'")
        changed.append(f"role {ROLE} made")
    elif not scram.matches(password, stored):
        superuser.run(f"ALTER ROLE {ROLE} LOGIN PASSWORD '{scram.verifier(password)}'")
        changed.append(f"password of role {ROLE} changed")
    owner = superuser.run(f"SELECT datdba::regrole FROM pg_database WHERE datname = '{DATABASE}'")  # noqa: S608
    if not owner:
        superuser.run(f"CREATE DATABASE {DATABASE} OWNER {ROLE} TEMPLATE template0")
        changed.append(f"database {DATABASE} made")
    elif owner != ROLE:
        superuser.run(f"ALTER DATABASE {DATABASE} OWNER TO {ROLE}")
        changed.append(f"owner of database {DATABASE} changed")
    return changed
