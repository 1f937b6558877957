"""Database URLs as libpq's environment: a URL on a command line would show its password in the process list."""

from __future__ import annotations

from urllib.parse import parse_qsl, unquote, urlsplit

from blackstart.process.failure import ProcessFailed

PARAMETERS = {
    "sslmode": "PGSSLMODE",
    "sslrootcert": "PGSSLROOTCERT",
    "host": "PGHOST",
    "port": "PGPORT",
    "application_name": "PGAPPNAME",
    "connect_timeout": "PGCONNECT_TIMEOUT",
}
SCHEMES = ("postgres", "postgresql", "postgresql+psycopg")


def libpq_env(name: str, url: str) -> dict[str, str]:
    """Return the PG* variables of `url`, which came from the variable `name`."""
    parts = urlsplit(url)
    if parts.scheme not in SCHEMES or not parts.path.strip("/"):
        raise ProcessFailed(f"{name} is no database URL", fix="postgresql://USER:PASSWORD@HOST:PORT/DATABASE?sslmode=…")
    found = {
        "PGHOST": unquote(parts.hostname or ""),
        "PGPORT": str(parts.port or 5432),
        "PGUSER": unquote(parts.username or ""),
        "PGPASSWORD": unquote(parts.password or ""),
        "PGDATABASE": unquote(parts.path.strip("/")),
        "PGCONNECT_TIMEOUT": "10",
    }
    for key, value in parse_qsl(parts.query, keep_blank_values=True):
        if key not in PARAMETERS:
            raise ProcessFailed(f"{name}: parameter {key!r} is not supported; these are: {', '.join(PARAMETERS)}")
        found[PARAMETERS[key]] = value
    return {key: value for key, value in found.items() if value}
