"""A bundle is made also when no machine answers, is its owner's only, and has no secret in it."""

import json
import tarfile

import pytest

from blackstart.bundle import KEPT_AT_MOST, gather
from blackstart.inventory import checked_inventory
from blackstart.journal import Journal
from blackstart.masking import MASK
from blackstart.platform import Platform
from blackstart.state import State


@pytest.fixture
def platform(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    data = {"platform": "bun", "domain": "bun.internal", "ssh_port": 1, "ssh_user": "root", "ssh_key": "/nonexistent"}
    hosts = [("127.0.0.1", "stage0", data), ("127.0.0.2", "runtime", data)]
    return Platform(checked_inventory(tmp_path / "inventory.py", hosts), State.of("bun"))


def contents(path):
    with tarfile.open(path) as tar:
        return {name.partition("/")[2]: tar.extractfile(name).read().decode() for name in tar.getnames()}


def test_hosts_that_cannot_be_reached_are_noted(platform):
    said = []
    path = gather(platform, platform.inventory.hosts, log=said.append)
    found = contents(path)
    assert set(found) == {"127.0.0.1/unreachable.txt", "127.0.0.2/unreachable.txt"}
    assert "127.0.0.2 cannot be reached over SSH as root@127.0.0.2:1" in found["127.0.0.2/unreachable.txt"]
    assert said == ["127.0.0.1: cannot be reached", "127.0.0.2: cannot be reached"]
    assert path.stat().st_mode & 0o777 == 0o600


def test_secrets_in_what_is_gathered_are_masked(platform):
    secrets = platform.state.secrets()
    journal = Journal(platform.state.journal_path)
    for value in secrets.values():
        journal.add("step failed", reason=f"it said {value}")
    found = contents(gather(platform, ()))["operator/journal.jsonl"]
    assert not [name for name, value in secrets.items() if value in found]
    assert found.count(MASK) == len(secrets)
    assert all(json.loads(line)["event"] == "step failed" for line in found.splitlines())


def test_a_few_bundles_are_kept(platform):
    made = [gather(platform, ()) for _ in range(KEPT_AT_MOST + 2)]
    assert sorted(path for path in made if path.exists()) == made[2:]
