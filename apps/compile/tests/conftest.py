"""What the compiler's tests share."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from apps.compile.tests.compile_fakes import FakeStore

Member = tuple[str, str | bytes | tarfile.TarInfo]


@pytest.fixture
def store() -> Iterator[FakeStore]:
    """A real HTTP server to get from and put to."""
    with FakeStore() as store:
        yield store


@pytest.fixture
def tarball(tmp_path: Path) -> Callable[..., Path]:
    """Make a tarball: `tarball({"name": "contents"}, links={"name": "target"})`."""

    def make(files: dict[str, str], *, members: list[tarfile.TarInfo] | None = None, mode: str = "w:gz") -> Path:
        path = tmp_path / "made.tar"
        with tarfile.open(path, mode) as tar:  # type: ignore[call-overload]
            for name, text in files.items():
                entry = tarfile.TarInfo(name)
                entry.size = len(text.encode())
                tar.addfile(entry, io.BytesIO(text.encode()))
            for member in members or []:
                tar.addfile(member)
        return path

    return make


@pytest.fixture
def app(tmp_path: Path) -> Callable[..., Path]:
    """Make an app's folder: `app({"Procfile": "web: ./run"})`."""

    def make(files: dict[str, str], name: str = "app") -> Path:
        folder = tmp_path / name
        for path, text in files.items():
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            (folder / path).write_text(text)
        folder.mkdir(exist_ok=True)
        return folder

    return make
