"""Stage 0 is destroyed only with a whole certificate; one that fails keeps it, gathers logs and says what to do."""

from collections import Counter
from contextlib import nullcontext
from types import SimpleNamespace

import pytest

from blackstart import certificate, up
from blackstart.errors import ProofError
from blackstart.proofs import teardown
from blackstart.state import State


def items(**wrong: str) -> list[dict]:
    """Return the items of a certificate; `wrong` names those that do not hold, and why."""
    return [
        {"name": name, "holds": name not in wrong, "detail": wrong.get(name, "seen"), "evidence": {}, "seconds": 1.0}
        for name in certificate.ITEMS
    ]


def issued(found: list[dict]) -> dict:
    stage0 = {"name": "s0", "address": "192.0.2.10"}
    return {
        "platform": "unit",
        "domain": "unit.internal",
        "issued_at": "2026-01-01T00:00:00+00:00",
        "blackstart_version": "0",
        "stage0": stage0,
        "items": found,
        "holds": not certificate.unproven({"items": found}),
    }


def test_a_certificate_holds_when_every_item_does():
    assert certificate.unproven(issued(items())) == []


@pytest.mark.parametrize("name", certificate.ITEMS)
def test_an_item_that_fails_or_is_missing_is_named(name):
    assert certificate.unproven(issued(items(**{name: "it broke"}))) == [f"{name}: it broke"]
    without = [item for item in items() if item["name"] != name]
    assert certificate.unproven(issued(without)) == [f"{name}: was not looked at"]


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Return a run on a platform of which only the state folder is there."""
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    monkeypatch.setattr(up, "remove_left", lambda client: None)
    monkeypatch.setattr(up.observe, "answering_client", lambda platform: nullcontext())
    monkeypatch.setattr(up, "gather", lambda platform, hosts, log: tmp_path / "logs.tar.gz")
    monkeypatch.setattr(up, "stage0_is_gone", lambda run: False)
    platform = SimpleNamespace(state=State.of("unit"), inventory=SimpleNamespace(hosts=()))
    return SimpleNamespace(platform=platform, log=lambda step: lambda text: None, provider=None)


def test_without_a_whole_certificate_stage_0_stays(run, monkeypatch, tmp_path):
    monkeypatch.setattr(certificate, "certify", lambda _: issued(items(restore="no row was found")))
    with pytest.raises(ProofError) as refused:
        up.issue_certificate(run)
    said = str(refused.value)
    assert "stage 0 stays: it was not proven unneeded" in said
    assert "restore: no row was found" in said
    assert str(tmp_path / "logs.tar.gz") in said
    assert "run `up` again" in said
    assert not up.is_certified(run)
    assert run.platform.state.read_json(certificate.FILE)["items"][3]["detail"] == "no row was found"


def test_with_a_whole_one_it_may_go(run, monkeypatch):
    monkeypatch.setattr(certificate, "certify", lambda _: issued(items()))
    up.issue_certificate(run)
    assert up.is_certified(run)


def test_the_proof_asks_for_every_item(run, monkeypatch):
    monkeypatch.setattr(teardown, "left_of_stage0", lambda run: [])
    assert not teardown.prove(run).holds
    run.platform.state.write_json(certificate.FILE, issued(items()))
    assert teardown.prove(run).holds
    run.platform.state.write_json(certificate.FILE, issued(items()[:4]))
    proof = teardown.prove(run)
    assert not proof.holds
    assert proof.detail == "reboots: was not looked at"


@pytest.mark.parametrize(
    ("packets", "answers", "failures", "holds"), [(0, 9, 0, True), (1, 9, 0, False), (0, 0, 0, False), (0, 9, 1, False)]
)
def test_one_packet_one_failed_request_or_no_request_is_seen(monkeypatch, packets, answers, failures, holds):
    load = SimpleNamespace(answers=Counter(), failures=Counter({"503": failures} if failures else {}))
    looks = iter([{"banned_other": 5, "banned_engine": 7}, {"banned_other": 5 + packets, "banned_engine": 9}])

    monkeypatch.setattr(certificate, "_counted", lambda nodes: {"n1": next(looks)})
    monkeypatch.setattr(certificate.time, "sleep", lambda seconds: load.answers.update({"200": answers}))
    platform = SimpleNamespace(inventory=SimpleNamespace(nodes=()))
    assert certificate._no_connection(platform, load).holds is holds
