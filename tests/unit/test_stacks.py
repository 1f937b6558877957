"""Which stack a recipe is, and that archives are a function of their content."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from blackstart import stacks
from blackstart.errors import StackError
from blackstart.layers import (
    Entry,
    Layer,
    changed_entries,
    file_entry,
    folder_entry,
    image_config,
    link_entry,
    read_layer,
    write_archive,
    write_layer,
)
from blackstart.providers.machine_image import mark_used, remove_unused
from blackstart.stacks import BUILD, RUN, StackSources, build_recipe, read_packages, run_recipe

SOURCES = StackSources(apt=("deb http://mirror.invalid/debian trixie main",))


def stack(digest: str = "a" * 64) -> stacks.Stack:
    return stacks.Stack(
        f"127.0.0.1:1/{RUN}:{digest}", digest, "k", Path(f"/cache/shared/stacks/{digest}.tar"), 1, ("b" * 64,)
    )


@pytest.fixture
def templates(tmp_path: Path) -> Path:
    return Path(shutil.copytree(stacks.TEMPLATES, tmp_path / "templates"))


@pytest.mark.parametrize("changed", ["run.packages", "dyno"])
def test_another_recipe_file_is_another_run_stack(templates: Path, changed: str) -> None:
    before = run_recipe(SOURCES, "amd64", templates)
    with (templates / changed).open("a") as stream:
        stream.write("another\n")
    assert run_recipe(SOURCES, "amd64", templates).key != before.key


@pytest.mark.parametrize("changed", ["run.packages", "dyno", "build.packages", "build.tools.txt"])
def test_another_recipe_file_is_another_build_stack(templates: Path, changed: str) -> None:
    before = build_recipe(stack(), SOURCES, "amd64", templates)
    with (templates / changed).open("a") as stream:
        stream.write("another\n")
    assert build_recipe(stack(), SOURCES, "amd64", templates).key != before.key


def test_a_comment_in_a_package_list_changes_nothing(templates: Path) -> None:
    before = run_recipe(SOURCES, "amd64", templates)
    with (templates / "run.packages").open("a") as stream:
        stream.write("# a comment\n\n")
    assert run_recipe(SOURCES, "amd64", templates).key == before.key


def test_another_source_or_architecture_is_another_stack() -> None:
    keys = {
        run_recipe(SOURCES, "amd64").key,
        run_recipe(SOURCES, "arm64").key,
        run_recipe(StackSources(apt=("deb http://other.invalid/debian trixie main",)), "amd64").key,
    }
    assert len(keys) == 3


def test_another_run_stack_is_another_build_stack() -> None:
    assert build_recipe(stack("a" * 64), SOURCES, "amd64").key != build_recipe(stack("c" * 64), SOURCES, "amd64").key


def test_another_dyno_program_needs_no_new_root_file_system(templates: Path) -> None:
    before = run_recipe(SOURCES, "amd64", templates)
    (templates / "dyno").write_text("another")
    assert run_recipe(SOURCES, "amd64", templates).debian_key == before.debian_key


def test_the_build_stack_has_all_packages_of_the_run_stack() -> None:
    run, build = run_recipe(SOURCES, "amd64"), build_recipe(stack(), SOURCES, "amd64")
    assert (run.stack, build.stack) == (RUN, BUILD)
    assert set(run.packages) < set(build.packages)
    assert "npm" not in build.packages


def test_a_stack_knows_how_it_is_loaded_and_checked() -> None:
    loaded = stack()
    assert loaded.path_on_machine == f"/var/cache/blackstart/host/stacks/{'a' * 64}.tar"
    assert loaded.load_commands("/a b") == ["docker load --quiet --input '/a b'"]
    assert loaded.check_vector()[-1] == f"127.0.0.1:1/stack-debian-13:{'a' * 64}"


def test_a_cache_without_stacks_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(StackError, match="are not in") as caught:
        stacks.cached_stacks(tmp_path, SOURCES)
    assert "up" in caught.value.fix


def test_a_truncated_archive_does_not_count(tmp_path: Path) -> None:
    folder = stacks.stacks_folder(tmp_path)
    folder.mkdir(parents=True)
    recipe = run_recipe(SOURCES, stacks.host_architecture())
    note = {"name": "n", "digest": "a", "key": recipe.key, "size": 10, "layers": []}
    (folder / f"{RUN}-{recipe.key}.json").write_text(json.dumps(note))
    (folder / "a.tar").write_bytes(b"short")
    assert stacks._cached(tmp_path, recipe) is None
    (folder / "a.tar").write_bytes(b"0123456789")
    assert stacks._cached(tmp_path, recipe) is not None


def test_what_nobody_used_for_a_month_is_removed_from_the_cache(tmp_path: Path) -> None:
    for name in ("old.tar", "used.tar", "new.tar"):
        (tmp_path / name).touch()
    for name in ("old.tar", "used.tar"):
        os.utime(tmp_path / name, (0, 0))
    mark_used(tmp_path / "used.tar")
    remove_unused(tmp_path, "*.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new.tar", "used.tar"]
    assert (tmp_path / "used.tar").stat().st_mtime == 0


def test_package_lists_are_sorted_and_name_each_package_once() -> None:
    for name in ("run.packages", "build.packages"):
        packages = read_packages(stacks.TEMPLATES / name)
        assert list(packages) == sorted(set(packages)), name


def tar(entries: list[Entry]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w") as target:
        for entry in entries:
            target.addfile(entry.info, io.BytesIO(entry.data) if entry.info.isreg() else None)
    stream.seek(0)
    return stream


def names(entries: list[Entry]) -> list[str]:
    return [entry.info.name for entry in entries]


def test_a_layer_drops_what_differs_from_build_to_build() -> None:
    noise = [
        "var/log/dpkg.log",
        "etc/machine-id",
        "var/cache/ldconfig/aux-cache",
        "etc/passwd-",
        "var/lib/apt/lists/x",
        "dev/null",
    ]
    kept = ["etc/passwd", "var/lib/dpkg/status", "usr/bin/true"]
    stream = tar([file_entry(f"./{name}", b"x") for name in noise + kept])
    assert names(list(read_layer(stream))) == kept


def test_times_and_owners_names_do_not_change_a_layer(tmp_path: Path) -> None:
    first, second = file_entry("usr/x", b"x"), file_entry("./usr/x", b"x")
    second.info.mtime += 5000
    second.info.uname = "someone"
    digests = [
        write_layer(tmp_path / str(place), read_layer(tar([entry]))) for place, entry in enumerate((first, second))
    ]
    assert digests[0] == digests[1]


def test_the_upper_layer_holds_changes_with_their_parents_and_white_outs() -> None:
    below = [
        folder_entry("usr", 0o711),
        file_entry("usr/same", b"1"),
        file_entry("usr/changed", b"1"),
        file_entry("usr/gone", b"1"),
    ]
    above = [
        folder_entry("usr", 0o711),
        file_entry("usr/same", b"1"),
        file_entry("usr/changed", b"2"),
        file_entry("usr/new", b"3"),
    ]
    changed = list(changed_entries(above, {entry.info.name: entry.signature for entry in below}))
    assert names(changed) == ["usr", "usr/changed", "usr/new", "usr/.wh.gone"]
    assert changed[0].info.mode == 0o711


def test_a_hard_link_to_a_file_of_the_layer_below_becomes_a_copy() -> None:
    link = file_entry("bin/link", b"")
    link.info.type, link.info.linkname = tarfile.LNKTYPE, "bin/file"
    entries = [folder_entry("bin"), file_entry("bin/file", b"content"), link]
    below = {entry.info.name: entry.signature for entry in entries[:2]}
    changed = list(changed_entries(entries, below))
    assert names(changed) == ["bin", "bin/link"]
    assert (changed[1].info.isreg(), changed[1].data) == (True, b"content")


def test_an_archive_is_a_function_of_its_layers_and_named_by_its_config(tmp_path: Path) -> None:
    layer = Layer(
        tmp_path / "layer", write_layer(tmp_path / "layer", [folder_entry("bin"), link_entry("bin/sh", "bash")])
    )
    config = image_config([layer], architecture="amd64", env=stacks.ENV, volumes=stacks.VOLUMES)
    for name in ("one", "two"):
        write_archive(tmp_path / name, "127.0.0.1:1/x:y", config, [layer])
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()
    with tarfile.open(tmp_path / "one") as archive:
        assert archive.getnames() == [
            f"{hashlib.sha256(config).hexdigest()}.json",
            "manifest.json",
            f"{layer.digest}.tar",
        ]
    write_archive(tmp_path / "upper", "127.0.0.1:1/x:y", config, [layer], lacking=1)
    with tarfile.open(tmp_path / "upper") as archive:
        assert f"{layer.digest}.tar" not in archive.getnames()
    assert not {"Entrypoint", "Cmd"} & set(json.loads(config)["config"])
