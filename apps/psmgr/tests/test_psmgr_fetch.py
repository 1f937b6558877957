"""Slugs on nodes: who has which, and when it is asked again."""

from __future__ import annotations

import dataclasses
from typing import Any

from psmgr import spec
from psmgr.engine import Task
from psmgr.fetch import Fetcher

ONE, TWO = "1" * 64, "2" * 64


def seen(fetcher: Fetcher, engine: Any) -> None:
    fetcher.observe(engine.services("t"), engine.nodes(), engine)


def jobs(engine: Any) -> int:
    return sum("_fetch_" in write and write.startswith("create") for write in engine.writes)


def fetcher_of(settings: Any, engine: Any) -> Fetcher:
    fetcher = Fetcher(settings, lambda slug: f"http://store/{slug}")
    seen(fetcher, engine)
    return fetcher


def test_one_job_brings_a_slug_onto_all_nodes(settings: Any, engine: Any) -> None:
    fetcher = fetcher_of(settings, engine)
    assert fetcher.start(ONE, engine)
    assert not fetcher.start(ONE, engine)
    seen(fetcher, engine)
    assert set(fetcher.present) == {("n1", ONE), ("n2", ONE)}
    assert engine.running == {}
    assert not fetcher.start(ONE, engine)
    assert jobs(engine) == 1


def test_a_fresh_node_alone_is_asked(settings: Any, engine: Any) -> None:
    fetcher = fetcher_of(settings, engine)
    fetcher.start(ONE, engine)
    seen(fetcher, engine)
    engine.machines.append(dataclasses.replace(engine.machines[0], id="n3", name="node3"))
    seen(fetcher, engine)
    assert [node.id for node in fetcher.missing(ONE)] == ["n3"]
    fetcher.top_up([ONE], engine)
    (job,) = engine.specs[list(engine.specs)[-1]].constraints
    assert job == "node.id==n3"


def test_what_runs_was_there(settings: Any, engine: Any) -> None:
    fetcher = fetcher_of(settings, engine)
    labels = {spec.PLATFORM: "t", spec.KIND: "process", spec.SLUG: ONE}
    made = engine.create(dataclasses.replace(spec.fetch_spec(settings, slug=ONE, url="u", node_id=None), labels=labels))
    running = (Task("a", 1, "n1", "running", since=10.0),)
    engine.running[made] = dataclasses.replace(engine.running[made], tasks=running)
    seen(fetcher, engine)
    assert set(fetcher.present) == {("n1", ONE)}


def test_a_dyno_that_missed_its_slug_is_believed_once(settings: Any, engine: Any) -> None:
    fetcher = fetcher_of(settings, engine)
    fetcher.start(ONE, engine)
    seen(fetcher, engine)
    later = max(fetcher.present.values()) + 1
    labels = {spec.PLATFORM: "t", spec.KIND: "process", spec.SLUG: ONE}
    made = engine.create(dataclasses.replace(spec.fetch_spec(settings, slug=TWO, url="u", node_id=None), labels=labels))
    missed = (Task("a", 1, "n1", "failed", since=later, exit_code=44),)
    engine.running[made] = dataclasses.replace(engine.running[made], tasks=missed)
    seen(fetcher, engine)
    assert [node.id for node in fetcher.missing(ONE)] == ["n1"]
    engine.behave = lambda _, task: dataclasses.replace(task, since=later + 1)
    assert fetcher.start(ONE, engine)
    seen(fetcher, engine)
    seen(fetcher, engine)
    assert fetcher.missing(ONE) == ()


def test_a_node_that_cannot_get_a_slug_holds_up_the_others_only_twice(
    settings: Any, engine: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("psmgr.fetch.delay", lambda *_, **__: 0.0)
    engine.behave = lambda _, task: (
        task
        if task.node_id == "n1"
        else dataclasses.replace(task, phase="failed", exit_code=44, message="no space left")
    )
    fetcher = fetcher_of(settings, engine)
    for settled in (frozenset(), frozenset({ONE})):
        assert fetcher.start(ONE, engine)
        seen(fetcher, engine)
        assert fetcher.settled() == settled
    assert fetcher.obstacles == {ONE: "the slug could not be fetched on node2: no space left"}


def test_a_node_that_is_down_is_not_waited_for(settings: Any, engine: Any) -> None:
    engine.machines[1] = dataclasses.replace(engine.machines[1], state="down")
    fetcher = fetcher_of(settings, engine)
    fetcher.start(ONE, engine)
    seen(fetcher, engine)
    assert engine.running == {}
    assert fetcher.missing(ONE) == ()
