"""A host that cannot be worked on is named, with what was tried and what to check."""

import socket

import pytest

from blackstart.errors import HostError
from blackstart.inventory import Host
from blackstart.remote import connected
from blackstart.settings import host_settings


def host(**ssh: object) -> Host:
    data = {"platform": "unit", "domain": "unit.internal", "address": "127.0.0.1"}
    return Host(
        name="node1", group="runtime", settings=host_settings("node1", data), ssh={"ssh_hostname": "127.0.0.1", **ssh}
    )


def test_a_closed_port_is_an_unreachable_host():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: nobody else gets this port meanwhile
        port = taken.getsockname()[1]
        with pytest.raises(HostError) as refused, connected(host(ssh_port=port)):
            pass
    assert f"node1 cannot be reached over SSH as root@127.0.0.1:{port}" in str(refused.value)
    assert "check that the machine is on, its address, port, user and key in the inventory" in str(refused.value)


def test_a_server_that_says_nothing_is_given_up_in_time():
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        port = silent.getsockname()[1]
        with pytest.raises(HostError, match="cannot be reached"), connected(host(ssh_port=port), seconds=0.5):
            pass
