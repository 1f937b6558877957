"""A hold stops a component without touching anything else, and says in its label how it is released."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from blackstart.errors import HostError
from blackstart.hold import LABEL, held_spec, released_spec

REPLICATED: dict[str, Any] = {
    "Name": "p_api_web_v3",
    "Labels": {"blackstart.app": "api"},
    "TaskTemplate": {"Placement": {"Constraints": ["node.role==manager"]}},
    "Mode": {"Replicated": {"Replicas": 2}},
}
GLOBAL: dict[str, Any] = {
    "Name": "p_router_web_v3",
    "Labels": {"blackstart.app": "router"},
    "TaskTemplate": {"Placement": {"Constraints": ["node.labels.blackstart.cordoned!=true"]}},
    "Mode": {"Global": {}},
}


def test_a_replicated_service_is_held_without_a_change_of_its_dynos() -> None:
    held = held_spec(REPLICATED, None)
    assert held["Mode"] == {"Replicated": {"Replicas": 0}}
    assert held["Labels"] == {"blackstart.app": "api", LABEL: "replicas=2"}
    assert held["TaskTemplate"] == REPLICATED["TaskTemplate"]


@pytest.mark.parametrize(("node", "constraint"), [("abc", "node.id!=abc"), (None, "node.id==held")])
def test_a_service_that_runs_everywhere_is_held_on_one_node_or_on_all(node: str | None, constraint: str) -> None:
    held = held_spec(GLOBAL, node)
    assert held["TaskTemplate"]["Placement"]["Constraints"] == ["node.labels.blackstart.cordoned!=true", constraint]
    assert held["Labels"][LABEL] == f"constraint={constraint}"


@pytest.mark.parametrize("spec", [REPLICATED, GLOBAL])
@pytest.mark.parametrize("node", ["abc", None])
def test_a_release_gives_back_what_was(spec: dict[str, Any], node: str | None) -> None:
    before = copy.deepcopy(spec)
    assert released_spec(held_spec(spec, node)) == before == spec


def test_a_label_of_somebody_else_is_not_guessed_at() -> None:
    strange = {**REPLICATED, "Labels": {LABEL: "for lunch"}}
    with pytest.raises(HostError, match="says nothing about how to release it"):
        released_spec(strange)
