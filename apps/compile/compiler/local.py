"""`bin/compile FOLDER`: compile the app in a folder, as a build on the platform does, and leave the slug on this machine."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path

from compiler import compilation, limits, output, processes, source
from compiler.buildpacks import Folders
from compiler.compilation import Compiled
from compiler.ending import ended
from compiler.errors import Failure, SourceRefused, StoreFailed
from compiler.processes import Clock

PLACE = Path("/app")


def main(arguments: list[str]) -> int:
    """Compile as the arguments say; return the exit code of the contract."""
    options = _parser().parse_args(arguments)
    processes.adopt_orphans()
    signal.signal(signal.SIGTERM, _stopped)
    return ended(lambda: _print(options, compile_folder(options)))


def compile_folder(options: argparse.Namespace) -> Compiled:
    """Copy the folder into the build folder and compile it there. Raises Failure."""
    folder = Path(options.folder)
    if not folder.is_dir():
        raise SourceRefused(
            "source-not-there", f"There is no folder {options.folder}.", fixes=("Name the app's folder.",)
        )
    scratch = Path(options.scratch)
    build = Path(options.build) if options.build else _free_place(folder, scratch)
    _prepare(folder, build, scratch)
    source.copy_folder(folder, build)
    cache = Path(options.cache) if options.cache else scratch / "cache"
    return compilation.compile_app(Folders(build, cache, scratch / "env", scratch), os.environ, Clock(options.seconds))


def _free_place(folder: Path, scratch: Path) -> Path:
    """Return an app's place in a dyno; another one where that is the compiler's own or the source's, and must stay."""
    occupied = (folder.resolve(), Path(__file__).resolve())
    return scratch / "app" if any(path.is_relative_to(PLACE) for path in occupied) else PLACE


def _prepare(folder: Path, build: Path, scratch: Path) -> None:
    """Make the build folder and the scratch folder, empty. A build folder with files in it is not touched."""
    try:
        build.mkdir(parents=True, exist_ok=True)
        scratch.mkdir(parents=True, exist_ok=True)
        if build.resolve() == folder.resolve() or (any(build.iterdir()) and build not in (PLACE, scratch / "app")):
            raise Failure(
                "build-folder-not-empty",
                f"The build folder {build} is not empty.",
                fixes=("Name another with --build, or empty it.",),
            )
        compilation.empty_folder(build)
    except PermissionError as error:
        raise StoreFailed(
            "build-not-configured",
            f"This user cannot write {error.filename}.",
            fixes=("Run it in a one-off dyno, or name other folders with --build and --scratch.",),
        ) from error


def _print(options: argparse.Namespace, compiled: Compiled) -> None:
    if options.output:
        Path(options.output).write_bytes(compiled.slug.path.read_bytes())
    output.detail(f"sha256 {compiled.slug.sha256}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bin/compile", description="Compile the app in a folder to a slug.")
    parser.add_argument("folder", help="the app's folder, as `.`")
    parser.add_argument("--output", help="write the slug to this file")
    parser.add_argument(
        "--build", help="where it is compiled (default: /app, its place in a dyno, unless something is there)"
    )
    parser.add_argument("--scratch", default="/tmp/build", help="temporary files (default: %(default)s)")  # noqa: S108
    parser.add_argument("--cache", help="a folder for the build cache")
    parser.add_argument(
        "--seconds", type=float, default=limits.BUILD_SECONDS, help="the time limit (default: %(default)s)"
    )
    return parser


def _stopped(*_: object) -> None:
    output.warn("The build was stopped.")
    processes.kill_descendants()
    os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
