"""The hardest cells of the kill matrix (bench/kill_matrix.py), in one bootstrap of a one-node platform; then lost state.

The tests run in the order of this file: each goes on where the one before left the platform.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from bench.faults import Rehearsal, Up, picture, says
from blackstart.client import wait_for
from blackstart.remote import connected
from blackstart.sources import checkout_root, component_names
from deploys.control_plane import PYTHON, SETTINGS
from deploys.moving import ORDER

pytestmark = [pytest.mark.system, pytest.mark.timeout(1200)]

NAME = "tkil"
SUBNET = "10.79.32.0/24"
STOP_SECONDS = 60
MOVING = r"bin/move-database|database/move"


@pytest.fixture(scope="module")
def it(_root, tmp_path_factory):
    """A platform to do harm to; nothing of it exists yet.

    While you work on a test: $BLACKSTART_TEST_STATE names a state folder to use and keep, with the platform in it.
    """
    kept = os.environ.get("BLACKSTART_TEST_STATE")
    rehearsal = Rehearsal(NAME, SUBNET, 1, tmp_path_factory.mktemp("state") if kept is None else Path(kept))
    try:
        yield rehearsal
    finally:
        if kept is None:
            rehearsal.down()


@pytest.fixture(scope="module")
def older(tmp_path_factory) -> Path:
    """Where a copy of the state folder is kept that was made in the middle of the pivot."""
    return tmp_path_factory.mktemp("older") / "state"


def nothing_goes_on(it: Rehearsal) -> None:
    """Wait until no program of the operator's side is left: the kernel ends them."""
    wait_for(lambda: None if it.operators_left() else True, "the programs of a killed run to end", seconds=10)


def kill_when(it: Rehearsal, moment) -> Up:
    """Run `up`, SIGKILL its process group at the moment."""
    up = it.start()
    assert up.reaches(moment), up.error()
    up.kill()
    nothing_goes_on(it)
    return up


def stop_when(it: Rehearsal, moment, number: signal.Signals) -> None:
    """Run `up`, send one signal to its process at the moment: it must end by itself, cleanly, and say how to go on."""
    up = it.start()
    assert up.reaches(moment), up.error()
    up.process.send_signal(number)
    code = up.end(seconds=STOP_SECONDS)
    wait_for(lambda: True if f"stopped by {number.name}" in up.error() else None, "its last words", seconds=10)
    assert code == 130
    assert "run the same command again to go on" in up.error()
    assert it.operators_left() == []
    with it.state.lock("the test"):  # it was dropped
        pass


# --- stopped and killed ----------------------------------------------------------------------------------------------


def test_ctrl_c_while_machines_are_made(it):
    stop_when(it, says("machines", "Boot the machines"), signal.SIGINT)


def test_sigterm_while_two_deploys_run(it):
    stop_when(it, says("stage-0", "Install the engine and the firewall"), signal.SIGTERM)


def test_killed_when_a_full_disk_kept_the_databases_cluster_from_being_made(it):
    """The package then counts as installed all the same: found by the matrix."""
    kill_when(it, says("stage-0", "Make the user of stage 0's services"))
    with connected(it.platform.inventory.stage0) as stage0:
        stage0.check(["pg_dropcluster", "--stop", "17", "main"])
        stage0.check(["mkdir", "-p", "/etc/postgresql/17/main"])


def test_ctrl_c_in_the_next_run(it):
    stop_when(it, says("stage-0", "Upload the checkout"), signal.SIGINT)


def test_killed_between_engine_join_and_promotion(it):
    kill_when(it, says("stage-1", "Wait until every node has joined"))


def test_killed_when_a_node_dies_while_it_is_promoted(it):
    """It counts as the second of two managers and has no log, so nobody ever leads: a full disk does that too (the matrix)."""
    kill_when(it, says("stage-1", "Label the nodes"))
    with connected(it.platform.inventory.nodes[0]) as node:
        node.check(["systemctl", "stop", "docker.service", "docker.socket"])


def test_killed_in_the_middle_of_the_database_move_and_the_pivot_program_too(it):
    kill_when(it, it.runs(MOVING))
    for pid in it.pids(r"python\S* -m blackstart\.pivot"):
        os.kill(pid, signal.SIGKILL)


def test_killed_while_the_epoch_is_claimed_and_the_pivot_program_too(it):
    """The marker is there or not, the database says nothing yet: the next run claims it again, as the same owner."""
    up = it.start()
    assert up.reaches(it.runs("bin/put-epoch")), up.error()
    for pid in it.pids(r"python\S* -m blackstart\.pivot"):
        os.kill(pid, signal.SIGKILL)
    up.kill()
    nothing_goes_on(it)


def test_killed_in_the_middle_of_the_pivot_whose_program_goes_on(it, older):
    """It starts over; then a third run waits for it or goes on after it: two pivots never move at once."""
    kill_when(it, it.runs(MOVING))
    shutil.copytree(it.state.folder, older)


def test_a_hand_over_that_stage_0_does_not_know_of_is_finished(it):
    """As when the move is killed just after it: stage 0's database says `moving`, and its API sees the later epoch and refuses."""
    up = it.start("--until", "pivot")
    assert up.end() == 0, up.error()
    ask = f"{PYTHON} -m blackstart.components check {SETTINGS}/components.json"
    sql = ["runuser", "-u", "postgres", "--", "psql", "-d", "platform", "-qtAX", "-c"]
    with connected(it.platform.inventory.stage0) as stage0:
        stage0.check([*sql, "UPDATE platform SET stage = 'moving'"])
        stage0.check(["systemctl", "start", "blackstart-objects.service", "blackstart-api.service"])
        wait_for(
            lambda: "runs its own control plane" in stage0.run(["sh", "-c", ask]).err or None, "a refusal", seconds=60
        )
        stage0.check(["sh", "-c", f"{PYTHON} -m blackstart.pivot {ORDER}"], seconds=120)
        assert stage0.check([*sql, "SELECT stage FROM platform"]).strip() == "moved"
        assert stage0.run(["systemctl", "is-active", "blackstart-api.service"]).out.strip() == "inactive"


def test_killed_during_teardown(it):
    kill_when(it, says("teardown", "Wipe stage 0"))


def test_the_plain_rerun_ends_in_the_same_platform(it):
    up = it.start()
    assert up.end() == 0, up.error()
    found = picture(it)
    names = sorted(component_names(checkout_root()))
    assert found["stage"] == "self-hosted"
    assert found["stage0"] is None
    assert found["problems"] == []
    assert found["apps"] == names
    assert set(found["services"].values()) == {1}
    assert found["managers"] == found["members"] == list(it.platform.node_addresses)
    assert all(release == ("succeeded", True) for release in found["last release"].values()), found["last release"]
    assert found["rows"]["apps"] == str(len(names))
    assert found["rows"]["platform"] == "1"
    assert found["left over"] == []


# --- the state folder is lost, stale or damaged ----------------------------------------------------------------------


@pytest.fixture
def running(it):
    """Require that a test destroys no machine and re-makes none."""
    before = {name: it.provider._nspawn(it.provider.machine(name)).init() for name in (f"{NAME}-node1",)}
    disks = sorted(path.name for path in it.provider.folder.iterdir())
    yield before
    assert {name: it.provider._nspawn(it.provider.machine(name)).init() for name in before} == before
    assert sorted(path.name for path in it.provider.folder.iterdir()) == disks


@pytest.fixture
def copy(it, tmp_path):
    """A copy of the state folder, to be put back."""
    kept = tmp_path / "kept"
    shutil.copytree(it.state.folder, kept)
    yield kept
    shutil.rmtree(it.state.folder)
    shutil.copytree(kept, it.state.folder)


def refused(it: Rehearsal, *arguments: str, code: int = 1) -> str:
    """Run a command that must be refused; return what it says."""
    done = it.run(*arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_lost_state_folder_never_touches_its_machines(it, running, copy):
    shutil.rmtree(it.state.folder)
    for command in (["up"], ["up", "--nodes", "1", "--subnet", SUBNET], ["down"]):
        said = refused(it, *command)
        assert f"there are machines of {NAME} that were not made from this state folder" in said
        assert "restore the state folder from its copy" in said
    assert it.run("status").returncode == 1


@pytest.mark.parametrize("lost", ["secrets.json", "ca", "ssh"])
def test_a_part_of_the_state_folder_is_lost(it, running, copy, lost):
    path = it.state.folder / lost
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    said = refused(it, "up")
    assert "nothing was changed" in said
    assert "restore" in said


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_an_empty_or_truncated_secrets_file_is_refused(it, running, copy, text):
    (it.state.folder / "secrets.json").write_text(text)
    assert "secrets.json is damaged" in refused(it, "up")
    assert (it.state.folder / "secrets.json").read_text() == text


def test_lost_options_are_asked_for(it, running, copy):
    (it.state.folder / "options.json").unlink()
    assert f"there is: {NAME}-node1 at 10.79.32.11" in refused(it, "up")
    done = it.run("up", "--nodes", "1", "--subnet", SUBNET)
    assert done.returncode == 0, done.stderr
    assert "done (" not in done.stderr  # and nothing was made again


def test_lost_hints_change_nothing(it, running, copy):
    """Journal, times, the pivot's evidence and known hosts are gone or damaged: what is measured decides."""
    (it.state.folder / "journal.jsonl").write_bytes(b'{"event": "step do')
    (it.state.folder / "times.json").write_text("")
    (it.state.folder / "pivot.json").write_text("{")
    (it.state.folder / "before-pivot.json").unlink()
    (it.state.folder / "token").unlink()
    done = it.run("up")
    assert done.returncode == 0, done.stderr
    assert "done (" not in done.stderr


def test_a_state_folder_from_before_the_fence_is_refused(it, running, copy, older):
    shutil.rmtree(it.state.folder)
    shutil.copytree(older, it.state.folder)
    said = refused(it, "up")
    assert f"{NAME}-node1 belongs to a platform that this state folder does not know; nothing was changed" in said
    assert "restore the state folder from its copy" in said


def test_the_state_of_another_platform_is_refused(it, running, copy):
    other = it.state.folder.parent / "other"
    shutil.copytree(it.state.folder, other)
    try:
        argv = ["up", "--platform", "other"]
        done = subprocess.run(
            [*it.command, *argv], cwd=checkout_root(), env=it.environment, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 1
        assert f"Blackstart CA of {NAME}" in done.stderr, done.stderr
        assert not Path("/sys/class/net/bs-other").exists()
    finally:
        shutil.rmtree(other)


def test_nodes_that_lost_power_come_back_though_no_flag_says_that_stage_0_is_gone(it, copy):
    """With the API dead and every flag lost, the nodes tell that the platform was handed over: stage 0 is not made again."""
    (it.state.folder / "options.json").write_text(json.dumps({"nodes": 1, "subnet": SUBNET}))
    for machine in it.provider.machines():
        if machine.group == "runtime":
            it.provider.power_off(machine)
    started = time.monotonic()
    up = it.start()
    assert up.end() == 0, up.error()
    assert "Stand up stage 0" not in " ".join(up.texts("stage-0")), f"{time.monotonic() - started:.0f} s"
    assert [machine.name for machine in it.provider.found()] == [f"{NAME}-node1"]


def test_down_removes_what_is_its_own(it):
    done = it.run("down")
    assert done.returncode == 0, done.stderr
    assert f"process {NAME}-node1" in done.stderr
    assert it.provider.leftovers() == ()
