"""From (applied, wanted) to commands: exact vectors, and that a plan carried out always leads to what is wanted."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st
from router.plan import (
    CHECK,
    NO_WEB,
    Actual,
    Live,
    Target,
    Wanted,
    assign,
    endpoint,
    plan,
    pool_size,
    slot_name,
    wanted,
)
from router.table import App, Server, Table

MAP, CA = "/run/hosts.map", "/trust/ca.pem"


def commands(want: Wanted, have: Actual) -> list[str]:
    todo = plan(want, have, map_path=MAP, ca=CA)
    return [*todo.changes, *todo.removals]


def test_nothing_to_do_is_no_command() -> None:
    want = Wanted({"slot-00000": {"a": Target("10.0.0.1", 3000)}}, {"shop.example": "slot-00000"})
    have = Actual({"slot-00000": {"a": Live("10.0.0.1", 3000, sessions=9)}}, {"shop.example": "slot-00000"})
    assert commands(want, have) == []


def test_a_deploy_adds_first_then_routes_then_drains_then_removes() -> None:
    want = Wanted(
        {"slot-00000": {"new": Target("10.0.0.2", 3001), "old": Target("10.0.0.1", 3000, drain=True)}},
        {"shop.example": "slot-00000", "www.shop.example": "slot-00000"},
    )
    have = Actual(
        {"slot-00000": {"old": Live("10.0.0.1", 3000), "older": Live("10.0.0.3", 3000, drain=True)}},
        {"shop.example": NO_WEB, "gone.example": "slot-00000"},
    )
    assert commands(want, have) == [
        f"add server slot-00000/new 10.0.0.2:3001 {CHECK}",
        "enable health slot-00000/new",
        "set server slot-00000/new state ready",
        "set map /run/hosts.map shop.example slot-00000",
        "add map /run/hosts.map www.shop.example slot-00000",
        "set server slot-00000/old state drain",
        "del map /run/hosts.map gone.example",
        "set server slot-00000/older state maint",
        "del server slot-00000/older",
    ]


def test_a_dyno_that_speaks_tls_is_verified_by_the_apps_name() -> None:
    want = Wanted({"slot-00000": {"a:tls": Target("10.0.0.1", 3000, peer="api")}})
    assert commands(want, Actual())[0] == (
        f"add server slot-00000/a:tls 10.0.0.1:3000 {CHECK} check-ssl ssl verify required ca-file /trust/ca.pem"
        " sni str(api) verifyhost api check-sni api"
    )


def test_a_server_with_sessions_is_not_deleted_yet() -> None:
    todo = plan(
        Wanted(), Actual({"slot-00000": {"a": Live("10.0.0.1", 1, maint=True, sessions=1)}}), map_path=MAP, ca=CA
    )
    assert (todo.changes, todo.removals, todo.waiting, todo.settled) == ((), (), True, True)


def test_a_new_draining_server_never_gets_a_request() -> None:
    assert commands(Wanted({"slot-00000": {"a": Target("10.0.0.1", 3000, drain=True)}}), Actual())[-1] == (
        "set server slot-00000/a state drain"
    )


def test_a_moved_server_is_readdressed() -> None:
    want, have = Wanted({"s": {"a": Target("10.0.0.2", 2)}}), Actual({"s": {"a": Live("10.0.0.1", 1, maint=True)}})
    assert commands(want, have) == ["set server s/a addr 10.0.0.2 port 2", "set server s/a state ready"]


def test_hosts_without_a_routable_dyno_say_so() -> None:
    apps = {
        "shop": App(servers=(Server("a", "10.0.0.1", 1, "drain"),)),
        "blog": App(),
        "safe": App(True, (Server("b", "::1", 1),)),
    }
    table = Table(
        1, {"shop.example": "shop", "blog.example": "blog", "safe.example": "safe", "x.example": "none"}, apps
    )
    slots = {"shop": "slot-00000", "blog": "slot-00001", "safe": "slot-00002"}
    without = wanted(table, slots, tls=False)
    assert without.hosts == dict.fromkeys(table.hosts, NO_WEB)
    assert without.servers == {"slot-00000": {"a": Target("10.0.0.1", 1, drain=True)}}
    with_tls = wanted(table, slots, tls=True)
    assert with_tls.hosts["safe.example"] == "slot-00002"
    assert with_tls.servers["slot-00002"] == {"b:tls": Target("::1", 1, peer="safe")}


def test_an_apps_slot_is_kept_until_it_is_empty() -> None:
    held = {"shop": slot_name(0), "gone": slot_name(1)}
    assert assign(held, {"shop", "new"}, {slot_name(0), slot_name(1)}, 3) == held | {"new": slot_name(2)}
    assert assign(held, {"shop", "new"}, {slot_name(0)}, 3) == {"shop": slot_name(0), "new": slot_name(1)}
    assert assign(held, {"shop", "new"}, {slot_name(1)}, 2) is None


@pytest.mark.parametrize(("apps", "size"), [(0, 64), (32, 64), (33, 128), (1000, 2048)])
def test_the_pool_has_room_for_as_many_again(apps: int, size: int) -> None:
    assert pool_size(apps) == size


def test_ipv6_is_written_as_haproxy_reads_it() -> None:
    assert endpoint("fd00::1", 80) == "ipv6@[fd00::1]:80"


SLOTS, NAMES, HOSTS = (
    st.sampled_from(["slot-00000", "slot-00001"]),
    st.sampled_from(["a", "b", "c:tls"]),
    st.sampled_from(["x", "y"]),
)
PORTS = st.integers(1, 3)
wanteds = st.builds(
    Wanted,
    servers=st.dictionaries(
        SLOTS, st.dictionaries(NAMES, st.builds(Target, st.just("10.0.0.1"), PORTS, st.booleans()))
    ),
    hosts=st.dictionaries(HOSTS, SLOTS),
)
actuals = st.builds(
    Actual,
    servers=st.dictionaries(
        SLOTS,
        st.dictionaries(
            NAMES,
            st.builds(Live, st.just("10.0.0.1"), PORTS, st.booleans(), st.booleans(), st.just("UP"), st.integers(0, 1)),
        ),
    ),
    hosts=st.dictionaries(HOSTS, SLOTS),
)


@given(wanteds, actuals)
def test_carrying_out_a_plan_reaches_what_is_wanted(want: Wanted, have: Actual) -> None:
    after = carried_out(commands(want, have), have)
    todo = plan(want, after, map_path=MAP, ca=CA)
    assert todo.settled
    assert todo.removals == ()
    assert after.hosts == want.hosts
    for slot, servers in after.servers.items():
        for name, live in servers.items():
            target = want.servers.get(slot, {}).get(name)
            assert live.maint if target is None else (live.port, live.drain) == (target.port, target.drain)


def carried_out(lines: list[str], have: Actual) -> Actual:
    """Do to `have` what HAProxy does; fail on what it refuses."""
    servers = {slot: dict(group) for slot, group in have.servers.items()}
    hosts = dict(have.hosts)
    for line in lines:
        words = line.split()
        slot, _, name = words[2].partition("/")
        group = servers.setdefault(slot, {}) if words[1] in ("server", "health") else {}
        match words[:2]:
            case ["add", "server"]:
                assert name not in group
                port = re.search(r":(\d+)$", words[3])
                assert port is not None
                group[name] = Live("10.0.0.1", int(port[1]), maint=True)
            case ["set", "server"] if words[3] == "addr":
                group[name] = Live(
                    words[4], int(words[6]), group[name].maint, group[name].drain, "UP", group[name].sessions
                )
            case ["set", "server"]:
                old = group[name]
                group[name] = Live(old.address, old.port, words[4] == "maint", words[4] == "drain", "UP", old.sessions)
            case ["del", "server"]:
                assert group[name].maint
                assert group.pop(name).sessions == 0
            case ["add", "map"]:
                assert words[3] not in hosts
                hosts[words[3]] = words[4]
            case ["set", "map"]:
                assert words[3] in hosts
                hosts[words[3]] = words[4]
            case ["del", "map"]:
                del hosts[words[3]]
            case ["enable", "health"]:
                assert name in group
            case _:
                pytest.fail(f"no such command: {line}")
    return Actual(servers, hosts)
