"""Members of the engine, as its manager lists them, by address."""

from deploys.lib.operations import _by_address

MANAGER = {"ManagerStatus": {"Addr": "10.79.7.11:2377"}, "Status": {"State": "ready", "Addr": "0.0.0.0"}}
WORKER = {"Status": {"State": "ready", "Addr": "10.79.7.12"}}
JUST_JOINED = {"Status": {"State": "unknown"}}


def test_a_manager_a_worker_and_one_that_has_no_address_yet():
    members = _by_address([MANAGER, WORKER, JUST_JOINED])
    assert members["10.79.7.11"] is MANAGER
    assert members["10.79.7.12"] is WORKER
    assert "10.79.7.13" not in members


def test_no_engine_has_no_members():
    assert _by_address(None) == {}
