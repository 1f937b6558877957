"""Declared equals measured: each way in which they differ is named, and one doctored line of component.toml is enough."""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from blackstart.model.component import Need
from blackstart.proofs.blast_radius.comparison import declared_needs, down_with, problems
from blackstart.proofs.blast_radius.matrix import CAPABILITIES, ENGINE, RESTART, TRAFFIC, Measured, Row, rows_from
from blackstart.proofs.blast_radius.rows import CONTROL_PLANE
from blackstart.sources import checkout_root

NAMES = [capability.name for capability in CAPABILITIES]
WORKS, STOPS = Measured(True, 1.0, "seen"), Measured(False, 9.0, "gave up")
# What the platform does, as it was measured on three nodes; see docs/decisions/0008.
BUILDS = ("build", "live output", "deploy")
ASKED = ("API reads", *BUILDS, "config change", "scale", "one-off")
STOPPED = {
    "router": (TRAFFIC, "routes", "upload", *ASKED),
    "compile": BUILDS,
    "objects": ("upload", *BUILDS, "WAL archive"),
    "bus": ("routes", "live output", "deploy", "config change"),
    "api": ASKED,
    "postgres": ("routes", *ASKED, "commit", "WAL archive"),
    "psmgr": ("routes", *BUILDS, "config change", "scale", "one-off"),
}


def row(stopped: Iterable[str], stops: Iterable[str], on: str = "") -> Row:
    dead = set(stops)
    return Row(tuple(stopped), {name: STOPS if name in dead else WORKS for name in NAMES}, on)


def matrix(**changed: tuple[str, ...]) -> list[Row]:
    single = [row((name,), stops) for name, stops in {**STOPPED, **changed}.items()]
    everything = row(CONTROL_PLANE, set(NAMES) - {TRAFFIC, RESTART})
    return [row((), ()), row(("router",), (), "node3"), *single, everything]


@pytest.fixture
def declared() -> dict[str, tuple[Need, ...]]:
    return declared_needs(checkout_root())


def without(declared: dict[str, tuple[Need, ...]], name: str, on: str) -> dict[str, tuple[Need, ...]]:
    return {**declared, name: tuple(need for need in declared[name] if need.on != on)}


def test_what_this_checkout_declares_is_what_was_measured(declared: dict[str, tuple[Need, ...]]) -> None:
    assert problems(declared, matrix()) == []


def test_the_evidence_of_a_run_can_be_compared_again() -> None:
    assert rows_from({"rows": [one.as_json() for one in matrix()]}) == matrix()


@pytest.mark.parametrize(
    ("name", "on", "shows"),
    [
        ("psmgr", "postgres", "routes"),
        ("psmgr", "bus", "routes"),
        ("postgres", "objects", "WAL archive"),
        ("api", "bus", "live output"),
        ("api", "postgres", "API reads"),
        ("compile", "objects", "build"),
    ],
)
def test_a_dependency_that_shows_must_be_declared(
    declared: dict[str, tuple[Need, ...]], name: str, on: str, shows: str
) -> None:
    found = problems(without(declared, name, on), matrix())
    assert f"{name} does not declare that it needs {on} at run, but {shows} stops with it: gave up" in found
    assert all(problem.startswith(f"{name} does not declare that it needs {on}") for problem in found)


def test_a_dependency_that_nobody_thought_of_is_found(declared: dict[str, tuple[Need, ...]]) -> None:
    found = problems(declared, matrix(bus=(*STOPPED["bus"], "commit")))
    assert found == ["postgres does not declare that it needs bus at run, but commit stops with it: gave up"]


def test_a_hard_need_must_show(declared: dict[str, tuple[Need, ...]]) -> None:
    needs = (*declared["postgres"], Need(on="psmgr", kind="hard", at=("run",), why="a guess"))
    (found,) = problems({**declared, "postgres": needs}, matrix())
    assert found.startswith("postgres declares a hard need of psmgr at run, but commit, WAL archive works without it")


def test_a_soft_need_may_show_or_not(declared: dict[str, tuple[Need, ...]]) -> None:
    works = tuple(name for name in STOPPED["objects"] if name != "WAL archive")
    assert problems(declared, matrix(objects=works)) == []


def test_a_need_at_boot_explains_nothing_at_run() -> None:
    needs = {"postgres": (Need(on="bus", kind="hard", at=("boot",), why="a guess"),), "bus": ()}
    rows = [row(("bus",), ("commit",))]
    assert problems(needs, rows) == [
        "postgres does not declare that it needs bus at run, but commit stops with it: gave up"
    ]


def test_what_hard_needs_a_stopped_component_is_down_with_it() -> None:
    def need(on: str, kind: str) -> Need:
        return Need.model_validate({"on": on, "kind": kind, "at": ["run"], "why": "for the test"})

    needs = {"a": (need("b", "hard"),), "b": (need("c", "hard"),), "c": (), "d": (need("a", "soft"),)}
    assert down_with(needs, "c") == {"a", "b", "c"}


@pytest.mark.parametrize("name", [TRAFFIC, RESTART])
def test_traffic_and_restarts_survive_every_row(declared: dict[str, tuple[Need, ...]], name: str) -> None:
    rows = [row(CONTROL_PLANE, set(NAMES) - {TRAFFIC, RESTART} | {name})]
    (found,) = problems(declared, rows)
    assert found.startswith(f"{name} must survive, but stops with api, psmgr, postgres, bus, objects")


def test_one_router_takes_no_request_with_it(declared: dict[str, tuple[Need, ...]]) -> None:
    (found,) = problems(declared, [row(("router",), (TRAFFIC,), "node3")])
    assert found == "traffic must survive, but stops with router on node3: gave up"


def test_a_platform_that_is_broken_before_proves_nothing(declared: dict[str, tuple[Need, ...]]) -> None:
    assert problems(declared, [row((), ("deploy",))]) == ["deploy does not work though nothing is stopped: gave up"]


def test_every_capability_has_an_owner(declared: dict[str, tuple[Need, ...]]) -> None:
    owners = {capability.owner for capability in CAPABILITIES} - {ENGINE}
    assert owners <= set(declared)
    assert {part for capability in CAPABILITIES for part in capability.through} <= set(declared)
