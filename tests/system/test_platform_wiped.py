"""A rebooted node; then everything is removed."""

from __future__ import annotations

import pytest

from blackstart.client import wait_for
from blackstart.load import Load
from blackstart.providers.options import local_platform
from tests.system.platform_under_test import NAME

pytestmark = [pytest.mark.system, pytest.mark.timeout(2400)]  # the first test waits for `up`


# --- failures --------------------------------------------------------------------------------------------------------


def test_a_node_rebooted_brings_its_dynos_back_and_the_others_serve_on(it):
    provider = local_platform(it.platform.state)
    it.wait_dynos("steady", 3)
    rebooted = provider.machine(it.platform.inventory.nodes[2].name)
    with Load(it.platform, "steady", addresses=it.platform.node_addresses[:2]) as load:
        provider.reboot(rebooted)
        wait_for(lambda: it.serves("steady", node=2), "the rebooted router", seconds=180)
    assert load.failures == {}
    assert load.answers["200"] > 0
    it.wait_dynos("steady", 3)
    wait_for(
        lambda: True if it.bootstrap("status", "--platform", NAME).returncode == 0 else None, "all up", seconds=240
    )


def test_down_removes_every_trace(it):
    provider = local_platform(it.platform.state)
    done = it.bootstrap("down", "--platform", NAME, "--json")
    assert done.returncode == 0, done.stderr
    assert provider.leftovers() == ()
    assert not it.platform.state.folder.exists()
