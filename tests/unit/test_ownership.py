"""A state folder that is lost, stale, damaged or another platform's never passes for the one that made the machines."""

import json
import shutil

import pytest

from blackstart.ca import check_ca, ensure_ca, ensure_leaf
from blackstart.errors import BlackstartError, HostError, InventoryError
from blackstart.ownership import check_carried, differences, identity, parsed
from blackstart.providers import disk
from blackstart.providers.local import LocalPlatform
from blackstart.providers.options import check_plan
from blackstart.state import State


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path / "state"))
    return State.of("unit")


@pytest.fixture
def carried(state):
    """What a machine of this platform carries."""
    ensure_ca(state)
    state.secrets()
    return identity(state)


@pytest.fixture
def local(state, tmp_path):
    """A platform with one node on the disk, made from this state folder."""
    planned = LocalPlatform(
        name="unit", state_dir=state.folder, nodes=1, subnet="10.99.1.0/24", machines_dir=tmp_path / "machines"
    )
    root = planned.folder / "unit-node1" / "root"
    (root / disk.NETWORK_FILE).parent.mkdir(parents=True)
    (root / disk.NETWORK_FILE).write_text("[Network]\nAddress=10.99.1.11/24\n")
    (root.parent / disk.OWNER).write_text(planned.ssh.ensure_key())
    (root.parent / disk.COMPLETE).touch()
    return planned


# --- what machines carry ---------------------------------------------------------------------------------------------


def test_the_state_that_made_a_machine_knows_it(state, carried):
    assert differences(carried, state) == []
    check_carried("node1", None, state)
    check_carried("node1", carried, state)


def test_what_a_machine_carries_tells_no_secret(state, carried):
    text = json.dumps(carried)
    assert not any(secret in text for secret in state.secrets().values())


def test_a_lost_state_folder_is_refused(state, carried):
    state.remove()
    again = State.of("unit")
    with pytest.raises(HostError, match="node1 belongs to a platform that this state folder does not know") as refused:
        check_carried("node1", carried, again)
    assert "the CA is missing here" in refused.value.why
    assert "restore the state folder" in refused.value.fix


@pytest.mark.parametrize("text", ["{}", '{"database_password": "another"}'])
def test_lost_or_other_secrets_are_refused(state, carried, text):
    (state.folder / "secrets.json").write_text(text)
    with pytest.raises(HostError, match="nothing was changed"):
        check_carried("node1", carried, state)
    state.secrets()  # even when new ones were made
    with pytest.raises(HostError, match="nothing was changed"):
        check_carried("node1", carried, state)


def test_one_lost_secret_is_named(state, carried):
    secrets = state.secrets()
    del secrets["database_password"]
    state.write_json("secrets.json", secrets)
    assert differences(carried, state) == ["its database_password is missing here"]


def test_a_new_kind_of_secret_changes_nothing(state, carried):
    state.remember("secrets.json", "a_new_kind", "x" * 24)
    assert differences(carried, state) == []


def test_a_secret_that_was_replaced_is_known_by_what_is_kept_of_it(state, carried):
    before = state.secrets()["bus_password"]
    state.write_json("secrets.json", {**state.secrets(), "bus_password": "y" * 24, "epoch": 1})
    assert differences(carried, state) == ["its bus_password is another"]
    state.remember("secrets.json", "retired", {"bus_password": before})
    assert differences(carried, state) == []


def test_another_ca_is_refused(state, carried):
    shutil.rmtree(state.folder / "ca")
    State.of("unit")
    ensure_ca(state)
    assert differences(carried, state) == ["it trusts another CA"]


@pytest.mark.parametrize("text", ["", "{", "[]"])
def test_a_half_written_identity_is_none(text):
    assert parsed(text) is None


# --- the CA ----------------------------------------------------------------------------------------------------------


def test_the_state_of_another_platform_is_refused(state):
    ensure_ca(state)
    copy = State.of("other")
    shutil.copytree(state.folder, copy.folder, dirs_exist_ok=True)
    with pytest.raises(BlackstartError, match="holds the state of another platform") as refused:
        check_ca(copy)
    assert "Blackstart CA of unit" in refused.value.why


def test_a_ca_without_its_key_is_not_made_again(state):
    before = ensure_ca(state).certificate
    (state.folder / "ca" / "ca.key").unlink()
    with pytest.raises(BlackstartError, match=r"the CA in .* is damaged"):
        ensure_ca(state)
    assert state.ca_path.read_text() == before


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
@pytest.mark.parametrize("text", ["", "-----BEGIN", "\x00"])
def test_a_damaged_ca_is_not_made_again(state, name, text):
    ensure_ca(state)
    (state.folder / "ca" / name).write_text(text)
    with pytest.raises(BlackstartError, match=r"the CA in .* is damaged"):
        ensure_ca(state)
    assert (state.folder / "ca" / name).read_text() == text


def test_the_key_of_another_ca_is_refused(state, tmp_path, monkeypatch):
    ensure_ca(state)
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path / "elsewhere"))
    other = State.of("unit")
    ensure_ca(other)
    shutil.copy(other.folder / "ca" / "ca.key", state.folder / "ca" / "ca.key")
    with pytest.raises(BlackstartError, match=r"ca\.key is not the key of ca\.pem"):
        ensure_ca(state)


def test_a_run_killed_between_key_and_certificate_makes_both_anew(state):
    (state.folder / "ca" / "ca.key").write_text("of a run that was killed")
    ensure_ca(state)
    check_ca(state)


@pytest.mark.parametrize("text", ["", "-----BEGIN"])
def test_a_half_written_leaf_is_made_anew(state, text):
    first = ensure_leaf(state, "api", hosts=("api",))
    (state.folder / "ca" / "api.pem").write_text(text)
    assert ensure_leaf(state, "api", hosts=("api",)).certificate not in (text, first.certificate)


# --- local machines --------------------------------------------------------------------------------------------------


def test_machines_that_this_state_folder_made_are_its_own(local):
    local.check_ours()
    assert [machine.name for machine in local.found()] == ["unit-node1"]


def test_machines_are_not_touched_when_the_state_folder_is_lost(local, state):
    state.remove()
    with pytest.raises(BlackstartError, match="not made from this state folder: unit-node1; nothing was changed") as no:
        local.check_ours()
    assert "missing" in no.value.why
    assert "down --without-state" in no.value.fix


def test_machines_of_another_state_folder_are_not_touched(local, state):
    state.remove()
    local.ssh.ensure_key()
    with pytest.raises(BlackstartError, match="nothing was changed") as refused:
        local.check_ours()
    assert "not their key" in refused.value.why


def test_a_machine_without_a_mark_is_known_by_the_key_it_lets_in(local):
    home = local.folder / "unit-node1"
    (home / disk.OWNER).unlink()
    with pytest.raises(BlackstartError, match="nothing was changed"):
        local.check_ours()
    (home / "root/root/.ssh").mkdir(parents=True)
    (home / "root/root/.ssh/authorized_keys").write_text(local.ssh.ensure_key() + "\n")
    local.check_ours()


@pytest.mark.parametrize("text", ["", "no key"])
def test_a_damaged_key_is_named_and_not_replaced(local, text):
    local.ssh.key.write_text(text)
    with pytest.raises(BlackstartError, match="id_ed25519 is damaged"):
        local.check_ours()
    with pytest.raises(BlackstartError, match="id_ed25519 is damaged"):
        local.ssh.ensure_key()
    assert local.ssh.key.read_text() == text


def test_a_machine_that_lost_its_mark_while_it_runs_is_not_made_again(local, monkeypatch):
    (local.folder / "unit-node1" / disk.COMPLETE).unlink()
    monkeypatch.setattr("blackstart.providers.nspawn.Nspawn.processes", lambda nspawn: {"systemd-nspawn": 1})
    with pytest.raises(BlackstartError, match=r"runs, but .*complete is missing"):
        local.create(local.machine("unit-node1"))
    assert (local.folder / "unit-node1" / "root").exists()


@pytest.mark.parametrize("chosen", [{}, {"nodes": 1}, {"subnet": "10.99.1.0/24"}])
def test_lost_options_are_asked_for_and_not_guessed(local, chosen):
    with pytest.raises(InventoryError, match=r"options\.json of unit does not say") as refused:
        check_plan(local, chosen)
    assert "there is: unit-node1 at 10.99.1.11" in refused.value.fix


def test_stale_options_that_plan_other_machines_are_refused(local):
    other = LocalPlatform(
        name="unit", state_dir=local.state_dir, nodes=1, subnet="10.99.2.0/24", machines_dir=local.machines_dir
    )
    with pytest.raises(InventoryError, match=r"options\.json of unit does not say") as refused:
        check_plan(other, {"nodes": 1, "subnet": "10.99.2.0/24"})
    assert "it does not plan unit-node1 at 10.99.1.11" in refused.value.why


def test_the_options_of_the_first_time_are_taken(local):
    check_plan(local, {"nodes": 1, "subnet": "10.99.1.0/24"})


# --- hints -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00"])
def test_a_damaged_hint_decides_nothing(state, text):
    (state.folder / "times.json").write_text(text)
    assert state.read_hint("times.json") == {}


def test_each_damaged_file_says_what_to_do(state):
    for name, fix in (
        ("options.json", "--nodes and --subnet"),
        ("secrets.json", "no other passwords"),
        ("x.json", "again"),
    ):
        (state.folder / name).write_text("{")
        with pytest.raises(BlackstartError) as damaged:
            state.read_json(name)
        assert fix in damaged.value.fix
