"""The `nodejs` buildpack: package.json and package-lock.json, installed by npm."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

from compiler import kit, output
from compiler.errors import AppRefused
from compiler.kit import Ran, Work
from compiler.procfile import read_procfile

HEADERS = Path("/usr/include/node")
BUILD_SCRIPTS = ("heroku-postbuild", "build")
OTHER_LOCKS = {"yarn.lock": "Yarn", "pnpm-lock.yaml": "pnpm", "bun.lock": "Bun", "bun.lockb": "Bun"}
PROFILE = """\
export PATH="$HOME/node_modules/.bin:$PATH"
export NODE_ENV="${NODE_ENV:-production}"
export WEB_CONCURRENCY="${WEB_CONCURRENCY:-1}"
"""
NPM = ".npm/npm"
NPM_BIN = ".npm/bin"
NPM_PROFILE = """\
export PATH="$HOME/.npm/bin:$PATH"
export npm_config_update_notifier=false
export npm_config_logs_max=0
"""


def compile(arguments: list[str]) -> int:
    """Install the app's packages and run its build script."""
    return kit.compiling(arguments, _compile)


def release(arguments: list[str]) -> int:
    """Give what `npm start` runs."""
    command = start_command(Path(arguments[0]))
    return kit.released({} if command is None else {"web": command})


def start_command(build: Path) -> str | None:
    """Return what `npm start` would run, as the script itself: npm between it and the dyno would swallow its SIGTERM.

    Only a start script with a `prestart` or `poststart` beside it needs npm.
    """
    scripts = _scripts(read_package(build))
    start = scripts.get("start", "node server.js" if (build / "server.js").is_file() else None)
    if not isinstance(start, str) or not start.strip():
        return None
    hooked = "prestart" in scripts or "poststart" in scripts
    return "npm start" if hooked or "\n" in start else start.strip()


def wants_npm(build: Path) -> bool:
    """Whether a process of the app runs npm: the run stack has Node.js alone."""
    try:
        written = read_procfile(build) or {}
    except AppRefused:
        return False
    commands = {"web": start_command(build) or "", **written}.values()
    return any(re.search(r"\b(npm|npx)\b", command) for command in commands)


def _bring_npm(work: Work) -> None:
    """Put the build stack's npm into the slug."""
    program = shutil.which("npm")
    folder = Path(program or "/nowhere").resolve().parent.parent
    if not (folder / "node_modules").is_dir() or not (folder / "bin" / "npm-cli.js").is_file():
        output.warn("A process of this app runs npm, which is not in the run stack and could not be put into the slug.")
        return
    shutil.copytree(folder, work.build / NPM, symlinks=True)
    (work.build / NPM_BIN).mkdir(parents=True)
    for name in ("npm", "npx"):
        (work.build / NPM_BIN / name).symlink_to(f"../npm/bin/{name}-cli.js")
    work.profile("npm.sh", NPM_PROFILE)


def _compile(work: Work) -> None:
    package = read_package(work.build)
    _check_lock(work.build)
    node = kit.tool_version(["node", "--version"]).removeprefix("v")
    output.step(f"Using Node.js {node}, npm {kit.tool_version(['npm', '--version'])}")
    _check_engine(package, node)
    env = npm_environment(work)
    script = next((name for name in BUILD_SCRIPTS if name in _scripts(package)), None)
    if script is None:
        _npm("Installing package-lock.json with npm ci", ["ci", "--omit=dev"], work, env)
    else:
        _npm("Installing package-lock.json with npm ci", ["ci"], work, env)
        _npm(f"Running the build script: npm run {script}", ["run", script], work, env)
        _npm("Removing development packages", ["prune", "--omit=dev"], work, env)
    work.profile("nodejs.sh", PROFILE)
    if wants_npm(work.build):
        _bring_npm(work)
    kit.export({"PATH": f"{work.build}/node_modules/.bin:$PATH"})


def read_package(build: Path) -> dict[str, Any]:
    """Return what package.json holds. Raises AppRefused when it is not a JSON object."""
    try:
        value = json.loads((build / "package.json").read_text(encoding="utf-8-sig"))
    except ValueError as error:
        raise AppRefused(
            "nodejs-package-json-invalid",
            "package.json is not valid JSON.",
            why=str(error),
            fixes=("Check it with `npm pkg get name`.",),
        ) from error
    if not isinstance(value, dict):
        raise AppRefused("nodejs-package-json-invalid", "package.json is not a JSON object.")
    return value


def _scripts(package: dict[str, Any]) -> dict[str, Any]:
    scripts = package.get("scripts")
    return scripts if isinstance(scripts, dict) else {}


def _check_lock(build: Path) -> None:
    if (build / "package-lock.json").is_file() or (build / "npm-shrinkwrap.json").is_file():
        return
    other = next(
        (f"There is {file}, which is {name}'s. " for file, name in OTHER_LOCKS.items() if (build / file).is_file()), ""
    )
    raise AppRefused(
        "nodejs-lock-missing",
        "package.json has no lock file: there is no package-lock.json beside it.",
        why=f"{other}Without a lock, each build could install other versions.",
        fixes=("Make it with `npm install --package-lock-only` and commit package-lock.json.",),
    )


def _check_engine(package: dict[str, Any], node: str) -> None:
    """Warn when package.json asks plainly for another major version of Node.js."""
    engines = package.get("engines")
    wanted = engines.get("node") if isinstance(engines, dict) else None
    plain = re.fullmatch(r"[\^~v=]*(\d+)(\.[\dx*]+)*", wanted.strip()) if isinstance(wanted, str) else None
    if plain is not None and plain[1] != node.split(".")[0]:
        output.warn(f"package.json asks for Node.js {wanted}; the stack has Node.js {node}, which is used.")


def npm_environment(work: Work) -> dict[str, str]:
    """Return what makes npm quiet, cached, and compile native modules against the stack's own Node.js."""
    headers = {"npm_config_nodedir": "/usr"} if HEADERS.is_dir() else {}
    return {
        "npm_config_cache": str(work.cache / "npm"),
        "npm_config_prefer_offline": "true",
        "npm_config_fund": "false",
        "npm_config_audit": "false",
        "npm_config_update_notifier": "false",
        "npm_config_progress": "false",
        "npm_config_color": "false",
        "npm_config_logs_max": "0",
        "CFLAGS": "-O2 -g0",
        "CXXFLAGS": "-O2 -g0",
        **headers,
    }


def _npm(text: str, arguments: list[str], work: Work, env: dict[str, str]) -> None:
    output.step(text)
    ran = kit.run(["npm", *arguments], cwd=work.build, env=env)
    if ran.code != 0:
        raise refusal(ran, arguments)


def refusal(ran: Ran, arguments: list[str]) -> AppRefused:
    """Return why npm failed."""
    command = f"npm {' '.join(arguments)}"
    if arguments[0] == "run":
        return AppRefused(
            "nodejs-build-script-failed",
            f"The app's build script failed: `{command}` (exit code {ran.code}).",
            why=ran.why(),
            fixes=(
                f"Run `npm ci && {command}` on your machine.",
                "A build tool belongs into devDependencies or dependencies.",
            ),
        )
    for sign, reason, what, fixes in FAILURES:
        if re.search(sign, ran.text):
            return AppRefused(reason, what, why=ran.why(), fixes=fixes)
    return AppRefused(
        "nodejs-install-failed",
        f"`{command}` failed (exit code {ran.code}).",
        why=ran.why(),
        fixes=("Try the same on your machine, with an empty node_modules.",),
    )


FAILURES = (
    (
        r"heap out of memory",
        "build-out-of-memory",
        "Node.js needed more memory than the build has.",
        ("Make smaller bundles, or leave out source maps.", "Ask the operator for more build memory."),
    ),
    (
        r"can only install (packages )?when your package\.json and package-lock\.json",
        "nodejs-lock-outdated",
        "package-lock.json does not fit package.json.",
        ("Run `npm install --package-lock-only` and commit package-lock.json.",),
    ),
    (
        r"\bE404\b|\bETARGET\b",
        "nodejs-package-missing",
        "package-lock.json names a package, or a version of one, that does not exist.",
        ("Check the package's spelling.", "A private package needs the operator's package source."),
    ),
    (
        r"\bEINTEGRITY\b",
        "nodejs-integrity",
        "A package is not the one that package-lock.json was made with.",
        ("Make package-lock.json again: `rm package-lock.json && npm install --package-lock-only`.",),
    ),
    (
        r"\b(ENOTFOUND|ECONNREFUSED|ECONNRESET|ETIMEDOUT|EAI_AGAIN|ENETUNREACH|SELF_SIGNED\w*|UNABLE_TO_\w+)\b",
        "nodejs-registry-unreachable",
        "The package source did not answer.",
        ("Build again in a minute.", "If it stays so, tell the operator: can builds reach the package source?"),
    ),
    (
        r"node-gyp|gyp ERR!|command failed|ELIFECYCLE",
        "nodejs-package-build-failed",
        "A package's install script failed.",
        (
            "Use a version of the package with prebuilt binaries.",
            "If a C library is missing, name its Debian package in an Aptfile (libfoo-dev).",
        ),
    ),
)
"""What npm prints (a regular expression), the reason, the sentence, and what to do; the first that matches counts."""
