"""The `static` buildpack: a static site, served by gunicorn and WhiteNoise from a virtual environment in the slug."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from compiler import kit, output
from compiler.errors import AppRefused
from compiler.kit import Work
from compiler.packs import python
from compiler.packs.bytecode import compile_bytecode

OURS = Path(__file__).resolve().parents[2] / "buildpacks" / "static"
SERVER = ".static"
SUPPORTED = ("root", "clean_urls", "error_page", "routes", "headers")
START = (
    ".static/venv/bin/gunicorn --chdir .static --bind 0.0.0.0:$PORT "
    "--workers ${WEB_CONCURRENCY:-1} --threads 16 --no-control-socket --access-logfile - 'server:load()'"
)


def compile(arguments: list[str]) -> int:
    """Put the server beside the site."""
    return kit.compiling(arguments, _compile)


def release(_: list[str]) -> int:
    """Give the server."""
    return kit.released({"web": START})


def _compile(work: Work) -> None:
    site = read_site(work.build)
    output.step(f"Serving the folder {site['root']}")
    folder = work.build / SERVER
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    (folder / "site.json").write_text(json.dumps(site, indent=1, sort_keys=True) + "\n")
    shutil.copyfile(OURS / "server.py", folder / "server.py")
    env = python.uv_environment(work)
    python.make_venv(folder / "venv", env, work)
    interpreter = folder / "venv" / "bin" / "python"
    argv = ["uv", "pip", "install", "--no-config", "--require-hashes", "--python", str(interpreter)]
    ran = kit.run([*argv, "-r", str(OURS / "requirements.txt")], cwd=work.build, env=env)
    if ran.code != 0:
        raise python.refusal(ran, "the static buildpack's requirements.txt")
    compile_bytecode(interpreter, python.site_packages(folder / "venv"), work.cache)


def read_site(build: Path) -> dict[str, Any]:
    """Return what the server is to do, from static.json and the folders there are."""
    given = _read_static_json(build)
    for key in sorted(set(given) - set(SUPPORTED)):
        output.warn(f"static.json: {key} is not supported and has no effect.")
    root = given.get("root", "public" if (build / "public").is_dir() else ".")
    if not isinstance(root, str) or not _is_inside(build, root):
        raise AppRefused(
            "static-root-missing",
            f"The site's folder is not there: {root!r}",
            fixes=("Set `root` in static.json to a folder of the app, relative to its top.",),
        )
    routes = given.get("routes", {})
    return {
        "root": root,
        "clean_urls": bool(given.get("clean_urls", False)),
        "error_page": given.get("error_page", "404.html" if (build / root / "404.html").is_file() else None),
        "fallback": routes.get("/**") if isinstance(routes, dict) else None,
        "headers": given.get("headers", {}),
    }


def _read_static_json(build: Path) -> dict[str, Any]:
    path = build / "static.json"
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8-sig"))
        if not isinstance(value, dict):
            raise ValueError("it is not an object")
    except ValueError as error:
        raise AppRefused(
            "static-json-invalid",
            "static.json is not valid JSON.",
            why=str(error),
            fixes=('Write an object, as {"root": "public"}.',),
        ) from error
    return value


def _is_inside(build: Path, root: str) -> bool:
    path = (build / root).resolve()
    return path.is_dir() and path.is_relative_to(build.resolve())
