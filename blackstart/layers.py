"""Image layers and image archives that are the same bytes whenever their content is the same.

A layer is a tar of a root file system, or of what one root file system has more than another. An archive is what
`docker load` takes: layers, a config (whose sha256 is the image's id) and a manifest that names the image.
"""

from __future__ import annotations

import copy
import hashlib
import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

EPOCH = 1735689600
"""The time of everything in an image that is not older: 2025-01-01, in seconds."""
CREATED = "2025-01-01T00:00:00Z"
HASH_BYTES = 1 << 20

Signature = tuple[bytes, int, int, int, str, str]
"""(type, mode, uid, gid, link target, sha256 of the content)"""

DROPPED = re.compile(
    r"(dev|proc|sys|run|tmp|boot|home|media|mnt|srv|var/log|var/cache|var/tmp|var/lib/apt/lists)/.+"
    r"|var/lib/apt/(extended_states|daily_lock)|var/lib/dpkg/(lock.*|.*-old|triggers/Lock)|var/lib/dbus/machine-id"
    r"|etc/(machine-id|hostname|resolv\.conf|hosts|.*-|\.pwd\.lock)|etc/apt/apt\.conf\.d/99mmdebstrap|etc/dpkg/dpkg\.cfg\.d/99mmdebstrap"
)
"""Paths that differ from build to build, or that a container gets from its engine."""


@dataclass(frozen=True)
class Entry:
    """One path of a root file system; `data` is the content of a file, else empty."""

    info: tarfile.TarInfo
    data: bytes

    @property
    def signature(self) -> Signature:
        """What makes two entries of the same path equal; times do not count."""
        digest = hashlib.sha256(self.data).hexdigest() if self.info.isreg() else ""
        return (self.info.type, self.info.mode, self.info.uid, self.info.gid, self.info.linkname, digest)


def file_entry(path: str, data: bytes, mode: int = 0o644) -> Entry:
    """Return a file of root's."""
    info = _new(path, mode)
    info.size = len(data)
    return Entry(info, data)


def folder_entry(path: str, mode: int = 0o755, owner: int = 0) -> Entry:
    """Return a folder."""
    info = _new(path, mode)
    info.type = tarfile.DIRTYPE
    info.uid = info.gid = owner
    return Entry(info, b"")


def link_entry(path: str, target: str) -> Entry:
    """Return a symbolic link."""
    info = _new(path, 0o777)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return Entry(info, b"")


def _new(path: str, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path)
    info.mode, info.mtime = mode, EPOCH
    return info


def read_layer(stream: IO[bytes]) -> Iterator[Entry]:
    """Yield the entries of a tar in a canonical form, without what no image needs."""
    with tarfile.open(fileobj=stream, mode="r:") as tar:
        for member in tar:
            info = _canonical(member)
            if info is not None:
                content = tar.extractfile(member) if member.isreg() else None
                yield Entry(info, content.read() if content is not None else b"")


def _canonical(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    name = _clean(member.name)
    if name in ("", ".") or DROPPED.fullmatch(name) is not None:
        return None
    info = copy.copy(member)
    info.name = name
    info.linkname = _clean(member.linkname) if member.islnk() else member.linkname
    info.uname = info.gname = ""
    info.mtime = min(int(member.mtime), EPOCH)
    info.pax_headers = {}
    return info


def _clean(name: str) -> str:
    return name.removeprefix("./").rstrip("/")


def changed_entries(entries: Iterable[Entry], below: Mapping[str, Signature]) -> Iterator[Entry]:
    """Yield what a layer over `below` must hold so that the result is `entries`.

    Parent folders come along, because an engine would make a missing one with a mode of its own. What `below` has more
    is hidden by white-outs. A hard link to a file that is not in the layer becomes a copy.
    """
    folders: dict[str, Entry] = {}
    files: dict[str, Entry] = {}
    written: set[str] = set()
    seen: set[str] = set()
    for entry in entries:
        name = entry.info.name
        seen.add(name)
        if entry.info.isdir():
            folders[name] = entry
        elif entry.info.isreg():
            files[name] = entry
        if below.get(name) == entry.signature and not (entry.info.islnk() and entry.info.linkname in written):
            continue
        yield from _parents(name, folders, written)
        if name not in written:
            written.add(name)
            yield _linkable(entry, files, written)
    gone = sorted(name for name in below if name not in seen)
    for name in gone:
        parent, _, leaf = name.rpartition("/")
        if parent in folders:
            yield from _parents(name, folders, written)
            yield file_entry(f"{parent}/.wh.{leaf}", b"")


def _parents(name: str, folders: Mapping[str, Entry], written: set[str]) -> Iterator[Entry]:
    parts = name.split("/")[:-1]
    for count in range(1, len(parts) + 1):
        path = "/".join(parts[:count])
        if path in folders and path not in written:
            written.add(path)
            yield folders[path]


def _linkable(entry: Entry, files: Mapping[str, Entry], written: set[str]) -> Entry:
    target = files.get(entry.info.linkname)
    if not entry.info.islnk() or entry.info.linkname in written or target is None:
        return entry
    info = copy.copy(target.info)
    info.name = entry.info.name
    return Entry(info, target.data)


def write_layer(path: Path, entries: Iterable[Entry]) -> str:
    """Write the entries as a layer; return its sha256, the layer's diff id."""
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for entry in entries:
            tar.addfile(entry.info, io.BytesIO(entry.data) if entry.info.isreg() else None)
    return file_sha256(path)


def file_sha256(path: Path) -> str:
    """Return the sha256 of a file."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


@dataclass(frozen=True)
class Layer:
    """A layer's tar and its sha256."""

    path: Path
    digest: str


def image_config(
    layers: Iterable[Layer], *, architecture: str, env: Iterable[str], volumes: Iterable[str] = ()
) -> bytes:
    """Return the image's config; its sha256 is the image's id. It has no entry point and no command.

    Each container gets a volume of its own at the paths `volumes`, which ends with it.
    """
    digests = [f"sha256:{layer.digest}" for layer in layers]
    config = {
        "architecture": architecture,
        "os": "linux",
        "created": CREATED,
        "config": {"Env": list(env), "Volumes": {path: {} for path in volumes}},
        "rootfs": {"type": "layers", "diff_ids": digests},
        "history": [{"created": CREATED, "created_by": "blackstart"} for _ in digests],
    }
    return json.dumps(config, sort_keys=True, separators=(",", ":")).encode()


def write_archive(path: Path, name: str, config: bytes, layers: list[Layer], *, lacking: int = 0) -> None:
    """Write what `docker load` takes.

    The first `lacking` layers are named, but not in the archive: the engine must have them from another image. It opens
    only the files of layers that it has not (moby, image/tarexport/load.go; not so with containerd's image store).
    """
    config_name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": config_name, "RepoTags": [name], "Layers": [f"{layer.digest}.tar" for layer in layers]}]
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        for inside, data in ((config_name, config), ("manifest.json", json.dumps(manifest).encode())):
            entry = file_entry(inside, data)
            tar.addfile(entry.info, io.BytesIO(entry.data))
        for layer in layers[lacking:]:
            info = _new(f"{layer.digest}.tar", 0o644)
            info.size = layer.path.stat().st_size
            with layer.path.open("rb") as stream:
                tar.addfile(info, stream)


def extract_layer(archive: Path, digest: str, to: Path) -> Layer:
    """Take a layer out of an archive."""
    with tarfile.open(archive, "r:") as tar:
        stream = tar.extractfile(f"{digest}.tar")
        if stream is None:
            raise KeyError(digest)
        with to.open("wb") as target:
            while block := stream.read(HASH_BYTES):
                target.write(block)
    return Layer(to, digest)
