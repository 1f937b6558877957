"""A copy of the stage-0 machine, taken before the pivot, is started again: the platform refuses everything it has.

The copy gets stage 0's own address while no firewall bans it yet, so nothing but its credentials decides.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import pytest

from blackstart import observe
from blackstart.client import Endpoint, wait_for
from blackstart.errors import PlatformError
from blackstart.inventory import load_inventory
from blackstart.platform import STAGE0_API_PORT, Platform
from blackstart.providers import Machine
from blackstart.providers.local import LocalPlatform
from blackstart.providers.options import local_platform
from blackstart.remote import Remote, connected
from blackstart.sources import checkout_root, folder_source
from blackstart.state import State

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]  # the fixture waits for most of `up`

NAME = "tfen"
SUBNET = "10.79.31.0/24"
UP_SECONDS = 1500
FIXTURE = checkout_root() / "tests" / "fixtures" / "static"
ORDER = "/etc/blackstart/stage0/components.json"

API_TRIAL = """
import json, sys
from pathlib import Path
from blackstart.client import Client, Endpoint
from blackstart.errors import PlatformError
given = json.load(sys.stdin)
ca = Path("/etc/blackstart/trust/ca.pem")
with Client(Endpoint(**given["endpoint"]), token=given["token"], ca=ca) as client:
    try:
        client.call(*given["call"])
        print("accepted")
    except PlatformError as error:
        print(error)
"""

S3_TRIAL = """
import json, sys, boto3
from botocore.config import Config
given = json.load(sys.stdin)
client = boto3.client("s3", endpoint_url=given["OBJECTS_PUBLIC_URL"], aws_access_key_id=given["OBJECTS_KEY"],
    aws_secret_access_key=given["OBJECTS_SECRET"], region_name="us-east-1", verify="/etc/blackstart/trust/ca.pem",
    config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}, connect_timeout=5))
try:
    client.list_objects_v2(Bucket=given["OBJECTS_BUCKET"])
    print("accepted")
except Exception as error:
    print(error)
"""


@dataclass
class Fenced:
    """A platform after the step `fence`, and the copy of its stage 0 from before the pivot, running."""

    environment: dict[str, str]
    platform: Platform
    provider: LocalPlatform
    before: observe.EngineSnapshot
    answers: Counter[str]
    stored: dict
    changed: dict[str, list[str]]

    def bootstrap(self, *arguments: str, seconds: int = UP_SECONDS) -> subprocess.CompletedProcess[str]:
        """Run bootstrap.py as an operator does."""
        return bootstrap(self.environment, *arguments, seconds=seconds)

    def fencing(self) -> dict:
        """Carry out the proof."""
        done = self.bootstrap("verify", "--fencing", "--platform", NAME, "--json", seconds=300)
        (proof,) = json.loads(done.stdout)["proofs"]
        assert done.returncode == (0 if proof["holds"] else 1)
        return proof


def bootstrap(environment: dict[str, str], *arguments: str, seconds: int) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, "-m", "blackstart", *arguments]
    return subprocess.run(
        argv, cwd=checkout_root(), env=environment, capture_output=True, text=True, timeout=seconds, check=False
    )


@pytest.fixture(scope="module")
def it(tmp_path_factory):
    root = tmp_path_factory.mktemp("state")
    environment = {**os.environ, "BLACKSTART_STATE": str(root), "BLACKSTART_PLATFORM": NAME}
    os.environ.update({"BLACKSTART_STATE": str(root), "BLACKSTART_PLATFORM": NAME})
    state = State.of(NAME)
    try:
        yield _fenced(environment, state, root / "before")
    finally:
        local_platform(state).down()
        subprocess.run(["rm", "--recursive", "--force", "--one-file-system", str(root / "before"), str(root / "after")])


def _fenced(environment: dict[str, str], state: State, copy: Path) -> Fenced:
    _up(environment, "stage-1", "--nodes", "1", "--subnet", SUBNET)
    changed = {deploy: _changed_by(environment, deploy) for deploy in ("stage0", "stage1")}
    platform = Platform(load_inventory(checkout_root() / "inventories" / "local.py"), state)
    provider = local_platform(state)
    stage0 = provider.machine(f"{NAME}-stage0")
    _copied(provider, stage0, copy)
    provider.boot(stage0)
    wait_for(lambda: _works(platform), "stage 0 after its reboot", seconds=300)

    _up(environment, "pivot")
    with observe.answering_client(platform) as client:
        client.call("POST", "/apps", {"name": "site"})
        build = client.build("site", folder_source(FIXTURE), version="1")
        client.deployed("site", build, seconds=300)
    answers = _answers_while(platform, lambda: _up(environment, "fence"))

    before = observe.engine_snapshot(platform.inventory.nodes)
    _exchanged(provider, stage0, copy)
    provider.boot(stage0)
    with connected(platform.inventory.stage0) as remote:
        stored = json.loads(remote.check(["cat", ORDER]))
    return Fenced(environment, platform, provider, before, answers, stored, changed)


def _up(environment: dict[str, str], until: str, *more: str) -> None:
    done = bootstrap(environment, "up", "--platform", NAME, "--until", until, *more, seconds=UP_SECONDS)
    assert done.returncode == 0, done.stderr[-6000:]
    assert f"The step {until} is done. To go on:" in done.stdout


def _changed_by(environment: dict[str, str], deploy: str) -> list[str]:
    """Run a deploy with the pyinfra CLI; return the operations that changed something."""
    argv = [sys.executable, "-m", "pyinfra", "-y", "--json", "inventories/local.py", f"deploys/{deploy}.py"]
    done = subprocess.run(argv, cwd=checkout_root(), env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-4000:]
    operations = json.loads(done.stdout)["results"]["operations"]
    assert len(operations) > 10
    return [operation["name"] for operation in operations if operation["success"] or operation["error"]]


def _copied(provider: LocalPlatform, stage0: Machine, place: Path) -> None:
    """Copy the machine's disk to `place`, with its power off."""
    provider.power_off(stage0)
    subprocess.run(["cp", "--archive", "--reflink=auto", str(provider.folder / stage0.name), str(place)], check=True)


def _exchanged(provider: LocalPlatform, stage0: Machine, place: Path) -> None:
    """Put the disk at `place` in the place of the machine's, as a new machine."""
    provider.power_off(stage0)
    home = provider.folder / stage0.name
    subprocess.run(["mv", str(home), str(place.with_name("after"))], check=True)
    subprocess.run(["mv", str(place), str(home)], check=True)


def _works(platform: Platform) -> bool | None:
    def works() -> bool:
        with connected(platform.inventory.stage0) as remote:
            return remote.run(["/opt/blackstart/check-stage0"]).code == 0

    return True if observe.holds(works) else None


def _answers_while(platform: Platform, work) -> Counter[str]:
    """Ask for the app through the router, each time on a new connection, while `work` runs; count the answers."""
    address, host = platform.node_addresses[0], f"site.{platform.domain}"
    answers: Counter[str] = Counter()
    stop = threading.Event()

    def get() -> str:
        try:
            return str(httpx.get(f"http://{address}/", headers={"Host": host}, timeout=30, trust_env=False).status_code)
        except httpx.HTTPError as error:
            return f"{type(error).__name__}: {error}"

    def ask() -> None:
        while not stop.wait(0.05):
            answers[get()] += 1

    wait_for(lambda: True if get() == "200" else None, "the app's route", seconds=60)
    asking = threading.Thread(target=ask)
    asking.start()
    try:
        work()
    finally:
        stop.set()
        asking.join(60)
    return answers


@pytest.fixture
def on_copy(it):
    with connected(it.platform.inventory.stage0) as remote:
        yield remote


def test_the_stages_change_nothing_a_second_time_while_stage_0_is_there(it):
    assert it.changed == {"stage0": [], "stage1": []}


def test_no_request_failed_during_the_fence(it):
    assert set(it.answers) == {"200"}, it.answers
    assert it.answers["200"] > 20


def test_the_proof_tried_the_very_credentials_of_the_copy(it):
    retired, config = it.platform.state.retired(), it.stored["config"]
    assert it.stored["token"] == retired["api_token"]
    assert config["postgres"]["POSTGRES_PASSWORD"] == retired["database_password"]
    assert config["bus"]["BUS_PASSWORD"] == retired["bus_password"]
    assert config["api"]["OBJECTS_SECRET"] == retired["objects_secret"]
    kept = it.platform.state.read_json("fencing.json")["worked_before"]
    assert {store: answer["answer"] for store, answer in kept.items()} == dict.fromkeys(
        ("database", "objects", "bus", "api"), "accepted"
    )


def test_the_ca_key_was_never_on_stage_0(it, on_copy):
    lines = (it.platform.state.folder / "ca" / "ca.key").read_text().splitlines()
    for place in ("/etc", "/opt", "/root", "/var/lib/blackstart", "/var/lib/postgresql"):
        found = on_copy.run(["grep", "-rlF", "-f", "-", place], stdin=lines[1] + "\n", seconds=120)
        assert (found.code, found.out) == (1, "")
    certificate = it.platform.state.ca_path.read_text().splitlines()[1]
    assert on_copy.run(["grep", "-rlF", "-f", "-", "/etc/blackstart"], stdin=certificate + "\n").code == 0


def test_the_control_plane_of_the_copy_does_nothing(it, on_copy):
    def said() -> bool | None:
        for unit in ("psmgr", "api"):
            log = on_copy.check(["journalctl", "--boot", "--no-pager", "-u", f"blackstart-{unit}"])
            if "the platform is in epoch 1 and runs its own control plane" not in log:
                raise PlatformError(f"{unit} said nothing of the epoch", why=log[-600:])
        return True

    wait_for(said, "both to say why they do nothing", seconds=120)
    itself = Endpoint("localhost", "127.0.0.1", STAGE0_API_PORT)
    for method, path, body in (("GET", "/account", None), ("POST", "/apps", {"name": "ghost"})):
        assert "not_active: the platform is in epoch 1" in _api(on_copy, itself, it.stored["token"], method, path, body)


def test_api_bus_and_objects_refuse_the_copy_and_take_the_credentials_of_now(it, on_copy):
    config, known, node = it.stored["config"], it.platform.secrets, it.platform.node_addresses[0]

    assert "WRONGPASS" in _redis(on_copy, node, config["bus"]["BUS_PASSWORD"])
    assert "+PONG" in _redis(on_copy, node, known["bus_password"])

    on_copy.check(["tee", "-a", "/etc/hosts"], stdin=f"{node} objects.{it.platform.domain}\n")
    assert "InvalidAccessKeyId" in _s3(on_copy, config["api"])
    assert _s3(on_copy, it.platform.component_config("api")) == "accepted"

    router = observe.node_endpoint(it.platform, it.platform.inventory.nodes[0])
    assert "(401)" in _api(on_copy, router, it.stored["token"], "GET", "/account")
    assert _api(on_copy, router, known["api_token"], "GET", "/account") == "accepted"


def _redis(remote: Remote, node: str, password: str) -> str:
    """Return what the bus answers to AUTH and PING; nothing secret in an argument."""
    argv = ["openssl", "s_client", "-quiet", "-verify_quiet", "-CAfile", "/etc/blackstart/trust/ca.pem"]
    return remote.run([*argv, "-connect", f"{node}:6379"], stdin=f"AUTH {password}\r\nPING\r\nQUIT\r\n").out


def _api(remote: Remote, endpoint: Endpoint, token: str, method: str, path: str, body: object = None) -> str:
    """Return what an API answers to a call from the copy: `accepted`, or its refusal."""
    python = ["env", "PYTHONPATH=/opt/blackstart/checkout", "/opt/blackstart/venvs/operator/bin/python"]
    given = {"endpoint": asdict(endpoint), "token": token, "call": [method, path, body]}
    return remote.check([*python, "-c", API_TRIAL], stdin=json.dumps(given)).strip()


def _s3(remote: Remote, config: dict[str, str]) -> str:
    given = {key: value for key, value in config.items() if key.startswith("OBJECTS_")}
    python = "/opt/blackstart/venvs/operator/bin/python"
    return remote.check([python, "-c", S3_TRIAL], stdin=json.dumps(given)).strip()


def test_the_engine_refuses_the_copy_as_manager_and_as_newcomer(it, on_copy):
    assert on_copy.run(["docker", "node", "ls"]).code != 0
    node = it.platform.managers[0]
    assert it.platform.inventory.stage0.address not in observe.engine_member_addresses(node)

    retired = it.platform.state.retired()
    on_copy.run(["docker", "swarm", "leave", "--force"])
    for role in ("worker", "manager"):
        refused = _join(it, on_copy, retired[f"engine_{role}_token"])
        assert refused.code != 0
        assert "CA" in refused.err or "token" in refused.err, refused.err
    with connected(node) as manager:
        token = manager.check(["docker", "swarm", "join-token", "--quiet", "worker"]).strip()
        joined = _join(it, on_copy, token)
        assert joined.code == 0, joined.err
        own = on_copy.check(["docker", "info", "--format", "{{.Swarm.NodeID}}"]).strip()
        on_copy.check(["docker", "swarm", "leave", "--force"])
        manager.check(["docker", "node", "rm", "--force", own])


def _join(it, remote: Remote, token: str):
    node, own = it.platform.node_addresses[0], it.platform.inventory.stage0.address
    return remote.run(["docker", "swarm", "join", "--advertise-addr", own, "--token", token, f"{node}:2377"])


def test_what_runs_was_not_touched(it):
    assert it.before.lost(observe.engine_snapshot(it.platform.inventory.nodes)) == []


def test_the_proof_holds(it):
    """That a live role breaks it, and nothing else, is shown where all proofs are: test_platform_proofs.py."""
    assert it.fencing()["holds"], it.fencing()
