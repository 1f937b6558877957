"""What is asked of local machines is checked, kept, and not changed under a platform that exists."""

import pytest

from blackstart.errors import BlackstartError, InventoryError
from blackstart.inventory import load_inventory
from blackstart.providers.options import remember_options
from blackstart.sources import checkout_root
from blackstart.state import State


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    monkeypatch.setenv("BLACKSTART_PLATFORM", "unit")
    return State.of("unit")


@pytest.mark.parametrize("nodes", [1, 3, 9])
def test_the_inventory_has_the_machines_that_were_asked_for(state, nodes):
    remember_options(state, nodes=nodes, subnet="10.99.1.0/24")
    inventory = load_inventory(checkout_root() / "inventories" / "local.py")
    assert inventory.stage0.name == "unit-stage0"
    assert [node.address for node in inventory.nodes] == [f"10.99.1.{10 + number}" for number in range(1, nodes + 1)]
    assert inventory.domain == "unit.internal"


@pytest.mark.parametrize(
    ("nodes", "subnet"),
    [(0, None), (10, None), (None, "8.8.8.0/24"), (None, "10.0.0.0/8"), (None, "-rf"), (None, "10.1.1.1/24")],
)
def test_what_cannot_be_is_refused_and_not_kept(state, nodes, subnet):
    with pytest.raises(BlackstartError):
        remember_options(state, nodes=nodes, subnet=subnet)
    assert state.read_json("options.json") == {}


def test_a_platform_that_exists_keeps_its_options(state):
    remember_options(state, nodes=3, subnet=None)
    remember_options(state, nodes=None, subnet=None)
    remember_options(state, nodes=3, subnet=None)
    with pytest.raises(InventoryError, match="has nodes 3, not 5"):
        remember_options(state, nodes=5, subnet=None)
