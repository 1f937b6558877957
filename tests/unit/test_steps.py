"""Steps that hold are skipped; a step must bring about what it verifies."""

import pytest

from blackstart import steps
from blackstart.errors import BlackstartError, ProofError
from blackstart.journal import Journal
from blackstart.progress import Progress
from blackstart.steps import Step, run_steps


@pytest.fixture
def run(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")

    def go(*steps):
        world: set[str] = set()
        took = run_steps(steps, world, progress=Progress(quiet=True), journal=journal)
        return world, took, [entry["event"] for entry in journal.entries()]

    return go


def making(name, needs=()):
    return Step(name, name.title(), lambda world: world.add(name), lambda world: name in world, needs)


def test_steps_run_in_order_and_are_written_down(run):
    world, took, events = run(making("one"), making("two", ("one",)))
    assert world == {"one", "two"}
    assert [step.name for step in took] == ["one", "two"]
    assert events == ["step started", "step done"] * 2


def test_a_step_that_holds_is_not_run(run):
    def never(world):
        raise BlackstartError("it ran")

    _, took, events = run(Step("one", "One", never, lambda world: True))
    assert took[0].seconds == 0
    assert events == []


def test_what_a_step_brings_about_may_be_there_a_moment_later(run, monkeypatch):
    monkeypatch.setattr(steps, "POLL_SECONDS", 0.01)
    answers = iter([False, False, True])
    _, _, events = run(Step("one", "One", lambda world: None, lambda world: next(answers)))
    assert events == ["step started", "step done"]


def test_a_step_that_brings_nothing_about_is_no_success(run, monkeypatch):
    monkeypatch.setattr(steps, "SETTLE_SECONDS", 0.05)
    with pytest.raises(ProofError, match="what it should bring about is not there"):
        run(Step("one", "One", lambda world: None, lambda world: False))


def test_what_a_failed_step_says_is_written_down(tmp_path):
    journal = Journal(tmp_path / "journal.jsonl")

    def fail(world):
        raise BlackstartError("no disk", why="full")

    with pytest.raises(BlackstartError, match="no disk"):
        run_steps([Step("one", "One", fail, lambda world: False)], None, progress=Progress(quiet=True), journal=journal)
    assert [(entry["event"], entry.get("reason")) for entry in journal.entries()] == [
        ("step started", None),
        ("step failed", "no disk"),
    ]


def test_a_step_before_what_it_needs_is_refused(run):
    with pytest.raises(BlackstartError, match="step two comes before what it needs: one"):
        run(making("two", ("one",)), making("one"))
