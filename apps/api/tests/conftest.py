"""A real Postgres, a real Redis and a real server for each run; emptied for each test."""

from __future__ import annotations

import base64
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import httpx
import pytest
import redis
import uvicorn
from api.main import create_app
from api.schema import migrate
from api.settings import ObjectStore, Settings
from sqlalchemy import Engine, create_engine, pool, text
from sqlalchemy.orm import Session

from blackstart.model.releases import config_of, create_release
from blackstart.model.secrets import Sealer, new_token, token_digest
from blackstart.model.tables import Account, App, Base, Build, Platform, Release, Slug, Token

DOMAIN = "black.test"
STORE = ObjectStore("https://objects.black.test", "https://objects:5000", "black", "key", "secret")
DEADLINE = 20.0


def _eventually(probe: Callable[[], Any], what: str) -> Any:
    """Return the first true value of `probe`; fail when the deadline is over."""
    end = time.monotonic() + DEADLINE
    while time.monotonic() < end:
        value = probe()
        if value:
            return value
        time.sleep(0.02)  # between two looks, not instead of one
    raise AssertionError(f"{what} did not come about within {DEADLINE:.0f} s")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@dataclass
class Cluster:
    """A Postgres of our own, run by an unprivileged user (it refuses root)."""

    folder: Path
    programs: Path
    user: str | None

    def run(self, program: str, *arguments: str) -> None:
        """Run one of Postgres's programs as that user."""
        command = [str(self.programs / program), *arguments]
        done = subprocess.run(
            command, user=self.user, cwd=self.folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        if done.returncode != 0:
            raise RuntimeError(f"{program} failed: {done.stdout}")

    def start(self) -> None:
        """Start it and wait until it answers."""
        options = f"-c listen_addresses= -c unix_socket_directories={self.folder} -c fsync=off -c max_connections=60"
        log = str(self.folder / "log")
        command = [
            str(self.programs / "pg_ctl"),
            "-D",
            str(self.folder / "data"),
            "-w",
            "-l",
            log,
            "-o",
            options,
            "start",
        ]
        # The server keeps what it inherits, so it gets no pipe of ours.
        subprocess.run(
            command, user=self.user, cwd=self.folder, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def stop(self) -> None:
        """Stop it as a crash would."""
        self.run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", "immediate", "stop")

    def url(self, database: str) -> str:
        """Return the URL of a database."""
        return f"postgresql+psycopg://owner@/{database}?host={self.folder}"

    def execute(self, *statements: str) -> None:
        """Run statements outside of any transaction."""
        engine = create_engine(self.url("postgres"), poolclass=pool.NullPool, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            for statement in statements:
                connection.execute(text(statement))


def _programs() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[-3]))
    if not found:
        raise RuntimeError("these tests need PostgreSQL: apt-get install postgresql")
    return found[-1].parent


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    user = "postgres" if os.geteuid() == 0 else None
    folder = Path(tempfile.mkdtemp(prefix="api-pg-"))
    if user is not None:
        os.chown(folder, pwd.getpwnam(user).pw_uid, -1)
    made = Cluster(folder, _programs(), user)
    try:
        made.run("initdb", "-D", str(folder / "data"), "-U", "owner", "-A", "trust", "-N", "-E", "UTF8", "--no-locale")
        made.start()
        try:
            made.execute("CREATE DATABASE template")
            migrate(made.url("template"))
            yield made
        finally:
            made.stop()
    finally:
        shutil.rmtree(folder)


@dataclass
class Redis:
    """A Redis of our own."""

    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return its URL."""
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Return a client."""
        return redis.Redis(port=self.port, decode_responses=True)

    def start(self) -> None:
        """Start it and wait until it answers."""
        program = shutil.which("redis-server")
        if program is None:
            raise RuntimeError("these tests need Redis: apt-get install redis-server")
        options = ["--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
        self.process = subprocess.Popen([program, *options], stdout=subprocess.DEVNULL)
        _eventually(self._answers, "redis")

    def stop(self) -> None:
        """Kill it."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None

    def _answers(self) -> bool:
        with self.client() as client:
            try:
                return bool(client.ping())
            except redis.ConnectionError:
                return False


@pytest.fixture(scope="session")
def _redis_server() -> Iterator[Redis]:
    made = Redis(_free_port())
    made.start()
    yield made
    made.stop()


@pytest.fixture
def bus(_redis_server: Redis) -> Redis:
    """A running, empty bus; a test may stop it."""
    if _redis_server.process is None:
        _redis_server.start()
    with _redis_server.client() as client:
        client.flushall()
    return _redis_server


@pytest.fixture(scope="session")
def database(cluster: Cluster) -> str:
    """The URL of the database with the schema; `rows` empties it."""
    cluster.execute("CREATE DATABASE platform TEMPLATE template")
    return cluster.url("platform")


@pytest.fixture
def empty_database(cluster: Cluster) -> Iterator[str]:
    """The URL of a database without anything in it."""
    name = f"t{uuid.uuid4().hex[:12]}"
    cluster.execute(f"CREATE DATABASE {name}")
    yield cluster.url(name)
    cluster.execute(f"DROP DATABASE {name} WITH (FORCE)")


@dataclass
class Server:
    """A running API."""

    url: str
    settings: Settings
    app: Any


@dataclass
class Servers:
    """Starts APIs and stops them at the end of the test."""

    running: list[tuple[uvicorn.Server, threading.Thread]] = field(default_factory=list)

    def start(self, settings: Settings) -> Server:
        """Start an API on a free port."""
        app, port = create_app(settings), _free_port()
        config = uvicorn.Config(
            app,
            host="127.0.0.1",
            port=port,
            access_log=False,
            log_level="warning",
            h11_max_incomplete_event_size=65536,
            timeout_graceful_shutdown=1,
        )
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        _eventually(lambda: server.started, "the API's start")
        self.running.append((server, thread))
        return Server(f"http://127.0.0.1:{port}", settings, app)

    def stop(self) -> None:
        """Stop all."""
        for server, thread in self.running:
            server.should_exit = True
            thread.join()


@pytest.fixture
def servers() -> Iterator[Servers]:
    made = Servers()
    yield made
    made.stop()


@pytest.fixture(scope="session")
def settings(database: str, _redis_server: Redis) -> Settings:
    return Settings(
        database_url=database,
        secret_key=base64.b64encode(bytes(32)).decode(),
        platform="black",
        domain=DOMAIN,
        role="stage-0",
        bus_url=_redis_server.url,
        objects=STORE,
        ca="absent.pem",
    )


@dataclass
class Rows:
    """The database as `psmgr` and the bootstrap see it: what no route makes."""

    engine: Engine
    sealer: Sealer

    def platform(self, stage: str) -> None:
        """Set the platform's stage."""
        with Session(self.engine) as session, session.begin():
            session.merge(Platform(id=1, name="black", domain=DOMAIN, stage=stage, epoch=0, settings={}))

    def account(self, email: str, *, admin: bool = False) -> str:
        """Make an account and return a token of it."""
        token = new_token()
        with Session(self.engine) as session, session.begin():
            account = Account(email=email, admin=admin)
            session.add(account)
            session.flush()
            session.add(Token(account_id=account.id, digest=token_digest(token), description="test"))
        return token

    def deploy(
        self, app: str, process_types: dict[str, str] | None = None, *, slug: str = "a", status: str = "succeeded"
    ) -> int:
        """Make a slug and a release of `app` as a finished build does; return the version."""
        with Session(self.engine) as session, session.begin():
            row = session.query(App).filter(App.name == app).one()
            made = Slug(
                id=uuid.uuid4(),
                app_id=row.id,
                sha256=slug * 64,
                size=13_000_000,
                stack="127.0.0.1:1/stack-debian-13:" + "0" * 64,
                source_sha256="b" * 64,
                source_version="abc",
                process_types=process_types or {"web": "gunicorn app:app", "worker": "python worker.py"},
                buildpacks=[{"name": "python", "version": "1"}],
            )
            session.add(made)
            session.flush()
            release = create_release(
                session,
                self.sealer,
                row,
                user=row.owner,
                description="Deploy abc",
                slug=made,
                config=config_of(session, self.sealer, row),
            )
            release.status = status
            return release.version

    def set_release(self, app: str, version: int, status: str) -> None:
        """Let a release end."""
        with Session(self.engine) as session, session.begin():
            query = session.query(Release).join(App, App.id == Release.app_id).filter(App.name == app)
            query.filter(Release.version == version).one().status = status

    def set_build(self, id: str, **values: Any) -> None:
        """Change a build as psmgr does."""
        with Session(self.engine) as session, session.begin():
            build = session.get_one(Build, uuid.UUID(id))
            for key, value in values.items():
                setattr(build, key, value)

    def add(self, *rows: object) -> None:
        """Add any rows."""
        with Session(self.engine) as session, session.begin():
            session.add_all(rows)

    def one(self, sql: str, **values: Any) -> Any:
        """Return the first row of a query."""
        with self.engine.connect() as connection:
            return connection.execute(text(sql), values).first()


@pytest.fixture
def rows(database: str, settings: Settings) -> Rows:
    made = Rows(create_engine(database, poolclass=pool.NullPool), Sealer(settings.secret_key))
    with made.engine.begin() as connection:
        connection.exec_driver_sql(f"TRUNCATE {', '.join(Base.metadata.tables)}")
    made.platform("stage-0")
    return made


@pytest.fixture(scope="session")
def _api(settings: Settings) -> Iterator[Server]:
    made = Servers()
    yield made.start(settings)
    made.stop()


@pytest.fixture
def api(_api: Server, rows: Rows, bus: Redis) -> Server:
    """A running API of stage 0, with a bus and a database that holds the platform's row only."""
    return _api


@dataclass
class Clients:
    """Clients of one server, closed at the end of the test."""

    url: str
    open: list[httpx.Client] = field(default_factory=list)

    def make(self, token: str | None, url: str | None = None) -> httpx.Client:
        """Return a client with a token, or without."""
        headers = {} if token is None else {"Authorization": f"Bearer {token}"}
        client = httpx.Client(base_url=url or self.url, headers=headers, timeout=30, trust_env=False)
        self.open.append(client)
        return client


@pytest.fixture
def clients(api: Server) -> Iterator[Clients]:
    made = Clients(api.url)
    yield made
    for client in made.open:
        client.close()


@pytest.fixture
def alice(clients: Clients, rows: Rows) -> httpx.Client:
    return clients.make(rows.account("alice@example.com"))


@pytest.fixture
def bob(clients: Clients, rows: Rows) -> httpx.Client:
    return clients.make(rows.account("bob@example.com"))


@pytest.fixture
def admin(clients: Clients, rows: Rows) -> httpx.Client:
    return clients.make(rows.account(f"operator@{DOMAIN}", admin=True))


@pytest.fixture
def nobody(clients: Clients) -> httpx.Client:
    return clients.make(None)


@pytest.fixture
def shop(alice: httpx.Client, rows: Rows) -> str:
    """An app of alice's with code: v1 is empty, v2 runs."""
    assert alice.post("/apps", json={"name": "shop"}).status_code == 201
    assert rows.deploy("shop") == 2
    return "shop"


@pytest.fixture
def eventually() -> Callable[[Callable[[], Any], str], Any]:
    return _eventually


@pytest.fixture
def with_settings(settings: Settings) -> Callable[..., Settings]:
    """Return these settings with some changed."""

    def changed(**values: Any) -> Settings:
        return replace(settings, **values)

    return changed
