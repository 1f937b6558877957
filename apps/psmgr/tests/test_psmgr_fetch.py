"""Slugs on nodes: who has which, and when it is asked again."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from psmgr import spec
from psmgr.engine import Task
from psmgr.fetch import Fetcher, Made

ONE, TWO = "1" * 64, "2" * 64


def seen(fetcher: Fetcher, engine: Any, made: dict[str, Made] | None = None) -> None:
    fetcher.observe(engine.services("tst"), engine.nodes(), made or {}, engine)


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
    labels = {spec.PLATFORM: "tst", spec.KIND: "process", spec.SLUG: ONE}
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
    labels = {spec.PLATFORM: "tst", spec.KIND: "process", spec.SLUG: ONE}
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


def failing(exit_code: int) -> Any:
    return lambda _, task: dataclasses.replace(task, phase="failed", exit_code=exit_code, message="non-zero exit")


def test_a_full_disk_is_named_and_the_node_holds_up_the_others_once(settings: Any, engine: Any) -> None:
    fetcher = fetcher_of(settings, engine)
    engine.behave = lambda _, task: task if task.node_id == "n1" else failing(44)(_, task)
    assert fetcher.start(ONE, engine)
    (job,) = engine.running.values()
    engine.logs[job.id] = b"dyno: slug 1: curl ended with 23, the store answers 200; trying again\n"
    engine.running[job.id] = dataclasses.replace(job, created=job.created - 101)  # it tried for long, by itself
    seen(fetcher, engine)
    assert fetcher.settled() == {ONE}
    assert fetcher.obstacles[ONE] == (
        "the slug could not be fetched on node2: the disk of the slug cache is full: "
        "free space below /var/lib/blackstart/slugs on the node"
    )


def test_the_dyno_s_own_last_words_are_the_reason(settings: Any, engine: Any) -> None:
    fetcher = fetcher_of(settings, engine)
    engine.behave = failing(44)
    assert fetcher.start(ONE, engine)
    (job,) = engine.running.values()
    engine.logs[job.id] = b"dyno: slug 1: trying again\ndyno: slug 1: the store answers 404\n"
    seen(fetcher, engine)
    assert fetcher.obstacles[ONE].endswith("node1, node2: slug 1: the store answers 404")


def test_a_damaged_slug_is_tried_anew(settings: Any, engine: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("psmgr.fetch.delay", lambda *_, **__: 0.0)
    fetcher = fetcher_of(settings, engine)
    engine.behave = failing(45)
    assert fetcher.start(ONE, engine)
    seen(fetcher, engine)
    assert set(fetcher.damaged) == {ONE}
    assert "other bytes than its sha256 promises" in fetcher.obstacles[ONE]
    engine.behave = lambda _, task: task
    assert fetcher.start(ONE, engine)
    seen(fetcher, engine)
    assert fetcher.damaged == {}
    assert fetcher.missing(ONE) == ()


def early(settings: Any, engine: Any) -> str:
    made: str = engine.create(spec.early_fetch_spec(settings, build_id="b1", url="http://store/b1", seconds=900))
    return made


def test_the_job_of_a_build_counts_once_its_slug_is_known(settings: Any, engine: Any) -> None:
    fetcher = fetcher_of(settings, engine)
    early(settings, engine)
    seen(fetcher, engine)
    assert (fetcher.present, len(engine.running)) == ({}, 1)
    seen(fetcher, engine, {"b1": Made(ONE, time.time())})
    assert set(fetcher.present) == {("n1", ONE), ("n2", ONE)}
    assert engine.running == {}
    assert not fetcher.start(ONE, engine)


def test_a_slug_that_is_still_coming_early_is_not_fetched_a_second_time(settings: Any, engine: Any) -> None:
    engine.behave = lambda _, task: dataclasses.replace(task, phase="running")
    fetcher = fetcher_of(settings, engine)
    early(settings, engine)
    made = {"b1": Made(ONE, time.time())}
    seen(fetcher, engine, made)
    assert fetcher.busy
    assert not fetcher.start(ONE, engine)


def test_a_node_that_gets_no_slug_early_holds_up_the_others_once(settings: Any, engine: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("psmgr.fetch.delay", lambda *_, **__: 0.0)
    engine.behave = lambda _, task: dataclasses.replace(task, phase="complete" if task.node_id == "n1" else "running")
    fetcher = fetcher_of(settings, engine)
    job = early(settings, engine)
    engine.logs[job] = b"dyno: slug that is being built: curl ended with 7, the store answers 000; trying again\n"
    seen(fetcher, engine, {"b1": Made(ONE, time.time() - settings.fetch_timeout_s + 1)})
    assert job in engine.running
    seen(fetcher, engine, {"b1": Made(ONE, time.time() - settings.fetch_timeout_s)})
    assert engine.running == {}
    assert fetcher.settled() == {ONE}
    assert fetcher.obstacles[ONE].startswith("the slug could not be fetched on node2: slug that is being built: curl")
    assert fetcher.start(ONE, engine)


def test_a_node_that_came_during_the_build_is_not_waited_for(settings: Any, engine: Any) -> None:
    """The engine gives a job's tasks to the nodes that were there when it was made."""
    fetcher = fetcher_of(settings, engine)
    early(settings, engine)
    engine.machines.append(dataclasses.replace(engine.machines[0], id="n3", name="node3"))
    seen(fetcher, engine, {"b1": Made(ONE, time.time())})
    assert engine.running == {}
    assert [node.id for node in fetcher.missing(ONE)] == ["n3"]
    assert fetcher.start(ONE, engine)


def test_what_did_not_come_early_is_fetched_at_once_and_no_failure(settings: Any, engine: Any) -> None:
    engine.behave = lambda _, task: task if task.node_id == "n1" else failing(44)(_, task)
    fetcher = fetcher_of(settings, engine)
    early(settings, engine)
    seen(fetcher, engine, {"b1": Made(ONE, time.time())})
    assert engine.running == {}
    assert [node.id for node in fetcher.missing(ONE)] == ["n2"]
    assert fetcher.obstacles == {}
    assert fetcher.start(ONE, engine)
    (job,) = engine.running.values()
    assert job.labels[spec.NODE] == "n2"
