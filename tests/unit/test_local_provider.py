"""What a local platform plans, and what it refuses, without making anything."""

from __future__ import annotations

import ipaddress
from pathlib import Path

import pytest

from blackstart.debian import debian_sources
from blackstart.errors import HostError, MachineError
from blackstart.providers import Machine, Provider, disk, network, nspawn
from blackstart.providers import local as local_module
from blackstart.providers.keys import SshFolder, new_private_key, public_line
from blackstart.providers.local import LocalPlatform
from blackstart.providers.machine_image import MachineImage
from blackstart.providers.network import Bridge
from blackstart.providers.nspawn import Nspawn


def platform(tmp_path: Path, **changes: object) -> LocalPlatform:
    settings = {
        "name": "tplan",
        "subnet": "10.79.200.0/24",
        "state_dir": tmp_path / "state",
        "cache_dir": tmp_path / "cache",
        "machines_dir": tmp_path / "machines",
    }
    return LocalPlatform(**{**settings, **changes})  # type: ignore[arg-type]


def test_machines_have_the_platforms_name_and_fixed_addresses(tmp_path: Path) -> None:
    planned = platform(tmp_path, nodes=2).machines()
    assert planned == (
        Machine("tplan-stage0", "stage0", "10.79.200.2"),
        Machine("tplan-node1", "runtime", "10.79.200.11"),
        Machine("tplan-node2", "runtime", "10.79.200.12"),
    )


def test_a_local_platform_is_a_provider(tmp_path: Path) -> None:
    provider: Provider = platform(tmp_path)
    assert len(provider.machines()) == 4


def test_a_platform_without_stage0_plans_nodes_only(tmp_path: Path) -> None:
    assert [machine.group for machine in platform(tmp_path, with_stage0=False).machines()] == ["runtime"] * 3


@pytest.mark.parametrize("name", ["-rf", "a;b", "Caps", "../up", "", "thirteenchars"])
def test_a_platform_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(MachineError, match="platform name"):
        platform(tmp_path, name=name)


@pytest.mark.parametrize("subnet", ["10.79.0.0/16", "8.8.8.0/24", "10.79.0.1/24", "a", "10.79.0.0/24; reboot"])
def test_a_subnet_that_is_no_private_slash_24_is_refused(tmp_path: Path, subnet: str) -> None:
    with pytest.raises(MachineError, match="is refused") as caught:
        platform(tmp_path, subnet=subnet)
    assert "10.77.0.0/24" in str(caught.value)


@pytest.mark.parametrize("nodes", [0, 10])
def test_the_number_of_nodes_has_limits(tmp_path: Path, nodes: int) -> None:
    with pytest.raises(MachineError, match="1 to 9"):
        platform(tmp_path, nodes=nodes)


def test_the_longest_platform_name_fits_an_interface_name() -> None:
    assert len(Bridge("a" * 12, ipaddress.IPv4Network("10.79.200.0/24")).name) <= 15


def test_a_taken_subnet_names_the_interface_and_its_platform(monkeypatch: pytest.MonkeyPatch) -> None:
    taken = [(ipaddress.IPv4Network("10.79.200.0/24"), "bs-other")]
    monkeypatch.setattr(network, "used_networks", lambda: taken)
    with pytest.raises(MachineError, match=r"bs-other uses 10\.79\.200\.0/24") as caught:
        Bridge("tplan", ipaddress.IPv4Network("10.79.200.0/24")).check_free()
    assert "the platform other" in caught.value.why


def test_the_bridge_of_another_subnet_is_not_taken_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "used_networks", list)
    monkeypatch.setattr(network, "interface_addresses", lambda: [(ipaddress.IPv4Interface("10.79.7.1/24"), "bs-tplan")])
    with pytest.raises(MachineError, match=r"has the address 10\.79\.7\.1/24"):
        Bridge("tplan", ipaddress.IPv4Network("10.79.200.0/24")).check_free()


def test_an_ordinary_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    with pytest.raises(HostError, match="need root"):
        platform(tmp_path).check_host()


def test_missing_programs_are_named_with_the_packages_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program: None if program == "nft" else program)
    with pytest.raises(HostError, match="lacks nft") as caught:
        platform(tmp_path).check_host()
    assert "nftables" in caught.value.fix


def test_a_full_disk_is_refused_before_anything_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    monkeypatch.setattr("shutil.which", lambda program: program)
    monkeypatch.setattr(local_module, "FREE_GIGABYTES", 10**9)
    with pytest.raises(HostError, match="GB are needed"):
        platform(tmp_path).check_host()


def test_a_cgroup_v1_host_boots_systemd_with_its_old_hierarchy() -> None:
    machine = Nspawn("tplan-node1", Path("/machines/root"), "10.79.200.11")
    modern = machine.command("bs-tplan", Path("/cache/shared"), legacy_cgroups=False)
    legacy = machine.command("bs-tplan", Path("/cache/shared"), legacy_cgroups=True)
    assert legacy == [*modern, "SYSTEMD_CGROUP_ENABLE_LEGACY_FORCE=1", "systemd.unified_cgroup_hierarchy=0"]
    assert "--bind-ro=/cache/shared:/var/cache/blackstart/host" in modern


def test_a_machine_is_a_unit_of_its_own_where_systemd_runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    machine = Nspawn("tplan-node1", Path("/machines/root"), "10.79.200.11")
    monkeypatch.setattr(nspawn, "SYSTEMD", tmp_path)
    vector = machine.detached(["systemd-nspawn"], [])
    assert vector[0] == "systemd-run"
    assert vector[-6:-4] == ["sh", "-c"]
    assert 'while "$$@"; test $$? -eq 133' in vector[-4]
    assert vector[-3:] == ["tplan-node1", "--", "systemd-nspawn"]
    monkeypatch.setattr(nspawn, "SYSTEMD", tmp_path / "absent")
    alone = machine.detached(["systemd-nspawn"], [tmp_path])
    assert alone[:2] == ["setsid", "--fork"]
    assert alone[-3:] == [str(tmp_path), "--", "systemd-nspawn"]


def test_a_machine_that_was_never_made_cannot_boot(tmp_path: Path) -> None:
    provider = platform(tmp_path)
    with pytest.raises(MachineError, match="was never made"):
        provider.boot(provider.machines()[0])


def test_an_unknown_machine_is_named(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match="plans no machine tplan-node7"):
        platform(tmp_path).machine("tplan-node7")


def test_another_recipe_is_another_image(tmp_path: Path) -> None:
    first = MachineImage(tmp_path, ("deb http://one.invalid/debian trixie main",))
    second = MachineImage(tmp_path, ("deb http://two.invalid/debian trixie main",))
    assert first.path != second.path
    assert first.path == MachineImage(tmp_path, first.sources).path


def test_the_machines_image_has_no_engine(tmp_path: Path) -> None:
    assert "docker" not in " ".join(MachineImage(tmp_path, ()).recipe("t.tar"))


def test_the_platforms_key_is_private_and_stays(tmp_path: Path) -> None:
    ssh = SshFolder(tmp_path / "ssh")
    line = ssh.ensure_key()
    assert ssh.ensure_key() == line
    assert ssh.key.stat().st_mode & 0o777 == 0o600
    assert ssh.folder.stat().st_mode & 0o777 == 0o700


def test_known_hosts_hold_one_key_per_address(tmp_path: Path) -> None:
    ssh = SshFolder(tmp_path)
    keys = [public_line(new_private_key()) for _ in range(3)]
    ssh.know("10.79.200.1", keys[0])
    ssh.know("10.79.200.11", keys[1])
    ssh.know("10.79.200.1", keys[2])
    assert ssh.known_hosts.read_text() == f"10.79.200.11 {keys[1]}\n10.79.200.1 {keys[2]}\n"
    ssh.forget("10.79.200.11")
    assert ssh.known_hosts.read_text() == f"10.79.200.1 {keys[2]}\n"


def test_kept_packages_reach_the_next_machine(tmp_path: Path) -> None:
    first, second, archive = tmp_path / "first", tmp_path / "second", tmp_path / "archive"
    for root in (first, second):
        (root / disk.ARCHIVES).mkdir(parents=True)
    (first / disk.ARCHIVES / "tini_1_amd64.deb").write_bytes(b"package")
    assert disk.take_packages(first, archive) == 1
    assert disk.take_packages(first, archive) == 0
    disk.lay_in_packages(second, archive)
    assert (second / disk.ARCHIVES / "tini_1_amd64.deb").read_bytes() == b"package"


def test_the_given_mirror_is_the_only_source() -> None:
    assert debian_sources("http://mirror.invalid/debian") == (
        "deb http://mirror.invalid/debian trixie main",
        "deb http://mirror.invalid/debian trixie-updates main",
    )


def test_the_hosts_own_mirrors_are_taken_in_both_formats(tmp_path: Path) -> None:
    (tmp_path / "debian.sources").write_text(
        "Types: deb\n# a comment\nURIs: http://near.invalid/debian/\nSuites: bookworm bookworm-updates\nComponents: main\n\n"
        "Types: deb\nURIs: http://off.invalid/debian\nSuites: bookworm\nEnabled: no\n"
    )
    (tmp_path / "security.list").write_text(
        "deb [signed-by=/k.gpg] http://safe.invalid/security bookworm-security main # here\n"
    )
    (tmp_path / "other.list").write_text("deb http://vendor.invalid/apt nodistro main\n")
    assert debian_sources(places=(tmp_path,)) == (
        "deb http://near.invalid/debian trixie main",
        "deb http://near.invalid/debian trixie-updates main",
        "deb http://safe.invalid/security trixie-security main",
    )
