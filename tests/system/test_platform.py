"""From bare machines to a self-hosted platform and what it must show, on real machines, in one module: `up` is made once.

The tests run in the order of this file; the last ones reboot nodes and remove everything.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.config import Config

from blackstart import hold, observe
from blackstart.client import Client, wait_for
from blackstart.errors import PlatformError
from blackstart.inventory import load_inventory
from blackstart.load import Load
from blackstart.masking import MASK
from blackstart.model import provenance
from blackstart.platform import Platform
from blackstart.proofs import kept
from blackstart.proofs.blast_radius.comparison import declared_needs, problems
from blackstart.proofs.blast_radius.matrix import rows_from
from blackstart.providers.options import local_platform
from blackstart.remote import connected
from blackstart.sources import SourceTarball, checkout_root, folder_source, pack
from blackstart.state import State
from tests.system.upgrades import BROKEN, checkout_copy

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]  # the first test waits for `up`

NAME = "tsys"
SUBNET = "10.79.7.0/24"
UP_SECONDS = 1500
COMPONENTS = ["api", "bus", "compile", "objects", "postgres", "psmgr", "router"]
FIXTURES = checkout_root() / "tests" / "fixtures"
DEPLOY_SECONDS = 300
IMPATIENT_SECONDS = 40


@dataclass
class UnderTest:
    """The platform that `up` made."""

    platform: Platform
    environment: dict[str, str]
    status: dict
    client: Client

    def bootstrap(self, *arguments: str, seconds: int = 300) -> subprocess.CompletedProcess[str]:
        """Run bootstrap.py as an operator does."""
        argv = [sys.executable, "-m", "blackstart", *arguments]
        return subprocess.run(
            argv, cwd=checkout_root(), env=self.environment, capture_output=True, text=True, timeout=seconds
        )

    def get(self, app: str, path: str = "/", *, node: int = 0, seconds: float = 10) -> httpx.Response:
        """Ask the router of a node for an app."""
        host = f"{app}.{self.platform.domain}"
        address = self.platform.node_addresses[node]
        return httpx.get(f"http://{address}{path}", headers={"Host": host}, timeout=seconds, trust_env=False)

    def serves(self, app: str, *, node: int = 0) -> bool | None:
        """Return True when the router of a node has an answer 200 for an app, else None: for `wait_for`."""
        try:
            return True if self.get(app, node=node).status_code == 200 else None
        except httpx.HTTPError:
            return None

    def deploy(self, app: str, folder: Path) -> dict:
        """Build and release a folder; return the release."""
        if self.client.maybe(f"/apps/{app}") is None:
            self.client.call("POST", "/apps", {"name": app})
        source = folder_source(folder)
        build = self.client.build(app, source, version=source.sha256[:12])
        return self.client.deployed(app, build, seconds=DEPLOY_SECONDS)

    def failed_build(self, app: str, data: bytes) -> str:
        """Build bytes that cannot be built; return the output."""
        if self.client.maybe(f"/apps/{app}") is None:
            self.client.call("POST", "/apps", {"name": app})
        source = SourceTarball(data=data, sha256=hashlib.sha256(data).hexdigest())
        build = self.client.build(app, source, version="bad")
        ended = self.client.finished_build(app, build["id"], seconds=DEPLOY_SECONDS)
        assert ended["status"] == "failed"
        return "".join(self.client.output(ended))

    def one_off(self, app: str, command: str, *, seconds: float = 120) -> tuple[dict, str]:
        """Run a command in a one-off dyno; return the dyno and its output."""
        dyno = self.client.call("POST", f"/apps/{app}/dynos", {"command": command, "attach": False})
        path = f"/apps/{app}/dynos/{dyno['id']}"

        def ended() -> dict | None:
            now = self.client.call("GET", path)
            return now if now["state"] in ("complete", "failed", "crashed") else None

        done = wait_for(ended, f"the one-off {command!r}", seconds=seconds)
        return done, self.client.text(f"{path}/output")

    def up_dynos(self, app: str, type_: str = "web") -> list[dict]:
        """Return the dynos of a type that are up."""
        dynos = self.client.call("GET", f"/apps/{app}/dynos")
        return [dyno for dyno in dynos if dyno["type"] == type_ and dyno["state"] == "up"]

    def wait_dynos(self, app: str, count: int, *, seconds: float = 120) -> list[dict]:
        """Wait until exactly `count` web dynos are up."""

        def probe() -> list[dict] | None:
            dynos = self.client.call("GET", f"/apps/{app}/dynos")
            up = self.up_dynos(app)
            return up if len(up) == count and len([d for d in dynos if d["type"] == "web"]) == count else None

        return wait_for(probe, f"{count} web dynos of {app}", seconds=seconds)


@pytest.fixture(scope="module")
def it(tmp_path_factory):
    """The platform, brought up from nothing by the operator's command, and removed at the end.

    While you work on a test: $BLACKSTART_TEST_STATE names a state folder to use and keep, with the platform in it.
    """
    kept = os.environ.get("BLACKSTART_TEST_STATE")
    root = tmp_path_factory.mktemp("state") if kept is None else Path(kept)
    environment = {**os.environ, "BLACKSTART_STATE": str(root), "BLACKSTART_PLATFORM": NAME}
    os.environ.update({"BLACKSTART_STATE": str(root), "BLACKSTART_PLATFORM": NAME})
    argv = [sys.executable, "-m", "blackstart", "up", "--platform", NAME, "--subnet", SUBNET, "--json"]
    state = State.of(NAME)
    try:
        done = subprocess.run(
            argv, cwd=checkout_root(), env=environment, capture_output=True, text=True, timeout=UP_SECONDS
        )
        if done.returncode != 0:  # what an operator does, and what each error says: run it again, it goes on
            print(done.stderr[-6000:])
            done = subprocess.run(
                argv, cwd=checkout_root(), env=environment, capture_output=True, text=True, timeout=UP_SECONDS
            )
        assert done.returncode == 0, done.stderr[-6000:]
        platform = Platform(load_inventory(checkout_root() / "inventories" / "local.py"), state)
        with observe.answering_client(platform) as client:
            yield UnderTest(platform, environment, json.loads(done.stdout), client)
    finally:
        if kept is None:
            local_platform(state).down()


# --- after `up` ------------------------------------------------------------------------------------------------------


def test_status_is_self_hosted_with_every_component_up(it):
    status = it.status
    assert status["stage"] == "self-hosted"
    assert status["domain"] == f"{NAME}.internal"
    assert status["api"] == f"https://api.{NAME}.internal"
    assert status["stage0"] is None
    assert status["elapsed_s"] > 0
    assert [node["state"] for node in status["nodes"]] == ["ready"] * 3
    assert [component["app"] for component in status["components"]] == COMPONENTS
    for component in status["components"]:
        assert re.fullmatch(r"[0-9a-f]{64}", component["slug"])
        assert all(process["state"] == "up" for process in component["processes"]), component
        assert component["processes"] or component["app"] == "compile"
    routers = next(component for component in status["components"] if component["app"] == "router")["processes"]
    assert len({process["node"] for process in routers}) == 3


def test_every_slug_says_what_built_it_back_to_the_seed_of_stage_0(it):
    """Provenance was kept with each slug by stage 0's control plane, and moved with the database."""
    made = {}
    for app in COMPONENTS:
        for release in it.client.call("GET", f"/apps/{app}/releases"):
            if release["slug"] is not None:
                path = f"/apps/{app}/slugs/{release['slug']['id']}"
                sha256 = it.client.call("GET", path)["checksum"].removeprefix("SHA256:")
                said = it.client.call("GET", f"{path}/provenance")
                assert said["subject"] == [{"name": f"{app}.squashfs", "digest": {"sha256": sha256}}]
                made.setdefault(app, []).append((sha256, said["predicate"]["runDetails"]["builder"]))
    compilers = {sha256 for sha256, _ in made["compile"]}
    assert made["compile"][0][1]["id"] == provenance.CHECKOUT
    for app, slugs in made.items():
        for sha256, builder in slugs[1:] if app == "compile" else slugs:
            assert builder["id"] == provenance.COMPILER, (app, sha256)
            assert builder["builderDependencies"][0]["digest"]["sha256"] in compilers, (app, sha256)


def test_stage_0_is_gone(it):
    provider = local_platform(it.platform.state)
    stage0 = next(machine for machine in provider.machines() if machine.group == "stage0")
    assert not provider.exists(stage0)
    assert not provider.running(stage0)
    assert not (provider.folder / stage0.name).exists()


def test_the_engine_has_three_managers_and_no_stage_0(it):
    first = it.platform.inventory.nodes[0]
    assert observe.engine_managers(first) == sorted(it.platform.node_addresses)
    assert observe.engine_member_addresses(first) == set(it.platform.node_addresses)


def test_the_pivot_re_created_nothing(it):
    pivot = it.platform.state.read_json("pivot.json")
    assert pivot["lost"] == []
    assert len(pivot["before"]["services"]) >= 6
    assert len(pivot["before"]["tasks"]) >= 9
    assert len(pivot["before"]["containers"]) >= 9


def test_the_report_tells_what_ran_where_and_what_runs_now(it):
    report = it.platform.state.read_json("report/report.json")
    assert report["result"]["good"]
    assert report["stage"] == "self-hosted"
    assert {"stage-0", "stage-1", "pivot", "teardown"} <= {step["name"] for step in report["timeline"]["steps"]}
    assert [host["name"] for host in report["timeline"]["hosts"]] == [host.name for host in it.platform.inventory.hosts]
    assert all(each["Debian"].startswith("Debian GNU/Linux 13") for each in report["nodes"])
    assert {"postgres", "bus", "router", "objects", "api", "psmgr"} <= set(report["versions"]["components"])
    page = (it.platform.state.report_folder / "report.html").read_text()
    assert all(component["slug"] in page for component in it.status["components"])
    secrets = it.platform.secrets
    assert not [name for name, value in secrets.items() if value in page or value in json.dumps(report)]


def test_a_bundle_of_logs_has_every_node_and_no_secret(it):
    secret = it.platform.secrets["database_password"]
    with connected(it.platform.inventory.nodes[0]) as remote:  # as if a program had logged it
        remote.check(["systemd-run", "--unit=blackstart-leak", "--collect", "--wait", "echo", secret])
    done = it.bootstrap("bundle", "--platform", NAME, "--json")
    assert done.returncode == 0, done.stderr
    with tarfile.open(json.loads(done.stdout)["bundle"]) as tar:
        found = {name.partition("/")[2]: tar.extractfile(name).read().decode() for name in tar.getnames()}
    for node in it.platform.inventory.nodes:
        assert "exit code 0" in found[f"{node.name}/services.txt"]
        assert any(name.startswith(f"{node.name}/logs/{NAME}_router_") for name in found)
    assert f"{it.platform.inventory.stage0.name}/unreachable.txt" in found
    assert MASK in found[f"{it.platform.inventory.nodes[0].name}/journal-blackstart.txt"]
    leaked = [
        (name, key) for key, value in it.platform.secrets.items() for name, text in found.items() if value in text
    ]
    assert leaked == []


def test_a_second_up_changes_nothing(it):
    nodes = it.platform.inventory.nodes
    before = observe.engine_snapshot(nodes)
    done = it.bootstrap("up", "--platform", NAME)
    assert done.returncode == 0, done.stderr
    assert "is so already" in done.stderr
    assert "done (" not in done.stderr
    assert observe.engine_snapshot(nodes) == before


def test_the_nodes_deploy_changes_nothing_a_second_time(it):
    argv = [sys.executable, "-m", "pyinfra", "-y", "--json", "--limit", "runtime", "inventories/local.py"]
    done = subprocess.run(
        [*argv, "deploys/stage1.py"],
        cwd=checkout_root(),
        env=it.environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    operations = json.loads(done.stdout)["results"]["operations"]
    assert len(operations) > 10
    assert [operation["name"] for operation in operations if operation["success"] or operation["error"]] == []


def test_the_commands_that_up_prints_work(it):
    done = it.bootstrap("up", "--platform", NAME)
    lines = [line.strip() for line in done.stdout.splitlines()]
    commands = [line for line in lines if line.startswith(("python3 bootstrap.py", "curl"))]
    assert len(commands) == 4
    for command in commands:
        ran = subprocess.run(
            ["bash", "-c", command],
            cwd=checkout_root(),
            env=it.environment,
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert ran.returncode == 0, (command, ran.stderr)
    it.client.call("DELETE", "/apps/hello")


# --- apps ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("app", ["flask", "express", "static", "apt", "procfile"])
def test_an_app_deploys_and_answers_through_every_router(it, app):
    name = f"an-{app}"
    it.deploy(name, FIXTURES / app)
    for node in range(3):
        answer = it.get(name, node=node)
        assert answer.status_code == 200
        assert app in answer.text.lower()
    it.client.call("DELETE", f"/apps/{name}")


def test_a_rack_app_with_a_native_extension_deploys_and_answers(it, tmp_path):
    it.deploy("an-rack", _rack_app(it, tmp_path / "rack"))
    it.client.call("PATCH", "/apps/an-rack/config-vars", {"RELEASE": "v7"})
    _settled(it, "an-rack")
    for node in range(3):
        answer = it.get("an-rack", node=node)
        assert answer.status_code == 200
        assert answer.text.strip() == "rack v7"
    it.client.call("DELETE", "/apps/an-rack")


GEMS = """set -e
mkdir -m 777 /out
base64 -d | tar -xz -C /out
exec 3>&1 >&2
env HOME=/tmp setpriv --reuid=10000 --regid=10000 --clear-groups /out/make-rack-gems /out/app
tar -C /out/app -cz . | base64 >&3
"""


def _rack_app(it, to: Path) -> Path:
    """Return the fixture with its gems and lock file, made from Debian's packages in a node's build stack."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in ("make-rack-gems", "rack"):
            archive.add(FIXTURES / name, arcname=name)
    trust = "/etc/blackstart/trust"
    environment = [f"--env={name}={trust}/ca-bundle.pem" for name in ("SSL_CERT_FILE", "CURL_CA_BUNDLE")]
    argv = ["docker", "run", "--rm", "--interactive", *environment, f"--volume={trust}:{trust}:ro"]
    with connected(it.platform.inventory.nodes[1]) as remote:
        given = base64.b64encode(packed.getvalue()).decode()
        made = remote.check([*argv, it.platform.stacks.build.name, "bash", "-c", GEMS], stdin=given, seconds=300)
    with tarfile.open(fileobj=io.BytesIO(base64.b64decode(made))) as archive:
        archive.extractall(to, filter="data")
    return to


def test_scaling_rollback_and_a_killed_dyno(it):
    it.deploy("shop", FIXTURES / "flask")
    it.client.call("PATCH", "/apps/shop/formation", {"updates": [{"type": "web", "quantity": 3}]})
    dynos = it.wait_dynos("shop", 3)
    assert [dyno["name"] for dyno in sorted(dynos, key=lambda dyno: dyno["name"])] == ["web.1", "web.2", "web.3"]
    it.client.call("PATCH", "/apps/shop/formation", {"updates": [{"type": "web", "quantity": "1"}]})
    it.wait_dynos("shop", 1)

    version = it.client.call("GET", "/apps/shop/releases")[-1]["version"]
    it.client.call("PATCH", "/apps/shop/config-vars", {"RELEASE": "salut"})
    _settled(it, "shop")
    assert "salut" in it.get("shop").text
    it.client.call("POST", "/apps/shop/releases", {"release": str(version)})
    _settled(it, "shop")
    assert "salut" not in it.get("shop").text

    killed = _kill_container(it, "shop")

    def back() -> bool | None:
        containers = [each for node in it.platform.inventory.nodes for each in _containers(node, "shop")]
        return True if containers and killed not in containers else None

    wait_for(back, "the killed dyno to be back", seconds=90)
    wait_for(lambda: it.serves("shop"), "the app to answer again", seconds=60)


def _settled(it, app: str) -> dict:
    """Wait until the newest release succeeded."""
    version = it.client.call("GET", f"/apps/{app}/releases")[-1]["version"]
    release = it.client.released(app, version, seconds=180)
    assert release["status"] == "succeeded", release
    return release


def _containers(node, app: str) -> list[str]:
    with connected(node) as remote:
        return remote.check(["docker", "ps", "-q", "--filter", f"label=blackstart.app={app}"]).split()


def _kill_container(it, app: str) -> str:
    """Kill a container of the app, and return which."""
    for node in it.platform.inventory.nodes:
        for container in _containers(node, app):
            with connected(node) as remote:
                remote.check(["docker", "kill", container])
            return container
    raise AssertionError(f"no container of {app}")


def test_a_restart_replaces_the_dynos_it_names_and_no_request_fails(it):
    it.deploy("again", FIXTURES / "flask")
    it.client.call("PATCH", "/apps/again/formation", {"updates": [{"type": "web", "quantity": 3}]})
    it.wait_dynos("again", 3)
    before = _slots(it, "again")
    with Load(it.platform, "again") as load:
        it.client.call("DELETE", "/apps/again/dynos/web.2")
        after = _restarted(it, "again", before, {2})
        it.client.call("POST", "/apps/again/dynos/web.1/actions/stop")
        after = _restarted(it, "again", after, {1})
        it.client.call("DELETE", "/apps/again/dynos")
        _restarted(it, "again", after, {1, 2, 3})
    assert set(load.answers) == {"200"}, load.answers
    it.client.call("DELETE", "/apps/again")


def _slots(it, app: str) -> dict[int, str]:
    """Return the running container of each dyno of the app, by the dyno's number."""
    format_ = "{{.Names}} {{.ID}}"
    found = {}
    for node in it.platform.inventory.nodes:
        with connected(node) as remote:
            lines = remote.check(["docker", "ps", "--filter", f"label=blackstart.app={app}", "--format", format_])
        found |= {int(line.split()[0].split(".")[1]): line.split()[1] for line in lines.splitlines()}
    return found


def _restarted(it, app: str, before: dict[int, str], numbers: set[int]) -> dict[int, str]:
    """Wait until exactly these dynos run in other containers than before, all are up; return what runs."""

    def probe() -> dict[int, str] | None:
        now = _slots(it, app)
        changed = {number for number, container in now.items() if before.get(number) != container}
        return now if len(now) == len(before) and changed == numbers and len(it.up_dynos(app)) == len(before) else None

    return wait_for(probe, f"the restart of {sorted(numbers)}", seconds=120)


def test_a_deleted_app_leaves_nothing(it):
    slug = it.client.call("GET", "/apps/shop/releases")[-1]["slug"]["id"]
    sha = it.client.call("GET", f"/apps/shop/slugs/{slug}")["checksum"]
    assert sha.startswith("SHA256:")
    it.client.call("DELETE", "/apps/shop")
    first = it.platform.inventory.nodes[0]

    def gone() -> bool | None:
        with connected(first) as remote:
            services = remote.check(["docker", "service", "ls", "--format", "{{.Name}}"])
        return (
            True
            if f"{NAME}_shop_" not in services and not any(_containers(n, "shop") for n in it.platform.inventory.nodes)
            else None
        )

    wait_for(gone, "nothing of the app on the engine", seconds=90)
    wait_for(lambda: True if it.get("shop").status_code == 404 else None, "the router to know it no more", seconds=30)
    assert it.client.maybe("/apps/shop") is None
    it.client.call("POST", "/apps", {"name": "shop"})
    it.client.call("DELETE", "/apps/shop")


def test_no_request_fails_during_20_deploys(it):
    it.deploy("steady", FIXTURES / "flask")
    it.client.call("PATCH", "/apps/steady/formation", {"updates": [{"type": "web", "quantity": 2}]})
    it.wait_dynos("steady", 2)
    wait_for(
        lambda: True if all(it.get("steady", node=n).status_code == 200 for n in range(3)) else None,
        "routes",
        seconds=30,
    )
    with Load(it.platform, "steady") as load:
        for number in range(20):
            if number % 5 == 0:
                it.deploy("steady", FIXTURES / "flask")
            else:
                it.client.call("PATCH", "/apps/steady/config-vars", {"RELEASE": f"number {number}"})
                _settled(it, "steady")
    assert set(load.answers) == {"200"}, load.answers
    assert load.answers["200"] > 500
    assert "number 19" in it.get("steady").text


# --- isolation -------------------------------------------------------------------------------------------------------

PROBE = """
python3 - <<'PY'
import os, socket, urllib.request
def reach(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        return "open"
    except OSError as error:
        return "closed"
for target in os.environ["TARGETS"].split():
    print("REACH", target, reach(*target.rsplit(":", 1)))
print("SOCKET", os.path.exists("/var/run/docker.sock") or os.path.exists("/run/docker.sock"))
print("SLUGS", os.access("/slugs", os.R_OK | os.X_OK))
print("UID", os.getuid(), os.getgroups())
print("CAPS", [line.split()[1] for line in open("/proc/self/status") if line.startswith(("CapEff", "CapPrm", "CapBnd"))])
print("PRIVS", [line.split()[1] for line in open("/proc/self/status") if line.startswith("NoNewPrivs")])
for name in ("postgres", "objects", "bus", "api", "psmgr"):
    try:
        socket.getaddrinfo(name, 1)
        print("RESOLVES", name)
    except OSError:
        pass
PY
"""


def test_a_dyno_reaches_nothing_of_the_platform_but_the_routers(it):
    it.client.call("PATCH", "/apps/steady/formation", {"updates": [{"type": "web", "quantity": 3}]})
    it.wait_dynos("steady", 3)
    targets = []
    for node in it.platform.inventory.nodes:
        targets += [f"{node.address}:{port}" for port in (22, 2375, 2377, 6379, 7946, 5432, 8333)]
        with connected(node) as remote:
            format_ = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}"
            ids = remote.check(["docker", "ps", "-q"]).split()
            addresses = remote.check(["docker", "inspect", "--format", format_, *ids]).split()
            ports = remote.check(["docker", "ps", "--format", "{{.Ports}}"])
        targets += [f"{address}:5000" for address in addresses] + [f"{address}:5432" for address in addresses]
        targets += [f"{node.address}:{port}" for port in re.findall(r":(\d+)->5000/tcp", ports)]
    assert len([target for target in targets if target.endswith(":5000")]) >= 8
    routers = [f"{address}:{port}" for address in it.platform.node_addresses for port in (80, 443)]
    it.client.call("PATCH", "/apps/steady/config-vars", {"TARGETS": " ".join([*targets, *routers])})
    _settled(it, "steady")
    _, output = it.one_off("steady", PROBE, seconds=600)
    reached = dict(re.findall(r"REACH (\S+) (\w+)", output))
    assert {target for target in routers if reached.get(target) != "open"} == set(), output
    assert {target for target in targets if target not in routers and reached.get(target) != "closed"} == set(), output
    assert "SOCKET False" in output
    assert "SLUGS False" in output
    assert "UID 10000 [10000]" in output or "UID 10000 []" in output
    assert "CAPS ['0000000000000000', '0000000000000000', '0000000000000000']" in output
    assert "PRIVS ['1']" in output
    assert "RESOLVES" not in output


def test_a_build_sees_no_credential_but_its_own_urls(it, tmp_path):
    """A build that prints all it can see: environment of every process it may read, and files."""
    (tmp_path / "Procfile").write_text("web: true\n")
    (tmp_path / "requirements.txt").write_text("./spy\n")
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (spy / "backend.py").write_text(
        "import glob, os, sys\n"
        "def seen():\n"
        "    text = repr(dict(os.environ))\n"
        "    for path in glob.glob('/proc/[0-9]*/environ'):\n"
        "        try: text += open(path, 'rb').read().decode(errors='replace').replace('\\0', ' ')\n"
        "        except OSError: pass\n"
        "    for path in ('/slugs', '/var/run/docker.sock', '/run/secrets', '/etc/blackstart/stage0'):\n"
        "        text += f' {path}={os.access(path, os.R_OK)}'\n"
        "    return text\n"
        "def build_wheel(*a, **k): raise SystemExit('SPY ' + seen())\n"
    )
    output = it.failed_build("spy", folder_source(tmp_path).data)
    assert "SPY" in output
    secrets = it.platform.secrets
    for name, value in secrets.items():
        assert value not in output or name == "objects_key", f"the build saw {name}"
    assert "/slugs=False" in output
    assert "/var/run/docker.sock=False" in output
    it.client.call("DELETE", "/apps/spy")


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["-rf", "a;b", "A", "", "x" * 31, "a b", "ä-ö", "api$(id)"])
def test_a_bad_app_name_is_refused(it, name):
    with pytest.raises(PlatformError, match="invalid_params"):
        it.client.call("POST", "/apps", {"name": name})


def test_a_source_that_is_no_tarball(it):
    output = it.failed_build("bad-source", b"this is no tarball")
    assert "push rejected" in output
    assert "tar" in output


def test_a_source_that_climbs_out(it, tmp_path):
    (tmp_path / "x").write_text("x")
    output = it.failed_build("bad-source", pack([("../../etc/x", tmp_path / "x")]).data)
    assert "../../etc/x" in output


@pytest.mark.parametrize("fixture", sorted(path.name for path in FIXTURES.glob("broken-*")))
def test_a_broken_app_is_rejected_with_a_reason(it, fixture):
    output = it.failed_build("bad-source", folder_source(FIXTURES / fixture).data)
    assert "push rejected, failed to compile app" in output
    assert "1." in output


def _greedy(folder: Path, work: str) -> bytes:
    """Return the source of a Python app whose build runs `work`."""
    (folder / "Procfile").write_text("web: true\n")
    (folder / "requirements.txt").write_text("./greedy\n")
    (folder / "greedy").mkdir()
    (folder / "greedy" / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (folder / "greedy" / "backend.py").write_text(f"def build_wheel(*a, **k):\n    {work}\n")
    return folder_source(folder).data


def test_a_build_over_its_memory_is_ended_and_says_so(it, tmp_path):
    output = it.failed_build("bad-source", _greedy(tmp_path, "b'1' * (3 << 30)"))
    assert "push rejected, failed to compile app" in output
    assert "needed more memory than its limit" in output
    assert "Ask the operator for more build memory." in output


def test_someone_elses_app_is_not_found(it):
    it.client.call("POST", "/users", {"email": "bob@example.com"})
    made = it.client.call("POST", "/oauth/authorizations", {"description": "bob", "user": "bob@example.com"})
    endpoint = observe.node_endpoint(it.platform, it.platform.inventory.nodes[0])
    with Client(endpoint, token=made["access_token"]["token"], ca=it.platform.state.ca_path) as bob:
        assert bob.call("GET", "/account")["email"] == "bob@example.com"
        assert bob.maybe("/apps/steady") is None
        assert bob.maybe("/apps/api") is None


def test_a_second_up_at_the_same_time_is_refused(it):
    with it.platform.state.lock("another run"):
        done = it.bootstrap("up", "--platform", NAME)
    assert done.returncode == 1
    assert "another run works on the platform" in done.stderr


def test_an_occupied_subnet_is_refused_and_nothing_is_made(it):
    other = State.of("tover")
    done = it.bootstrap("up", "--platform", "tover", "--subnet", SUBNET)
    try:
        assert done.returncode == 1
        assert SUBNET in done.stderr
        assert "--subnet" in done.stderr
        assert local_platform(other).leftovers() == ()
    finally:
        other.remove()


def test_a_damaged_slug_fails_its_release_with_the_reason_and_the_old_one_serves(it, tmp_path):
    it.deploy("damaged", FIXTURES / "static")
    shutil.copytree(FIXTURES / "static", tmp_path / "other")
    (tmp_path / "other" / "public" / "new.html").write_text("new")
    source = folder_source(tmp_path / "other")
    build = it.client.build("damaged", source, version="other", release=False)
    slug = it.client.finished_build("damaged", build["id"], seconds=DEPLOY_SECONDS)["slug"]["id"]
    sha256 = it.client.call("GET", f"/apps/damaged/slugs/{slug}")["checksum"].removeprefix("SHA256:")
    key = f"slugs/{sha256}.squashfs"
    data = _stored(it, "GET", key)
    _stored(it, "PUT", key, data[:-1] + bytes([data[-1] ^ 1]))

    failed = it.client.released("damaged", it.client.release_slug("damaged", slug)["version"], seconds=180)
    assert failed["status"] == "failed"
    assert "the object store holds other bytes than its sha256 promises: build the app again" in failed["failure"]
    assert it.get("damaged").status_code == 200
    assert it.get("damaged", "/new.html").status_code == 404
    _stored(it, "PUT", key, data)
    mended = it.client.released("damaged", it.client.release_slug("damaged", slug)["version"], seconds=180)
    assert mended["status"] == "succeeded", mended
    wait_for(lambda: it.get("damaged", "/new.html").status_code == 200 or None, "the mended release", seconds=30)
    it.client.call("DELETE", "/apps/damaged")


def _stored(it, method: str, key: str, data: bytes = b"") -> bytes:
    """Get or put an object of the platform's store, with the platform's own credential, through a router."""
    host, address = f"objects.{it.platform.domain}", it.platform.node_addresses[0]
    secrets = it.platform.secrets
    store = boto3.client(
        "s3",
        endpoint_url=f"https://{host}",
        aws_access_key_id=secrets["objects_key"],
        aws_secret_access_key=secrets["objects_secret"],
        region_name="us-east-1",
        config=Config(signature_version="s3v4", s3={"addressing_style": "path"}),
    )
    operation = {"GET": "get_object", "PUT": "put_object"}[method]
    url = store.generate_presigned_url(operation, Params={"Bucket": it.platform.name, "Key": key})
    store.close()
    context = ssl.create_default_context(cafile=str(it.platform.state.ca_path))
    with httpx.Client(verify=context, trust_env=False, timeout=60) as client:
        answer = client.request(
            method,
            url.replace(f"//{host}/", f"//{address}/"),
            content=data,
            headers={"Host": host},
            extensions={"sni_hostname": host},
        )
    assert answer.status_code == 200, answer.text
    return answer.content


# --- the blast radius ------------------------------------------------------------------------------------------------


def test_a_component_that_a_killed_verify_left_held_is_shown_and_released(it):
    with connected(it.platform.managers[0]) as manager:
        hold.hold(manager, NAME, "objects")
        # The process manager wrote down that no dyno of it runs: it made a pass, and left it alone.
        wait_for(lambda: not _processes(it, "objects") or None, "psmgr to see it", seconds=60)
        assert [(each.app, each.spec["Mode"]) for each in hold.held(it.platform)] == [
            ("objects", {"Replicated": {"Replicas": 0}})
        ]
    status = it.bootstrap("status", "--platform", NAME, "--json")
    assert status.returncode == 1
    assert "objects is held (replicas=1): `verify` and `up` release it" in json.loads(status.stdout)["problems"]
    assert it.bootstrap("verify", "--platform", NAME, "--graph").returncode == 0
    assert hold.held(it.platform) == []
    assert it.bootstrap("status", "--platform", NAME).returncode == 0


def _processes(it, component: str) -> list[dict]:
    components = it.client.call("GET", "/platform")["components"]
    return next(each["processes"] for each in components if each["app"] == component)


def test_what_stops_with_each_component_is_what_it_declares(it):
    done = it.bootstrap("verify", "--platform", NAME, "--blast-radius", "--json", seconds=1500)
    (proof,) = json.loads(done.stdout)["proofs"]
    assert proof["holds"], f"{proof['detail']}\n{done.stderr}"
    assert done.returncode == 0
    assert it.bootstrap("status", "--platform", NAME).returncode == 0
    rows = rows_from(it.platform.state.read_json(kept.FILE)["blast-radius"]["evidence"])
    declared = declared_needs(checkout_root())
    forgotten = tuple(need for need in declared["psmgr"] if need.on != "postgres")
    (problem,) = problems({**declared, "psmgr": forgotten}, rows)
    assert problem.startswith("psmgr does not declare that it needs postgres at run, but routes stops with it")


# --- upgrade ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(it):
    """A platform that gives a release up after a short time, so that these tests need not wait for the usual three minutes."""
    it.client.call("PATCH", "/apps/psmgr/config-vars", {"DEPLOY_TIMEOUT_S": str(IMPATIENT_SECONDS)})
    _settled(it, "psmgr")
    yield it
    it.client.call("PATCH", "/apps/psmgr/config-vars", {"DEPLOY_TIMEOUT_S": None})
    _settled(it, "psmgr")


def _upgrade(it, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `upgrade` of another checkout."""
    argv = [sys.executable, "-m", "blackstart", "upgrade", "--platform", NAME, "--json", *arguments]
    return subprocess.run(argv, cwd=root, env=it.environment, capture_output=True, text=True, timeout=600)


def _running(it, component: str) -> dict:
    """Return what a component runs."""

    def asked() -> dict:
        return next(one for one in it.client.call("GET", "/platform")["components"] if one["app"] == component)

    return wait_for(asked, f"what runs of {component}", seconds=60)


@pytest.mark.parametrize("broken", BROKEN, ids=lambda broken: broken.name)
def test_an_upgrade_to_a_broken_component_leaves_the_old_one_and_no_request_fails(impatient, tmp_path, broken):
    it = impatient
    before = _running(it, broken.component)
    broken.breaks(checkout_copy(tmp_path / "checkout"))
    with Load(it.platform, "steady") as load:
        done = _upgrade(it, tmp_path / "checkout", "--only", broken.component)
        after = _running(it, broken.component)
    assert done.returncode == 1, done.stderr
    assert f"the component {broken.component} was not upgraded" in done.stderr
    assert broken.why in done.stderr
    assert after["slug"] == before["slug"]
    assert all(process["state"] == "up" for process in after["processes"]), after
    assert len(after["processes"]) == len(before["processes"])
    assert set(load.answers) == {"200"}, load.answers


def test_an_upgrade_whose_build_fails_replaces_nothing(it, tmp_path):
    root = checkout_copy(tmp_path / "checkout")
    (root / "apps" / "bus" / "Procfile").unlink()
    before = [_running(it, name)["version"] for name in COMPONENTS]
    done = _upgrade(it, root, "--only", "bus", "--only", "api")
    assert done.returncode == 1
    assert "the component bus could not be built; nothing was replaced" in done.stderr
    assert [_running(it, name)["version"] for name in COMPONENTS] == before


def test_a_good_upgrade_replaces_every_component_and_no_request_fails(it, tmp_path):
    root = checkout_copy(tmp_path / "checkout")
    for name in COMPONENTS:
        (root / "apps" / name / "HARMLESS").write_text(f"{tmp_path.name}\n")
    before = {name: _running(it, name)["version"] for name in COMPONENTS}
    with Load(it.platform, "steady") as load:
        done = _upgrade(it, root)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["replaced"]) == COMPONENTS
    assert all(_running(it, name)["version"] > before[name] for name in COMPONENTS)
    assert set(load.answers) == {"200"}, load.answers
    again = _upgrade(it, root)
    assert json.loads(again.stdout)["replaced"] == [], again.stderr


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_node_rebooted_brings_its_dynos_back_and_the_others_serve_on(it):
    provider = local_platform(it.platform.state)
    it.wait_dynos("steady", 3)
    rebooted = provider.machine(it.platform.inventory.nodes[2].name)
    with Load(it.platform, "steady", addresses=it.platform.node_addresses[:2]) as load:
        provider.reboot(rebooted)
        wait_for(lambda: it.serves("steady", node=2), "the rebooted router", seconds=180)
    assert load.failures == {}
    assert load.answers["200"] > 0
    wait_for(
        lambda: True if it.bootstrap("status", "--platform", NAME).returncode == 0 else None, "all up", seconds=240
    )


def test_down_removes_every_trace(it):
    provider = local_platform(it.platform.state)
    done = it.bootstrap("down", "--platform", NAME, "--json")
    assert done.returncode == 0, done.stderr
    assert provider.leftovers() == ()
    assert not it.platform.state.folder.exists()
