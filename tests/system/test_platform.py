"""From bare machines to a self-hosted platform and what it must show, on real machines.

The tests of test_platform*.py share one platform and run in the order of the files' names: the last one removes it.
"""

from __future__ import annotations

import base64
import io
import json
import re
import shutil
import ssl
import subprocess
import sys
import tarfile
from pathlib import Path

import boto3
import httpx
import pytest
from botocore.config import Config

from blackstart import observe
from blackstart.client import Client, wait_for
from blackstart.errors import PlatformError
from blackstart.load import Load
from blackstart.masking import MASK
from blackstart.model import provenance
from blackstart.providers.options import local_platform
from blackstart.remote import connected
from blackstart.sources import checkout_root, folder_source, pack
from blackstart.state import State
from blackstart.up import STEPS
from tests.system.platform_under_test import COMPONENTS, DEPLOY_SECONDS, FIXTURES, NAME, SUBNET

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]  # the first test waits for `up`


# --- after `up` ------------------------------------------------------------------------------------------------------


def test_status_is_self_hosted_with_every_component_up(it):
    status = it.status
    assert status["stage"] == "self-hosted"
    assert status["domain"] == f"{NAME}.internal"
    assert status["api"] == f"https://api.{NAME}.internal"
    assert status["stage0"] is None
    assert status["elapsed_s"] > 0
    assert [node["state"] for node in status["nodes"]] == ["ready"] * 3
    assert [node["name"] for node in status["nodes"]] == [node.name for node in it.platform.inventory.nodes]
    assert [step["name"] for step in status["steps"]] == [step.name for step in STEPS]
    asked = it.bootstrap("status", "--platform", NAME, "--json")
    assert asked.returncode == 0, asked.stderr
    now = json.loads(asked.stdout)
    assert {key: now[key] for key in ("stage", "domain", "api", "nodes", "stage0")} == {
        key: status[key] for key in ("stage", "domain", "api", "nodes", "stage0")
    }
    assert now["elapsed_s"] > 0
    assert [component["app"] for component in status["components"]] == COMPONENTS
    for component in status["components"]:
        assert re.fullmatch(r"[0-9a-f]{64}", component["slug"])
        assert component["version"] >= 2
        assert all(process["state"] == "up" for process in component["processes"]), component
        assert component["processes"] or component["app"] == "compile"
    routers = next(component for component in status["components"] if component["app"] == "router")["processes"]
    assert len({process["node"] for process in routers}) == 3


def test_every_slug_says_what_built_it_back_to_the_seed_of_stage_0(it):
    """Provenance was kept with each slug by stage 0's control plane, and moved with the database."""
    made = {}
    for app in COMPONENTS:
        releases = it.client.call("GET", f"/apps/{app}/releases")
        for slug in dict.fromkeys(release["slug"]["id"] for release in releases if release["slug"] is not None):
            path = f"/apps/{app}/slugs/{slug}"
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
    for told in (f"https://api.{NAME}.internal", it.platform.state.folder / "token", it.platform.state.ca_path):
        assert str(told) in done.stdout
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
    it.settled("an-rack")
    for node in range(3):
        answer = it.get("an-rack", node=node)
        assert answer.status_code == 200
        assert answer.text.strip() == "rack v7"
    it.client.call("DELETE", "/apps/an-rack")


def test_the_compiler_compiles_itself_by_hand_in_a_one_off_dyno(it):
    dyno, text = it.one_off("compile", "bin/compile .")
    assert dyno["state"] == "complete", text
    assert "app detected" in text
    assert re.search(r"-----> Compiled slug is [0-9.]+[KM]\n +sha256 [0-9a-f]{64}", text), text
    dyno, text = it.one_off("compile", "mkdir /tmp/bad && echo 'no colon' > /tmp/bad/Procfile && bin/compile /tmp/bad")
    assert dyno["state"] == "failed", text
    assert "push rejected, failed to compile app" in text
    assert "What to do:" in text


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
    it.settled("shop")
    assert all("salut" in it.get("shop", node=node).text for node in range(3))
    it.client.call("POST", "/apps/shop/releases", {"release": str(version)})
    it.settled("shop")
    assert not any("salut" in it.get("shop", node=node).text for node in range(3))

    killed = _kill_container(it, "shop")

    def back() -> bool | None:
        containers = [each for node in it.platform.inventory.nodes for each in _containers(node, "shop")]
        return True if containers and killed not in containers else None

    wait_for(back, "the killed dyno to be back", seconds=90)
    wait_for(lambda: it.serves("shop"), "the app to answer again", seconds=60)


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


def test_no_request_fails_during_20_deploys(it, tmp_path):
    it.deploy("steady", FIXTURES / "flask")
    it.client.call("PATCH", "/apps/steady/formation", {"updates": [{"type": "web", "quantity": 2}]})
    it.wait_dynos("steady", 2)
    with Load(it.platform, "steady") as load:
        for number in range(20):
            if number % 3 == 0:
                it.deploy("steady", _flask_that_says(f"source {number}", tmp_path / str(number)))
                assert f"source {number} " in it.get("steady").text
            else:
                it.client.call("PATCH", "/apps/steady/config-vars", {"RELEASE": f"number {number}"})
                it.settled("steady")
                assert f" number {number}\n" in it.get("steady").text
    assert set(load.answers) == {"200"}, load.answers
    assert load.answers["200"] > 500


def _flask_that_says(text: str, to: Path) -> Path:
    shutil.copytree(FIXTURES / "flask", to)
    program = to / "app.py"
    program.write_text(program.read_text().replace('f"flask {', f'f"{text} {{'))
    return to


def test_a_domain_of_its_own_reaches_an_app_until_it_is_taken_away(it):
    it.client.call("POST", "/apps/steady/domains", {"hostname": "www.steady.example"})

    def answers(status: int) -> bool | None:
        asked = [
            httpx.get(f"http://{address}/", headers={"Host": "www.steady.example"}, timeout=10, trust_env=False)
            for address in it.platform.node_addresses
        ]
        return True if {answer.status_code for answer in asked} == {status} else None

    wait_for(lambda: answers(200), "the app under its own domain through every router", seconds=60)
    it.client.call("DELETE", "/apps/steady/domains/www.steady.example")
    wait_for(lambda: answers(404), "no answer under the domain that was taken away", seconds=60)


GREEDY = """\
import threading

def spin():
    while True:
        pass

for _ in range(4):
    threading.Thread(target=spin, daemon=True).start()
eaten = []
while True:
    eaten.append(bytearray(b"x" * (16 << 20)))
"""


def test_an_app_that_eats_memory_and_crashes_starves_nobody(it, tmp_path):
    (tmp_path / "Procfile").write_text("web: python3 eats.py\n")
    (tmp_path / "eats.py").write_text(GREEDY)
    it.client.call("POST", "/apps", {"name": "greedy"})
    with Load(it.platform, "steady") as load:
        source = folder_source(tmp_path)
        build = it.client.build("greedy", source, version="greedy")
        assert it.client.finished_build("greedy", build["id"], seconds=DEPLOY_SECONDS)["status"] == "succeeded"
        version = it.client.call("GET", "/apps/greedy/releases")[-1]["version"]
        release = it.client.released("greedy", version, seconds=240)
        assert it.bootstrap("status", "--platform", NAME).returncode == 0
    assert release["status"] == "failed"
    assert re.search(r"web crashed 3 times \(exit code 137\)", release["failure"]), release
    assert set(load.answers) == {"200"}, load.answers
    it.client.call("DELETE", "/apps/greedy")


# --- isolation -------------------------------------------------------------------------------------------------------

PROBE = """
python3 - <<'PY'
import concurrent.futures, os, socket
def reach(host, port):
    try:
        socket.create_connection((host, int(port)), timeout=3).close()
        return "open"
    except OSError as error:
        return "closed"
targets = os.environ["TARGETS"].split()
with concurrent.futures.ThreadPoolExecutor(16) as pool:
    for target, answer in zip(targets, pool.map(lambda target: reach(*target.rsplit(":", 1)), targets)):
        print("REACH", target, answer)
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
    it.settled("steady")
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


def test_a_build_sees_no_credential_but_its_own_urls_and_reaches_only_routers(it, tmp_path):
    """A build that prints all it can see: environment of every process it may read, files, and ports."""
    closed = [f"{address}:{port}" for address in it.platform.node_addresses for port in (22, 2377, 5432, 6379, 7946)]
    routers = [f"{address}:443" for address in it.platform.node_addresses]
    (tmp_path / "Procfile").write_text("web: true\n")
    (tmp_path / "requirements.txt").write_text("./spy\n")
    spy = tmp_path / "spy"
    spy.mkdir()
    (spy / "pyproject.toml").write_text(
        '[build-system]\nrequires = []\nbuild-backend = "backend"\nbackend-path = ["."]\n'
    )
    (spy / "backend.py").write_text(
        "import concurrent.futures, glob, os, socket, sys\n"
        f"TARGETS = {[*closed, *routers]!r}\n"
        "def reach(target):\n"
        "    host, _, port = target.partition(':')\n"
        "    try: socket.create_connection((host, int(port)), timeout=3).close()\n"
        "    except OSError: return 'closed'\n"
        "    return 'open'\n"
        "def seen():\n"
        "    text = repr(dict(os.environ))\n"
        "    for path in glob.glob('/proc/[0-9]*/environ'):\n"
        "        try: text += open(path, 'rb').read().decode(errors='replace').replace('\\0', ' ')\n"
        "        except OSError: pass\n"
        "    for path in ('/slugs', '/var/run/docker.sock', '/run/secrets', '/etc/blackstart/stage0'):\n"
        "        text += f' {path}={os.access(path, os.R_OK)}'\n"
        "    with concurrent.futures.ThreadPoolExecutor(32) as pool:\n"
        "        for target, answer in zip(TARGETS, pool.map(reach, TARGETS)): text += f' REACH {target}={answer}'\n"
        "    return text\n"
        "def build_wheel(*a, **k): raise SystemExit('SPY ' + seen())\n"
    )
    output = it.failed_build("spy", folder_source(tmp_path).data)
    assert "SPY" in output
    secrets = it.platform.secrets
    for name, value in secrets.items():
        assert value not in output or name == "objects_key", f"the build saw {name}"
    assert [target for target in closed if f"REACH {target}=closed" not in output] == [], output
    assert [target for target in routers if f"REACH {target}=open" not in output] == [], output
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
    slug = it.client.finished_build("damaged", build["id"], seconds=300)["slug"]["id"]
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
