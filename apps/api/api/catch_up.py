"""The schema at the start of a dyno: a new API brings the database to its own schema before it listens.

So an upgrade needs no step of its own for it: a migration that fails is rolled back by the database, the dyno ends, and the
release fails; what ran before goes on. Only the schema of the control plane in charge is moved: an empty database is filled
by stage 0, the pivot or a restore. A migration must keep the version before working: both run at the same time.
"""

from __future__ import annotations

import threading

from sqlalchemy import create_engine, pool, text
from sqlalchemy.exc import DBAPIError, OperationalError

from api.errors import reason
from api.log import say
from api.schema import HEAD, KNOWN, migrate
from api.settings import Settings

AGAIN_SECONDS = 5.0
CONNECT_SECONDS = 3


REFUSALS = ("password authentication failed", "pg_hba.conf", "does not exist", "is not permitted to log in")
"""What the database says to one that it will never let in: no outage, but a wrong config var (libpq gives no code)."""


class StartRefused(Exception):
    """This API must not start: the database refused the migration (and is as it was), or does not let it in."""


def catch_up(settings: Settings) -> None:
    """Migrate where it is due. An absent database is waited for beside serving; one that refuses us ends the dyno, so that
    an upgrade with a wrong credential is given up and the old release goes on (tried the other way). Raises StartRefused.
    """
    try:
        _migrate_if_due(settings)
    except OperationalError as error:
        if any(words in str(error.orig) for words in REFUSALS):
            raise StartRefused("the database does not let us in: check DATABASE_URL") from error
        say("schema_unknown", why=reason(error))
        threading.Thread(target=_keep_trying, args=(settings,), name="catch-up", daemon=True).start()


def _keep_trying(settings: Settings) -> None:
    again = threading.Event()
    while not again.wait(AGAIN_SECONDS):
        try:
            _migrate_if_due(settings)
        except (OperationalError, StartRefused) as error:
            say("schema_not_moved", why=str(error).splitlines()[0])
        else:
            return


def _migrate_if_due(settings: Settings) -> None:
    found = _found(settings)
    if found is None or found == HEAD or found not in KNOWN:
        return
    say("schema", was=found, becomes=HEAD)
    try:
        migrate(settings.database_url)
    except DBAPIError as error:
        raise StartRefused(f"the schema stays {found}: {str(error.orig).strip().splitlines()[0]}") from error


def _found(settings: Settings) -> str | None:
    """Return the schema's revision when this API is in charge of it, else None."""
    if settings.role != "app":
        return None
    engine = create_engine(
        settings.database_url, poolclass=pool.NullPool, connect_args={"connect_timeout": CONNECT_SECONDS}
    )
    with engine.connect() as connection:
        if connection.scalar(text("SELECT to_regclass('platform') IS NULL OR to_regclass('alembic_version') IS NULL")):
            return None
        if connection.scalar(text("SELECT stage FROM platform")) != "self-hosted":
            return None
        return str(connection.scalar(text("SELECT version_num FROM alembic_version")))
