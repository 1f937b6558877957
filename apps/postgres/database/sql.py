"""psql as the superuser, over the unix socket. Statements go through standard input, never the process list."""

from __future__ import annotations

import subprocess

from blackstart.process.failure import ProcessFailed

from . import scram
from .settings import DATABASE, ROLE, SUPERUSER, Paths, Programs, epoch_of


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


def converge(superuser: Superuser, login: str, password: str) -> list[str]:
    """Make roles, password and database as they should be; return what was changed.

    `login` may log in with `password`; the logins of earlier epochs no longer may.
    """
    changed = ensure_login(superuser, login, password)
    changed += [_retire(superuser, role) for role in _logins(superuser) if epoch_of(role) < epoch_of(login)]
    owner = superuser.run(f"SELECT datdba::regrole FROM pg_database WHERE datname = '{DATABASE}'")  # noqa: S608
    if not owner:
        superuser.run(f"CREATE DATABASE {DATABASE} OWNER {ROLE} TEMPLATE template0")
        changed.append(f"database {DATABASE} made")
    elif owner != ROLE:
        superuser.run(f"ALTER DATABASE {DATABASE} OWNER TO {ROLE}")
        changed.append(f"owner of database {DATABASE} changed")
    return changed


def ensure_login(superuser: Superuser, login: str, password: str) -> list[str]:
    """Make `login` a role that logs in with `password` and acts as role `platform`; return what was changed."""
    changed = []
    if login != ROLE:
        changed += _ensure_role(superuser, ROLE, "NOLOGIN")
    changed += _ensure_role(superuser, login, "LOGIN")
    if login != ROLE:
        # Everything belongs to `platform`, whoever made it: a login's sessions begin as that role.
        superuser.run(f"GRANT {ROLE} TO {login}; ALTER ROLE {login} SET role TO {ROLE}")
    stored = superuser.run(f"SELECT coalesce(rolpassword, 'none') FROM pg_authid WHERE rolname = '{login}'")  # noqa: S608
    if not scram.matches(password, stored) or login not in _logins(superuser):
        superuser.run(f"ALTER ROLE {login} LOGIN PASSWORD '{scram.verifier(password)}'")
        changed.append(f"password of role {login} changed")
    return changed


def _ensure_role(superuser: Superuser, role: str, may: str) -> list[str]:
    if superuser.run(f"SELECT 1 FROM pg_roles WHERE rolname = '{role}'"):  # noqa: S608
        return []
    superuser.run(f"CREATE ROLE {role} {may}")
    return [f"role {role} made"]


def _logins(superuser: Superuser) -> list[str]:
    """Return the roles that may log in as `platform`."""
    condition = f"rolcanlogin AND NOT rolsuper AND pg_has_role(oid, '{ROLE}', 'MEMBER')"
    return superuser.run(f"SELECT rolname FROM pg_roles WHERE {condition}").split()  # noqa: S608


def _retire(superuser: Superuser, role: str) -> str:
    superuser.run(f"ALTER ROLE {role} NOLOGIN PASSWORD NULL")
    superuser.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = '{role}'")  # noqa: S608
    return f"role {role} may no longer log in"
