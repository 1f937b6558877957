"""The built-in buildpacks: what they detect, refuse and give, without their tools."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest
from compiler.buildpacks import BUILT_IN, FIRST, LANGUAGES
from compiler.errors import AppRefused
from compiler.kit import Ran, Work
from compiler.packs import apt, nodejs, python, ruby, static

Make = Callable[..., Path]


def work(folder: Path) -> Work:
    return Work(folder, folder.parent / "cache", folder.parent / "env")


@pytest.mark.parametrize(
    ("pack", "files", "language"),
    [
        ("python", {"requirements.txt": ""}, "Python"),
        ("python", {"pyproject.toml": "[project]\nname = 'x'\n"}, "Python"),
        ("python", {"pyproject.toml": "[build-system]\n[tool.poetry]\n"}, "Python"),
        ("python", {"uv.lock": ""}, "Python"),
        *(("python", {name: ""}, "Python") for name in python.OTHER_MANAGERS),
        ("python", {"pyproject.toml": "[tool.ruff]\n"}, None),
        ("python", {"pyproject.toml": "[projects]\n"}, None),
        ("python", {}, None),
        ("nodejs", {"package.json": "{}"}, "Node.js"),
        ("nodejs", {"web/package.json": "{}"}, None),
        ("ruby", {"Gemfile": ""}, "Ruby"),
        ("static", {"index.html": ""}, "Static site"),
        ("static", {"public/index.html": ""}, "Static site"),
        ("static", {"static.json": "{}"}, "Static site"),
        ("static", {"static.json": "{}", "Procfile": "web: x"}, "Static site"),
        ("static", {"index.html": "", "Procfile": "worker: x\n#web: x\nwebs: x"}, "Static site"),
        ("static", {"index.html": "", "Procfile": "worker: x\n web : x"}, None),
        ("static", {"index.html": "", "Procfile": "\ufeffweb: x"}, None),
        ("static", {}, None),
        ("apt", {"Aptfile": ""}, "Aptfile"),
        ("procfile", {"Procfile": "web: x"}, "Procfile"),
        ("procfile", {}, None),
    ],
)
def test_an_app_is_detected_by_its_files(app: Make, pack: str, files: dict[str, str], language: str | None) -> None:
    ran = subprocess.run([BUILT_IN / pack / "bin" / "detect", app(files)], capture_output=True, text=True, timeout=10)
    told = ("", 1) if language is None else (f"{language}\n", 0)
    assert (ran.stdout, ran.returncode, ran.stderr) == (*told, "")


@pytest.mark.parametrize("pack", [FIRST, *LANGUAGES])
def test_a_folder_that_is_not_there_is_no_answer(tmp_path: Path, pack: str) -> None:
    ran = subprocess.run([BUILT_IN / pack / "bin" / "detect", tmp_path / "none"], capture_output=True, timeout=10)
    assert ran.returncode != 0


@pytest.mark.parametrize(
    ("pack", "files", "released"),
    [
        (python, {"requirements.txt": ""}, "---\n"),
        (
            nodejs,
            {"package.json": '{"scripts": {"start": "node app.js"}}'},
            '---\ndefault_process_types:\n  web: "node app.js"\n',
        ),
        (nodejs, {"package.json": "{}", "server.js": ""}, '---\ndefault_process_types:\n  web: "node server.js"\n'),
        (
            nodejs,
            {"package.json": '{"scripts": {"prestart": "x", "start": "node app.js"}}'},
            '---\ndefault_process_types:\n  web: "npm start"\n',
        ),
        (nodejs, {"package.json": "{}"}, "---\n"),
        (
            ruby,
            {"Gemfile.lock": "", "config.ru": ""},
            '---\ndefault_process_types:\n  web: "bundle exec rackup --host 0.0.0.0 --port $PORT"\n',
        ),
        (
            ruby,
            {"Gemfile.lock": "GEM\n  specs:\n    puma (6.6.0)\n", "config.ru": ""},
            '---\ndefault_process_types:\n  web: "bundle exec puma --port $PORT"\n',
        ),
        (ruby, {"Gemfile.lock": ""}, "---\n"),
    ],
)
def test_release_gives_the_default_process_types(
    app: Make, capsys: pytest.CaptureFixture[str], pack: ModuleType, files: dict[str, str], released: str
) -> None:
    assert pack.release([str(app(files))]) == 0
    assert capsys.readouterr().out == released


@pytest.mark.parametrize(
    ("pack", "files", "reason", "fix"),
    [
        (python, {"pyproject.toml": "[project]"}, "python-lock-missing", "Make it with `uv lock` and commit uv.lock."),
        (
            python,
            {"Pipfile": ""},
            "python-manager-not-supported",
            "Make a requirements.txt of what is installed now: `pip freeze > requirements.txt`.",
        ),
        (
            python,
            {"setup.py": ""},
            "python-requirements-missing",
            "Write a requirements.txt; one line `.` installs the app itself.",
        ),
        (
            python,
            {"uv.lock": ""},
            "python-pyproject-missing",
            "Send pyproject.toml with the source: uv.lock belongs to it.",
        ),
        (
            nodejs,
            {"package.json": "{}"},
            "nodejs-lock-missing",
            "Make it with `npm install --package-lock-only` and commit package-lock.json.",
        ),
        (nodejs, {"package.json": "{"}, "nodejs-package-json-invalid", "Check it with `npm pkg get name`."),
        (
            ruby,
            {"Gemfile": ""},
            "ruby-lock-missing",
            "Make it with `bundle lock --add-platform x86_64-linux` and commit Gemfile.lock.",
        ),
        (
            static,
            {"static.json": '{"root": "../.."}'},
            "static-root-missing",
            "Set `root` in static.json to a folder of the app, relative to its top.",
        ),
        (static, {"static.json": "[]"}, "static-json-invalid", 'Write an object, as {"root": "public"}.'),
        (apt, {"Aptfile": "# none\n"}, "apt-empty", "Name some, or remove the Aptfile."),
        (
            apt,
            {"Aptfile": "jq\n-o Dir::Etc=/x\n"},
            "apt-bad-line",
            "Write one package a line, as `libvips42` or `libvips42=8.16.1-1+b1`.",
        ),
    ],
)
def test_an_app_that_lacks_something_is_refused_with_what_to_do(
    app: Make,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    pack: ModuleType,
    files: dict[str, str],
    reason: str,
    fix: str,
) -> None:
    monkeypatch.setenv("FAILURE_FILE", str(tmp_path / "failure.json"))
    assert pack.compile([str(app(files)), str(tmp_path / "cache"), str(tmp_path / "env")]) == 1
    told = json.loads((tmp_path / "failure.json").read_text())
    assert (told["reason"], told["fixes"][0]) == (reason, fix)


def test_a_yarn_app_is_told_so(app: Make, tmp_path: Path) -> None:
    with pytest.raises(AppRefused) as refused:
        nodejs._check_lock(app({"package.json": "{}", "yarn.lock": ""}))
    assert (
        refused.value.why
        == "There is yarn.lock, which is Yarn's. Without a lock, each build could install other versions."
    )


@pytest.mark.parametrize(
    ("pack", "printed", "reason"),
    [
        ("python", "Because x was not found in the package registry and you require x", "python-package-missing"),
        ("python", "error: Failed to download `x`\n  cause: Hash mismatch for `x==1`", "python-hash-mismatch"),
        (
            "python",
            "error: The lockfile at `uv.lock` needs to be updated, but `--locked` was provided.",
            "python-lock-outdated",
        ),
        ("python", "  x No solution found when resolving dependencies:", "python-requirements-conflict"),
        ("python", "error: Failed to fetch: `https://x/simple/`\n cause: dns error", "python-index-unreachable"),
        (
            "python",
            "x Failed to build `psycopg2==2.9`\n Call to `setuptools.build_meta` failed",
            "python-package-build-failed",
        ),
        (
            "python",
            "error: Couldn't parse requirement in `requirements.txt` at position 0",
            "python-requirements-invalid",
        ),
        ("python", "something new", "python-install-failed"),
        (
            "nodejs",
            "npm error `npm ci` can only install packages when your package.json and package-lock.json",
            "nodejs-lock-outdated",
        ),
        ("nodejs", "npm ERR! code E404", "nodejs-package-missing"),
        ("nodejs", "npm error code ENOTFOUND", "nodejs-registry-unreachable"),
        ("nodejs", "npm error code EINTEGRITY", "nodejs-integrity"),
        ("nodejs", "gyp ERR! build error", "nodejs-package-build-failed"),
        (
            "nodejs",
            "FATAL ERROR: Reached heap limit Allocation failed - JavaScript heap out of memory",
            "build-out-of-memory",
        ),
        ("nodejs", "something new", "nodejs-install-failed"),
        (
            "ruby",
            "The dependencies in your gemfile changed, but the lockfile can't be updated because frozen mode is set",
            "ruby-lock-outdated",
        ),
        (
            "ruby",
            'Your bundle only supports platforms ["arm64-darwin"] but your local platform is x86_64-linux.',
            "ruby-platform-missing",
        ),
        ("ruby", "Your Ruby version is 3.3.8, but your Gemfile specified 2.7.1", "ruby-version-not-available"),
        ("ruby", "Could not find gem 'nope' in locally installed gems.", "ruby-gem-missing"),
        ("ruby", "Could not reach host index.example. Check your network", "ruby-source-unreachable"),
        ("ruby", "ERROR: Failed to build gem native extension.", "ruby-gem-build-failed"),
        ("apt", "E: Unable to locate package figlett", "apt-package-missing"),
        ("apt", "E: Version '9' for 'jq' was not found", "apt-version-missing"),
        ("apt", "E: Failed to fetch http://x/jq.deb  Could not connect to x", "apt-source-unreachable"),
    ],
)
def test_what_a_tool_prints_becomes_a_reason(pack: str, printed: str, reason: str) -> None:
    ran = Ran(1, tuple(printed.split("\n")))
    refusal = {
        "python": lambda: python.refusal(ran, "requirements.txt"),
        "nodejs": lambda: nodejs.refusal(ran, ["ci"]),
        "ruby": lambda: ruby.refusal(ran),
        "apt": lambda: apt.refusal(ran),
    }[pack]()
    assert refusal.reason == reason
    assert refusal.why.split("\n")[0] == printed.split("\n")[0].rstrip()


@pytest.mark.parametrize("wanted", ["3.9", "python-2.7.18", "pypy3", "", "3.13.99-x y"])
def test_a_python_that_the_stack_lacks_is_refused(app: Make, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.kit.python_version", lambda: "3.14.0")
    with pytest.raises(AppRefused) as refused:
        python._check_version(app({".python-version": wanted}))
    assert refused.value.reason == "python-version-not-available"


@pytest.mark.parametrize("wanted", ["3.14", "3.14.2", "3", "# pinned\n3.14\n", "python-3.14.0"])
def test_a_python_that_the_stack_has_is_taken(app: Make, wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("compiler.kit.python_version", lambda: "3.14.0")
    python._check_version(app({"runtime.txt": wanted}))


def test_an_aptfile_names_packages_and_versions() -> None:
    assert apt.parse_aptfile("# pictures\nlibvips42\n\njq=1.7.1-6+deb13u4  # pinned\ng++\n!perl\n") == apt.Aptfile(
        ("libvips42", "jq=1.7.1-6+deb13u4", "g++"), ("perl",)
    )


def test_an_aptfile_that_names_what_it_leaves_out_is_refused() -> None:
    with pytest.raises(AppRefused) as refused:
        apt.parse_aptfile("jq=1.7\n!jq\n")
    assert refused.value.what == "The Aptfile names a package and leaves it out: jq"


@pytest.mark.parametrize(
    "line", ["https://x/y.deb", ":repo:deb http://x y z", "-oX=y", "a;b", "A", "jq=$(id)", "!", "!A", "!jq=1"]
)
def test_an_aptfile_line_that_is_no_package_is_refused(line: str) -> None:
    with pytest.raises(AppRefused) as refused:
        apt.parse_aptfile(f"jq\n{line}\n")
    assert refused.value.what == f"Line 2 of the Aptfile is not a Debian package: {line!r}"


def test_links_to_absolute_paths_among_debian_s_files_become_relative(tmp_path: Path) -> None:
    (tmp_path / "usr/lib").mkdir(parents=True)
    (tmp_path / "usr/lib/real.so.1").touch()
    (tmp_path / "usr/lib/real.so").symlink_to("/usr/lib/real.so.1")
    (tmp_path / "usr/lib/outside").symlink_to("/etc/hostname")
    apt.relink(tmp_path)
    assert (tmp_path / "usr/lib/real.so").readlink() == Path("real.so.1")
    assert (tmp_path / "usr/lib/outside").readlink() == Path("/etc/hostname")


def test_a_dyno_finds_debian_s_programs_and_libraries() -> None:
    assert apt.profile().splitlines()[0] == (
        'export PATH="$HOME/.apt/usr/bin:$HOME/.apt/usr/sbin:$HOME/.apt/bin:$HOME/.apt/sbin:$PATH"'
    )
    assert "$HOME/.apt/usr/lib:" in apt.profile().splitlines()[1]


def test_a_site_is_what_static_json_says(app: Make) -> None:
    folder = app(
        {
            "dist/index.html": "",
            "static.json": json.dumps(
                {"root": "dist", "clean_urls": True, "routes": {"/**": "index.html"}, "headers": {"/**": {"X-A": "b"}}}
            ),
        }
    )
    assert static.read_site(folder) == {
        "root": "dist",
        "clean_urls": True,
        "error_page": None,
        "fallback": "index.html",
        "headers": {"/**": {"X-A": "b"}},
    }


def test_a_site_without_static_json_is_public_or_the_top(app: Make) -> None:
    assert static.read_site(app({"index.html": "", "404.html": ""}))["root"] == "."
    assert static.read_site(app({"public/index.html": "", "public/404.html": ""}, "other"))["error_page"] == "404.html"


def test_an_option_without_effect_is_said(app: Make, capsys: pytest.CaptureFixture[str]) -> None:
    static.read_site(app({"index.html": "", "static.json": '{"https_only": true}'}))
    assert capsys.readouterr().out == " !     static.json: https_only is not supported and has no effect.\n"


@pytest.mark.parametrize(
    ("files", "wanted"),
    [
        ({"package.json": '{"scripts": {"start": "node a.js"}}'}, False),
        ({"package.json": "{}", "Procfile": "web: npm start"}, True),
        ({"package.json": "{}", "Procfile": "web: node a.js\ntask: npx cowsay"}, True),
        ({"package.json": '{"scripts": {"prestart": "x", "start": "node a.js"}}'}, True),
    ],
)
def test_npm_comes_along_where_a_process_runs_it(app: Make, files: dict[str, str], wanted: bool) -> None:
    assert nodejs.wants_npm(app(files)) is wanted
