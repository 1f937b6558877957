"""The inventory is refused with the key's path, the host and what to do."""

from pathlib import Path

import pytest

from blackstart.errors import InventoryError
from blackstart.inventory import load_inventory
from blackstart.sources import checkout_root

GOOD = {"platform": "prod", "domain": "platform.example", "address": "192.0.2.11"}


def write(folder: Path, stage0: list, runtime: list) -> Path:
    path = folder / "hosts.py"
    path.write_text(f"stage0 = {stage0!r}\nruntime = {runtime!r}\n")
    return path


def hosts(folder: Path, **change: object) -> Path:
    data = {**GOOD, **change}
    return write(
        folder, [("s0", {**GOOD, "address": "192.0.2.10"})], [("n1", {k: v for k, v in data.items() if v is not None})]
    )


def test_the_example_for_production_is_valid():
    inventory = load_inventory(checkout_root() / "inventories" / "prod.py")
    assert inventory.stage0.name == "stage0.platform.example"
    assert [node.address for node in inventory.nodes] == ["192.0.2.11", "192.0.2.12", "192.0.2.13"]


def test_the_example_for_production_names_every_datum():
    from blackstart.settings import HostSettings

    text = (checkout_root() / "inventories" / "prod.py").read_text()
    assert [name for name in HostSettings.model_fields if f'"{name}"' not in text] == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"platform": "Prod"}, "n1: data.platform: platform name 'Prod' is refused"),
        ({"platform": None}, "n1: data.platform: is missing"),
        ({"domain": "-x.example"}, "n1: data.domain: domain '-x.example' is refused"),
        ({"colour": "red"}, "n1: data.colour: unknown key (it is not a datum)"),
        ({"extra_ca_bundle": "/nowhere.pem"}, "n1: data.extra_ca_bundle: there is no such file on this host"),
        ({"address": "n1"}, "n1: data.address: Expected 4 octets in 'n1'"),
        ({"address": "fd00::1"}, "n1: data.address: Expected 4 octets in 'fd00::1'"),
        ({"ssh_port": "22x"}, "n1: data.ssh_port: Input should be a valid integer"),
        ({"ssh_port": 99999}, "n1: data.ssh_port: Input should be less than or equal to 65535"),
        ({"ssh_prot": 22}, "n1: data.ssh_prot: unknown key"),
        ({"ssh_strict_host_key_checking": "no"}, "n1: data.ssh_strict_host_key_checking: Input should be"),
        ({"build_seconds": "900"}, "n1: data.build_seconds: Input should be a valid integer"),
        ({"dyno_network": "8.8.8.0/24"}, "n1: data.dyno_network: is not a private network"),
        ({"python_index": "-x"}, "n1: data.python_index: is not an http(s) URL"),
    ],
)
def test_a_wrong_datum_is_named(tmp_path, change, message):
    with pytest.raises(InventoryError) as refused:
        load_inventory(hosts(tmp_path, **change))
    assert message.removesuffix(" (it is not a datum)") in str(refused.value)
    assert "prod.py documents every datum" in str(refused.value)


def test_the_platforms_own_data_are_the_same_on_every_host(tmp_path):
    with pytest.raises(InventoryError, match=r"n1: data.domain is 'other.example', but 'platform.example' on s0"):
        load_inventory(hosts(tmp_path, domain="other.example"))


@pytest.mark.parametrize(
    ("stage0", "runtime", "message"),
    [
        (0, 3, "group stage0 has 0 hosts"),
        (2, 3, "group stage0 has 2 hosts"),
        (1, 0, "group runtime has 0 hosts"),
        (1, 10, "group runtime has 10 hosts"),
    ],
)
def test_the_groups_have_their_sizes(tmp_path, stage0, runtime, message):
    def make(count: int, first: int) -> list:
        return [(f"h{first + n}", {**GOOD, "address": f"192.0.2.{first + n}"}) for n in range(count)]

    with pytest.raises(InventoryError, match=message):
        load_inventory(write(tmp_path, make(stage0, 10), make(runtime, 20)))


@pytest.mark.parametrize("entry", [("n1", "192.0.2.11"), ("n1",), 7, ["n1", {}]])
def test_a_host_that_is_not_understood_is_shown_with_what_to_write(tmp_path, entry):
    with pytest.raises(InventoryError) as refused:
        load_inventory(write(tmp_path, [("s0", {**GOOD, "address": "192.0.2.10"})], [entry]))
    assert f"group runtime has a host that is not understood: {entry!r}" in str(refused.value)
    assert 'To do: write "name", or ("name", {"address"' in str(refused.value)


def test_a_user_who_is_not_root_needs_sudo(tmp_path):
    with pytest.raises(InventoryError, match=r"n1: data._sudo is missing, and data.ssh_user is 'admin'"):
        load_inventory(hosts(tmp_path, ssh_user="admin"))
    assert load_inventory(hosts(tmp_path, ssh_user="admin", _sudo=True)).nodes[0].ssh["ssh_user"] == "admin"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dyno_network": "10.210.8.0/24"}, "n1: data.dyno_network 10.210.8.0/24 overlaps data.engine_address_pool"),
        ({"address": "172.30.1.9"}, "n1: its address 172.30.1.9 lies in s0's data.dyno_network 172.30.0.0/16"),
        ({"address": "10.210.5.11"}, "n1: its address 10.210.5.11 lies in s0's data.engine_address_pool 10.210.0.0/16"),
    ],
)
def test_networks_that_would_collide_are_named(tmp_path, change, message):
    with pytest.raises(InventoryError) as refused:
        load_inventory(hosts(tmp_path, **change))
    assert message in str(refused.value)
    assert "that nothing else uses" in str(refused.value)


def test_two_hosts_do_not_share_an_address(tmp_path):
    with pytest.raises(InventoryError, match=r"address 192.0.2.11 is there twice"):
        load_inventory(write(tmp_path, [("s0", GOOD)], [("n1", GOOD)]))


def test_group_data_beside_the_inventory_is_read_and_host_data_wins(tmp_path):
    (tmp_path / "group_data").mkdir()
    (tmp_path / "group_data" / "all.py").write_text(
        "platform = 'prod'\ndomain = 'platform.example'\nbuild_seconds = 60\n"
    )
    path = write(tmp_path, [("192.0.2.10", {})], [("192.0.2.11", {"build_seconds": 90})])
    inventory = load_inventory(path)
    assert [host.settings.build_seconds for host in inventory.hosts] == [60, 90]
    assert inventory.stage0.address == "192.0.2.10"


def test_an_inventory_that_is_not_there_or_not_python(tmp_path):
    with pytest.raises(InventoryError, match="there is no inventory"):
        load_inventory(tmp_path / "nothing.py")
    (tmp_path / "bad.py").write_text("stage0 = [")
    with pytest.raises(InventoryError, match=r"bad.py cannot be read"):
        load_inventory(tmp_path / "bad.py")
