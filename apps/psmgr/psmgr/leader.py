"""One process manager acts: the one that holds a Postgres advisory lock.

The lock lives as long as its connection, and everything the leader writes to the database goes through that very
connection: a deposed leader cannot write any more. Before each write to the engine the connection is asked.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from types import TracebackType

from sqlalchemy import Connection, NullPool, create_engine, text
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

LOCK = 0x626C61636B737461  # "blacksta" as a 64-bit number
# A connection that says nothing is given up within some ten seconds, on both ends.
KEEPALIVE = {
    "connect_timeout": 3,
    "keepalives": 1,
    "keepalives_idle": 4,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
}
SERVER_SIDE = (
    "-c tcp_keepalives_idle=4 -c tcp_keepalives_interval=2 -c tcp_keepalives_count=3 -c tcp_user_timeout=10000"
    " -c statement_timeout=15000 -c lock_timeout=10000 -c idle_in_transaction_session_timeout=60000"
)


DEPOSE_S, DEPOSE_PAUSE_S = 10.0, 0.05
DEPOSE = """
SELECT pg_terminate_backend(pid) FROM pg_locks
WHERE locktype = 'advisory' AND classid::bigint = :high AND objid::bigint = :low AND objsubid = 1 AND granted
AND database = (SELECT oid FROM pg_database WHERE datname = current_database()) AND pid <> pg_backend_pid()
"""


class LeadershipLost(Exception):
    """The connection that held the lock is gone: another may act now."""


class Leader:
    """A connection to the platform's database, and the lock while it is held."""

    def __init__(self, url: str) -> None:
        engine = create_engine(url, poolclass=NullPool, connect_args={**KEEPALIVE, "options": SERVER_SIDE})
        try:
            self._connection: Connection = engine.connect()
        finally:
            engine.dispose()
        self.leads = False

    def __enter__(self) -> Leader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def acquire(self) -> bool:
        """Try to become the leader; return whether this one is."""
        if not self.leads:
            self.leads = bool(self._connection.scalar(text("SELECT pg_try_advisory_lock(:lock)"), {"lock": LOCK}))
            self._connection.commit()
        return self.leads

    def depose(self) -> bool:
        """Take the lead from whoever has it: end its connection, and with it all that it could still write."""
        deadline = time.monotonic() + DEPOSE_S
        while not self.acquire() and time.monotonic() < deadline:
            # Sessions act as role `platform`, but only the login itself may end sessions of the login.
            self._connection.execute(text("SET LOCAL ROLE NONE"))
            self._connection.execute(text(DEPOSE), {"high": LOCK >> 32, "low": LOCK & 0xFFFFFFFF})
            self._connection.commit()
            time.sleep(DEPOSE_PAUSE_S)
        return self.leads

    def release(self) -> None:
        """Let another one lead."""
        if self.leads:
            self._connection.execute(text("SELECT pg_advisory_unlock(:lock)"), {"lock": LOCK})
            self._connection.commit()
            self.leads = False

    def check(self) -> None:
        """Raise LeadershipLost unless the connection that holds the lock is alive. Not inside of a session."""
        if not self.leads:
            raise LeadershipLost("this process manager does not lead")
        try:
            self._connection.execute(text("SELECT 1"))
            self._connection.commit()
        except SQLAlchemyError as error:
            self.leads = False
            raise LeadershipLost(f"the database connection that held the lock is gone: {error}") from error

    @contextlib.contextmanager
    def session(self) -> Iterator[Session]:
        """A transaction on the lock's own connection, committed at its end."""
        with Session(bind=self._connection, expire_on_commit=False) as session, session.begin():
            yield session

    def close(self) -> None:
        """Close the connection; the server lets go of the lock."""
        self.leads = False
        with contextlib.suppress(SQLAlchemyError):
            self._connection.close()
