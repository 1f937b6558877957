"""Whole compilations of apps that need nothing but the stack, as `bin/compile` and `bin/build`, as programs."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from apps.compile.tests.compile_fakes import FakeStore

ROOT = Path(__file__).resolve().parents[1]
FIXTURES = ROOT.parents[1] / "tests" / "fixtures"
Make = Callable[..., Path]
IDLE = "web: python3 -m http.server $PORT\n"


def compile_folder(
    folder: Path, tmp_path: Path, *options: str, name: str = "build"
) -> subprocess.CompletedProcess[str]:
    argv = [
        str(ROOT / "bin/compile"),
        str(folder),
        "--build",
        str(tmp_path / name),
        "--scratch",
        str(tmp_path / f"{name}-scratch"),
    ]
    return subprocess.run([*argv, *options], capture_output=True, text=True, check=False, timeout=120)


def files_of(slug: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "unpacked"
    subprocess.run(
        ["unsquashfs", "-quiet", "-no-progress", "-dest", str(folder), str(slug)], check=True, capture_output=True
    )
    return folder


def test_a_bare_procfile_compiles_and_says_so(tmp_path: Path) -> None:
    ran = compile_folder(FIXTURES / "procfile", tmp_path, "--output", str(tmp_path / "slug"))
    sha256 = hashlib.sha256((tmp_path / "slug").read_bytes()).hexdigest()
    assert ran.stdout == (
        "-----> Procfile app detected\n"
        "       Nothing to install: the app runs as it is.\n"
        "-----> Discovering process types\n"
        "       Procfile declares types -> web, clock\n"
        "-----> Compiled slug is 4K\n"
        f"       sha256 {sha256}\n"
    )
    assert (ran.returncode, ran.stderr) == (0, "")


def test_a_slug_holds_the_app_clean_with_fixed_modes_and_times(app: Make, tmp_path: Path) -> None:
    folder = app(
        {"Procfile": IDLE, "same": "1", "copy": "1", "other": "2", ".git/HEAD": "", "__pycache__/a.pyc": "\0" * 16}
    )
    (folder / "other").chmod(0o711)
    compile_folder(folder, tmp_path, "--output", str(tmp_path / "slug"))
    found = files_of(tmp_path / "slug", tmp_path)
    assert sorted(path.name for path in found.iterdir()) == ["Procfile", "copy", "other", "same"]
    assert (found / "other").stat().st_mode & 0o7777 == 0o755
    times = {path.name: int(path.stat().st_mtime) for path in found.iterdir()}
    assert times["same"] == times["copy"] != times["other"]


def test_the_same_files_give_the_same_bytes(app: Make, tmp_path: Path) -> None:
    one = app({"Procfile": IDLE, "a/b": "1", "z": "2"}, "one")
    other = app({"z": "2", "a/b": "1", "Procfile": IDLE}, "other")
    os.utime(other / "z", (1, 1))
    (other / "z").chmod(0o600)
    for folder, environment in ((one, {"TZ": "UTC"}), (other, {"TZ": "Asia/Tokyo", "LANG": "de_DE.UTF-8"})):
        argv = [str(ROOT / "bin/compile"), str(folder), "--build", str(tmp_path / f"b{folder.name}")]
        argv += ["--scratch", str(tmp_path / f"s{folder.name}"), "--output", str(tmp_path / f"{folder.name}.slug")]
        subprocess.run(
            argv, env={"PATH": os.environ["PATH"], **environment}, check=True, capture_output=True, umask=0o077
        )
    assert (tmp_path / "one.slug").read_bytes() == (tmp_path / "other.slug").read_bytes()


@pytest.mark.parametrize(
    ("fixture", "reason"),
    [
        ("broken-nothing", "app-not-detected"),
        ("broken-no-procfile-processes", "procfile-empty"),
        ("broken-procfile-line", "procfile-bad-line"),
        ("broken-nodejs-no-lock", "nodejs-lock-missing"),
        ("broken-python-no-lock", "python-lock-missing"),
        ("broken-ruby-no-lock", "ruby-lock-missing"),
    ],
)
def test_a_broken_app_is_refused_with_a_reason_as_its_last_line(tmp_path: Path, fixture: str, reason: str) -> None:
    ran = compile_folder(FIXTURES / fixture, tmp_path)
    assert ran.returncode == 1
    assert ran.stdout.rstrip().split("\n")[-1] == f" !     Reason: {reason}"
    assert "\n !     push rejected, failed to compile app\n" in ran.stdout
    assert "\n !     What to do:\n !     1. " in ran.stdout


def test_a_refusal_is_whole(tmp_path: Path) -> None:
    assert compile_folder(FIXTURES / "broken-procfile-line", tmp_path).stdout == (
        "\n"
        " !     push rejected, failed to compile app\n"
        " !\n"
        " !     Line 2 of the Procfile is not understood: 'not a process line'\n"
        " !\n"
        " !     Why:\n"
        " !     It has no colon.\n"
        " !\n"
        " !     What to do:\n"
        " !     1. Write one process a line, as `web: gunicorn app:app`.\n"
        " !\n"
        " !     Reason: procfile-bad-line\n"
        "\n"
    )


def test_two_languages_are_compiled_by_the_documented_order_and_said(app: Make, tmp_path: Path) -> None:
    ran = compile_folder(app({"package.json": "{}", "requirements.txt": "", "Procfile": IDLE}), tmp_path)
    assert ran.stdout.startswith(
        " !     This app looks like Python too. It is compiled as Node.js, which comes first.\n"
        " !     To choose, write the buildpacks' names into .buildpacks, one a line, in order.\n"
        "-----> Node.js app detected\n"
    )


def test_the_app_s_own_choice_of_buildpacks_counts(app: Make, tmp_path: Path) -> None:
    ran = compile_folder(
        app({"package.json": "{", ".buildpacks": "# no Node.js here\nprocfile\n", "Procfile": IDLE}), tmp_path
    )
    assert ran.stdout.startswith("-----> Procfile app detected\n")
    assert ran.returncode == 0


def test_an_unknown_buildpack_is_refused(app: Make, tmp_path: Path) -> None:
    ran = compile_folder(app({".buildpacks": "../../bin\n"}), tmp_path)
    assert (ran.returncode, " !     Reason: buildpack-unknown\n" in ran.stdout) == (1, True)


def test_a_folder_with_files_is_not_built_in(app: Make, tmp_path: Path) -> None:
    app({"precious": "1"}, "build")
    ran = compile_folder(app({"Procfile": IDLE}), tmp_path)
    assert (ran.returncode, " !     Reason: build-folder-not-empty\n" in ran.stdout) == (1, True)
    assert (tmp_path / "build/precious").read_text() == "1"


BUILD = """
import sys
from pathlib import Path
sys.path[:0] = [{root!r}]
import compiler.build as build
build.BUILD, build.SCRATCH = Path({build!r}), Path({scratch!r})
build.build.__kwdefaults__.update(build=build.BUILD, scratch=build.SCRATCH)
from compiler import buildpacks
if {packs!r}: buildpacks.BUILT_IN = Path({packs!r})
raise SystemExit(build.main())
"""


def run_build(store: FakeStore, tmp_path: Path, **changed: str) -> subprocess.CompletedProcess[str]:
    """Run bin/build's main with its folders moved from /app and /tmp/build into `tmp_path`."""
    packs = changed.pop("packs", "")
    program = BUILD.format(
        root=str(ROOT), build=str(tmp_path / "app-build"), scratch=str(tmp_path / "scratch"), packs=packs
    )
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(tmp_path),
        "STACK": "127.0.0.1:1/stack-debian-13:" + "0" * 64,
        "SOURCE_URL": store.url("source"),
        "SLUG_PUT_URL": store.url("slug"),
        "RESULT_PUT_URL": store.url("result"),
        "CACHE_GET_URL": store.url("cache"),
        "CACHE_PUT_URL": store.url("cache"),
        "BUILD_TIMEOUT": "60",
        "A_CREDENTIAL": "hunter2",
        **changed,
    }
    return subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def fake_buildpack(tmp_path: Path, script: str) -> str:
    """Make a set of buildpacks where `procfile`'s compile is `script`; return its folder."""
    for name in ("apt", "ruby", "nodejs", "python", "static", "procfile"):
        folder = tmp_path / "packs" / name / "bin"
        folder.mkdir(parents=True)
        programs = {"detect": "#!/bin/sh\nexit 1\n", "compile": "", "release": "#!/bin/sh\n"}
        if name == "procfile":
            programs.update(detect="#!/bin/sh\necho Fake\n", compile=script)
        for program, text in programs.items():
            (folder / program).write_text(text)
            (folder / program).chmod(0o755)
    return str(tmp_path / "packs")


def test_a_build_stores_its_slug_and_its_result(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"shop-1a2b/Procfile": IDLE}).read_bytes()
    sha256 = hashlib.sha256(store.objects["source"]).hexdigest()
    ran = run_build(store, tmp_path, SOURCE_SHA256=sha256)
    assert (ran.returncode, ran.stderr) == (0, "")
    slug = store.objects["slug"]
    assert json.loads(store.objects["result"]) == {
        "slug": hashlib.sha256(slug).hexdigest(),
        "size": len(slug),
        "process_types": {"web": "python3 -m http.server $PORT"},
        "buildpacks": [{"name": "procfile", "version": "1"}],
        "stack": "127.0.0.1:1/stack-debian-13:" + "0" * 64,
        "source_sha256": sha256,
    }
    assert ran.stdout.split("\n")[-2] == "-----> Compiled slug is 4K"


def test_a_source_with_another_sha256_is_refused(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    ran = run_build(store, tmp_path, SOURCE_SHA256="0" * 64)
    assert (ran.returncode, " !     Reason: source-checksum\n" in ran.stdout) == (2, True)
    assert "slug" not in store.objects


def test_a_source_that_is_no_tarball_exits_2(store: FakeStore, tmp_path: Path) -> None:
    store.objects["source"] = b"PK\x03\x04 a zip"
    ran = run_build(store, tmp_path)
    assert (ran.returncode, " !     Reason: source-not-a-tarball\n" in ran.stdout) == (2, True)


def test_a_source_that_was_never_uploaded_exits_2(store: FakeStore, tmp_path: Path) -> None:
    ran = run_build(store, tmp_path)
    assert (ran.returncode, " !     Reason: source-missing\n" in ran.stdout) == (2, True)


def test_a_mistake_of_the_compiler_is_not_the_app_s(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    ran = run_build(store, tmp_path, packs=str(tmp_path / "no-buildpacks"))
    assert (ran.returncode, " !     Reason: build-internal-error\n" in ran.stdout) == (4, True)
    assert "SECRET-SIGNATURE" not in ran.stdout


def test_a_store_that_refuses_the_slug_exits_4(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    store.failures[("PUT", "slug")] = [403]
    ran = run_build(store, tmp_path)
    assert (ran.returncode, " !     Reason: store-refused\n" in ran.stdout) == (4, True)
    assert "result" not in store.objects


def test_a_dyno_without_its_addresses_exits_4(store: FakeStore, tmp_path: Path) -> None:
    ran = run_build(store, tmp_path, SLUG_PUT_URL="")
    assert (ran.returncode, "The build dyno lacks SLUG_PUT_URL." in ran.stdout) == (4, True)


def test_a_broken_cache_is_a_warning(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    store.objects["cache"] = b"not zstd"
    store.failures[("PUT", "cache")] = [403]
    ran = run_build(store, tmp_path)
    assert ran.returncode == 0
    assert " !     The build cache could not be read: " in ran.stdout
    assert " !     The build cache could not be stored: " in ran.stdout


def test_what_a_buildpack_caches_is_there_in_the_next_build(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    packs = fake_buildpack(
        tmp_path, '#!/bin/sh\ncat "$2/kept" 2>/dev/null || echo "nothing kept"\necho "kept it" > "$2/kept"\n'
    )
    assert "nothing kept\n" in run_build(store, tmp_path, packs=packs).stdout
    assert "kept it\n" in run_build(store, tmp_path, packs=packs).stdout
    assert store.requests[("PUT", "cache")] == 1
    assert "nothing kept\n" in run_build(store, tmp_path, packs=packs, STACK="another").stdout


def test_a_buildpack_sees_no_credential(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    others = "for file in /proc/[0-9]*/environ; do tr '\\0' '\\n' < $file 2>/dev/null | sed 's/^/other /'; done"
    script = f"#!/bin/sh\nenv | sort\n{others}\n"
    ran = run_build(
        store, tmp_path, packs=fake_buildpack(tmp_path, script), UV_INDEX_URL="https://u:p@mirror.example/simple"
    )
    own = [line for line in ran.stdout.split("\n") if re.match(r"[A-Z_]+=", line)]
    assert ran.returncode == 0
    assert "hunter2" not in "".join(own)
    assert "SECRET-SIGNATURE" not in "".join(own)
    assert "UV_INDEX_URL=https://****@mirror.example/simple" in own
    names = {line.partition("=")[0] for line in own}
    assert names - {"PWD", "OLDPWD", "SHLVL", "_"} == {
        *(
            "PATH",
            "HOME",
            "TMPDIR",
            "LANG",
            "LC_ALL",
            "TZ",
            "TERM",
            "USER",
            "LOGNAME",
            "STACK",
            "UV_INDEX_URL",
            "FAILURE_FILE",
        ),
        *("SOURCE_DATE_EPOCH", "PYTHONHASHSEED", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE", "EXPORT_FILE"),
    }


def test_a_build_over_its_time_is_stopped_with_all_it_started(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    script = "#!/bin/sh\nsetsid sleep 3217 &\n(sleep 3217 &)\necho waiting\nsleep 3217\n"
    started = time.monotonic()
    ran = run_build(store, tmp_path, packs=fake_buildpack(tmp_path, script), BUILD_TIMEOUT="2")
    assert (ran.returncode, ran.stderr) == (3, "")
    assert time.monotonic() - started < 20
    assert "waiting\n" in ran.stdout
    assert " !     The build took longer than its limit of 2 seconds and was stopped.\n" in ran.stdout
    assert ran.stdout.rstrip().endswith("Reason: build-timeout")
    assert sleepers("3217") == []


def test_what_a_buildpack_leaves_running_does_not_hold_the_build(
    store: FakeStore, tarball: Make, tmp_path: Path
) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    started = time.monotonic()
    ran = run_build(store, tmp_path, packs=fake_buildpack(tmp_path, "#!/bin/sh\nsetsid sleep 3218 &\necho done\n"))
    assert (ran.returncode, time.monotonic() - started < 20, sleepers("3218")) == (0, True, [])


def test_a_buildpack_that_is_killed_for_its_memory_is_explained(
    store: FakeStore, tarball: Make, tmp_path: Path
) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    ran = run_build(store, tmp_path, packs=fake_buildpack(tmp_path, "#!/bin/sh\nkill -9 $$\n"))
    assert (ran.returncode, " !     Reason: build-out-of-memory\n" in ran.stdout) == (1, True)


def test_a_buildpack_that_fails_without_a_word_is_named(store: FakeStore, tarball: Make, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    ran = run_build(store, tmp_path, packs=fake_buildpack(tmp_path, "#!/bin/sh\necho cannot\nexit 7\n"))
    assert ran.returncode == 1
    assert " !     The procfile buildpack failed (exit code 7).\n !\n !     Why:\n !     cannot\n" in ran.stdout


def test_output_comes_line_by_line(tarball: Make, store: FakeStore, tmp_path: Path) -> None:
    store.objects["source"] = tarball({"Procfile": IDLE}).read_bytes()
    script = "#!/bin/sh\nprintf 'progress 1\\rprogress 2\\n'\nprintf 'last without newline'\n"
    out = run_build(store, tmp_path, packs=fake_buildpack(tmp_path, script)).stdout
    assert "\nprogress 2\nlast without newline\n" in out


def sleepers(argument: str) -> list[str]:
    """Return the processes that sleep for `argument` seconds."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().split(b"\0")[-2:] == [argument.encode(), b""]:
                found.append(path.parent.name)
        except OSError:
            continue
    return found
