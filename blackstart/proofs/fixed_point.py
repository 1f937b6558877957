"""The fixed point: the platform's own compiler builds every component to the same bytes as the one before it.

S1 is what the components run with: on a fresh platform, what stage 0's compiler built. S2 is this checkout, built by the
platform's own compiler. S3 is the same, built once more: by the compiler of S2, which is that of S1 when both are the same
bytes (if they are not, the proof has failed already). Which compiler built what is in each slug's provenance.

Beside them every component is built on two nodes with everything changed that must not matter (`perturbed.py`), and
the stack images are built again from nothing (`rebuilt.py`).
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from blackstart import observe
from blackstart.client import Client
from blackstart.errors import PlatformError, ProofError
from blackstart.proofs import Proof
from blackstart.proofs.perturbed import VARIANTS, Perturbed, perturbed_build
from blackstart.proofs.rebuilt import CHANGED, rebuilding, stacks_difference
from blackstart.run import Run
from blackstart.slugs import slug_difference
from blackstart.sources import SourceTarball, checkout_root, component_names, component_source

NAME = "fixed-point"
COMPILER = "compile"
VERSION = "fixed-point"
BUILD_SECONDS = 1200.0
NEWEST_FIRST = {"Range": "version ..; order=desc,max=200"}
Log = Callable[[str], None]


@dataclass(frozen=True)
class Copy:
    """One slug of a component. `compiler` is what built it, as its provenance says; `data` fetches its bytes."""

    origin: str
    sha256: str
    compiler: str
    data: Callable[[], bytes]
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def shown(self) -> dict[str, Any]:
        """Return it for the report."""
        return {"origin": self.origin, "slug": self.sha256, "built_by": self.compiler, **self.facts}


@dataclass(frozen=True)
class Compared:
    """All slugs of one component. `difference` names the first one that is not the first's bytes, the file, and why."""

    component: str
    copies: tuple[Copy, ...]
    difference: str | None

    @property
    def shown(self) -> dict[str, Any]:
        """Return it for the report."""
        return {
            "component": self.component,
            "difference": self.difference,
            "slugs": [copy.shown for copy in self.copies],
        }


def compare(component: str, copies: Sequence[Copy]) -> Compared:
    """Hold every copy against the first."""
    first = copies[0]
    other = next((copy for copy in copies if copy.sha256 != first.sha256), None)
    if other is None:
        return Compared(component, tuple(copies), None)
    why = slug_difference(first.data(), other.data()) or "the bytes are the same, the digests given are not"
    text = f"{component}: {first.origin} ({first.sha256[:12]}) and {other.origin} ({other.sha256[:12]}) differ in {why}"
    return Compared(component, tuple(copies), text)


def prove(run: Run, *, only: Sequence[str] = (), stacks: bool = True) -> Proof:
    """Return the proof. `only` some components and no `stacks`: for tests."""
    root = checkout_root()
    names = [name for name in component_names(root) if not only or name in only]
    sources = {name: component_source(root, name) for name in names}
    log, began = run.log(NAME), time.monotonic()
    with observe.answering_client(run.platform) as client:
        generations = Generations(client, sources, log)
        first = generations.running(run.platform.stacks.run.name)
        with rebuilding(run) if stacks else contextlib.nullcontext() as rebuild:
            second, third = generations.built("S2"), generations.built("S3")
            perturbed = _perturbed(run, sources, first, client.running_slug(COMPILER), log)
            compared = [
                compare(name, (first[name], second[name], third[name], *perturbed[name])) for name in sorted(sources)
            ]
            kept, difference = run.platform.stacks, None
            images: dict[str, Any] = {"rebuilt": False}
            if rebuild is not None:
                log("the slugs are compared; waiting for the stack images")
                again = rebuild.finished()
                with tempfile.TemporaryDirectory(dir=rebuild.folder) as scratch:
                    difference = stacks_difference(kept, again, Path(scratch))
                images = {
                    "rebuilt": True,
                    "changed": CHANGED,
                    "difference": difference,
                    "kept": [kept.run.digest, kept.build.digest],
                    "again": [again.run.digest, again.build.digest],
                }
    seconds = round(time.monotonic() - began, 1)
    evidence = {"components": [one.shown for one in compared], "stacks": images, "seconds": seconds}
    return verdict(compared, difference, evidence)


def verdict(compared: Sequence[Compared], stacks: str | None, evidence: dict[str, Any]) -> Proof:
    """Return the proof of what was compared; `stacks` is the first difference of the stack images."""
    differences = [one.difference for one in compared if one.difference is not None]
    differences += other_builders(compared)
    if stacks is not None:
        differences.append(f"built again, {stacks}")
    if differences:
        return Proof(NAME, holds=False, detail="; ".join(differences), evidence=evidence)
    copies = sum(len(one.copies) for one in compared)
    images = ", and both stack images built again" if evidence["stacks"]["rebuilt"] else ""
    detail = f"S1 = S2 = S3 and perturbed: {copies} slugs of {len(compared)} components, each the same bytes{images}"
    return Proof(NAME, holds=True, detail=detail, evidence=evidence)


def other_builders(compared: Sequence[Compared]) -> list[str]:
    """Return what in S2 and S3 was not built by the platform's own compiler, which S1, S2 and S3 of it all are."""
    own = next((f"{COMPILER}.squashfs {one.copies[0].sha256}" for one in compared if one.component == COMPILER), None)
    return [
        f"{copy.origin} of {one.component} was built by {copy.compiler}, not by the platform's own {own}"
        for one in compared
        for copy in one.copies
        if own is not None and copy.origin in ("S2", "S3") and copy.compiler != own
    ]


@dataclass
class Generations:
    """The slugs that a platform runs, and those that it builds of `sources`."""

    client: Client
    sources: dict[str, SourceTarball]
    log: Log

    def running(self, stack: str) -> dict[str, Copy]:
        """Return S1. Raises ProofError where a component is of another source or stack than this checkout's."""
        return {name: self._running(name, stack) for name in self.sources}

    def _running(self, name: str, stack: str) -> Copy:
        releases = self.client.call("GET", f"/apps/{name}/releases", headers=NEWEST_FIRST)
        release = next((one for one in releases if one["current"] and one["slug"]), None)
        if release is None:
            raise ProofError(f"{name} has no release that runs", fix="look at `python3 bootstrap.py status`")
        copy, statement = self._slug("S1", name, release["slug"]["id"])
        source = source_of(statement)
        if source not in (None, self.sources[name].sha256) or copy.facts["stack"] != stack:
            raise ProofError(
                f"{name} runs a slug of another source or stack than this checkout's",
                why=f"it was built from the source {source} for {copy.facts['stack']}",
                fix="run `python3 bootstrap.py upgrade` first, or use the checkout that the platform was made from",
            )
        return copy

    def built(self, origin: str) -> dict[str, Copy]:
        """Return a generation, built by the platform now; as many at once as it permits. Nothing is released."""
        began = time.monotonic()
        with self._builds() as builds:
            copies = {name: self._finished(origin, name, build["id"]) for name, build in builds.items()}
        self.log(f"{origin}: {len(copies)} components built in {time.monotonic() - began:.1f} s")
        return copies

    @contextlib.contextmanager
    def _builds(self) -> Iterator[dict[str, dict[str, Any]]]:
        """Start a build of each component. Those that still wait at the end, because one failed, are cancelled."""
        builds: dict[str, dict[str, Any]] = {}
        try:
            for name, source in self.sources.items():
                builds[name] = self.client.build(name, source, version=VERSION, release=False)
            yield builds
        except BaseException:
            for name, build in builds.items():
                with contextlib.suppress(PlatformError):  # it runs or has ended
                    self.client.call("DELETE", f"/apps/{name}/builds/{build['id']}")
            raise

    def _finished(self, origin: str, name: str, build: str) -> Copy:
        """Return the slug of a build; one that failed is begun once more: the proof is about bytes, not about outages."""
        ended = self.client.finished_build(name, build, seconds=BUILD_SECONDS)
        if ended["status"] != "succeeded":
            self.log(f"{origin}: {name} failed, building it again: {ended.get('failure')}")
            again = self.client.build(name, self.sources[name], version=VERSION, release=False)
            ended = self.client.finished_build(name, again["id"], seconds=BUILD_SECONDS)
        if ended["status"] != "succeeded":
            why = f"{ended.get('failure') or ''}\n{''.join(self.client.output(ended))[-1500:]}".strip()
            raise ProofError(f"{origin}: the platform did not build {name}", why=why)
        copy, _ = self._slug(origin, name, ended["slug"]["id"])
        self.log(f"{origin}: {name} {copy.sha256[:12]}")
        return copy

    def _slug(self, origin: str, name: str, id_: str) -> tuple[Copy, dict[str, Any] | None]:
        slug = self.client.call("GET", f"/apps/{name}/slugs/{id_}")
        statement = self.client.maybe(f"/apps/{name}/slugs/{id_}/provenance")
        facts = {"built_at": slug["created_at"], "stack": slug["stack"]["name"], "provenance": statement}

        def data() -> bytes:
            return self.client.download(self.client.call("GET", f"/apps/{name}/slugs/{id_}")["blob"]["url"])

        return Copy(origin, slug["checksum"].removeprefix("SHA256:"), builder_of(statement), data, facts), statement


def source_of(statement: dict[str, Any] | None) -> str | None:
    """Return the sha256 of the source in a provenance statement."""
    if statement is None:
        return None
    source: str = statement["predicate"]["buildDefinition"]["externalParameters"]["source"]
    return source.removeprefix("sha256:")


def builder_of(statement: dict[str, Any] | None) -> str:
    """Return what built a slug, as its provenance says it."""
    if statement is None:
        return "not known: it was built before provenance was kept"
    (dependency,) = statement["predicate"]["runDetails"]["builder"]["builderDependencies"]
    return f"{dependency['name']} {dependency['digest']['sha256']}"


def _perturbed(
    run: Run, sources: dict[str, SourceTarball], expected: dict[str, Copy], compiler: str, log: Log
) -> dict[str, list[Copy]]:
    """Build every component in every variant; each variant of a component on another node."""
    nodes = run.platform.inventory.nodes
    work = [
        (name, variant, nodes[(place + turn) % len(nodes)])
        for place, name in enumerate(sorted(sources))
        for turn, variant in enumerate(VARIANTS)
    ]
    began = time.monotonic()
    with ThreadPoolExecutor(run.platform.inventory.hosts[0].settings.builds_at_once) as pool:
        jobs = [
            pool.submit(
                perturbed_build,
                run.platform,
                node,
                name,
                sources[name],
                variant,
                compiler=compiler,
                expected=expected[name].sha256,
            )
            for name, variant, node in work
        ]
        try:
            built = [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    log(f"perturbed: {len(built)} builds on {len(nodes)} nodes in {time.monotonic() - began:.1f} s")
    copies: dict[str, list[Copy]] = {name: [] for name in sources}
    for (name, _, _), one in zip(work, built, strict=True):
        copies[name].append(_perturbed_copy(one, compiler, expected[name]))
    return copies


def _perturbed_copy(one: Perturbed, compiler: str, expected: Copy) -> Copy:
    def data() -> bytes:
        return expected.data() if one.data is None else one.data

    origin = f"perturbed on {one.node} ({one.variant.timezone}, {one.variant.locale}, {one.variant.order} files)"
    facts = {"built_at": one.began, "node": one.node, "variant": one.variant.shown}
    return Copy(origin, one.sha256, f"compile.squashfs {compiler}", data, facts)
