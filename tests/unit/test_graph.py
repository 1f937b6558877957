"""The graph of needs: its cycles, what breaks them, and the order from it."""

import itertools
import json
import re
import shutil
import xml.etree.ElementTree as ET

import pytest

from blackstart.breaks import BREAKS, Break
from blackstart.cli import _parser
from blackstart.errors import BlackstartError, GraphError
from blackstart.graph import component_order, read_graph
from blackstart.graph_svg import graph_svg
from blackstart.model.component import ComponentRefused, World, load_component, parse_component
from blackstart.proofs import graph as proofs_graph
from blackstart.sources import checkout_root, component_names, read_component


@pytest.fixture
def checkout(tmp_path):
    """Return a function that writes components into a checkout: `name="on kind at"`, needs parted by semicolons."""

    def write(**components):
        for name, needs in components.items():
            folder = tmp_path / "apps" / name
            folder.mkdir(parents=True)
            text = f'[component]\nname = "{name}"\n'
            for need in filter(None, (part.strip() for part in needs.split(";"))):
                on, kind, *at = need.split()
                text += f'[[needs]]\non = "{on}"\nkind = "{kind}"\nat = {json.dumps(at)}\nwhy = "it is so"\n'
            (folder / "component.toml").write_text(text)
        return tmp_path

    return write


def problems(root, breaks=()):
    return [str(problem) for problem in read_graph(root, breaks).problems()]


# --- this checkout ---------------------------------------------------------------------------------------------------


def test_every_cycle_of_this_checkout_is_broken_by_a_stage_and_no_break_is_useless():
    graph = read_graph(checkout_root())
    assert graph.problems() == []
    assert all(cycle.broken_by for cycle in graph.cycles)
    broken = {str(cycle): [one.stage for one in cycle.broken_by] for cycle in graph.cycles}
    assert broken["compile → compile"] == ["stage-0"]
    assert "api → postgres → psmgr → api" in broken


def test_this_checkout_needs_each_of_its_breaks():
    for one in BREAKS:
        others = tuple(other for other in BREAKS if other is not one)
        if one.of is None:
            assert [cycle for cycle in read_graph(checkout_root(), others).cycles if cycle.is_fatal], one.label


def test_no_component_needs_another_at_boot_in_a_ring():
    assert not [cycle for cycle in read_graph(checkout_root()).cycles if cycle.subgraph == "boot"]


def test_every_component_is_in_the_order_once_and_after_its_hard_needs():
    order, names = component_order(checkout_root()), component_names(checkout_root())
    assert sorted(order) == names
    for name in names:
        for need in read_component(checkout_root(), name).needs:
            if need.on in names and need.kind == "hard" and set(need.at) & {"boot", "run"}:
                assert order.index(need.on) < order.index(name), f"{name} needs {need.on}"


def test_every_component_says_what_it_needs_to_start_from_a_nodes_own_disk():
    graph = read_graph(checkout_root())
    for name in graph.components:
        boot = {edge.on for edge in graph.edges if (edge.of, edge.at, edge.kind) == (name, "boot", "hard")}
        assert {World.ENGINE, World.SLUG_CACHE} <= boot
        assert not boot & {"objects", "postgres", "bus", World.DNS, World.PACKAGES, World.OPERATOR_STATE}


def test_one_careless_line_in_a_component_of_this_checkout_makes_the_proof_fail(tmp_path, monkeypatch):
    assert proofs_graph.prove(None).holds
    for name in component_names(checkout_root()):
        (tmp_path / "apps" / name).mkdir(parents=True)
        shutil.copy(checkout_root() / "apps" / name / "component.toml", tmp_path / "apps" / name)
    with (tmp_path / "apps/postgres/component.toml").open("a") as file:
        file.write('\n[[needs]]\non = "psmgr"\nkind = "hard"\nat = ["boot"]\nwhy = "it is careless"\n')
    monkeypatch.setattr("blackstart.proofs.graph.checkout_root", lambda: tmp_path)
    proof = proofs_graph.prove(None)
    assert not proof.holds
    assert proof.detail == "a cycle of hard needs that no stage breaks (boot+run): postgres → psmgr → postgres"
    assert proof.evidence["order"] is None


# --- cycles ----------------------------------------------------------------------------------------------------------


def test_a_ring_of_hard_boot_needs_is_fatal_and_its_message_says_where_and_what_to_do(checkout):
    root = checkout(api="postgres hard boot", postgres="api hard boot")
    (text,) = problems(root)
    assert text == (
        "a cycle of hard needs that no stage breaks (boot): api → postgres → api\n"
        "Why: none of them can be the first. Declared are:\n"
        "  apps/api/component.toml: api needs postgres at boot (hard): it is so\n"
        "  apps/postgres/component.toml: postgres needs api at boot (hard): it is so\n"
        "To do: let one of them start without the other and declare that need soft; or let a stage meet one of these needs "
        "in another way, and say how in blackstart/breaks.py"
    )
    with pytest.raises(GraphError, match="api → postgres → api"):
        component_order(root)


@pytest.mark.parametrize(
    ("first", "second", "fatal"),
    [
        ("two hard boot", "one hard boot", True),
        ("two hard boot", "one hard run", True),
        ("two hard build", "one hard run", True),
        ("two hard run build", "one hard run", True),
        ("two hard run", "one hard run", False),
        ("two hard boot", "one soft boot", False),
        ("two hard boot", "world:engine hard boot", False),
    ],
)
def test_a_ring_is_fatal_when_none_of_it_can_be_the_first(checkout, first, second, fatal):
    assert bool(problems(checkout(one=first, two=second))) is fatal


def test_a_break_at_one_phase_does_not_excuse_another(checkout):
    root = checkout(one="two hard boot build", two="one hard run")
    built = Break("one", "two", "build", "stage-0", "it builds it")
    assert any("one → two → one" in text for text in problems(root, (built,)))
    assert problems(root, (built, Break("one", "two", "boot", "stage-0", "it runs before"))) == []


def test_a_ring_of_many_is_named_whole_and_from_its_least_name(checkout):
    root = checkout(one="two hard boot", two="zoo hard boot", zoo="one hard run")
    assert [str(cycle) for cycle in read_graph(root, ()).cycles] == ["one → two → zoo → one"]


def test_a_component_that_builds_itself_is_a_cycle(checkout):
    root = checkout(compile="compile hard build")
    assert "compile → compile" in problems(root)[0]
    assert problems(root, BREAKS[:1]) == []


@pytest.mark.parametrize("of", ["one", None])
def test_a_break_that_breaks_nothing_is_refused(checkout, of):
    root = checkout(one="two hard build", two="")
    (text,) = problems(root, (Break(of, "two", "build", "stage-0", "somehow"),))
    assert text.startswith(f"blackstart/breaks.py: a break that breaks no cycle: {of or 'every component'} needs two")


# --- the order -------------------------------------------------------------------------------------------------------


def test_the_order_obeys_soft_needs_where_hard_ones_let_it(checkout):
    root = checkout(aaa="zzz soft boot", bbb="zzz soft run", ccc="zzz hard run", zzz="bbb hard run")
    assert component_order(root) == ["bbb", "zzz", "aaa", "ccc"]


def test_the_order_is_the_same_whatever_the_order_of_files_and_needs(checkout, tmp_path):
    needs = ("two hard run", "zoo soft run", "bus soft boot")
    first = checkout(one="; ".join(needs), two="", zoo="", bus="")
    before = component_order(first)
    (first / "apps/one/component.toml").unlink()
    (first / "apps/one").rmdir()
    assert component_order(checkout(one="; ".join(reversed(needs)))) == before


def test_needs_at_build_do_not_order_what_a_stage_builds(checkout):
    root = checkout(one="two hard build", two="one hard run")
    built = Break("one", "two", "build", "stage-0", "it builds it")
    assert read_graph(root, (built,)).order == ("one", "two")


# --- files -----------------------------------------------------------------------------------------------------------


def component(on, at='["run"]'):
    return f'[component]\nname = "api"\n[[needs]]\non = "{on}"\nkind = "soft"\nat = {at}\nwhy = "x"\n'


def test_a_word_for_the_world_that_is_none_is_refused_with_its_path():
    with pytest.raises(
        ComponentRefused, match=r"^component.toml: needs\.0\.on: 'world:clok' is not one of world:dns, "
    ):
        parse_component(component("world:clok"))


def test_a_name_that_is_no_apps_name_is_refused_with_its_path():
    with pytest.raises(ComponentRefused, match=r"needs\.0\.on: "):
        parse_component(component("Not A Name"))


@pytest.mark.parametrize("at", ["[]", '["sometimes"]'])
def test_a_need_without_a_phase_is_refused_with_its_path(at):
    with pytest.raises(ComponentRefused, match=r"needs\.0\.at"):
        parse_component(component("bus", at))


def test_a_running_api_takes_a_newer_components_words():
    stored = {**parse_component(component("bus")).model_dump(mode="json")}
    stored["needs"][0]["on"] = "world:of-tomorrow"
    assert load_component(stored).needs[0].on == "world:of-tomorrow"


def test_a_need_on_a_component_that_is_not_there_is_refused_with_file_and_path(checkout):
    root = checkout(one="world:engine hard boot; tow hard run", two="")
    with pytest.raises(GraphError, match=r"^apps/one/component.toml: needs\.1\.on: there is no component 'tow'"):
        read_graph(root)


def test_a_file_that_is_wrong_is_named(checkout):
    root = checkout(one="world:clok hard boot")
    with pytest.raises(GraphError, match=r"^apps/one: component.toml: needs\.0\.on: 'world:clok'"):
        read_graph(root)


def test_every_word_for_the_world_has_a_meaning_and_is_in_the_docs():
    text = (checkout_root() / "docs" / "how-it-works.md").read_text()
    for word in World:
        assert word.meaning
        assert f"| `{word}` |" in text


# --- the command -----------------------------------------------------------------------------------------------------


def graph_command(*options):
    arguments = _parser().parse_args(["graph", *options])
    return arguments.command(arguments)


def test_the_command_prints_json_and_succeeds(capsys):
    assert graph_command("--json") == 0
    shown = json.loads(capsys.readouterr().out)
    assert shown["order"] == component_order(checkout_root())
    assert shown["problems"] == []
    assert {"of": "psmgr", "on": "postgres", "at": "run", "kind": "hard"}.items() <= next(
        need for need in shown["needs"] if (need["of"], need["on"], need["kind"]) == ("psmgr", "postgres", "hard")
    ).items()


def test_the_terminal_drawing_fits_100_columns_and_names_every_break(capsys):
    assert graph_command() == 0
    shown = capsys.readouterr().out
    assert max(len(line) for line in shown.splitlines()) <= 100
    assert all(one.label in shown for one in BREAKS)
    assert " → ".join(component_order(checkout_root())) in shown


def test_the_command_fails_for_a_ring_at_boot_and_shows_it(checkout, monkeypatch, capsys):
    root = checkout(api="postgres hard boot", postgres="api hard boot")
    monkeypatch.setattr("blackstart.cli.checkout_root", lambda: root)
    assert graph_command() == 1
    captured = capsys.readouterr()
    assert "BROKEN BY NOTHING: api → postgres → api" in captured.out
    assert "apps/postgres/component.toml" in captured.err


# --- the drawing -----------------------------------------------------------------------------------------------------

SVG = "{http://www.w3.org/2000/svg}"


def drawn(root, breaks=BREAKS):
    return ET.fromstring(graph_svg(read_graph(root, breaks)))


def boxes(svg):
    """Return (label, left, top, right, bottom) of each component."""
    found = []
    for box, label in itertools.pairwise(svg):
        if "box" in box.get("class", "").split():
            x, y, width, height = (float(box.get(key)) for key in ("x", "y", "width", "height"))
            found.append((label.text, x, y, x + width, y + height))
    return found


def test_the_drawing_has_every_component_word_and_break():
    svg = drawn(checkout_root())
    texts = " ".join(text.text for text in svg.iter(f"{SVG}text"))
    assert sorted(label for label, *_ in boxes(svg)) == sorted([*component_names(checkout_root()), "every component"])
    assert all(word.removeprefix("world:") in texts for word in World)
    assert all(one.label in texts for one in BREAKS)


def test_a_hard_need_is_drawn_solid_a_soft_one_dashed_and_each_says_why(checkout):
    svg = drawn(checkout(one="two hard run; zoo soft boot", two="", zoo=""))
    lines = {
        line.find(f"{SVG}title").text: line.get("class")
        for line in svg.iter(f"{SVG}path")
        if line.find(f"{SVG}title") is not None
    }
    assert lines == {
        "one needs two at run (hard): it is so": "line run",
        "one needs zoo at boot (soft): it is so": "line boot soft",
    }


def test_what_a_stage_breaks_is_marked_with_the_stage(checkout):
    svg = drawn(
        checkout(one="two hard build", two="one hard run"), (Break("one", "two", "build", "stage-9", "it is built"),)
    )
    assert [text.text for text in svg.iter(f"{SVG}text")].count("stage-9") == 2
    assert "BROKEN BY NOTHING" not in ET.tostring(svg, encoding="unicode")


def test_a_ring_that_nothing_breaks_is_drawn_as_such(checkout):
    svg = drawn(checkout(one="two hard boot; one hard run", two="one hard boot"), ())
    assert "BROKEN BY NOTHING: one → two → one" in [text.text for text in svg.iter(f"{SVG}text")]


def test_no_boxes_overlap_and_no_line_goes_behind_one():
    svg = drawn(checkout_root())
    found = boxes(svg)
    for one, other in itertools.combinations(found, 2):
        assert one[3] < other[1] or other[3] < one[1] or one[4] < other[2] or other[4] < one[2], (one, other)
    for line in svg.iter(f"{SVG}path"):
        title = line.find(f"{SVG}title")
        if title is not None:
            ends = re.match("(.+) needs ([a-z]+) at", title.text).groups()
            for label, left, top, right, bottom in found:
                inside = [(x, y) for x, y in along(line.get("d")) if left < x < right and top < y < bottom]
                assert label in ends or not inside, f"{title.text} goes behind {label}"


def along(path):
    """Yield points of a path of M, L and C."""
    at = (0.0, 0.0)
    for command, numbers in re.findall("([MLC])([^MLC]*)", path):
        values = [float(number) for number in re.split("[ ,]+", numbers.strip())]
        points = list(zip(values[::2], values[1::2], strict=True))
        if command != "M":
            for step in range(51):
                yield on_curve([at, *points], step / 50)
        at = points[-1]


def on_curve(points, t):
    """De Casteljau."""
    while len(points) > 1:
        points = [((1 - t) * a[0] + t * b[0], (1 - t) * a[1] + t * b[1]) for a, b in itertools.pairwise(points)]
    return points[0]


def test_the_drawing_is_self_contained():
    text = graph_svg(read_graph(checkout_root()))
    assert not re.findall(r"""(?:href|src)=|@import|url\((?!#)""", text)


def test_the_command_writes_the_drawing_and_says_when_it_cannot(tmp_path, capsys):
    assert graph_command("--json", "--svg", str(tmp_path / "graph.svg")) == 0
    assert (tmp_path / "graph.svg").read_text().startswith("<svg ")
    with pytest.raises(BlackstartError, match="could not be written"):
        graph_command("--svg", str(tmp_path / "none" / "graph.svg"))
