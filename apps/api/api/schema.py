"""Which schema this program needs: the revisions in `migrations/versions`, read without a database."""

from __future__ import annotations

from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

MIGRATIONS = Path(__file__).resolve().parent.parent / "migrations"


def alembic_config(database_url: str | None = None) -> Config:
    """Return Alembic's configuration; there is no alembic.ini."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    if database_url is not None:
        config.attributes["database_url"] = database_url
    return config


def migrate(database_url: str) -> None:
    """Bring the database to this program's schema. Safe to repeat; two at once wait for each other."""
    command.upgrade(alembic_config(database_url), "head")


_scripts = ScriptDirectory.from_config(alembic_config())
KNOWN = tuple(script.revision for script in _scripts.walk_revisions())
HEAD = KNOWN[0]
