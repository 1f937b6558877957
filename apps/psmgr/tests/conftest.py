"""A real PostgreSQL, a real Redis, and an engine in memory whose web dynos really listen."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import itertools
import json
import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import redis
from psmgr.engine import NameTaken, Node, Service, ServiceSpec, Task, TaskPhase
from psmgr.leader import Leader
from psmgr.loop import Reconciler
from psmgr.settings import Settings
from psmgr.store import ObjectMissing, ObjectTooLarge
from sqlalchemy import NullPool, create_engine, select
from sqlalchemy.orm import Session

from blackstart.model import bus
from blackstart.model.releases import create_release
from blackstart.model.secrets import Sealer, new_key
from blackstart.model.tables import Account, App, Base, Formation, Platform, Release, Slug

STACK = "127.0.0.1:1/stack-debian-13:" + "a" * 64
STACK_BUILD = "127.0.0.1:1/stack-debian-13-build:" + "b" * 64


def eventually(probe: Callable[[], object], seconds: float = 15.0, what: str = "the condition") -> None:
    """Wait until `probe` returns something true, at most `seconds`."""
    deadline, pause = time.monotonic() + seconds, threading.Event()
    while not probe():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come within {seconds} s")
        pause.wait(0.01)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def postgres_bin() -> Path:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    if not found:
        pytest.fail("PostgreSQL is not installed: run `python3 bootstrap.py test`, which installs it")
    return found[-1].parent


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """A PostgreSQL cluster of an unprivileged user, without fsync."""
    programs, port = postgres_bin(), free_port()
    folder = Path(tempfile.mkdtemp(prefix="psmgr-pg-"))
    as_user = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
    if as_user:
        shutil.chown(folder, "postgres")
    data = folder / "data"
    initdb = [*as_user, str(programs / "initdb"), "-D", str(data), "-A", "trust", "-U", "postgres", "--no-sync"]
    subprocess.run(initdb, check=True, capture_output=True, cwd="/")
    options = ["-k", str(folder), "-h", "127.0.0.1", "-p", str(port), "-c", "fsync=off"]
    server = subprocess.Popen([*as_user, str(programs / "postgres"), "-D", str(data), *options], cwd="/", stderr=-3)
    url = f"postgresql+psycopg://postgres@127.0.0.1:{port}/postgres"
    engine = create_engine(url, poolclass=NullPool)

    def answers() -> bool:
        try:
            with engine.connect():
                return True
        except Exception:
            return False

    eventually(answers, 30, "PostgreSQL")
    yield url
    subprocess.run(
        [*as_user, str(programs / "pg_ctl"), "-D", str(data), "-m", "fast", "stop"],
        check=True,
        cwd="/",
        capture_output=True,
    )
    server.wait(20)
    shutil.rmtree(folder)


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A Redis without files."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.fail("redis-server is not installed: run `python3 bootstrap.py test`, which installs it")
    port = free_port()
    server = subprocess.Popen([program, "--port", str(port), "--save", "", "--bind", "127.0.0.1"], stdout=-3)
    client = bus.connect(f"redis://127.0.0.1:{port}/0")

    def answers() -> bool:
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False

    eventually(answers, 20, "Redis")
    client.close()
    yield f"redis://127.0.0.1:{port}/0"
    server.terminate()
    server.wait(20)


@pytest.fixture
def database(postgres_url: str) -> Iterator[str]:
    """An empty database with the platform's tables."""
    name = f"t{uuid.uuid4().hex}"
    admin = create_engine(postgres_url, poolclass=NullPool, isolation_level="AUTOCOMMIT")
    with admin.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name}")
    url = postgres_url.rsplit("/", 1)[0] + f"/{name}"
    engine = create_engine(url, poolclass=NullPool)
    Base.metadata.create_all(engine)
    with Session(engine) as session, session.begin():
        session.add(Platform(id=1, name="tst", domain="tst.internal", stage="self-hosted"))
    yield url
    with admin.connect() as connection:
        connection.exec_driver_sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def client(redis_url: str) -> Iterator[redis.Redis]:
    """A client of an empty bus."""
    found = bus.connect(redis_url)
    found.flushall()
    yield found
    found.close()


@pytest.fixture
def settings(redis_url: str, database: str) -> Settings:
    return Settings(
        platform="tst",
        domain="tst.internal",
        database_url=database,
        bus_url=redis_url,
        objects_url="http://objects:8333",
        objects_public_url="http://objects.tst.internal",
        objects_key="k",
        objects_secret="s",
        objects_bucket="tst",
        secret_key=new_key(),
        stack=STACK,
        stack_build=STACK_BUILD,
        deploy_timeout_s=20,
        ack_s=1,
        drain_s=3,
        compile_slug="c" * 64,
    )


class FakeEngine:
    """An engine in memory. `behave(spec, task)` decides how a new task is; web dynos listen on 127.0.0.1."""

    def __init__(self, nodes: int = 2) -> None:
        self.machines = [Node(f"n{i}", f"node{i}", "127.0.0.1", "manager", "ready") for i in range(1, nodes + 1)]
        self.specs: dict[str, ServiceSpec] = {}
        self.running: dict[str, Service] = {}
        self.sockets: dict[str, socket.socket] = {}
        self.writes: list[str] = []
        self.logs: dict[str, bytes] = {}
        self.behave: Callable[[ServiceSpec, Task], Task] = lambda spec, task: task
        self.networks: set[str] = set()
        self.stops = True
        self._ids = itertools.count(1)

    def nodes(self) -> list[Node]:
        return list(self.machines)

    def services(self, platform: str) -> list[Service]:
        return [s for s in self.running.values() if s.labels["blackstart.platform"] == platform]

    def create(self, spec: ServiceSpec) -> str:
        if any(service.name == spec.name for service in self.running.values()):
            raise NameTaken(spec.name)
        self.writes.append(f"create {spec.name}")
        id_ = f"s{next(self._ids)}"
        self.specs[id_] = spec
        replicas = spec.replicas if spec.mode == "replicated" else 1 if spec.mode == "job" else None
        self.running[id_] = Service(id_, spec.name, dict(spec.labels), spec.mode, replicas, time.time())
        self._fill(id_)
        if spec.labels["blackstart.kind"] == "stop" and self.stops:
            self._stop(spec.labels["blackstart.task"])
        return id_

    def scale(self, service_id: str, replicas: int) -> None:
        self.writes.append(f"scale {self.running[service_id].name} {replicas}")
        service = self.running[service_id]
        kept = tuple(task for task in service.tasks if task.slot <= replicas)
        self.running[service_id] = dataclasses.replace(service, replicas=replicas, tasks=kept)
        self._fill(service_id)

    def replace(self, service_id: str, spec: ServiceSpec) -> None:
        service = self.running[service_id]
        self.writes.append(f"replace {service.name} by {spec.name}")
        self.specs[service_id] = spec
        self.running[service_id] = dataclasses.replace(
            service, labels=dict(spec.labels), replicas=spec.replicas, tasks=()
        )
        self._fill(service_id)

    def remove(self, service_id: str) -> None:
        service = self.running.pop(service_id, None)
        if service is None:
            return
        self.writes.append(f"remove {service.name}")
        for task in service.tasks:
            if task.id in self.sockets:
                self.sockets.pop(task.id).close()

    def ensure_network(self, name: str, mtu: int | None) -> None:
        self.networks.add(name)

    def log(self, service_id: str) -> bytes:
        return self.logs.get(service_id, b"")

    def follow(self, service_id: str) -> Iterator[bytes]:
        yield self.logs.get(service_id, b"")

    def events(self) -> Iterator[None]:
        return iter(())

    def named(self, name: str) -> Service | None:
        return next((service for service in self.running.values() if service.name == name), None)

    def names(self) -> set[str]:
        return {service.name for service in self.running.values()}

    def end(self, service_id: str, phase: TaskPhase, exit_code: int, message: str = "") -> None:
        """Let a job's task end."""
        service = self.running[service_id]
        ended: dict[str, Any] = {"phase": phase, "exit_code": exit_code, "message": message, "since": time.time()}
        tasks = tuple(dataclasses.replace(task, **ended) for task in service.tasks)
        self.running[service_id] = dataclasses.replace(service, tasks=tasks)

    def close(self) -> None:
        for sock in self.sockets.values():
            sock.close()

    def _fill(self, id_: str) -> None:
        service, spec = self.running[id_], self.specs[id_]
        tasks = list(service.tasks)
        places = (
            [(0, node.id) for node in self.machines if node.state == "ready"]
            if service.replicas is None
            else [(slot, self.machines[slot % len(self.machines)].id) for slot in range(1, service.replicas + 1)]
        )
        for slot, node in places:
            if (slot, node) not in {(task.slot, task.node_id) for task in tasks}:
                tasks.append(self._task(spec, slot, node))
        self.running[id_] = dataclasses.replace(service, tasks=tuple(tasks))

    def _stop(self, task_id: str) -> None:
        """End a task, and start another one in its slot."""
        for id_, service in self.running.items():
            if any(task.id == task_id for task in service.tasks):
                kept = tuple(task for task in service.tasks if task.id != task_id)
                self.running[id_] = dataclasses.replace(service, tasks=kept)
                self._fill(id_)
                return

    def _task(self, spec: ServiceSpec, slot: int, node: str) -> Task:
        id_ = f"t{next(self._ids)}"
        phase: TaskPhase = "complete" if spec.mode == "global-job" else "running"
        task = self.behave(spec, Task(id_, slot, node, phase, since=time.time() - 3))
        ports = {}
        if task.phase == "running" and spec.ports and task.exit_code is None:
            sock = self.sockets[id_] = socket.create_server(("127.0.0.1", 0))
            ports = {spec.ports[0].target: sock.getsockname()[1]}
        return dataclasses.replace(task, ports=ports)


class FakeStore:
    """An object store in memory."""

    def __init__(self) -> None:
        self.objects: dict[str, bytes] = {}
        self.largest = 100

    def slug_url(self, slug: str) -> str:
        return f"http://objects:8333/tst/slugs/{slug}.squashfs?X-Amz-Signature=s"

    def made_url(self, build_id: str, seconds: int) -> str:
        return f"http://objects:8333/tst/builds/{build_id}/slug?X-Amz-Expires={seconds}"

    def public_get(self, key: str, seconds: int) -> str:
        return f"get:{key}"

    def public_put(self, key: str, seconds: int) -> str:
        return f"put:{key}"

    def read(self, key: str) -> bytes:
        if key not in self.objects:
            raise ObjectMissing(key)
        return self.objects[key]

    def digest(self, key: str) -> tuple[str, int]:
        data = self.read(key)
        if len(data) > self.largest:
            raise ObjectTooLarge(key)
        return hashlib.sha256(data).hexdigest(), len(data)

    def exists(self, key: str) -> bool:
        return key in self.objects

    def copy(self, source: str, target: str) -> None:
        self.objects[target] = self.read(source)

    def delete(self, keys: list[str]) -> None:
        for key in keys:
            self.objects.pop(key, None)


class World:
    """A platform under test: its database, bus, engine and store, and the leader's passes."""

    def __init__(self, settings: Settings, client: redis.Redis, engine: FakeEngine) -> None:
        self.settings, self.bus, self.engine, self.store = settings, client, engine, FakeStore()
        self.sealer = Sealer(settings.secret_key)
        self.db = create_engine(settings.database_url, poolclass=NullPool)
        self.leader = Leader(settings.database_url)
        assert self.leader.acquire()
        self.reconciler = self.fresh_reconciler()
        with self.transaction() as session:
            session.add(Account(email="user@example.org"))

    def fresh_reconciler(self) -> Reconciler:
        """A process manager that knows nothing yet."""
        return Reconciler(self.settings, self.engine, self.bus, self.store, stopping=lambda: False)  # type: ignore[arg-type]

    def step(self) -> float:
        return self.reconciler.step(self.leader, "self-hosted")

    def until(self, condition: Callable[[], object], seconds: float = 15.0) -> None:
        """Make passes until `condition` holds."""

        def once() -> bool:
            self.step()
            return bool(condition())

        eventually(once, seconds, "the platform's state")

    def app(self, name: str, component: dict[str, object] | None = None) -> uuid.UUID:
        with self.transaction() as session:
            owner = session.scalars(select(Account)).one()
            app = App(name=name, owner_id=owner.id, component=component)
            session.add(app)
            session.flush()
            return app.id

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        with Session(self.db, expire_on_commit=False) as session, session.begin():
            yield session

    def release(
        self,
        app_id: uuid.UUID,
        slug: str = "1" * 64,
        types: dict[str, str] | None = None,
        config: dict[str, str] | None = None,
    ) -> int:
        with self.transaction() as session:
            app = session.get_one(App, app_id)
            row = Slug(
                app_id=app_id,
                sha256=slug,
                size=1,
                stack=STACK,
                source_sha256="0" * 64,
                process_types=types or {"web": "serve"},
                buildpacks=[],
            )
            session.add(row)
            session.flush()
            user = session.scalars(select(Account)).one()
            release = create_release(
                session, self.sealer, app, user=user, description="d", slug=row, config=config or {}
            )
            return release.version

    def status(self, app_id: uuid.UUID, version: int) -> str:
        with self.transaction() as session:
            query = select(Release.status).where(Release.app_id == app_id, Release.version == version)
            return str(session.scalar(query))

    def failure(self, app_id: uuid.UUID, version: int) -> str:
        with self.transaction() as session:
            query = select(Release.failure).where(Release.app_id == app_id, Release.version == version)
            return str(session.scalar(query))

    def scale(self, app_id: uuid.UUID, type_: str, quantity: int) -> None:
        with self.transaction() as session:
            query = select(Formation).where(Formation.app_id == app_id, Formation.type == type_)
            row = session.scalars(query).one_or_none() or Formation(app_id=app_id, type=type_)
            row.quantity = quantity
            session.add(row)

    def ack(self, sessions: dict[str, int] | None = None, behind: int = 0) -> None:
        """Let the routers of all nodes acknowledge the table on the bus."""
        table = json.loads(self.bus.get("routes") or '{"version": 0}')
        servers = {id_: {"status": "UP", "sessions": count} for id_, count in (sessions or {}).items()}
        for node in self.engine.machines:
            value = json.dumps({"version": table["version"] - behind, "servers": servers})
            self.bus.set(bus.router_key(node.name), value, ex=15)

    def routes(self) -> Any:
        return json.loads(self.bus.get("routes") or "{}")

    def close(self) -> None:
        self.reconciler.close()
        for thread in threading.enumerate():
            if thread.name.startswith("output-"):
                thread.join(5)
        self.leader.close()
        self.engine.close()


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def world(settings: Settings, client: redis.Redis, engine: FakeEngine) -> Iterator[World]:
    made = World(settings, client, engine)
    yield made
    made.close()
