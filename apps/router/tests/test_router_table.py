"""The routing table: what is taken, what is refused, and that a round trip loses nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router.table import EMPTY, App, Server, Table, TableOutdated, TableRefused, dump, parse, successor

SERVER = {"id": "abc", "address": "10.77.0.11", "port": 32768, "state": "ready"}


def text(**changes: Any) -> str:
    return json.dumps(
        {"version": 3, "hosts": {"shop.example": "shop"}, "apps": {"shop": {"servers": [SERVER]}}} | changes
    )


def with_server(**changes: Any) -> str:
    return text(apps={"shop": {"tls": False, "servers": [SERVER | changes]}})


def test_the_contracts_table_is_read() -> None:
    assert parse(text()) == Table(
        3, {"shop.example": "shop"}, {"shop": App(False, (Server("abc", "10.77.0.11", 32768, "ready"),))}
    )


def test_unknown_keys_are_ignored() -> None:
    assert parse(text(later=1)) == parse(text())


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("[]", "table: not an object"),
        (text(version="3"), "version: not a whole number"),
        (text(version=True), "version: not a whole number"),
        (text(version=0), "version: not a whole number"),
        (text(hosts=[]), "hosts: not an object"),
        (text(hosts={"a b": "shop"}), "hosts: 'a b' is not a host name"),
        (text(hosts={"Shop.example": "shop"}), "hosts: 'Shop.example' is not a host name"),
        (text(hosts={"x.example\n": "shop"}), "is not a host name"),
        (text(hosts={"x.example": "-rf"}), "hosts.x.example: '-rf' is not an app's name"),
        (text(apps={"a;b": {}}), "apps: 'a;b' is not an app's name"),
        (text(apps={"shop": []}), "apps.shop: not an object"),
        (text(apps={"shop": {"tls": 1}}), "apps.shop.tls: not true or false"),
        (text(apps={"shop": {"servers": {}}}), "apps.shop.servers: not a list"),
        (text(apps={"shop": {"servers": [SERVER, SERVER]}}), "apps.shop.servers: an id occurs twice"),
        (with_server(id="a b"), "apps.shop.servers[0].id"),
        (with_server(id="a:tls"), "apps.shop.servers[0].id"),
        (with_server(address="shop.example"), "apps.shop.servers[0].address: not an IP address"),
        (with_server(address=7), "apps.shop.servers[0].address: not an IP address"),
        (with_server(port=0), "apps.shop.servers[0].port"),
        (with_server(port=65536), "apps.shop.servers[0].port"),
        (with_server(state="up"), "apps.shop.servers[0].state"),
    ],
)
def test_a_wrong_table_is_refused_with_the_keys_path(bad: str, message: str) -> None:
    with pytest.raises(TableRefused) as caught:
        parse(bad)
    assert message in str(caught.value)


def test_an_older_table_does_not_follow() -> None:
    with pytest.raises(TableOutdated, match="version: 3 is older than 4"):
        successor(Table(4), text())
    assert successor(Table(3), text()).version == successor(EMPTY, text()).version == 3


tables = st.builds(
    Table,
    version=st.integers(1, 2**63 - 1),
    hosts=st.dictionaries(st.sampled_from(["a.example", "b.example", "c"]), st.sampled_from(["shop", "blog"])),
    apps=st.dictionaries(
        st.sampled_from(["shop", "blog"]),
        st.builds(
            App,
            tls=st.booleans(),
            servers=st.lists(
                st.builds(
                    Server,
                    id=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,20}", fullmatch=True),
                    address=st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6)).map(str),
                    port=st.integers(1, 65535),
                    state=st.sampled_from(["ready", "drain"]),
                ),
                unique_by=lambda server: server.id,
                max_size=4,
            ).map(tuple),
        ),
    ),
)


@given(tables)
def test_a_table_survives_the_disk(table: Table) -> None:
    assert parse(dump(table)) == table
