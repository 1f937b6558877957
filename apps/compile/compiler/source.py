"""Sources: a tarball from a stranger, or a folder, becomes a clean copy in the build folder.

A tarball is read twice. The first time checks every member and adds up sizes, writing nothing; the second unpacks
with tarfile's `data` filter (PEP 706), which is then a second line of defence.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import lzma
import posixpath
import shutil
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, cast

from compiler import limits
from compiler.errors import SourceRefused

LEFT_OUT = (".git", "node_modules")
"""Left out at any depth: history, and packages that the build installs itself."""
LEFT_OUT_AT_TOP = ("vendor/bundle", ".venv", ".bundle")
"""Left out at the top: Ruby's and Python's packages, of another machine."""
KEPT_TOP = "public"
"""A tarball of one folder is unpacked without it, unless this is its name: then it is a static site's folder."""

DAMAGED = (tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, UnicodeError, ValueError, OverflowError)
MAKE_TARBALL = (
    "Make the tarball with `git archive --format=tar.gz HEAD`, or `tar czf source.tgz .` in the app's folder."
)


@dataclass
class Contents:
    """What a tarball holds: `prefix` is the folder to strip ("" when there is none)."""

    prefix: str = ""
    files: int = 0
    size: int = 0
    names: set[str] = field(default_factory=set)


class _Bounded(io.RawIOBase):
    """A decompressed stream that ends with an error when it gives more than a tarball may hold."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._most = limits.SOURCE_UNPACKED + limits.SOURCE_MEMBERS * 2 * tarfile.BLOCKSIZE

    def read(self, size: int = -1) -> bytes:
        if size < 0 or size > limits.SOURCE_HEADER:
            raise _bomb("a header of a member is too large")
        if self._stream.tell() + size > self._most:
            raise _bomb("the stream does not end")
        return self._stream.read(size)

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence != io.SEEK_SET or offset > self._most:
            raise _bomb("the stream does not end")
        return self._stream.seek(offset)

    def tell(self) -> int:
        return self._stream.tell()


def unpack(tarball: Path, folder: Path) -> Contents:
    """Unpack `tarball` into `folder`, clean, and return what it held. Raises SourceRefused."""
    contents = inspect(tarball)
    try:
        with _opened(tarball) as tar:
            for member in tar:
                name = _inner(member.name, contents.prefix)
                if name and not is_left_out(name):
                    tar.extract(_renamed(member, name, contents.prefix), folder, filter="data")
    except tarfile.FilterError as error:
        raise _climbs(error.tarinfo.name, str(error)) from error
    except KeyError as error:
        raise _damaged(f"a hard link names a file that is not there: {error}") from error
    except DAMAGED as error:
        raise _damage(error) from error
    return contents


def inspect(tarball: Path) -> Contents:
    """Check every member of `tarball`, write nothing, and return what it holds. Raises SourceRefused."""
    contents = Contents()
    links: set[str] = set()
    tops: dict[str, bool] = {}
    try:
        with _opened(tarball) as tar:
            for member in tar:
                name = _checked(member, links)
                _count(contents, member)
                if name:
                    top = PurePosixPath(name).parts[0]
                    tops[top] = tops.get(top, False) or top != name or member.isdir()
                    contents.names.add(name)
            _read_to_end(tar)
    except DAMAGED as error:
        raise _damage(error) from error
    if not contents.names:
        raise SourceRefused("source-empty", "The source has no files.", fixes=(MAKE_TARBALL,))
    if len(tops) == 1 and all(tops.values()) and KEPT_TOP not in tops:
        contents.prefix = next(iter(tops))
    return contents


def copy_folder(source: Path, folder: Path) -> int:
    """Copy the app in `source` into `folder`, clean, and return the number of files."""
    count = 0
    for path in sorted(source.rglob("*")):
        name = path.relative_to(source).as_posix()
        if is_left_out(name):
            continue
        to = folder / name
        if path.is_symlink():
            to.parent.mkdir(parents=True, exist_ok=True)
            to.symlink_to(path.readlink())
        elif path.is_dir():
            to.mkdir(parents=True, exist_ok=True)
        elif path.is_file():
            to.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, to)
            to.chmod(0o755 if path.stat().st_mode & 0o100 else 0o644)
            count += 1
    return count


def is_left_out(name: str) -> bool:
    """Whether the file `name` (relative, with `/`) is left out of a build."""
    return bool(set(LEFT_OUT).intersection(name.split("/"))) or any(
        name == top or name.startswith(f"{top}/") for top in LEFT_OUT_AT_TOP
    )


@contextmanager
def _opened(tarball: Path) -> Iterator[tarfile.TarFile]:
    with tarball.open("rb") as raw:
        stream = _Bounded(_decompressed(raw))
        with tarfile.open(fileobj=cast(BinaryIO, stream), mode="r:") as tar:
            yield tar


def _read_to_end(tar: tarfile.TarFile) -> None:
    """Read what follows the last member: the compressed stream's own checksum is at its end."""
    while tar.fileobj is not None and tar.fileobj.read(limits.MEGABYTE):
        pass


def _decompressed(raw: BinaryIO) -> BinaryIO:
    magic = raw.read(6)
    raw.seek(0)
    if magic.startswith(b"\x1f\x8b"):
        return cast(BinaryIO, gzip.GzipFile(fileobj=raw))
    if magic.startswith(b"\xfd7zXZ\0"):
        return cast(BinaryIO, lzma.LZMAFile(raw))
    if magic.startswith(b"BZh"):
        return cast(BinaryIO, bz2.BZ2File(raw))
    return raw


def _checked(member: tarfile.TarInfo, links: set[str]) -> str:
    """Return the member's normal name ("" for the root folder); raise when it could leave the folder."""
    if member.name.startswith("/"):
        raise _climbs(member.name, "its name is absolute")
    name = posixpath.normpath(member.name)
    if name == ".":
        return ""
    if name.split("/")[0] == ".." or "\0" in name:
        raise _climbs(member.name, "its name climbs out with ..")
    if any(str(parent) in links for parent in PurePosixPath(name).parents):
        raise _climbs(member.name, "it lies below a symbolic link")
    if member.issym():
        links.add(name)
        _check_link(member.name, member.linkname, posixpath.join(posixpath.dirname(name), member.linkname))
    elif member.islnk():
        _check_link(member.name, member.linkname, member.linkname)
        if posixpath.normpath(member.linkname) in links:
            raise _climbs(member.name, "it is a hard link to a symbolic link")
    elif not (member.isreg() or member.isdir()):
        raise _climbs(member.name, "it is a device, a pipe or of an unknown type")
    return name


def _check_link(name: str, target: str, resolved: str) -> None:
    if target.startswith("/"):
        raise _climbs(name, f"it links to the absolute path {target}")
    if posixpath.normpath(resolved).split("/")[0] == "..":
        raise _climbs(name, f"it links out of the source, to {target}")


def _count(contents: Contents, member: tarfile.TarInfo) -> None:
    contents.files += 1
    contents.size += member.size
    if contents.files > limits.SOURCE_MEMBERS:
        raise _bomb(f"it holds more than {limits.SOURCE_MEMBERS} files")
    if contents.size > limits.SOURCE_UNPACKED:
        raise _bomb(f"it unpacks to more than {limits.SOURCE_UNPACKED // limits.MEGABYTE} MB")


def _inner(name: str, prefix: str) -> str:
    """Return a member's name in the build folder: without the one top folder."""
    inner = posixpath.normpath(name)
    if prefix:
        inner = posixpath.relpath(inner, prefix) if inner != prefix else "."
    return "" if inner == "." else inner


def _renamed(member: tarfile.TarInfo, name: str, prefix: str) -> tarfile.TarInfo:
    link = _inner(member.linkname, prefix) if member.islnk() else member.linkname
    return member.replace(name=name, linkname=link, deep=False)


def _climbs(name: str, why: str) -> SourceRefused:
    return SourceRefused(
        "source-unsafe-member",
        f"The source has a file that may not be unpacked: {name!r}.",
        why=f"{why[0].upper()}{why[1:]}.",
        fixes=("Take the file out of the source, or make the link a relative one to a file in it.", MAKE_TARBALL),
    )


def _bomb(why: str) -> SourceRefused:
    return SourceRefused(
        "source-too-large",
        "The source unpacks to more than a build may hold.",
        why=f"{why[0].upper()}{why[1:]}.",
        fixes=("Leave out what the app does not need to run: data, media, build output, node_modules, .git.",),
    )


def _damage(error: Exception) -> Exception:
    """Return what `error` says about the tarball; a full disk says nothing about it."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return error
    return _damaged(str(error))


def _damaged(why: str) -> SourceRefused:
    return SourceRefused(
        "source-not-a-tarball",
        "The source is not a tarball, or it is damaged.",
        why=why,
        fixes=(MAKE_TARBALL, "A tar may be plain, or compressed with gzip, xz or bzip2. A zip is not a tarball."),
    )
