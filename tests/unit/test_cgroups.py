"""Control groups of local machines, on a folder that looks like a cgroup v1 host's."""

from __future__ import annotations

from pathlib import Path

import pytest

from blackstart.errors import MachineError
from blackstart.providers import cgroups


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host that mounts three hierarchies, and this process in one group of each."""
    for hierarchy in ("systemd", "unified", "memory/ours", "cpuset"):
        (tmp_path / hierarchy).mkdir(parents=True)
    (tmp_path / "membership").write_text("3:memory:/ours\n2:cpuset:/\n1:name=systemd:/\n4:absent:/\n0::/\n")
    monkeypatch.setattr(cgroups, "CGROUPS", tmp_path)
    monkeypatch.setattr(cgroups, "MEMBERSHIP", tmp_path / "membership")
    return tmp_path


def test_a_machine_has_a_group_below_ours_in_every_hierarchy(host: Path) -> None:
    made = cgroups.make("acme-node1")
    assert [str(group.relative_to(host)) for group in made] == [
        "memory/ours/blackstart-acme-node1",
        "cpuset/blackstart-acme-node1",
        "systemd/blackstart-acme-node1",
        "unified/blackstart-acme-node1",
    ]
    assert cgroups.make("acme-node1") == made
    assert sorted(cgroups.found("acme-node1")) == sorted(made)
    assert cgroups.found("acme-node10") == []


def test_its_groups_go_with_all_that_is_in_them_and_no_others(host: Path) -> None:
    other = cgroups.make("acme-node2")
    for group in cgroups.make("acme-node1"):
        (group / "payload" / "system.slice").mkdir(parents=True)
    cgroups.remove("acme-node1")
    assert cgroups.found("acme-node1") == []
    assert sorted(cgroups.found("acme-node2")) == sorted(other)


def test_a_group_that_cannot_be_made_is_named(host: Path) -> None:
    (host / "cpuset" / "blackstart-acme-node1").write_text("")
    with pytest.raises(MachineError, match="cpuset/blackstart-acme-node1 cannot be made"):
        cgroups.make("acme-node1")


def test_a_group_that_stays_busy_is_named(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroups, "END_SECONDS", 0.1)
    (cgroups.make("acme-node1")[0] / "cgroup.procs").write_text("1")
    with pytest.raises(MachineError, match="memory/ours/blackstart-acme-node1 cannot be removed"):
        cgroups.remove("acme-node1")


def test_only_cgroup_v2_needs_none(host: Path) -> None:
    (host / "cgroup.controllers").write_text("cpu memory")
    assert cgroups.make("acme-node1") == []
