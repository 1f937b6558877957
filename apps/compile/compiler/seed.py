"""`bin/seed FOLDER`: the compiler's own slug, made from a checkout without a compiler and without a build stack.

Stage 0 needs it to compile anything, the compiler included. The compiler is the standard library's Python and nothing
is installed for it, so its slug is its folder, packed. Compiled by itself from the same checkout it has the same bytes,
where mksquashfs is of the same version.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

from compiler.ending import ended
from compiler.procfile import read_procfile
from compiler.slug import make_slug

OURS = Path(__file__).resolve().parents[1]
LEFT_OUT = shutil.ignore_patterns(
    "tests",
    "__pycache__",
    "*.pyc",
    ".git",
    ".venv",
    "node_modules",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
)
"""What blackstart/sources.py leaves out of a component's source."""


def main(arguments: list[str]) -> int:
    """Write `<sha256>.squashfs` into a folder and print the seed as JSON, in the form of a build's result.json."""
    if len(arguments) != 1:
        print("usage: bin/seed FOLDER", file=sys.stderr)
        return 2
    return ended(lambda: print(json.dumps(seed(Path(arguments[0])))))


def seed(folder: Path) -> dict[str, object]:
    """Write the compiler's slug into `folder` and return what it is."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".seed-") as scratch:
        copy = Path(scratch) / "compile"
        shutil.copytree(OURS, copy, symlinks=True, ignore=LEFT_OUT)
        slug = make_slug(copy, Path(scratch) / "slug.squashfs", seconds=120)
        to = folder / f"{slug.sha256}.squashfs"
        slug.path.replace(to)
        to.chmod(0o644)
    return {"slug": slug.sha256, "size": slug.size, "process_types": read_procfile(OURS), "path": str(to)}
