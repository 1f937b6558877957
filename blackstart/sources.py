"""Source tarballs: deterministic, so that the same files have the same digest on every machine and day."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from uv import find_uv_bin

from blackstart.model.component import Component, parse_component

LEFT_OUT = {
    "__pycache__",
    ".git",
    ".venv",
    "node_modules",
    ".mypy_cache",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
}
TESTS = "tests"


@dataclass(frozen=True)
class SourceTarball:
    """A gzipped tar and its sha256."""

    data: bytes
    sha256: str


def checkout_root() -> Path:
    """Return the root of this checkout."""
    return Path(__file__).resolve().parent.parent


def component_names(root: Path) -> list[str]:
    """Return the names of the components in `root`, sorted."""
    return sorted(path.parent.name for path in (root / "apps").glob("*/component.toml"))


def read_component(root: Path, name: str) -> Component:
    """Return the description of the component `name`."""
    return parse_component((root / "apps" / name / "component.toml").read_text())


def component_source(root: Path, name: str) -> SourceTarball:
    """Return the source of a component: its folder without tests, and the library folders that it names."""
    folder = root / "apps" / name
    members = [
        (str(path.relative_to(folder)), path) for path in _files(folder) if TESTS not in path.relative_to(folder).parts
    ]
    library = read_component(root, name).library
    if library:
        members.append(("blackstart/__init__.py", root / "blackstart" / "__init__.py"))
    for part in library:
        members += [(str(path.relative_to(root)), path) for path in _files(root / part)]
    return pack(members)


def checkout_source(root: Path) -> SourceTarball:
    """Return what the stage-0 machine needs of this checkout."""
    wanted = ("apps", "blackstart", "requirements.lock")
    found = [path for name in wanted for path in ([root / name] if (root / name).is_file() else _files(root / name))]
    return pack((str(path.relative_to(root)), path) for path in found if TESTS not in path.relative_to(root).parts)


def uv_binary() -> Path:
    """Return the uv of this environment: a static program, so it runs on the machines too."""
    return Path(find_uv_bin())


def folder_source(folder: Path) -> SourceTarball:
    """Return the source of an app in `folder`."""
    return pack((str(path.relative_to(folder)), path) for path in _files(folder))


def pack(members: Iterable[tuple[str, Path]]) -> SourceTarball:
    """Return a tarball of (name inside, file) pairs: sorted, without owners, times and odd modes."""
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", mtime=0, compresslevel=6) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, path in sorted(members):
            tar.addfile(*_entry(name, path))
    data = buffer.getvalue()
    return SourceTarball(data=data, sha256=hashlib.sha256(data).hexdigest())


def _entry(name: str, path: Path) -> tuple[tarfile.TarInfo, io.BytesIO | None]:
    entry = tarfile.TarInfo(name)
    if path.is_symlink():
        entry.type = tarfile.SYMTYPE
        entry.linkname = str(path.readlink())
        return entry, None
    content = path.read_bytes()
    entry.size = len(content)
    entry.mode = 0o755 if path.stat().st_mode & 0o100 else 0o644
    return entry, io.BytesIO(content)


def _files(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if (path.is_file() or path.is_symlink())
        and not LEFT_OUT.intersection(path.relative_to(folder).parts)
        and path.suffix != ".pyc"
    ]
