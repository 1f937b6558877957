"""The database's connection: fails within seconds, says so, and comes back by itself."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from sqlalchemy import Engine, create_engine, text
from sqlalchemy.exc import InterfaceError, OperationalError, ProgrammingError
from sqlalchemy.orm import Session, sessionmaker

from api.errors import DatabaseDown, reason
from api.schema import HEAD, KNOWN

CONNECT_SECONDS = 3
STATEMENT_MS = 15_000
SILENT_MS = 8_000
POOL = 5
POOL_OVERFLOW = 15
POOL_WAIT_SECONDS = 5
REST_SECONDS = 1.0
SCHEMA_SECONDS = 5.0


def make_engine(url: str) -> Engine:
    """Return an engine whose connections and statements have deadlines. It does not connect yet."""
    return create_engine(
        url,
        pool_size=POOL,
        max_overflow=POOL_OVERFLOW,
        pool_timeout=POOL_WAIT_SECONDS,
        pool_pre_ping=True,
        hide_parameters=True,
        connect_args={
            "connect_timeout": CONNECT_SECONDS,
            "application_name": "api",
            "options": f"-c statement_timeout={STATEMENT_MS} -c lock_timeout={STATEMENT_MS} -c timezone=UTC"
            f" -c idle_in_transaction_session_timeout={2 * STATEMENT_MS}",
            "keepalives": 1,
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 2,
            "tcp_user_timeout": SILENT_MS,
        },
    )


class Database:
    """Sessions on the platform's database.

    After a failed connection nobody tries again for a second, so that a dead database does not hold every thread
    for the whole connect timeout.
    """

    def __init__(self, url: str) -> None:
        self.engine = make_engine(url)
        self._sessions = sessionmaker(self.engine, expire_on_commit=False)
        self._lock = threading.Lock()
        self._resting_until = 0.0
        self._why = ""
        self._schema: str | None = None
        self._schema_read = float("-inf")

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Give a session with a live connection. Raises DatabaseDown; what is not committed is rolled back."""
        if time.monotonic() < self._resting_until:
            raise DatabaseDown(self._why)
        with self._sessions() as session:
            try:
                session.connection()
            except (OperationalError, InterfaceError) as error:
                self._rest(reason(error))
                raise
            yield session

    def schema_problem(self, session: Session) -> str | None:
        """Return why writing is not safe: the schema is older than this program. None when it is fit.

        A revision that this program does not know is newer; migrations keep the version before working.
        """
        with self._lock:
            if self._schema != HEAD and time.monotonic() - self._schema_read > SCHEMA_SECONDS:
                self._schema = _revision(session)
                self._schema_read = time.monotonic()
            revision = self._schema
        if revision is None:
            return "the database has no schema yet; run bin/migrate"
        if revision != HEAD and revision in KNOWN:
            return f"the database's schema is {revision}, this program needs {HEAD}; run bin/migrate"
        return None

    def close(self) -> None:
        """Close all connections."""
        self.engine.dispose()

    def _rest(self, why: str) -> None:
        self._why = why
        self._resting_until = time.monotonic() + REST_SECONDS


def _revision(session: Session) -> str | None:
    try:
        with session.begin_nested():
            value = session.scalar(text("SELECT version_num FROM alembic_version"))
    except ProgrammingError:
        return None
    return None if value is None else str(value)
