"""The state folder keeps secrets, survives crashes, and is held by one run at a time."""

import multiprocessing
import stat

import pytest

from blackstart.errors import BlackstartError, LockedError
from blackstart.journal import Journal
from blackstart.state import State


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    return State.of("unit")


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_secrets_are_made_once_and_kept(state):
    first = state.secrets()
    assert state.secrets() == first
    assert State.of("unit").secrets() == first
    assert len(set(first.values())) == len(first)


def test_secrets_are_for_their_owner_only(state):
    state.secrets()
    assert mode(state.folder) == 0o700
    assert mode(state.folder / "secrets.json") == 0o600
    assert mode(state.token_path) == 0o600


def test_a_new_kind_of_secret_leaves_the_old_ones(state):
    secrets = state.secrets()
    del secrets["bus_password"]
    state.write_json("secrets.json", secrets)
    again = state.secrets()
    assert again["bus_password"]
    assert {key: again[key] for key in secrets} == secrets


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x00\x00"])
def test_a_damaged_file_is_named_and_not_replaced(state, text):
    path = state.folder / "secrets.json"
    path.write_text(text)
    with pytest.raises(BlackstartError, match=r"secrets.json is damaged"):
        state.secrets()
    assert path.read_text() == text


def _hold(root: str, held, release) -> None:
    import os

    os.environ["BLACKSTART_STATE"] = root
    with State.of("unit").lock("up"):
        held.set()
        release.wait(30)


def test_a_second_run_is_refused_and_told_who_holds_the_lock(state):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(state.folder.parent), held, release))
    process.start()
    try:
        assert held.wait(30)
        with pytest.raises(LockedError, match=f"pid {process.pid}, up"), state.lock("up"):
            pass
    finally:
        release.set()
        process.join(30)
    with state.lock("up"):
        pass


def test_the_lock_of_a_killed_run_is_free(state):
    context = multiprocessing.get_context("spawn")
    held, release = context.Event(), context.Event()
    process = context.Process(target=_hold, args=(str(state.folder.parent), held, release))
    process.start()
    assert held.wait(30)
    process.kill()
    process.join(30)
    with state.lock("up"):
        pass


def test_the_journal_passes_over_a_torn_line(state):
    journal = Journal(state.journal_path)
    journal.add("step done", step="host")
    with state.journal_path.open("a") as stream:
        stream.write('{"event": "step do')
    journal.add("step done", step="stacks")
    assert [entry["step"] for entry in journal.entries()] == ["host", "stacks"]
    assert mode(state.journal_path) == 0o600


def test_a_missing_journal_is_an_empty_one(state):
    assert list(Journal(state.journal_path).entries()) == []


def test_a_platform_name_cannot_climb_out(monkeypatch, tmp_path):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    for name in ("../x", "a/b", "-rf", ""):
        with pytest.raises(BlackstartError, match="is refused"):
            State.of(name)


KNOWN = ("database_password", "objects_key", "objects_secret", "bus_password")


def test_secrets_are_retired_once_and_the_old_ones_are_kept(state):
    before = state.secrets()
    assert (state.epoch, state.retired()) == (0, {})
    state.retire_secrets({"engine_worker_token": "worker"})
    after = state.secrets()
    assert state.epoch == 1
    assert {key: value for key, value in after.items() if before[key] == value}.keys() == before.keys() - set(KNOWN)
    old = {key: before[key] for key in (*KNOWN, "api_token")}
    assert state.retired() == {**old, "engine_worker_token": "worker"}
    state.retire_secrets({"engine_worker_token": "another"})  # a rerun
    assert state.secrets() == after
    assert state.retired() == {**old, "engine_worker_token": "worker"}
    assert mode(state.folder / "secrets.json") == 0o600


def test_a_new_token_reaches_the_operators_file(state):
    state.retire_secrets({})
    state.replace_token("another-token", "its-id")
    assert state.token_path.read_text() == "another-token\n"
    assert state.secrets()["api_authorization"] == "its-id"
    assert state.retired()["api_token"] != "another-token"
