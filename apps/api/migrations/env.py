"""Alembic's entry: one transaction, under an advisory lock, with the URL that `api.schema.migrate` passes."""

from __future__ import annotations

from alembic import context
from sqlalchemy import create_engine, pool, text

from blackstart.model.tables import Base

MIGRATION_LOCK = 0x626C61636B  # "black": any number of our own will do


def run() -> None:
    engine = create_engine(
        context.config.attributes["database_url"], poolclass=pool.NullPool, connect_args={"connect_timeout": 10}
    )
    with engine.connect() as connection:
        context.configure(connection=connection, target_metadata=Base.metadata, compare_type=True)
        with context.begin_transaction():
            connection.execute(text(f"SELECT pg_advisory_xact_lock({MIGRATION_LOCK})"))
            # A table that is in use is waited for, but those who wait behind us must not wait long.
            connection.execute(text("SET LOCAL lock_timeout = '10s'"))
            context.run_migrations()


run()
