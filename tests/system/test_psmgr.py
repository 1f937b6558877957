"""The process manager on a real Docker Swarm of two machines, with real database, bus and object store.

It runs on this host, and reaches the engine through a forwarded socket. A small thread stands in for the routers.
"""

from __future__ import annotations

import contextlib
import hashlib
import http.client
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import pytest
import redis
from psmgr import spec
from psmgr.engine import Service
from psmgr.swarm import Swarm
from sqlalchemy import NullPool, create_engine, select, update
from sqlalchemy.orm import Session

from blackstart.model import bus
from blackstart.model.releases import create_release
from blackstart.model.secrets import Sealer, new_key
from blackstart.model.tables import Account, App, Base, Build, Dyno, Formation, Platform, Release, Slug, Source
from blackstart.providers.local import LocalPlatform

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
NAME, SUBNET, GATEWAY = "tpsm", "10.79.8.0/24", "10.79.8.1"
STACK = "127.0.0.1:1/stack-debian-13:" + "a" * 64
STACK_BUILD = "127.0.0.1:1/stack-debian-13-build:" + "b" * 64
PACKAGES = "docker.io docker-cli iptables tini squashfs-tools curl python3"

_spec = importlib.util.spec_from_file_location("psmgr_fixtures", ROOT / "apps/psmgr/tests/conftest.py")
if _spec is None or _spec.loader is None:
    raise ImportError("the fixtures of apps/psmgr are missing")
fixtures = importlib.util.module_from_spec(_spec)
sys.modules["psmgr_fixtures"] = fixtures
_spec.loader.exec_module(fixtures)
postgres_url, redis_url = fixtures.postgres_url, fixtures.redis_url
eventually, free_port = fixtures.eventually, fixtures.free_port

PREPARE = f"""set -e
export DEBIAN_FRONTEND=noninteractive
mkdir -p /etc/docker /var/lib/blackstart/slugs /etc/blackstart/trust
chmod 700 /var/lib/blackstart/slugs
touch /etc/blackstart/trust/ca-bundle.pem
for controller in /sys/fs/cgroup/*/; do mount -o remount,rw,bind "$controller" || true; done
echo '{{"icc": false, "userland-proxy": false}}' > /etc/docker/daemon.json
apt-get -q update > /dev/null
apt-get -q -y install --no-install-recommends {PACKAGES} > /dev/null 2>&1
mkdir -p /usr/lib/blackstart
cat > /usr/lib/blackstart/dyno
chmod 755 /usr/lib/blackstart/dyno
tar -C / -c --exclude=var/lib/docker --exclude=var/lib/blackstart --exclude=var/cache --exclude=var/lib/apt \\
    bin sbin lib lib64 usr etc root tmp var | docker import - {STACK} > /dev/null
docker tag {STACK} {STACK_BUILD}
"""

SERVE = """import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.0"
    def do_GET(self):
        body = os.environ.get("ANSWER", "hello").encode()
        self.send_response(200); self.send_header("Content-Length", str(len(body))); self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_):
        pass
import signal, threading
server = http.server.ThreadingHTTPServer(("", int(os.environ["PORT"])), Handler)
signal.signal(signal.SIGTERM, lambda *_: threading.Thread(target=server.shutdown).start())
server.serve_forever()
"""

# The least compiler: it packs what its source says, and speaks the contract of a build.
COMPILER = """#!/bin/bash
set -e
env | cut -d= -f1 | sort | tr '\\n' ' '
echo
curl -sf "$SOURCE_URL" -o /tmp/source || exit 2
mkdir /tmp/app && cp /tmp/source /tmp/app/serve.py
if grep -q refuse /tmp/source; then echo " !     push rejected"; exit 1; fi
mksquashfs /tmp/app /tmp/slug -quiet -no-progress -all-root > /dev/null
digest="$(sha256sum < /tmp/slug)"; digest="${digest%% *}"
for i in 1 2 3; do echo "-----> Step $i"; done
curl -sf -T /tmp/slug "$SLUG_PUT_URL" || exit 4
source="$(sha256sum < /tmp/source | cut -d" " -f1)"
start='"process_types": {"web": "exec python3 serve.py"}, "buildpacks": []'
printf '{"slug": "%s", "size": 1, %s, "stack": "%s", "source_sha256": "%s"}' \\
    "$digest" "$start" "$STACK" "$source" > /tmp/result
curl -sf -T /tmp/result "$RESULT_PUT_URL" || exit 4
"""


# Notices when another one of it uses the same volume.
ALONE = """#!/bin/bash
if [ -e /data/running ]; then touch /data/both; fi
touch /data/running
trap "rm /data/running; exit 0" TERM
while true; do sleep 0.1; done
"""


@pytest.fixture(scope="module")
def machines() -> Iterator[LocalPlatform]:
    """Two machines that are one swarm, with a stack made of the machine itself and our `dyno`."""
    with tempfile.TemporaryDirectory() as state:
        platform = LocalPlatform(name=NAME, subnet=SUBNET, nodes=2, with_stage0=False, state_dir=Path(state))
        platform.down()
        platform.prepare()
        try:
            dyno = (ROOT / "templates/stack/dyno").read_text()
            for machine in platform.machines():
                platform.create(machine)
                platform.boot(machine)
            threads = [threading.Thread(target=run, args=(platform, index, PREPARE, dyno)) for index in range(2)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            first = platform.machines()[0].address
            run(platform, 0, f"docker swarm init --advertise-addr {first} --default-addr-pool 10.201.0.0/16")
            token = run(platform, 0, "docker swarm join-token -q manager").strip()
            run(platform, 1, f"docker swarm join --token {token} {first}:2377")
            yield platform
        finally:
            platform.down()
        assert platform.leftovers() == ()


def run(platform: LocalPlatform, index: int, script: str, given: str = "") -> str:
    """Run a shell script as root on a machine."""
    argv = platform.ssh_command(platform.machines()[index], (script,))
    done = subprocess.run(argv, input=given, text=True, capture_output=True, timeout=400)
    assert done.returncode == 0, f"{script}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.fixture(scope="module")
def store_url(machines: LocalPlatform) -> Iterator[str]:
    """SeaweedFS on this host's bridge."""
    weed = Path(sys.executable).parent / "weed"
    folder, ports = Path(tempfile.mkdtemp(prefix="psmgr-s3-")), [free_port() for _ in range(4)]
    (folder / "s3.json").write_text(
        json.dumps(
            {
                "identities": [
                    {
                        "name": "t",
                        "credentials": [{"accessKey": "key", "secretKey": "secretsecret"}],
                        "actions": ["Admin", "Read", "Write", "List"],
                    }
                ]
            }
        )
    )
    flags = [f"-dir={folder}", f"-ip={GATEWAY}", "-ip.bind=0.0.0.0", "-volume.max=20", "-master.volumeSizeLimitMB=64"]
    flags += [f"-master.port={ports[0]}", f"-volume.port={ports[1]}", f"-filer.port={ports[2]}", f"-s3.port={ports[3]}"]
    flags += [f"-{kind}.port.grpc={free_port()}" for kind in ("master", "volume", "filer", "s3")]
    with open(folder / "log", "w") as log:
        server = subprocess.Popen(
            [weed, "server", "-s3", f"-s3.config={folder}/s3.json", *flags], stdout=log, stderr=log
        )
    url = f"http://{GATEWAY}:{ports[3]}"
    client = s3(url)

    def made() -> bool:
        try:
            client.create_bucket(Bucket=NAME)
            client.put_object(Bucket=NAME, Key="probe", Body=b"x")
        except Exception:
            return False
        return True

    eventually(made, 60, "the object store")
    yield url
    client.close()
    server.terminate()
    server.wait(30)
    shutil.rmtree(folder)


def s3(url: str) -> Any:
    return boto3.client(
        "s3", endpoint_url=url, aws_access_key_id="key", aws_secret_access_key="secretsecret", region_name="us-east-1"
    )


@dataclass
class Routers:
    """Stands in for the routers of both nodes: it applies a table at once and acknowledges it."""

    client: redis.Redis
    names: list[str]
    over: threading.Event = field(default_factory=threading.Event)
    table: dict[str, Any] = field(default_factory=lambda: {"version": 0, "apps": {}})

    def run(self) -> None:
        while not self.over.wait(0.02):
            text = self.client.get(bus.ROUTES)
            if text:
                self.table = json.loads(text)
            ids = [server["id"] for app in self.table["apps"].values() for server in app["servers"]]
            ack = {"version": self.table["version"], "servers": {id_: {"status": "UP", "sessions": 0} for id_ in ids}}
            for name in self.names:
                self.client.set(bus.router_key(name), json.dumps(ack), ex=15)

    def get(self, app: str) -> str:
        """Answer a request for `app` from a ready dyno; one more try where a connection is refused, as HAProxy does."""
        for last in (False, True):
            servers = [s for s in self.table["apps"].get(app, {"servers": []})["servers"] if s["state"] == "ready"]
            if not servers:
                raise AssertionError(f"no dyno of {app} is routed")
            server = servers[time.time_ns() % len(servers)]
            connection = http.client.HTTPConnection(server["address"], server["port"], timeout=5)
            try:
                connection.request("GET", "/")
                return connection.getresponse().read().decode()
            except ConnectionRefusedError:
                if last:
                    raise
            finally:
                connection.close()
        raise AssertionError("not reached")


class Under:
    """The platform under test."""

    def __init__(self, machines: LocalPlatform, url: str, redis_url: str, store_url: str, folder: Path) -> None:
        self.machines, self.folder, self.store_url = machines, folder, store_url
        self.socket = folder / "docker.sock"
        argv = list(machines.ssh_command(machines.machines()[0], ()))
        self.forward = subprocess.Popen([*argv[:-1], "-N", "-L", f"{self.socket}:/var/run/docker.sock", argv[-1]])
        eventually(self.socket.exists, 20, "the engine's socket")
        self.engine = Swarm(f"unix://{self.socket}")
        self.client = bus.connect(redis_url)
        self.key, self.s3 = new_key(), s3(store_url)
        self.sealer = Sealer(self.key)
        self.db = create_engine(url, poolclass=NullPool)
        Base.metadata.create_all(self.db)
        self.env = {
            "PLATFORM": NAME,
            "DOMAIN": f"{NAME}.internal",
            "DATABASE_URL": url,
            "BUS_URL": redis_url,
            "OBJECTS_URL": store_url,
            "OBJECTS_KEY": "key",
            "OBJECTS_SECRET": "secretsecret",
            "SECRET_KEY": self.key,
            "STACK": STACK,
            "STACK_BUILD": STACK_BUILD,
            "DOCKER_HOST": f"unix://{self.socket}",
            "PYTHONPATH": f"{ROOT}:{ROOT}/apps/psmgr",
            "PATH": os.environ["PATH"],
            "DEPLOY_TIMEOUT_S": "60",
            "BOOT_TIMEOUT_S": "20",
            "FETCH_TIMEOUT_S": "10",
        }
        with self.transaction() as session:
            session.add(Platform(id=1, name=NAME, domain=f"{NAME}.internal", stage="self-hosted"))
            session.add(Account(email="user@example.org"))
        self.routers = Routers(self.client, [machine.name for machine in machines.machines()])
        self.thread = threading.Thread(target=self.routers.run)
        self.thread.start()
        self.log = open(folder / "psmgr.log", "a")  # noqa: SIM115 (closed in close)
        self.manager = self.start_manager()

    def start_manager(self) -> subprocess.Popen[bytes]:
        return subprocess.Popen([sys.executable, "-m", "psmgr.main"], env=self.env, stdout=self.log, stderr=self.log)

    @contextlib.contextmanager
    def transaction(self) -> Iterator[Session]:
        with Session(self.db, expire_on_commit=False) as session, session.begin():
            yield session

    def slug(self, files: dict[str, str]) -> str:
        """Pack files into a slug in the store; return its sha256."""
        with tempfile.TemporaryDirectory() as folder:
            for name, text in files.items():
                path = Path(folder) / "root" / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
                path.chmod(0o755)
            made = Path(folder) / "slug"
            subprocess.run(
                ["mksquashfs", f"{folder}/root", made, "-quiet", "-no-progress", "-all-root"],
                check=True,
                capture_output=True,
            )
            data = made.read_bytes()
        digest = hashlib.sha256(data).hexdigest()
        self.s3.put_object(Bucket=NAME, Key=f"slugs/{digest}.squashfs", Body=data)
        return digest

    def app(self, name: str, component: dict[str, object] | None = None) -> uuid.UUID:
        with self.transaction() as session:
            app = App(name=name, owner_id=session.scalars(select(Account)).one().id, component=component)
            session.add(app)
            session.flush()
            return app.id

    def release(self, app_id: uuid.UUID, slug: str, types: dict[str, str], **config: str) -> int:
        with self.transaction() as session:
            app = session.get_one(App, app_id)
            row = Slug(
                app_id=app_id,
                sha256=slug,
                size=1,
                stack=STACK,
                source_sha256="0" * 64,
                process_types=types,
                buildpacks=[],
            )
            session.add(row)
            session.flush()
            user = session.scalars(select(Account)).one()
            version = create_release(
                session, self.sealer, app, user=user, description="d", slug=row, config=config
            ).version
        bus.announce(self.client, "release", "x")
        return version

    def row(self, app_id: uuid.UUID, version: int) -> Release:
        with self.transaction() as session:
            return session.scalars(select(Release).where(Release.app_id == app_id, Release.version == version)).one()

    def ended(self, app_id: uuid.UUID, version: int, seconds: float = 90) -> str:
        eventually(lambda: self.row(app_id, version).status != "pending", seconds, f"the end of release v{version}")
        return self.row(app_id, version).status

    def scale(self, app_id: uuid.UUID, type_: str, quantity: int) -> None:
        with self.transaction() as session:
            query = select(Formation).where(Formation.app_id == app_id, Formation.type == type_)
            row = session.scalars(query).one_or_none() or Formation(app_id=app_id, type=type_)
            row.quantity = quantity
            session.add(row)
        bus.announce(self.client, "formation", "x")

    def services(self, app_id: uuid.UUID) -> list[Service]:
        return [s for s in self.engine.services(NAME) if s.labels.get(spec.APP_ID) == str(app_id)]

    def ready(self, app: str) -> int:
        servers = self.routers.table["apps"].get(app, {"servers": []})["servers"]
        return sum(server["state"] == "ready" for server in servers)

    def close(self) -> None:
        for process in (self.manager, self.forward):
            process.terminate()
            process.wait(30)
        self.routers.over.set()
        self.thread.join()
        self.client.close()
        self.s3.close()
        self.log.close()


@pytest.fixture(scope="module")
def under(machines: LocalPlatform, postgres_url: str, redis_url: str, store_url: str) -> Iterator[Under]:
    with tempfile.TemporaryDirectory() as folder:
        made = Under(machines, postgres_url, redis_url, store_url, Path(folder))
        yield made
        status = Path(f"/proc/{made.manager.pid}/status").read_text()
        print("TIMING memory of the process manager:", re.findall(r"VmHWM:.*", status))
        made.close()
        print(Path(folder, "psmgr.log").read_text())


@pytest.fixture(scope="module")
def shop(under: Under) -> uuid.UUID:
    app = under.app("shop")
    under.release(app, under.slug({"serve.py": SERVE}), {"web": "exec python3 serve.py"}, ANSWER="one {{.Node.ID}}")
    assert under.ended(app, 1) == "succeeded", under.row(app, 1).failure
    eventually(lambda: under.ready("shop") == 1)
    return app


def timed(what: str, since: float) -> None:
    print(f"TIMING {what}: {time.monotonic() - since:.2f} s")


def test_a_release_answers_and_its_config_arrives_as_it_was_set(under: Under, shop: uuid.UUID) -> None:
    assert under.routers.get("shop") == "one {{.Node.ID}}"


def test_no_request_fails_during_deploys_and_scaling(under: Under, shop: uuid.UUID) -> None:
    slug = under.slug({"serve.py": SERVE})
    over, failures, answers = threading.Event(), [], set()

    def requests() -> None:
        while not over.is_set():
            try:
                answers.add(under.routers.get("shop"))
            except Exception as error:
                failures.append(repr(error))

    thread = threading.Thread(target=requests)
    thread.start()
    try:
        for number in range(4):
            begun = time.monotonic()
            version = under.release(shop, slug, {"web": "exec python3 serve.py"}, ANSWER=f"deploy {number}")
            assert under.ended(shop, version) == "succeeded", under.row(shop, version).failure
            timed("release written -> succeeded, slug on the nodes", begun)
            eventually(lambda: len(under.services(shop)) == 1, 60, "the old release's end")
            timed("release written -> old one gone", begun)
        begun = time.monotonic()
        under.scale(shop, "web", 3)
        eventually(lambda: under.ready("shop") == 3, 60, "three dynos")
        timed("scale 1 -> 3", begun)
    finally:
        over.set()
        thread.join()
    assert failures == []
    assert {"deploy 0", "deploy 3"} <= answers
    under.scale(shop, "web", 1)
    eventually(lambda: under.ready("shop") == 1, 60, "one dyno")


def test_dynos_are_restarted_on_any_node_and_no_request_fails(under: Under, shop: uuid.UUID) -> None:
    under.scale(shop, "web", 4)
    eventually(lambda: under.ready("shop") == 4, 60, "four dynos")
    (service,) = under.services(shop)
    before = {task.slot: task for task in service.tasks if task.wanted}
    assert len({task.node_id for task in before.values()}) == 2  # one of them is not the process manager's engine

    def wish(names: list[str]) -> None:
        with under.transaction() as session:
            mine = (Dyno.app_id == shop, Dyno.name.in_(names))
            session.execute(update(Dyno).where(*mine).values(stop_requested=True))
        bus.announce(under.client, "dyno", "shop")

    def running() -> dict[int, str]:
        (found,) = under.services(shop)
        return {task.slot: task.id for task in found.tasks if task.wanted and task.phase == "running"}

    def done() -> bool:
        with under.transaction() as session:
            waits = session.scalars(select(Dyno.name).where(Dyno.app_id == shop, Dyno.stop_requested)).all()
        return not waits and under.ready("shop") == 4

    over, failures = threading.Event(), []

    def requests() -> None:
        while not over.is_set():
            try:
                under.routers.get("shop")
            except Exception as error:
                failures.append(repr(error))

    thread = threading.Thread(target=requests)
    thread.start()
    try:
        for node in {task.node_id for task in before.values()}:
            slot = next(task.slot for task in before.values() if task.node_id == node)
            known, begun = running(), time.monotonic()
            wish([f"web.{slot}"])
            eventually(done, 60, f"the restart of web.{slot}")
            timed("restart wished -> back", begun)
            now = running()
            assert {each for each in known if known[each] != now[each]} == {slot}
        known = running()
        wish([f"web.{slot}" for slot in known])
        eventually(done, 120, "the restart of all")
        assert not set(known.values()) & set(running().values())
    finally:
        over.set()
        thread.join()
    assert failures == []
    eventually(lambda: not [s for s in under.engine.services(NAME) if "_stop_" in s.name], 30, "no job is left")
    under.scale(shop, "web", 1)
    eventually(lambda: under.ready("shop") == 1, 60, "one dyno")


def test_a_new_slug_is_brought_to_the_nodes_first(under: Under, shop: uuid.UUID) -> None:
    slug = under.slug({"serve.py": SERVE + "# other\n"})
    begun = time.monotonic()
    version = under.release(shop, slug, {"web": "exec python3 serve.py"})
    assert under.ended(shop, version) == "succeeded", under.row(shop, version).failure
    timed("release written -> succeeded, new slug", begun)
    for index in range(2):
        assert slug in run(under.machines, index, "ls /var/lib/blackstart/slugs")


def test_a_killed_process_manager_is_replaced_and_nothing_else_is(under: Under, shop: uuid.UUID) -> None:
    eventually(lambda: len(under.services(shop)) == 1, 60, "one service")
    before = [(s.id, [(t.id, t.since) for t in s.tasks if t.wanted]) for s in under.services(shop)]
    table = under.routers.table
    under.manager.send_signal(signal.SIGKILL)
    under.manager.wait()
    under.manager = under.start_manager()
    size = Path(under.folder, "psmgr.log").stat().st_size

    def leads() -> bool:
        return "INFO leading" in Path(under.folder, "psmgr.log").read_text()[size:]

    eventually(leads, 20, "the new leader")
    under.scale(shop, "web", 2)
    eventually(lambda: under.ready("shop") == 2, 60, "a second dyno")
    after = [(s.id, [(t.id, t.since) for t in s.tasks if t.wanted and t.slot == 1]) for s in under.services(shop)]
    assert after == before
    kept = table["apps"]["shop"]["servers"][0]
    assert kept in under.routers.table["apps"]["shop"]["servers"]
    under.scale(shop, "web", 1)
    eventually(lambda: under.ready("shop") == 1, 60, "one dyno")


def test_a_release_that_crashes_fails_fast_and_the_old_one_answers(under: Under, shop: uuid.UUID) -> None:
    slug = under.slug({"serve.py": "raise SystemExit('no such table')"})
    version = under.release(shop, slug, {"web": "exec python3 serve.py"})
    assert under.ended(shop, version) == "failed"
    assert "web crashed 3 times (exit code 1)" in str(under.row(shop, version).failure)
    assert under.routers.get("shop") == "hello"
    eventually(lambda: len(under.services(shop)) == 1, 60, "the failed release's end")


def test_a_volume_has_one_dyno_and_a_broken_release_of_it_goes_back(under: Under) -> None:
    run(under.machines, 0, f"docker node update --label-add blackstart.store=true {under.machines.machines()[1].name}")
    process = {"volume": True, "strategy": "recreate", "quantity": 1, "alias": "store"}
    app = under.app("store", {"name": "store", "processes": {"db": process}})
    slug = under.slug({"db": ALONE})
    under.scale(app, "db", 1)
    under.release(app, slug, {"db": "./db"})
    assert under.ended(app, 1) == "succeeded", under.row(app, 1).failure
    (first,) = under.services(app)
    begun = time.monotonic()
    under.release(app, slug, {"db": "./db"}, COLOUR="blue")
    assert under.ended(app, 2) == "succeeded", under.row(app, 2).failure
    timed("replacement written -> succeeded", begun)
    (second,) = under.services(app)
    assert (second.id, second.labels[spec.VERSION]) == (first.id, "2")
    # The process manager may lose its database with the old dyno: here it is killed as soon as it has written.
    under.release(app, under.slug({"db": "#!/bin/sh\nexit 1\n"}), {"db": "./db"})
    eventually(lambda: under.services(app)[0].labels[spec.VERSION] == "3", 60, "the replacement")
    under.manager.kill()
    under.manager.wait()
    eventually(lambda: under.services(app)[0].went_back, 60, "the way back")
    under.manager = under.start_manager()
    assert under.ended(app, 3) == "failed"
    assert under.row(app, 3).failure == "db failed soon after its start; v2 runs again"
    tasks = under.services(app)[0].tasks
    eventually(lambda: [t for t in under.services(app)[0].tasks if t.phase == "running" and t.wanted], 60, str(tasks))
    files = run(under.machines, 1, f"ls /var/lib/docker/volumes/{NAME}-store/_data")
    assert files.split() == ["running"]


def test_a_slug_that_vanished_from_a_node_comes_back(under: Under, shop: uuid.UUID) -> None:
    (service,) = under.services(shop)
    (task,) = [task for task in service.tasks if task.wanted]
    slug = service.labels[spec.SLUG]
    for index in range(2):
        run(under.machines, index, f"rm /var/lib/blackstart/slugs/{slug}.squashfs")
    for index in range(2):
        run(under.machines, index, "docker ps -q | xargs -r docker kill")

    def another() -> bool:
        (found,) = under.services(shop)
        return any(t.id != task.id and t.phase == "running" for t in found.tasks) and under.ready("shop") == 1

    eventually(another, 60, "a dyno")
    eventually(lambda: under.routers.get("shop") == "hello", 20, "an answer")


def test_a_full_slug_cache_is_named_and_other_nodes_take_the_dynos(under: Under, shop: uuid.UUID) -> None:
    cache = "/var/lib/blackstart/slugs"
    fill = f"mount -t tmpfs -o size=64k,mode=0700 full {cache} && cat /dev/zero > {cache}/fill 2> /dev/null || true"
    nodes = under.machines.machines()
    run(under.machines, 1, fill)
    try:
        version = under.release(shop, under.slug({"serve.py": SERVE + "# big\n"}), {"web": "exec python3 serve.py"})
        assert under.ended(shop, version, 120) == "succeeded", under.row(shop, version).failure
        eventually(lambda: under.ready("shop") == 1, 60, "one dyno")
        assert under.routers.table["apps"]["shop"]["servers"][0]["address"] == nodes[0].address
        run(under.machines, 0, fill)
        version = under.release(shop, under.slug({"serve.py": SERVE + "# more\n"}), {"web": "exec python3 serve.py"})
        assert under.ended(shop, version, 120) == "failed"
        failure = str(under.row(shop, version).failure)
        assert (
            f"could not be fetched on {nodes[0].name}, {nodes[1].name}: the disk of the slug cache is full" in failure
        )
        assert under.routers.get("shop") == "hello"
    finally:
        for index in (0, 1):
            run(under.machines, index, f"umount --lazy {cache} || true")


def test_a_one_off_is_unprivileged_and_its_end_is_kept(under: Under, shop: uuid.UUID) -> None:
    command = "id -u; grep -E Cap.*: /proc/self/status; ls /var/run/docker.sock; env | grep -c BLACKSTART_; exit 7"
    with under.transaction() as session:
        release = session.scalars(
            select(Release)
            .where(Release.app_id == shop, Release.status == "succeeded")
            .order_by(Release.version.desc())
        ).first()
        row = Dyno(
            app_id=shop,
            release_id=None if release is None else release.id,
            type="run",
            name="run.1",
            command=command,
            one_off=True,
            state="pending",
        )
        session.add(row)
        session.flush()
        id_ = row.id
    begun = time.monotonic()
    bus.announce(under.client, "dyno", "shop")

    def get() -> Dyno:
        with under.transaction() as session:
            return session.get_one(Dyno, id_)

    eventually(lambda: get().state in ("complete", "failed"), 60, "the one-off's end")
    timed("one-off asked -> ended", begun)
    found = get()
    assert (found.state, found.exit_code) == ("failed", 7)
    assert found.output.startswith("10000\n")
    assert set(re.findall(r"Cap\w+:\s+(\w+)", found.output)) == {"0" * 16}
    assert "cannot access '/var/run/docker.sock'" in found.output
    assert "\n0\n" in found.output


def new_build(under: Under, app: uuid.UUID, source: str) -> Callable[[], Build]:
    with under.transaction() as session:
        user = session.scalars(select(Account)).one()
        upload = Source(owner_id=user.id)
        session.add(upload)
        session.flush()
        under.s3.put_object(Bucket=NAME, Key=f"sources/{upload.id}", Body=source.encode())
        row = Build(app_id=app, user_id=user.id, source_url="unused", source_id=upload.id)
        session.add(row)
        session.flush()
        id_ = row.id
    bus.announce(under.client, "build", "x")

    def get() -> Build:
        with under.transaction() as session:
            return session.get_one(Build, id_)

    return get


def test_a_build_runs_in_a_dyno_and_becomes_a_release(under: Under) -> None:
    compiler = under.app("compile")
    under.release(compiler, under.slug({"bin/build": COMPILER}), {"build": "bin/build"})
    assert under.ended(compiler, 1) == "succeeded"
    app = under.app("built")
    begun = time.monotonic()
    get = new_build(under, app, SERVE + "# built\n")
    eventually(lambda: get().status in ("succeeded", "failed"), 90, "the build's end")
    timed("build written -> succeeded", begun)
    build = get()
    assert (build.status, build.failure) == ("succeeded", None), build.output
    assert "-----> Step 3\n" in build.output
    names = set(build.output.splitlines()[0].split())
    assert {"SOURCE_URL", "SLUG_PUT_URL", "CACHE_PUT_URL"} <= names
    assert not any("SECRET" in name or "KEY" in name or name.endswith("_PASSWORD") for name in names)
    entries: Any = under.client.xrange(bus.build_stream(build.id))
    assert "".join(entry.get("data", "") for _, entry in entries) == build.output
    assert entries[-1][1] == {"end": "succeeded"}
    eventually(lambda: under.ready("built") == 1, 60, "the built app")
    timed("build written -> routed", begun)
    assert under.routers.get("built") == "hello"
    refused = new_build(under, app, "refuse")
    eventually(lambda: refused().status == "failed", 60, "the refused build's end")
    assert refused().failure == "push rejected, failed to compile app: the output says why"


def test_a_deleted_app_leaves_nothing(under: Under) -> None:
    with under.transaction() as session:
        app = session.scalars(select(App).where(App.name == "built")).one()
        slugs = set(session.scalars(select(Slug.sha256).where(Slug.app_id == app.id)))
        session.execute(update(App).where(App.id == app.id).values(deleting=True))
    bus.announce(under.client, "app", "built")

    def gone() -> bool:
        with under.transaction() as session:
            return session.get(App, app.id) is None

    eventually(gone, 60, "the app's end")
    assert under.services(app.id) == []
    keys = [entry["Key"] for entry in under.s3.list_objects_v2(Bucket=NAME).get("Contents", [])]
    assert not [
        key
        for key in keys
        if str(app.id) in key or key.startswith(("builds/", "sources/")) or any(s in key for s in slugs)
    ]
    shared = [slug for slug in slugs if any(slug in key for key in keys)]
    for slug in slugs - set(shared):
        for index in range(2):
            eventually(
                lambda i=index, s=slug: s not in run(under.machines, i, "ls /var/lib/blackstart/slugs"), 60, "the sweep"
            )
