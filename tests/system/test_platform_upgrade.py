"""Upgrades of the live platform: to a broken version of each component, and to a good one of all, while an app is asked."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from blackstart.client import wait_for
from blackstart.load import Load
from tests.system.platform_under_test import COMPONENTS, NAME
from tests.system.upgrades import BROKEN, checkout_copy

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]  # the first test waits for `up`

IMPATIENT_SECONDS = 40

# --- upgrade ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def impatient(it):
    """A platform that gives a release up after a short time, so that these tests need not wait for the usual three minutes."""
    it.client.call("PATCH", "/apps/psmgr/config-vars", {"DEPLOY_TIMEOUT_S": str(IMPATIENT_SECONDS)})
    it.settled("psmgr")
    yield it
    it.client.call("PATCH", "/apps/psmgr/config-vars", {"DEPLOY_TIMEOUT_S": None})
    it.settled("psmgr")


def _upgrade(it, root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run `upgrade` of another checkout."""
    argv = [sys.executable, "-m", "blackstart", "upgrade", "--platform", NAME, "--json", *arguments]
    return subprocess.run(argv, cwd=root, env=it.environment, capture_output=True, text=True, timeout=600)


def _running(it, component: str) -> dict:
    """Return what a component runs."""

    def asked() -> dict:
        return next(one for one in it.client.call("GET", "/platform")["components"] if one["app"] == component)

    return wait_for(asked, f"what runs of {component}", seconds=60)


def _newest(it, component: str) -> int:
    """Return the version of a component's newest release, whatever became of it."""
    return int(it.client.call("GET", f"/apps/{component}/releases")[-1]["version"])


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


def test_up_after_failed_upgrades_finds_everything_done(it):
    before = [_running(it, name)["version"] for name in COMPONENTS]
    done = it.bootstrap("up", "--platform", NAME, "--json")
    assert done.returncode == 0, done.stderr
    assert [_running(it, name)["version"] for name in COMPONENTS] == before


@pytest.mark.parametrize("component", ["api", "bus", "psmgr"])
def test_an_upgrade_whose_build_fails_replaces_nothing(it, tmp_path, component):
    root = checkout_copy(tmp_path / "checkout")
    (root / "apps" / component / "Procfile").unlink()
    (root / "apps" / "router" / "HARMLESS").write_text("would be replaced\n")
    before = [_running(it, name)["version"] for name in COMPONENTS]
    done = _upgrade(it, root, "--only", component, "--only", "router")
    assert done.returncode == 1
    assert f"the component {component} could not be built; nothing was replaced" in done.stderr
    assert [_running(it, name)["version"] for name in COMPONENTS] == before
    report = it.platform.state.read_json("report/report.json")
    assert report["command"] == "upgrade"
    assert not report["result"]["good"]
    assert component in report["result"]["text"]


def test_an_upgrade_that_was_killed_is_taken_up_by_the_next(it, tmp_path):
    root = checkout_copy(tmp_path / "checkout")
    changed = ["bus", "router"]
    for name in changed:
        (root / "apps" / name / "HARMLESS").write_text("killed in the middle\n")
    before = {name: _newest(it, name) for name in changed}
    only = [word for name in changed for word in ("--only", name)]
    argv = [sys.executable, "-m", "blackstart", "upgrade", "--platform", NAME, *only]
    with Load(it.platform, "steady") as load:
        with subprocess.Popen(
            argv, cwd=root, env=it.environment, stderr=subprocess.PIPE, text=True, start_new_session=True
        ) as killed:
            seen = next((line for line in killed.stderr if "is being replaced by" in line), None)
            os.killpg(killed.pid, signal.SIGKILL)
        assert seen is not None
        done = _upgrade(it, root, *only)
    assert done.returncode == 0, done.stderr
    assert {name: _newest(it, name) - before[name] for name in changed} == dict.fromkeys(changed, 1)
    after = {name: _running(it, name) for name in changed}
    assert {name: after[name]["version"] for name in changed} == {name: _newest(it, name) for name in changed}
    assert all(process["state"] == "up" for each in after.values() for process in each["processes"])
    assert set(load.answers) == {"200"}, load.answers


def test_a_good_upgrade_to_another_stack_replaces_every_component_and_no_request_fails(it, tmp_path):
    root = checkout_copy(tmp_path / "checkout")
    for name in COMPONENTS:
        (root / "apps" / name / "HARMLESS").write_text(f"{tmp_path.name}\n")
    with (root / "templates" / "stack" / "dyno").open("a") as program:
        program.write("# another stack\n")
    before = {name: _running(it, name)["version"] for name in COMPONENTS}
    with Load(it.platform, "steady") as load:
        done = _upgrade(it, root)
    assert done.returncode == 0, done.stderr
    assert sorted(json.loads(done.stdout)["replaced"]) == COMPONENTS
    assert all(_running(it, name)["version"] > before[name] for name in COMPONENTS)
    assert set(load.answers) == {"200"}, load.answers
    report = it.platform.state.read_json("report/report.json")
    assert (report["command"], report["result"]["good"]) == ("upgrade", True)
    assert {"build", *COMPONENTS} <= {step["name"] for step in report["timeline"]["steps"]}
    again = _upgrade(it, root)
    assert json.loads(again.stdout)["replaced"] == [], again.stderr
