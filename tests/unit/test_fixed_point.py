"""The fixed point's comparison: a slug that differs makes the proof fail, and the message names the file and why."""

from __future__ import annotations

import hashlib
import io
import tarfile
from pathlib import Path
from typing import Any

import pytest
from compiler import source as compiler_source
from compiler.slug import make_slug

from blackstart.errors import ProofError
from blackstart.layers import Entry, Layer, file_entry, image_config, write_archive, write_layer
from blackstart.proofs.fixed_point import Compared, Copy, builder_of, compare, source_of, verdict
from blackstart.proofs.perturbed import VARIANTS, Variant, perturbed_source
from blackstart.proofs.rebuilt import stacks_difference
from blackstart.seed import seed_statement
from blackstart.slugs import slug_difference
from blackstart.sources import folder_source
from blackstart.stacks import Stack, Stacks

REBUILT: dict[str, Any] = {"stacks": {"rebuilt": True}}


def packed(folder: Path, **files: str) -> bytes:
    """Return the slug of an app with these files."""
    app = folder / "app"
    app.mkdir(parents=True)
    for name, text in files.items():
        (app / name).write_text(text)
    return make_slug(app, folder / "slug.squashfs", seconds=60).path.read_bytes()


def copy(origin: str, slug: bytes) -> Copy:
    return Copy(origin, hashlib.sha256(slug).hexdigest(), "compile.squashfs c0ffee", lambda: slug)


def unreachable() -> bytes:
    raise AssertionError("slugs of one digest are not fetched")


def test_equal_slugs_are_a_fixed_point_and_are_not_fetched() -> None:
    copies = [Copy(origin, "a" * 64, "compile", unreachable) for origin in ("S1", "S2", "S3")]
    proof = verdict([compare("bus", copies)], None, REBUILT)
    assert proof.holds
    assert proof.detail.startswith("S1 = S2 = S3 and perturbed: 3 slugs of 1 components, each the same bytes")


def test_a_timestamp_smuggled_into_a_slug_makes_the_proof_fail_and_is_named(tmp_path: Path) -> None:
    one = packed(tmp_path / "one", Procfile="web: x\n", stamp="built at 1764000000\n")
    other = packed(tmp_path / "other", Procfile="web: x\n", stamp="built at 1764000001\n")
    good = compare("bus", [copy("S1", one), copy("S2", one)])
    bad = compare("api", [copy("S1", one), copy("S2", one), copy("S3", other)])
    proof = verdict([good, bad], None, REBUILT)
    assert not proof.holds
    assert proof.detail.startswith("api: S1 (")
    assert ") and S3 (" in proof.detail
    assert "differ in stamp: line 1 differs, at byte 18" in proof.detail
    assert "bus" not in proof.detail


def test_a_stack_that_differs_makes_the_proof_fail() -> None:
    proof = verdict([Compared("bus", (), None)], "stack-debian-13: etc/x differs", REBUILT)
    assert (proof.holds, proof.detail) == (False, "built again, stack-debian-13: etc/x differs")


def test_a_slug_built_by_another_compiler_than_the_platforms_own_makes_the_proof_fail() -> None:
    by_stage_0, own = "compile.squashfs " + "0" * 64, "compile.squashfs " + "c" * 64
    compiler = compare(
        "compile", [Copy("S1", "c" * 64, by_stage_0, unreachable), Copy("S2", "c" * 64, own, unreachable)]
    )
    good = [Copy(origin, "a" * 64, by, unreachable) for origin, by in (("S1", by_stage_0), ("S2", own), ("S3", own))]
    assert verdict([compare("bus", good), compiler], None, REBUILT).holds
    bad = [*good[:2], Copy("S3", "a" * 64, by_stage_0, unreachable)]
    proof = verdict([compare("bus", bad), compiler], None, REBUILT)
    assert (proof.holds, proof.detail) == (
        False,
        f"S3 of bus was built by {by_stage_0}, not by the platform's own {own}",
    )


def test_what_is_no_slug_cannot_be_compared() -> None:
    with pytest.raises(ProofError, match="could not be compared"):
        slug_difference(b"one", b"other")


def test_provenance_says_what_built_a_slug_and_of_which_source() -> None:
    said = seed_statement("a" * 64, "b" * 64)
    assert builder_of(said) == f"source of compile {'b' * 64}"
    assert source_of(said) == "b" * 64
    assert (builder_of(None), source_of(None)) == ("not known: it was built before provenance was kept", None)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda variant: variant.order)
def test_a_perturbed_source_is_the_same_files_in_another_order_and_of_another_time(
    variant: Variant, tmp_path: Path
) -> None:
    folder = tmp_path / "app"
    folder.mkdir()
    for number in range(20):
        (folder / f"file-{number:02}").write_text(f"{number}\n")
    (folder / "bin").mkdir()
    (folder / "bin" / "run").write_text("#!/bin/sh\n")
    (folder / "bin" / "run").chmod(0o755)
    (folder / "link").symlink_to("file-01")
    plain = folder_source(folder)
    perturbed = perturbed_source(plain, variant)
    names, times = [], set()
    with tarfile.open(fileobj=io.BytesIO(perturbed)) as tar:
        for member in tar:
            names.append(member.name)
            times.add(member.mtime)
    assert times == {variant.dated}
    assert names != sorted(names)
    (tmp_path / "perturbed.tar").write_bytes(perturbed)
    (tmp_path / "unpacked").mkdir()
    compiler_source.unpack(tmp_path / "perturbed.tar", tmp_path / "unpacked")
    assert folder_source(tmp_path / "unpacked") == plain


def test_the_variants_change_everything() -> None:
    one, other = VARIANTS
    assert {name for name in vars(one) if getattr(one, name) == getattr(other, name)} == set()


def stacks(folder: Path, entry: Entry) -> Stacks:
    """Return stacks of one file each; `entry` is the build stack's."""
    folder.mkdir()
    return Stacks(run=stack(folder, "run", file_entry("etc/same", b"x")), build=stack(folder, "build", entry))


def stack(folder: Path, name: str, entry: Entry) -> Stack:
    path = folder / f"{name}.layer"
    layer = Layer(path, write_layer(path, [file_entry("etc/first", b"1"), entry]))
    config = image_config([layer], architecture="amd64", env=())
    digest = hashlib.sha256(config).hexdigest()
    write_archive(folder / f"{digest}.tar", f"r/{name}:{digest}", config, [layer])
    return Stack(f"r/{name}:{digest}", digest, "key", folder / f"{digest}.tar", 1, (layer.digest,))


def test_stacks_built_again_are_the_same_or_the_path_that_differs_is_named(tmp_path: Path) -> None:
    kept = stacks(tmp_path / "kept", file_entry("etc/machine", b"now"))
    assert stacks_difference(kept, stacks(tmp_path / "again", file_entry("etc/machine", b"now")), tmp_path) is None
    other = stacks(tmp_path / "other", file_entry("etc/machine", b"later"))
    assert (stacks_difference(kept, other, tmp_path) or "").startswith("build: etc/machine differs")
    mode = stacks(tmp_path / "mode", file_entry("etc/machine", b"now", 0o600))
    assert (stacks_difference(kept, mode, tmp_path) or "").startswith("build: etc/machine differs")
