"""The report: written after real steps, complete, without secrets, kept by date; and the pages it is made of."""

import html
import json
import stat

import pytest

from blackstart.errors import BlackstartError
from blackstart.journal import Journal
from blackstart.masking import MASK, Masker
from blackstart.progress import Progress
from blackstart.proofs import Proof
from blackstart.proofs.kept import keep, kept
from blackstart.report import KEPT_AT_MOST, write_certificate, write_report
from blackstart.report.history import run_that_worked
from blackstart.report.pages import certificate_page, report_page
from blackstart.report.timeline import clock, drawing, timeline
from blackstart.state import State
from blackstart.steps import Step, run_steps
from tests.reports import CERTIFICATE, operation, report_of, runs_of, worked


@pytest.fixture
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("BLACKSTART_STATE", str(tmp_path))
    return State.of("rep")


@pytest.fixture
def journal(state):
    return Journal(state.journal_path)


def test_a_run_that_found_all_done_leaves_the_one_that_did_the_work(state, journal):
    world: set[str] = set()
    worked(state, world=world)
    worked(state, world=world)
    runs = runs_of(state)
    assert [len(run.steps) for run in runs] == [2, 0]
    assert run_that_worked(runs) is runs[0]
    assert [(step.name, step.title, step.result) for step in runs[0].steps] == [
        ("one", "Make one", "done"),
        ("two", "Make two", "done"),
    ]


def test_operations_belong_to_the_run_in_which_they_began(state, journal):
    for _ in range(2):
        worked(state)
        operation(state, "node2", "Join", list(journal.entries())[-2]["at"])
    assert [len(run.operations) for run in runs_of(state)] == [1, 1]


def test_a_killed_step_is_interrupted_and_lasted_until_the_run_was_last_heard_of(state, journal):
    journal.add("up started", version="1")
    journal.add("step started", step="one", title="Make one")
    operation(state, "node1", "Join", list(journal.entries())[-1]["at"], seconds=30)
    journal.add("up started", version="1")
    run = runs_of(state)[0]
    assert (run.result, run.steps[0].result) == ("interrupted", "interrupted")
    assert (run.steps[0].ended_at - run.steps[0].started_at).total_seconds() == 30


def test_a_failed_step_carries_its_reason(state, journal):
    def fail(world):
        raise BlackstartError("no disk")

    journal.add("up started", version="1")
    with pytest.raises(BlackstartError):
        run_steps([Step("one", "One", fail, lambda world: False)], None, progress=Progress(quiet=True), journal=journal)
    journal.add("up failed", reason="no disk")
    run = runs_of(state)[0]
    assert (run.result, run.reason, run.steps[0].reason) == ("failed", "no disk", "no disk")


@pytest.mark.parametrize("damage", ["", "{", '{"event": "step done", "at": "x"}\n[1]\n{"at": "2026-01-01T00:00:00"}\n'])
def test_a_damaged_journal_gives_no_runs_and_no_error(state, damage):
    state.journal_path.write_text(damage)
    state.operations_path.write_text(damage)
    assert runs_of(state) == []


def test_every_bar_is_inside_and_has_a_width(state, journal):
    worked(state)
    operation(state, "node2", "Install", next(iter(journal.entries()))["at"], seconds=0.0001)
    operation(state, "node2", "Wait", next(iter(journal.entries()))["at"], seconds=90)
    drawn = drawing(timeline(run_that_worked(runs_of(state)), ["rep-node1", "node2"]))
    assert [row.name for row in drawn.rows] == ["steps", "node2"]
    assert all(bar.width > 0 and bar.x >= 0 and bar.x + bar.width <= 100.001 for row in drawn.rows for bar in row.bars)
    assert 1 < len(drawn.ticks) <= 7


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.96, "10 s"), (59.7, "1 min 00 s"), (184.5, "3 min 04 s"), (7500, "2 h 05 min")],
)
def test_durations_for_people(seconds, text):
    assert clock(seconds) == text


def test_the_newest_outcome_of_a_proof_is_kept(state):
    keep(state, Proof("graph", holds=False, detail="a cycle"), seconds=1)
    keep(state, Proof("graph", holds=True, detail="none", evidence={"cycles": []}), seconds=2)
    (outcome,) = kept(state)
    assert (outcome["holds"], outcome["detail"], outcome["evidence"], outcome["seconds"]) == (
        True,
        "none",
        {"cycles": []},
        2,
    )


def test_no_secret_is_in_any_file_of_the_report(state, journal):
    worked(state)
    secrets = state.secrets()
    keep(state, Proof("fencing", False, f"the password {secrets['database_password']} works", dict(secrets)), seconds=1)
    write_report(state, report_of(state, problems=list(secrets.values())))
    files = list(state.report_folder.iterdir())
    assert len(files) == 4
    for path in files:
        text = html.unescape(path.read_text())
        assert not [name for name, value in secrets.items() if value in text]
        assert MASK in text
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_earlier_reports_are_kept_by_date_up_to_a_number(state):
    for minute in range(KEPT_AT_MOST + 3):
        page = write_report(state, report_of(state, written_at=f"2026-01-02T03:{minute:02}:00+00:00"))
    names = sorted(path.name for path in state.report_folder.glob("report-*.html"))
    assert len(names) == KEPT_AT_MOST
    assert names[0] == "report-20260102T030300Z.html"
    assert page.read_text() == (state.report_folder / names[-1]).read_text()
    assert json.loads((state.report_folder / "report.json").read_text())["written_at"] == "2026-01-02T03:22:00+00:00"


def test_what_is_told_is_escaped_and_nothing_is_loaded(state, journal):
    worked(state)
    told = "<script>alert(1)</script>"
    page = report_page(report_of(state, problems=[told], result={"good": False, "text": told}))
    assert told not in page
    assert html.escape(told) in page
    for loading in ("<script", "src=", "http://", "https://", "url("):
        assert loading not in page


def test_the_blast_radius_is_a_table(state):
    works, stops = {"works": True, "seconds": 1.5, "detail": ""}, {"works": False, "seconds": None, "detail": "503"}
    rows = [{"stopped": ["api", "bus"], "capabilities": {"deploy": stops, "traffic": works}}]
    keep(state, Proof("blast-radius", True, "as declared", {"rows": rows}), seconds=1)
    page = report_page(report_of(state))
    assert page.index("<th>traffic</th>") < page.index("<th>deploy</th>")
    assert "api, bus" in page
    assert 'title="503"' in page


def test_the_certificate_says_each_item_with_its_evidence():
    page = certificate_page(CERTIFICATE)
    for item in CERTIFICATE["items"]:
        assert html.escape(item["name"]) in page
        assert html.escape(item["detail"]) in page
    assert "2 of 2" in page
    assert "proven unneeded" in page


def test_a_refused_certificate_says_that_stage_0_is_kept():
    items = [{**CERTIFICATE["items"][0], "holds": False, "detail": "3 connections from node2"}]
    page = certificate_page({**CERTIFICATE, "items": items, "holds": False})
    assert "is kept" in page
    assert "proven unneeded" not in page


def test_the_certificate_is_written_as_data_and_as_a_page(state):
    page = write_certificate(state, CERTIFICATE)
    assert json.loads((state.folder / "certificate.json").read_text()) == CERTIFICATE
    assert page.read_text() == certificate_page(CERTIFICATE)


@pytest.mark.parametrize(
    "text",
    [
        "docker swarm join --token SWMTKN-1-5abc-9def 10.0.0.1:2377",
        "Authorization: Bearer abcdefgh12345678",
        "postgresql://platform:hunter2hunter2@postgres:5432/platform",
        "rediss://:hunter2hunter2@bus:6379/0",
        "https://objects/x?X-Amz-Signature=f0ff9dce&X-Amz-Date=1",
        "-----BEGIN EC PRIVATE KEY-----\nhunter2\n-----END EC PRIVATE KEY-----",
        "-----BEGIN PRIVATE KEY-----\nhunter2 cut",
    ],
)
def test_what_looks_like_a_credential_is_masked(text):
    masked = Masker(values=()).mask(text)
    assert MASK in masked
    for secret in ("hunter2", "5abc", "abcdefgh", "f0ff"):
        assert secret not in masked


def test_secrets_are_masked_in_every_form_in_which_they_are_written(state):
    state.write_json("secrets.json", {"password": 'p+/w"ord=='})
    masker = Masker.of(state)
    for form in ('p+/w"ord==', "p%2B%2Fw%22ord%3D%3D", "p%2B/w%22ord%3D%3D", 'p+/w\\"ord=='):
        assert masker.mask(f"x {form} y") == f"x {MASK} y"
