"""The `python` buildpack: requirements.txt, or pyproject.toml with uv.lock, installed by uv into /app/.venv."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from compiler import kit, output
from compiler.errors import AppRefused
from compiler.kit import Ran, Work
from compiler.packs.bytecode import compile_bytecode

VENV = ".venv"
SYSTEM_PYTHON = "/usr/bin/python3"
OTHER_MANAGERS = {"Pipfile": "Pipenv", "poetry.lock": "Poetry", "pdm.lock": "PDM", "environment.yml": "Conda"}
PROFILE = """\
export PATH="$HOME/.venv/bin:$PATH"
export VIRTUAL_ENV="$HOME/.venv"
export PYTHONUNBUFFERED="${PYTHONUNBUFFERED:-1}"
export WEB_CONCURRENCY="${WEB_CONCURRENCY:-2}"
export FORWARDED_ALLOW_IPS="${FORWARDED_ALLOW_IPS:-*}"
"""


def compile(arguments: list[str]) -> int:
    """Install the app's packages."""
    return kit.compiling(arguments, _compile)


def release(_: list[str]) -> int:
    """Give no process types: Python has no one way to start an app."""
    return kit.released({})


def _compile(work: Work) -> None:
    _check_version(work.build)
    output.step(f"Using Python {kit.python_version()}")
    install = _installer(work.build)
    env = uv_environment(work)
    make_venv(work.build / VENV, env, work)
    install(work, env)
    output.step("Compiling bytecode")
    compile_bytecode(work.build / VENV / "bin" / "python", site_packages(work.build / VENV), work.cache)
    _prune(work, env)
    work.profile("python.sh", PROFILE)
    kit.export({"PATH": f"{work.build / VENV}/bin:$PATH", "VIRTUAL_ENV": str(work.build / VENV)})


def _installer(build: Path) -> Callable[[Work, dict[str, str]], None]:
    """Return what installs the app's packages: by uv.lock where there is one, else by requirements.txt."""
    if (build / "uv.lock").is_file():
        if not (build / "pyproject.toml").is_file():
            raise AppRefused(
                "python-pyproject-missing",
                "There is uv.lock, but no pyproject.toml.",
                fixes=("Send pyproject.toml with the source: uv.lock belongs to it.",),
            )
        return _sync_lock
    if (build / "requirements.txt").is_file():
        return _install_requirements
    raise _no_lock(build)


def _no_lock(build: Path) -> AppRefused:
    """Return the refusal of an app whose packages are not written down in a way we install from."""
    for name, manager in OTHER_MANAGERS.items():
        if (build / name).is_file():
            return AppRefused(
                "python-manager-not-supported",
                f"{name} is {manager}'s: this platform installs from requirements.txt or uv.lock.",
                fixes=(
                    "Make a requirements.txt of what is installed now: `pip freeze > requirements.txt`.",
                    "Or move to uv: `uv init --bare && uv add -r requirements.txt`, then commit pyproject.toml and uv.lock.",
                ),
            )
    if (build / "pyproject.toml").is_file():
        return AppRefused(
            "python-lock-missing",
            "pyproject.toml has no lock file: there is no uv.lock beside it.",
            why="Without a lock, each build could install other versions.",
            fixes=("Make it with `uv lock` and commit uv.lock.", "Or write a requirements.txt."),
        )
    return AppRefused(
        "python-requirements-missing",
        "There is setup.py, but no requirements.txt and no uv.lock.",
        fixes=("Write a requirements.txt; one line `.` installs the app itself.",),
    )


def _check_version(build: Path) -> None:
    """Refuse an app that asks for a Python which the stack does not have."""
    have = ".".join(kit.python_version().split(".")[:2])
    for name in (".python-version", "runtime.txt"):
        path = build / name
        if not path.is_file():
            continue
        words = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()]
        wanted = next((word for word in words if not word.startswith("#")), "").removeprefix("python-")
        if not re.fullmatch(rf"(3|{re.escape(have)}(\..*)?)", wanted):
            raise AppRefused(
                "python-version-not-available",
                f"{name} asks for Python {wanted[:40] or '(nothing)'}; the stack has Python {kit.python_version()}.",
                fixes=(f"Write {have} into .python-version, or remove {name}.",),
            )


def uv_environment(work: Work) -> dict[str, str]:
    """Return what makes uv use the stack's Python, our cache, and copies: a slug shares no inode with the cache."""
    return {
        "UV_CACHE_DIR": str(work.cache / "uv"),
        "UV_LINK_MODE": "copy",
        "UV_PYTHON": SYSTEM_PYTHON,
        "UV_PYTHON_DOWNLOADS": "never",
        "UV_PYTHON_PREFERENCE": "only-system",
        "UV_NO_PROGRESS": "1",
        "UV_NATIVE_TLS": "1",
        "UV_SYSTEM_CERTS": "1",
        "UV_PROJECT_ENVIRONMENT": str(work.build / VENV),
        "CFLAGS": "-O2 -g0",
        "CXXFLAGS": "-O2 -g0",
    }


def make_venv(venv: Path, env: dict[str, str], work: Work) -> None:
    """Make a virtual environment of the stack's Python."""
    shutil.rmtree(venv, ignore_errors=True)
    ran = kit.run(
        ["uv", "venv", "--quiet", "--no-config", "--python", SYSTEM_PYTHON, str(venv)], cwd=work.build, env=env
    )
    if ran.code != 0:
        raise AppRefused("python-venv-failed", "uv could not make a virtual environment.", why=ran.why())


def site_packages(venv: Path) -> Path:
    """Return where the packages of a virtual environment lie."""
    return next((venv / "lib").glob("python3*")) / "site-packages"


def _install_requirements(work: Work, env: dict[str, str]) -> None:
    output.step("Installing requirements.txt with uv")
    text = (work.build / "requirements.txt").read_text(errors="replace")
    hashes = ["--require-hashes"] if re.search(r"--hash[= ]", text) else []
    python = str(work.build / VENV / "bin" / "python")
    ran = kit.run(
        ["uv", "pip", "install", *hashes, "--python", python, "-r", "requirements.txt"], cwd=work.build, env=env
    )
    if ran.code != 0:
        raise refusal(ran, "requirements.txt")


def _sync_lock(work: Work, env: dict[str, str]) -> None:
    """Install what uv.lock says. With a mirror the lock's addresses are another registry's, so its hashes are used."""
    if os.environ.get("UV_INDEX_URL"):
        _install_exported(work, env)
        return
    output.step("Installing uv.lock with uv")
    ran = kit.run(["uv", "sync", "--locked", "--no-default-groups"], cwd=work.build, env=env)
    if ran.code != 0:
        raise refusal(ran, "uv.lock")


def _install_exported(work: Work, env: dict[str, str]) -> None:
    output.step("Installing uv.lock with uv, from the operator's package source")
    exported = Path(os.environ["TMPDIR"]) / "requirements-of-lock.txt"
    ran = kit.run(
        [
            "uv",
            "export",
            "--quiet",
            "--frozen",
            "--no-default-groups",
            "--no-emit-project",
            "--output-file",
            str(exported),
        ],
        cwd=work.build,
        env=env,
        quiet=True,
    )
    if ran.code == 0:
        python = str(work.build / VENV / "bin" / "python")
        argv = ["uv", "pip", "install", "--require-hashes", "--python", python, "-r", str(exported)]
        ran = kit.run(argv, cwd=work.build, env=env)
        if ran.code == 0 and _is_package(work.build):
            argv = ["uv", "pip", "install", "--no-deps", "--editable", ".", "--python", python]
            ran = kit.run(argv, cwd=work.build, env=env)
    if ran.code != 0:
        raise refusal(ran, "uv.lock")


def _is_package(build: Path) -> bool:
    """Whether the app itself is a package, which `uv sync` would install too."""
    text = (build / "pyproject.toml").read_text(errors="replace")
    return re.search(r"^\[build-system\]", text, re.M) is not None


def _prune(work: Work, env: dict[str, str]) -> None:
    """Take out of the cache what no later build can use."""
    kit.run(["uv", "cache", "prune", "--quiet"], cwd=work.build, env=env, quiet=True)


def refusal(ran: Ran, file: str) -> AppRefused:
    """Return why uv could not install what `file` lists."""
    for sign, reason, what, fixes in FAILURES:
        if re.search(sign, ran.text):
            return AppRefused(reason, what.format(file=file), why=ran.why(), fixes=fixes)
    return AppRefused(
        "python-install-failed",
        f"uv could not install {file} (exit code {ran.code}).",
        why=ran.why(),
        fixes=("Try the same on your machine: `uv pip install -r requirements.txt` or `uv sync --locked`.",),
    )


FAILURES = (
    (
        r"was not found in the package registry",
        "python-package-missing",
        "{file} names a package that does not exist.",
        ("Check the package's spelling.", "A private package needs the operator's package source."),
    ),
    (
        r"[Hh]ash mismatch|no hashes? (was|were) provided|must have a hash|--require-hashes",
        "python-hash-mismatch",
        "{file} has a package whose hash is missing or another one.",
        ("Make the hashes again: `uv pip compile --generate-hashes requirements.in -o requirements.txt`.",),
    ),
    (
        r"lockfile at .* needs to be updated|--locked",
        "python-lock-outdated",
        "uv.lock does not fit pyproject.toml.",
        ("Run `uv lock` and commit uv.lock.",),
    ),
    (
        r"[Cc]ouldn't parse|Failed to parse|Expected .* found",
        "python-requirements-invalid",
        "{file} has a line that is not understood.",
        ("Write one package a line, as `flask==3.1.2`.",),
    ),
    (
        r"Failed to build|build backend|Call to `.*` failed",
        "python-package-build-failed",
        "A package in {file} could not be built.",
        (
            "Use a version of the package that comes as a wheel for this Python.",
            "If a C library is missing, name its Debian package in an Aptfile (libfoo-dev).",
        ),
    ),
    (
        r"No solution found|requires-python|has no wheels|no version",
        "python-requirements-conflict",
        "The packages in {file} do not fit together, or not to the stack's Python.",
        ("Read above which packages want what, and change one of the versions.",),
    ),
    (
        r"error sending request|Failed to fetch|[Cc]onnection|dns error|timed out|certificate",
        "python-index-unreachable",
        "The package source did not answer while {file} was installed.",
        ("Build again in a minute.", "If it stays so, tell the operator: can builds reach the package source?"),
    ),
)
"""What uv prints (a regular expression), the reason, the sentence, and what to do; the first that matches counts."""
