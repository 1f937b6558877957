"""The pages in a real browser: whole, readable at both widths, in light and dark, and nothing leaves the file."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from blackstart.deploys import run_deploy
from blackstart.journal import Journal
from blackstart.proofs import Proof
from blackstart.proofs.kept import keep
from blackstart.report import write_certificate, write_report
from blackstart.state import State
from blackstart.steps import Step
from tests.reports import CERTIFICATE, HOSTS, making, operation, report_of, worked

WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
SECTIONS = ["head", "timeline", "graph", "proofs", "digests", "nodes", "versions", "runs"]
LONG = "a-name-without-a-place-to-break-" * 8

CLIPPED = """() => [...document.querySelectorAll("main *:not(svg *):not(.graph)")].filter(e => {
  const box = e.getBoundingClientRect();
  return box.width > 0 && !e.closest(".graph") && (e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0
    || box.right > document.documentElement.clientWidth + 1 || box.left < -1);
}).map(e => e.outerHTML.slice(0, 120))"""

OUTSIDE = """() => [...document.querySelectorAll("svg.timeline")].flatMap(svg => {
  const frame = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("rect, text")].filter(e => getComputedStyle(e).display !== "none").filter(e => {
    const box = e.getBoundingClientRect();
    return box.width <= 0 || box.left < frame.left - 1 || box.right > frame.right + 1
      || box.top < frame.top - 1 || box.bottom > frame.bottom + 1;
  }).map(e => e.outerHTML);
})"""

FAINT = """() => {
  const light = text => {
    const [r, g, b] = text.match(/[\\d.]+/g).map(Number).slice(0, 3).map(v => v / 255)
      .map(v => v <= 0.03928 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const ground = e => {
    for (; e; e = e.parentElement) {
      const colour = getComputedStyle(e).backgroundColor;
      if (!/, 0\\)$/.test(colour) && colour !== "transparent") return colour;
    }
    return "rgb(255, 255, 255)";
  };
  return [...document.querySelectorAll("h1, h2, h3, p, td, th, dt, dd, summary, pre, .badge, span, li, footer")]
    .filter(e => !e.closest("svg") && e.textContent.trim() && e.getBoundingClientRect().width > 0)
    .filter(e => {
      const [a, b] = [light(getComputedStyle(e).color), light(ground(e))].sort((x, y) => y - x);
      return (a + 0.05) / (b + 0.05) < 4.5;
    }).map(e => e.outerHTML.slice(0, 120));
}"""


@pytest.fixture(scope="module")
def state(tmp_path_factory) -> Iterator[State]:
    """A state folder after a run of real steps, one of them a real deploy."""
    with pytest.MonkeyPatch.context() as patch:
        root = tmp_path_factory.mktemp("report")
        patch.setenv("BLACKSTART_STATE", str(root))
        state = State.of("rep")
        worked(
            state, making("machines"), Step("stage-0", "Deploy", lambda world: _deploy(state, root, world), _deployed)
        )
        _as_if_on_every_host(state)
        keep(state, Proof("graph", True, "no cycle that nothing breaks", {"cycles": []}), seconds=0.2)
        keep(state, Proof("fencing", False, f"{LONG}\nWhy: it answered 200", {"store": LONG}), seconds=14)
        keep(state, Proof("blast-radius", True, "as declared", {"rows": _rows()}), seconds=400)
        write_report(state, report_of(state, problems=[LONG]))
        write_certificate(state, CERTIFICATE)
        yield state


def _deploy(state: State, root: Path, world: set[str]) -> None:
    deploys = root / "deploys"
    deploys.mkdir()
    (deploys / "made.py").write_text(
        "from pyinfra.operations import files, server\n"
        f"files.directory(name='Make a folder', path={str(root / 'made')!r})\n"
        "server.shell(name='Count', commands=['seq 100000 | sort -R | sort -n | tail -1'])\n"
    )
    journal = Journal(state.operations_path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blackstart.deploys.checkout_root", lambda: root)
        run_deploy(
            "@local",
            "made",
            log=lambda text: None,
            on_operation=lambda told: journal.add("operation", step="stage-0", **asdict(told)),
        )
    world.add("deployed")


def _deployed(world: set[str]) -> bool:
    return "deployed" in world


def _as_if_on_every_host(state: State) -> None:
    """Write the deploy's operations again for hosts with long names, with every result."""
    entries = [entry for entry in Journal(state.operations_path).entries() if entry["host"] == "@local"]
    begin = datetime.datetime.fromisoformat(entries[0]["started_at"])
    for place, host in enumerate(HOSTS):
        for n, result in enumerate(("changed", "was so", "failed", "skipped")):
            at = begin + datetime.timedelta(seconds=0.1 * (n + place))
            operation(state, host, f"Do {LONG}", at.isoformat(), seconds=0.1 * n, result=result, step="stage-0")


def _rows() -> list[dict[str, object]]:
    works, stops = {"works": True, "seconds": 1.5, "detail": ""}, {"works": False, "seconds": None, "detail": "503"}
    capabilities = ("traffic", "dyno restart", "deploy", "scale", "logs", "rollback", "run", "config")
    return [
        {"stopped": stopped, "capabilities": {name: works if n < 2 else stops for n, name in enumerate(capabilities)}}
        for stopped in (["api"], ["api", "psmgr", "postgres", "bus", "objects"])
    ]


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Debian's Chromium."""
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path="/usr/bin/chromium", args=["--no-sandbox"], headless=True)
        yield chromium
        chromium.close()


@pytest.fixture(params=[(width, scheme) for width in WIDTHS for scheme in SCHEMES], ids=str)
def page(request, browser) -> Iterator[Page]:
    """A page of one width and colour scheme; at its end nothing was loaded and nothing was complained of."""
    width, scheme = request.param
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
    page = context.new_page()
    told, asked = [], []
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("request", lambda request: asked.append(request.url))
    yield page
    assert told == []
    assert [url for url in asked if not url.startswith(("file://", "data:"))] == []
    assert len([url for url in asked if url.startswith("file://")]) == 1
    context.close()


def shown(page: Page, path: Path) -> Page:
    """Open a file, everything in it unfolded."""
    page.goto(f"file://{path}")
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    return page


def is_readable(page: Page) -> None:
    """Nothing is wider than its place, and text stands out from what is behind it (WCAG AA)."""
    wide, seen = page.evaluate("[document.documentElement.scrollWidth, document.documentElement.clientWidth]")
    assert wide <= seen
    assert page.evaluate(CLIPPED) == []
    assert page.evaluate(FAINT) == []


def test_the_report_is_whole_and_readable(page, state):
    shown(page, state.report_folder / "report.html")
    assert page.locator("section").evaluate_all("all => all.map(each => each.id)") == SECTIONS
    assert page.title() == "rep: up, done"
    for name in ("graph", "fencing", "blast-radius"):
        assert page.locator("article", has=page.get_by_role("heading", name=name, exact=True)).count() == 1
    assert page.locator(".matrix tbody tr").count() == 2
    is_readable(page)


def test_the_timeline_has_a_bar_for_each_step_and_operation_inside_of_it(page, state):
    shown(page, state.report_folder / "report.html")
    assert page.locator("svg.timeline").count() == 1
    assert page.locator("svg.timeline .strip").count() == 1 + len(HOSTS) + 1  # steps, hosts, @local
    assert page.locator("svg.timeline .bar").count() == 2 + 3 * len(HOSTS) + 3  # what is skipped is not drawn
    assert page.evaluate(OUTSIDE) == []


def test_the_graph_is_drawn(page, state):
    shown(page, state.report_folder / "report.html")
    drawn = page.locator("#graph svg")
    assert drawn.get_by_text("postgres").count() > 0
    assert drawn.bounding_box()["width"] > 300


def test_the_certificate_is_whole_and_readable(page, state):
    shown(page, state.folder / "certificate.html")
    assert page.locator("article").count() == len(CERTIFICATE["items"])
    assert page.get_by_text("proven unneeded").count() == 1
    is_readable(page)


def test_the_report_prints_on_a_few_sheets(browser, state):
    context = browser.new_context()
    page = context.new_page()
    page.goto(f"file://{state.report_folder / 'report.html'}")
    sheets = page.pdf(format="A4", print_background=True).count(b"/Type /Page\n")
    context.close()
    assert 1 <= sheets <= 8
