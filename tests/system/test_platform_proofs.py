"""The proofs on the live platform: they hold, and each fails alone when what it claims is broken."""

from __future__ import annotations

import html
import json

import pytest

from blackstart import certificate, hold
from blackstart.client import wait_for
from blackstart.journal import Journal
from blackstart.progress import Progress
from blackstart.proofs import fixed_point, kept
from blackstart.proofs.blast_radius import measured
from blackstart.proofs.blast_radius.comparison import declared_needs, problems
from blackstart.proofs.blast_radius.matrix import RESTART, TRAFFIC
from blackstart.proofs.blast_radius.rows import CONTROL_PLANE, Planned
from blackstart.providers.options import local_platform
from blackstart.remote import connected
from blackstart.run import Run
from blackstart.sources import checkout_root
from blackstart.verify import DISTURBING, run_proofs
from tests.system.breaking import a_live_role_of_stage_0, a_time_in_the_compilers_slug
from tests.system.platform_under_test import FIXTURES, NAME

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]  # the first test waits for `up`

QUICK = ("graph", "no-op-pivot", "fencing", "teardown")


def _verify(it, *names: str, seconds: int = 1500) -> dict[str, dict]:
    """Carry out proofs as an operator does; return them by name. The exit code says whether all hold."""
    done = it.bootstrap("verify", "--platform", NAME, "--json", *(f"--{name}" for name in names), seconds=seconds)
    proofs = {proof["name"]: proof for proof in json.loads(done.stdout)["proofs"]}
    assert done.returncode == (0 if all(proof["holds"] for proof in proofs.values()) else 1), done.stderr
    return proofs


def _run(it) -> Run:
    return Run("inventories/local.py", it.platform, local_platform(it.platform.state), Progress(quiet=True))


def test_what_is_known_of_the_bootstrap_holds(it):
    proofs = _verify(it, *QUICK)
    assert list(proofs) == list(QUICK)
    assert all(proof["holds"] for proof in proofs.values()), proofs
    report = it.platform.state.read_json("report/report.json")
    assert (report["command"], report["result"]["good"]) == ("verify", True)
    assert {each["name"]: each["holds"] for each in report["proofs"]}.items() >= dict.fromkeys(QUICK, True).items()
    page = (it.platform.state.report_folder / "report.html").read_text()
    assert all(proof["detail"] in html.unescape(page) for proof in proofs.values())


def test_a_live_role_of_stage_0_breaks_exactly_the_fencing(it):
    with a_live_role_of_stage_0(it.platform):
        proofs = _verify(it, *QUICK)
    assert [name for name, proof in proofs.items() if not proof["holds"]] == ["fencing"]
    assert proofs["fencing"]["detail"].startswith("database: takes stage 0's credential")
    assert ";" not in proofs["fencing"]["detail"]
    assert _verify(it, "fencing")["fencing"]["holds"]


def test_the_certificate_was_issued_before_stage_0_went(it):
    issued = it.platform.state.read_json(certificate.FILE)
    assert [item["name"] for item in issued["items"]] == ["deploy", "no-connection", "no-write", "restore", "reboots"]
    assert issued["holds"]
    done = {
        each["step"]: each["at"]
        for each in Journal(it.platform.state.journal_path).entries()
        if each["event"] == "step done"
    }
    assert done["certificate"] < done["teardown"]
    assert (it.platform.state.folder / "certificate.html").exists()


def test_disturbing_proofs_are_not_carried_out_unasked_where_users_have_apps(it):
    it.deploy("steady", FIXTURES / "flask")
    for proof in run_proofs(tuple(DISTURBING), _run(it)):
        assert not proof.holds
        assert "not carried out: the platform serves" in proof.detail


# --- the fixed point -------------------------------------------------------------------------------------------------


def test_the_compiler_compiles_itself_to_the_same_bytes_and_a_smuggled_time_is_named(it, tmp_path):
    run = _run(it)
    proof = fixed_point.prove(run, only=("compile",), stacks=False)
    assert proof.holds, proof.detail
    with a_time_in_the_compilers_slug(it.client, tmp_path):
        broken = fixed_point.prove(run, only=("compile",), stacks=False)
        others = _verify(it, *QUICK)
    assert not broken.holds
    assert "built-at.txt" in broken.detail
    assert all(proof["holds"] for proof in others.values()), others


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


def test_apps_survive_the_whole_control_plane_and_what_stops_is_what_is_declared(it):
    """Two rows of the matrix; bench/proofs.py measures all of them."""
    rows = measured(_run(it), (Planned(), Planned(("postgres",)), Planned(CONTROL_PLANE)))
    declared = declared_needs(checkout_root())
    assert problems(declared, rows) == []
    for row in rows:
        assert row.capabilities[TRAFFIC].works, row
        assert row.capabilities[RESTART].works, row
    assert not rows[1].capabilities["deploy"].works
    assert it.bootstrap("status", "--platform", NAME).returncode == 0
    forgotten = tuple(need for need in declared["psmgr"] if need.on != "postgres")
    (problem,) = problems({**declared, "psmgr": forgotten}, rows)
    assert problem.startswith("psmgr does not declare that it needs postgres at run, but routes stops with it")


# --- black start -----------------------------------------------------------------------------------------------------


def test_every_node_killed_at_once_comes_back_and_nothing_is_lost(it):
    (proof,) = _verify(it, "black-start").values()
    assert proof["holds"], proof["detail"]
    evidence = it.platform.state.read_json(kept.FILE)["black-start"]["evidence"]
    assert evidence["rows acknowledged"] >= 10
    assert evidence["interrupted deploy"] in ("succeeded", "rolled back")
    wait_for(lambda: it.serves("steady"), "an app that was there before", seconds=60)
