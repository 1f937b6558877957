"""A new process manager leads on trial before the old one goes."""

from __future__ import annotations

import uuid

import pytest
from psmgr import spec, trial
from psmgr.desired import WantedRelease
from psmgr.engine import Service, Task
from psmgr.leader import Leader, LeadershipLost
from psmgr.trial import Trial

APP = uuid.UUID(int=7)
NEW = WantedRelease(uuid.UUID(int=2), 2, "pending", "c" * 64, "stack", ())


def of_version(version: int, *, task: str = "me") -> list[Service]:
    labels = {spec.APP_ID: str(APP), spec.VERSION: str(version)}
    return [Service("s", "s", labels, "replicated", 2, 0.0, tasks=(Task(task, 1, "n1", "running"),))]


def manager(version: int) -> Trial:
    made = Trial()
    made.leads()
    made.look("me", of_version(version))
    return made


def test_the_old_one_hands_over_and_takes_back_what_was_not_taken() -> None:
    old = manager(1)
    assert old.verdict(APP, NEW) == "hand over"
    assert old.handing_over
    assert not old.failed(NEW.id)
    old.leads()
    assert not old.handing_over
    assert old.failed(NEW.id)


def test_a_second_try_is_handed_over_to_again() -> None:
    old = manager(1)
    old.verdict(APP, NEW)
    old.leads()
    again = WantedRelease(uuid.UUID(int=3), 3, "pending", "c" * 64, "stack", ())
    assert old.verdict(APP, again) == "hand over"
    assert old.handing_over


def test_the_new_one_succeeds_only_after_it_led(monkeypatch: pytest.MonkeyPatch) -> None:
    new = manager(2)
    assert new.verdict(APP, NEW) == "not yet"
    monkeypatch.setattr(trial, "LEADS_S", 0.0)
    for _ in range(trial.PASSES):
        assert new.verdict(APP, NEW) == "not yet"
        new.passed()
    assert new.verdict(APP, NEW) == "good"


def test_other_apps_and_stage_0_know_no_trial() -> None:
    assert manager(1).verdict(uuid.UUID(int=8), NEW) == "good"
    stage0 = Trial()
    stage0.look(None, of_version(1))
    assert stage0.verdict(APP, NEW) == "good"


def test_whoever_leads_can_be_deposed_and_cannot_write_any_more(postgres_url: str) -> None:
    with Leader(postgres_url) as hung, Leader(postgres_url) as old:
        assert hung.acquire()
        assert not old.acquire()
        assert old.depose()
        with pytest.raises(LeadershipLost):
            hung.check()
        assert not hung.leads
