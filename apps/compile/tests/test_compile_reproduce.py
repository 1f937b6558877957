"""What makes two builds the same, what the seed holds, and how a difference is named."""

from __future__ import annotations

import json
import os
import py_compile
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from compiler import difference, reproduce, seed, slug, source
from compiler.buildpacks import parse_release
from compiler.errors import AppRefused
from compiler.output import human_size, refusal
from compiler.packs import bytecode

from blackstart.sources import checkout_root, component_source

Make = Callable[..., Path]
ROOT = Path(__file__).resolve().parents[1]


def test_what_records_a_build_is_removed(app: Make) -> None:
    folder = app(
        dict.fromkeys(
            [
                ".venv/lib/python3.13/site-packages/a-1.dist-info/uv_cache.json",
                ".venv/lib/python3.13/site-packages/a-1.dist-info/RECORD",
                ".venv/.lock",
                "node_modules/.package-lock.json",
                "node_modules/.cache/x",
                "node_modules/a/index.js",
                "vendor/bundle/ruby/3.3.0/cache/a-1.gem",
                "vendor/bundle/ruby/3.3.0/gems/a-1/ext/a.o",
                "vendor/bundle/ruby/3.3.0/gems/a-1/ext/Makefile",
                "vendor/bundle/ruby/3.3.0/extensions/x/3.3.0/a-1/gem_make.out",
                "vendor/bundle/ruby/3.3.0/extensions/x/3.3.0/a-1/gem.build_complete",
                "Makefile",
            ],
            "",
        )
    )
    reproduce.normalise(folder)
    assert sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()) == [
        ".venv/lib/python3.13/site-packages/a-1.dist-info/RECORD",
        "Makefile",
        "node_modules/a/index.js",
        "vendor/bundle/ruby/3.3.0/extensions/x/3.3.0/a-1/gem.build_complete",
    ]


def test_a_package_s_record_does_not_keep_the_hash_of_what_is_removed(app: Make) -> None:
    info = "lib/a-1.dist-info"
    folder = app(
        {f"{info}/RECORD": "a.py,sha256=1,1\na-1.dist-info/uv_cache.json,sha256=2,2\na-1.dist-info/RECORD,,\n"}
    )
    reproduce.normalise(folder)
    assert (folder / info / "RECORD").read_text() == "a.py,sha256=1,1\na-1.dist-info/RECORD,,\n"


def test_bytecode_with_a_time_goes_and_bytecode_with_a_hash_stays(app: Make) -> None:
    folder = app({"dated.py": "1", "hashed.py": "1"})
    py_compile.compile(str(folder / "dated.py"), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
    py_compile.compile(str(folder / "hashed.py"), invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)
    reproduce.normalise(folder)
    assert [path.name.split(".")[0] for path in (folder / "__pycache__").iterdir()] == ["hashed"]


def bytecode_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*.pyc")}


def no_bytecode(folder: Path) -> None:
    for path in folder.rglob("*.pyc"):
        path.unlink()


NO_PYTHON = Path("/nonexistent/python")
"""With it nothing can be compiled: what is there afterwards comes from the cache."""


def test_bytecode_of_the_same_modules_comes_from_the_cache(app: Make, tmp_path: Path) -> None:
    folder, cache = app({"a.py": "x = 1", "b/c.py": "y = 2", "b/bad.py": "no python"}), tmp_path / "cache"
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    made = bytecode_of(folder)
    assert len(made) == 2
    no_bytecode(folder)
    bytecode.compile_bytecode(NO_PYTHON, folder, cache)
    assert bytecode_of(folder) == made


def test_bytecode_of_other_modules_does_not(app: Make, tmp_path: Path) -> None:
    folder, cache = app({"a.py": "x = 1"}), tmp_path / "cache"
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    made = bytecode_of(folder)
    no_bytecode(folder)
    (folder / "a.py").write_text("x = 2")
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    assert bytecode_of(folder).keys() == made.keys()
    assert bytecode_of(folder) != made
    assert len(list((cache / "bytecode").iterdir())) == 1


def test_a_package_without_modules_moves_the_halves_so_nothing_is_taken_from_the_cache(
    app: Make, tmp_path: Path
) -> None:
    folder, cache = app({"a.py": "x = 1", "b/c.py": "y = 2"}), tmp_path / "cache"
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    (before,) = (cache / "bytecode").iterdir()
    (folder / "aa.dist-info").mkdir()
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    assert [path.name for path in (cache / "bytecode").iterdir()] != [before.name]


def test_bytecode_of_a_compilation_that_was_killed_is_not_kept(app: Make, tmp_path: Path) -> None:
    folder, cache = app({"a.py": "x = 1", "b.py": "y = 1"}), tmp_path / "cache"
    killed = tmp_path / "python"
    killed.write_text("#!/bin/sh\nkill -9 $$\n")
    killed.chmod(0o755)
    bytecode.compile_bytecode(killed, folder, cache)
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    assert len(bytecode_of(folder)) == 2


def test_a_cache_that_cannot_be_written_fails_no_build(app: Make, tmp_path: Path) -> None:
    folder = app({"a.py": "x = 1"})
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "bytecode").write_text("a file")
    bytecode.compile_bytecode(Path(sys.executable), folder, tmp_path / "cache")
    assert len(bytecode_of(folder)) == 1


def test_damaged_bytecode_in_the_cache_is_made_again(app: Make, tmp_path: Path) -> None:
    folder, cache = app({"a.py": "x = 1", "b.py": "y = 1"}), tmp_path / "cache"
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    made = bytecode_of(folder)
    (kept,) = (cache / "bytecode").iterdir()
    kept.write_bytes(kept.read_bytes()[:700])
    bytecode.compile_bytecode(Path(sys.executable), folder, cache)
    assert bytecode_of(folder) == made


def test_a_file_s_time_follows_its_contents(app: Make) -> None:
    folder = app({"a": "one", "b": "two", "c": "one"})
    reproduce.normalise(folder)
    times = [int((folder / name).stat().st_mtime) for name in "abc"]
    assert times[0] == times[2] != times[1]
    assert all(reproduce.FOLDER_TIME <= time < reproduce.FOLDER_TIME + reproduce.TIME_SPAN for time in times)


def test_pipes_and_sockets_are_removed(app: Make) -> None:
    folder = app({"a": ""})
    os.mkfifo(folder / "pipe")
    reproduce.normalise(folder)
    assert [path.name for path in folder.iterdir()] == ["a"]


def test_the_slug_does_not_depend_on_owner_order_or_cores(tmp_path: Path) -> None:
    assert slug.squashfs_argv(Path("/app"), Path("/tmp/slug")) == [
        "mksquashfs", "/app", "/tmp/slug", "-noappend", "-no-progress", "-quiet", "-no-xattrs", "-all-root",
        "-no-exports", "-no-hardlinks", "-mkfs-time", "946684800",
        "-comp", "zstd", "-Xcompression-level", "3", "-b", "256K",
    ]  # fmt: skip


def test_the_seed_is_what_the_compiler_makes_of_itself(tmp_path: Path) -> None:
    made = seed.seed(tmp_path / "seed")
    tarball = tmp_path / "source"
    tarball.write_bytes(component_source(checkout_root(), "compile").data)
    folder = tmp_path / "app"
    folder.mkdir()
    source.unpack(tarball, folder)
    compiled = slug.make_slug(folder, tmp_path / "slug", seconds=60)
    assert difference.difference(Path(str(made["path"])), compiled.path) is None
    assert (made["slug"], made["process_types"]) == (compiled.sha256, {"build": "bin/build"})


def test_bin_seed_prints_json(tmp_path: Path) -> None:
    ran = subprocess.run([str(ROOT / "bin/seed"), str(tmp_path)], capture_output=True, text=True, check=True)
    made = json.loads(ran.stdout)
    assert [path.name for path in tmp_path.iterdir()] == [f"{made['slug']}.squashfs"]


def test_the_first_difference_is_named_with_its_kind(app: Make) -> None:
    same = {"a": "1\n2\n3\n", "b": "x"}
    left = app(same, "left")
    cases: list[tuple[Callable[[Path], object], str]] = [
        (
            lambda right: (right / "a").write_text("1\n9\n3\n"),
            "a: line 2 differs, at byte 2: '1\\n2\\n3\\n' and '1\\n9\\n3\\n'",
        ),
        (lambda right: (right / "b").unlink(), "b: only in the first slug"),
        (lambda right: (right / "c").touch(), "c: only in the second slug"),
        (lambda right: (right / "b").chmod(0o755), "b: another mode: -rw-r--r-- and -rwxr-xr-x"),
        (lambda right: os.utime(right / "b", (1, 1)), "b: another time: "),
    ]
    for number, (change, told) in enumerate(cases):
        right = app(same, f"right{number}")
        for folder in (left, right):
            reproduce.normalise(folder)
        change(right)
        assert str(difference.folder_difference(left, right)).replace("b'", "'").startswith(told)


def test_bytecode_with_its_source_s_time_is_named_as_the_cause(app: Make) -> None:
    left, right = app({"a.py": "x = 1"}, "left"), app({"a.py": "x = 1"}, "right")
    for folder, time in ((left, 1_000_000), (right, 2_000_000)):
        os.utime(folder / "a.py", (time, time))
        py_compile.compile(str(folder / "a.py"), invalidation_mode=py_compile.PycInvalidationMode.TIMESTAMP)
        os.utime(folder / "a.py", (1, 1))
    version = f"cpython-{sys.version_info[0]}{sys.version_info[1]}"
    assert str(difference.folder_difference(left, right)).startswith(
        f"__pycache__/a.{version}.pyc: bytecode with its source's time"
    )


def test_sizes_are_printed_as_heroku_prints_them() -> None:
    assert [human_size(size) for size in (1, 4096, 999_400, 1_400_000, 9_950_000, 13_200_000, 500_000_000)] == [
        "1K", "4K", "999K", "1.4M", "9.9M", "13M", "500M",
    ]  # fmt: skip


def test_a_release_s_yaml_is_read() -> None:
    text = (
        "---\naddons:\n  - x:y\ndefault_process_types:\n"
        '  web: bundle exec puma\n  worker: "a \\"b\\""\n'
        "  'c': 'd'\nother:\n  e: f\n"
    )
    assert parse_release(text) == {"web": "bundle exec puma", "worker": 'a "b"', "c": "d"}
    assert parse_release("") == {}


def test_a_refusal_ends_with_its_reason() -> None:
    assert refusal(AppRefused("x-y", "What.", why="Why.", fixes=("Do a.", "Do b."))) == [
        "",
        " !     push rejected, failed to compile app",
        " !",
        " !     What.",
        " !",
        " !     Why:",
        " !     Why.",
        " !",
        " !     What to do:",
        " !     1. Do a.",
        " !     2. Do b.",
        " !",
        " !     Reason: x-y",
        "",
    ]
