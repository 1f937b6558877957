"""One compilation: a build folder that holds a clean copy of the source becomes a slug."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from compiler import buildpacks, output
from compiler.buildpacks import Buildpack, Folders
from compiler.environment import build_environment
from compiler.errors import AppRefused
from compiler.output import human_size
from compiler.processes import Clock
from compiler.procfile import PROCESS_TYPE, read_procfile
from compiler.slug import Slug, make_slug


@dataclass(frozen=True)
class Compiled:
    """What a compilation made."""

    slug: Slug
    process_types: dict[str, str]
    buildpacks: tuple[Buildpack, ...]


def compile_app(folders: Folders, outside: Mapping[str, str], clock: Clock) -> Compiled:
    """Compile the app in `folders.build`, print what happens, and return the slug. Raises Failure."""
    home, temporary = folders.scratch / "home", folders.scratch / "tmp"
    for folder in (home, temporary, folders.env, folders.cache):
        folder.mkdir(parents=True, exist_ok=True)
    environment = build_environment(outside, home=home, temporary=temporary)
    read_procfile(folders.build)
    packs = buildpacks.choose(folders, environment, clock)
    defaults: dict[str, str] = {}
    for pack in packs:
        output.step(f"{pack.language} app detected" if pack.name != buildpacks.FIRST else "Aptfile detected")
        environment = buildpacks.compile_with(pack, folders, environment, clock)
        defaults.update(buildpacks.default_processes(pack, folders, environment, clock))
    types = _process_types(folders.build, packs, defaults)
    clock.check()
    try:
        slug = make_slug(folders.build, folders.scratch / "slug.squashfs", seconds=max(1.0, clock.left()))
    except subprocess.TimeoutExpired:
        raise clock.over() from None
    output.step(f"Compiled slug is {human_size(slug.size)}")
    return Compiled(slug, types, tuple(packs))


def _process_types(build: Path, packs: list[Buildpack], defaults: Mapping[str, str]) -> dict[str, str]:
    """Return the app's process types: the Procfile's, and the buildpacks' where it says nothing."""
    written = read_procfile(build) or {}
    added = {type_: command for type_, command in defaults.items() if type_ not in written}
    _check_types(added)
    if not written and not added:
        raise _nothing_to_run(packs)
    output.step("Discovering process types")
    if written:
        output.detail(f"Procfile declares types -> {', '.join(written)}")
    if added:
        output.detail(f"Default types for {packs[-1].language} -> {', '.join(added)}")
    return {**written, **added}


def _check_types(types: Mapping[str, str]) -> None:
    for type_ in types:
        if not PROCESS_TYPE.fullmatch(type_):
            raise AppRefused("buildpack-release-failed", f"A buildpack's release names a bad process type: {type_!r}")


def _nothing_to_run(packs: list[Buildpack]) -> AppRefused:
    examples = {
        "python": "web: gunicorn app:app",
        "nodejs": "web: node server.js",
        "ruby": "web: bundle exec puma --port $PORT",
    }
    example = examples.get(packs[-1].name, "web: ./server")
    return AppRefused(
        "process-types-missing",
        "The app does not say what to run: it has no Procfile, and its buildpack has no default.",
        fixes=(f"Add a file named Procfile with a line such as `{example}`.", "A web process listens on $PORT."),
    )


def empty_folder(folder: Path) -> None:
    """Remove what is in `folder`, and keep it: it may be a mount, or belong to root."""
    for entry in os.scandir(folder):
        if entry.is_dir(follow_symlinks=False):
            shutil.rmtree(entry.path)
        else:
            os.unlink(entry.path)
