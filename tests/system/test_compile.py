"""The slug compiler in the real build stack, and what it makes in the real run stack, started by the real `dyno`.

A dyno here is made without an engine: an overlay of the stack's files, its own mounts, processes and host name, and the
host's network. Everything else is as on a node: the slug cache, the trust folder, the unprivileged user.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import tarfile
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from compiler import difference, seed

from apps.compile.tests.compile_fakes import FakeStore
from blackstart.model.dyno import BUNDLE, TRUST_VARS
from blackstart.proofs import fixed_point
from blackstart.sources import checkout_root, component_names, component_source, folder_source
from blackstart.stacks import Stack, StackSources, ensure_stacks

pytestmark = [pytest.mark.system, pytest.mark.timeout(900)]

FIXTURES = checkout_root() / "tests" / "fixtures"
CACHE = Path("/var/cache/blackstart")
IMAGE = "127.0.0.1:1/stack-debian-13:" + "0" * 64

START = """set -e
root=$1; lower=$2; slugs=$3; name=$4; mask=$5; shift 5
hostname "$name"
mkdir -p $root/upper $root/work $root/merged
mount -t tmpfs -o size=3g,mode=755 tmpfs $root/upper
mkdir $root/upper/files $root/upper/work
mount -t overlay -o lowerdir=$lower,upperdir=$root/upper/files,workdir=$root/upper/work overlay $root/merged
mkdir -p $root/merged/slugs $root/merged/fixtures $root/merged/etc/blackstart/trust
mount --bind -o ro $slugs $root/merged/slugs
mount --bind -o ro FIXTURES $root/merged/fixtures
mount -t proc proc $root/merged/proc
mount -t tmpfs -o mode=755 tmpfs $root/merged/dev
for device in null zero random urandom; do touch $root/merged/dev/$device; mount --bind /dev/$device $root/merged/dev/$device; done
ln -s /proc/self/fd $root/merged/dev/fd
ln -s /proc/self/fd/1 $root/merged/dev/stdout
cat /etc/resolv.conf > $root/merged/etc/resolv.conf
cat /etc/ssl/certs/ca-certificates.crt > $root/merged/etc/blackstart/trust/ca-bundle.pem
umask "$mask"
exec /usr/sbin/chroot $root/merged tini -g -- "$@"
""".replace("FIXTURES", str(FIXTURES))


@dataclass
class Site:
    """The stacks, unpacked, and a slug cache."""

    run: Path
    build: Path
    slugs: Path
    scratch: Path

    def argv(self, stack: Path, words: list[str], *, name: str = "dyno", mask: str = "022") -> list[str]:
        """Return what runs `words` as PID 1's child in a container of `stack`."""
        root = tempfile.mkdtemp(dir=self.scratch)
        unshare = [
            "unshare",
            "--mount",
            "--uts",
            "--pid",
            "--ipc",
            "--fork",
            "--kill-child",
            "bash",
            "-c",
            START,
            "start",
        ]
        return [*unshare, root, str(stack), str(self.slugs), name, mask, *words]

    def keep(self, slug: bytes) -> str:
        """Put a slug into the cache, as `dyno fetch` does, and return its sha256."""
        sha256 = hashlib.sha256(slug).hexdigest()
        (self.slugs / f"{sha256}.squashfs").write_bytes(slug)
        return sha256


@dataclass(frozen=True)
class Built:
    """How a build dyno ended."""

    code: int
    output: str
    slug: bytes
    result: dict[str, object]
    seconds: float

    @property
    def command(self) -> str:
        """The command of its web process."""
        types = self.result["process_types"]
        return str(types["web"]) if isinstance(types, dict) else ""


@pytest.fixture(scope="module")
def site() -> Iterator[Site]:
    """Unpack both stacks; build them first where the cache lacks them."""
    sources = StackSources.of(None, None)
    stacks = ensure_stacks(CACHE, sources, print)
    scratch = Path(tempfile.mkdtemp(dir=CACHE, prefix="test-compile."))
    try:
        (scratch / "slugs").mkdir()
        run = _unpack([stacks.run], scratch / "run")
        build = _unpack([stacks.run, stacks.build], scratch / "build")
        yield Site(run, build, scratch / "slugs", scratch)
    finally:
        shutil.rmtree(scratch)


@pytest.fixture(scope="module")
def compiler(site: Site) -> str:
    """The sha256 of the compiler's slug: the seed, made by the stack's own tools as on a stage-0 machine."""
    made = seed.seed(site.scratch / "seed")
    return site.keep(Path(str(made["path"])).read_bytes())


def _unpack(stacks: list[Stack], to: Path) -> Path:
    """Unpack the layers of image archives, one over the other; a layer that is in two of them once."""
    to.mkdir()
    done: set[str] = set()
    for stack in stacks:
        with tarfile.open(stack.path) as archive:
            manifest = json.loads(_read(archive, "manifest.json"))
            there = set(archive.getnames())
            for name in manifest[0]["Layers"]:
                if name in there - done:
                    argv = ["tar", "--extract", "--numeric-owner", "--directory", str(to)]
                    subprocess.run(argv, input=_read(archive, name), check=True)
                    done.add(name)
    return to


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    file = archive.extractfile(name)
    assert file is not None
    return file.read()


def trust() -> dict[str, str]:
    """Return the environment for TLS that every dyno has."""
    return dict.fromkeys(TRUST_VARS, BUNDLE)


def build(
    site: Site, compiler: str, source: bytes, *, cache: dict[str, bytes] | None = None, name: str = "build-1", mask: str = "022",
    **changed: str,
) -> Built:  # fmt: skip
    """Run a build dyno as psmgr does. `cache` is the store's object for the app's cache, kept in it."""
    kept = {} if cache is None else cache
    with FakeStore() as store:
        store.objects.update({"source": source, **kept})
        environment = {
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "BLACKSTART_SLUG": compiler,
            "BLACKSTART_HOME": "/compile",
            **trust(),
            "SOURCE_URL": store.url("source"),
            "SOURCE_SHA256": hashlib.sha256(source).hexdigest(),
            "SLUG_PUT_URL": store.url("slug"),
            "RESULT_PUT_URL": store.url("result"),
            "CACHE_GET_URL": store.url("cache"),
            "CACHE_PUT_URL": store.url("cache"),
            "STACK": IMAGE,
            "BUILD_TIMEOUT": "600",
            **changed,
        }
        started = time.monotonic()
        argv = site.argv(site.build, ["/usr/lib/blackstart/dyno", "start", "bin/build"], name=name, mask=mask)
        ran = subprocess.run(argv, env=environment, capture_output=True, text=True, check=False, timeout=700)
        seconds = time.monotonic() - started
        if "cache" in store.objects:
            kept["cache"] = store.objects["cache"]
        result = json.loads(store.objects.get("result", b"{}"))
        return Built(ran.returncode, ran.stdout + ran.stderr, store.objects.get("slug", b""), result, seconds)


def source_of(site: Site, fixture: str) -> bytes:
    """Return the fixture as a source; `rack` and `flask-uv` get their lock files from the build stack's own tools."""
    made = site.scratch / f"fixture-{fixture}"
    if not made.exists():
        if fixture == "rack":
            _in_build_stack(site, "/fixtures/make-rack-gems /out/app", made)
        elif fixture == "flask-uv":
            _in_build_stack(site, "cp -r /fixtures/flask-uv /out/app && cd /out/app && uv lock --quiet", made)
        else:
            shutil.copytree(FIXTURES / fixture, made)
    return folder_source(made).data


def _in_build_stack(site: Site, command: str, to: Path) -> None:
    """Run a shell line in the build stack as the user dyno; what it leaves in /out/app becomes `to`."""
    words = ["bash", "-c", f"mkdir -m 777 /out && exec 3>&1 >&2 && setpriv --reuid=10000 --regid=10000 --clear-groups "
             f"env HOME=/tmp bash -c '{command}' && tar -C /out/app -c . >&3"]  # fmt: skip
    environment = {"PATH": "/usr/local/bin:/usr/bin:/bin", **trust()}
    ran = subprocess.run(site.argv(site.build, words), env=environment, capture_output=True, check=False, timeout=300)
    assert ran.returncode == 0, ran.stderr.decode()
    to.mkdir()
    subprocess.run(["tar", "--extract", "--directory", str(to)], input=ran.stdout, check=True)


@contextmanager
def running(site: Site, slug: bytes, command: str, environment: Mapping[str, str] | None = None) -> Iterator[str]:
    """Run a web dyno of `slug` and give its address; at the end it must stop on SIGTERM within 10 seconds."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    variables = {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        "BLACKSTART_SLUG": site.keep(slug),
        **trust(),
        "PORT": str(port),
        "RELEASE": "v7",
        **(environment or {}),
    }
    argv = site.argv(site.run, ["/usr/lib/blackstart/dyno", "start", command])
    with tempfile.TemporaryFile() as log, subprocess.Popen(argv, env=variables, stdout=log, stderr=log) as dyno:
        try:
            _wait_for(port, dyno, log)
            yield f"http://127.0.0.1:{port}"
            _terminate(dyno)
            assert dyno.wait(timeout=10) in (0, 128 + signal.SIGTERM)
        finally:
            dyno.kill()


def _wait_for(port: int, dyno: subprocess.Popen[bytes], log: object) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if dyno.poll() is not None:
            break
        time.sleep(0.05)
    log.seek(0)  # type: ignore[attr-defined]
    pytest.fail(f"the dyno does not answer: exit code {dyno.poll()}\n{log.read().decode()}")  # type: ignore[attr-defined]


def _terminate(dyno: subprocess.Popen[bytes]) -> None:
    """Send SIGTERM to the dyno's own first process, as an engine does."""
    child = Path(f"/proc/{dyno.pid}/task/{dyno.pid}/children").read_text().split()[0]
    os.kill(int(child), signal.SIGTERM)


def get(url: str, headers: Mapping[str, str] | None = None) -> tuple[int, str, dict[str, str]]:
    """Return status, body and headers."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, headers=dict(headers or {})), timeout=10) as answer:
            return answer.status, answer.read().decode(), dict(answer.headers)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), dict(error.headers)


WEB = ["procfile", "flask", "flask-uv", "express", "rack", "static", "apt"]


@pytest.mark.parametrize("fixture", WEB)
def test_a_fixture_compiles_runs_and_is_the_same_bytes_again(
    site: Site, compiler: str, fixture: str, tmp_path: Path
) -> None:
    source = source_of(site, fixture)
    cache: dict[str, bytes] = {}
    first = build(site, compiler, source, cache=cache)
    assert first.code == 0, first.output
    warm = build(
        site, compiler, source, cache=cache, name="another-node", mask="077", TZ="Asia/Tokyo", LANG="tr_TR.UTF-8"
    )
    fresh = build(site, compiler, source, name="a-third-node", mask="002")
    print(
        f"{fixture}: {first.result['size']} bytes; {first.seconds:.1f} s, warm {warm.seconds:.1f} s, fresh {fresh.seconds:.1f} s"
    )
    for again in (warm, fresh):
        assert again.code == 0, again.output
        for path, slug in ((tmp_path / "one", first.slug), (tmp_path / "other", again.slug)):
            path.write_bytes(slug)
        assert difference.difference(tmp_path / "one", tmp_path / "other") is None
    with running(site, first.slug, first.command) as address:
        status, body, _ = get(f"{address}/")
        assert status == 200
        assert f"{fixture} none" in body if fixture == "static" else body == f"{fixture} v7\n"


def test_the_compiler_compiles_itself_to_the_seed_and_goes_on(site: Site, compiler: str, tmp_path: Path) -> None:
    """The fixed point: the second and third generation are the same bytes, and the seed's files."""
    source = component_source(checkout_root(), "compile").data
    one = build(site, compiler, source)
    assert one.code == 0, one.output
    two = build(site, site.keep(one.slug), source)
    assert one.slug == two.slug
    (tmp_path / "one").write_bytes(one.slug)
    (tmp_path / "seed").write_bytes((site.slugs / f"{compiler}.squashfs").read_bytes())
    found = difference.difference(tmp_path / "seed", tmp_path / "one")
    assert found is None or found.path == "", (
        found
    )  # another mksquashfs on this host packs the same files to other bytes


@pytest.mark.parametrize("component", component_names(checkout_root()))
def test_a_component_compiles_to_the_same_bytes_on_another_node(
    site: Site, compiler: str, component: str, tmp_path: Path
) -> None:
    source = component_source(checkout_root(), component).data
    cache: dict[str, bytes] = {}
    one = build(site, compiler, source, cache=cache)
    assert one.code == 0, one.output
    other = build(site, compiler, source, cache=cache, name="another-node", TZ="Asia/Tokyo")
    print(f"{component}: {one.result['size']} bytes; {one.seconds:.1f} s, warm {other.seconds:.1f} s")
    (tmp_path / "one").write_bytes(one.slug)
    (tmp_path / "other").write_bytes(other.slug)
    assert difference.difference(tmp_path / "one", tmp_path / "other") is None


def test_a_debian_package_that_is_left_out_is_not_in_the_slug(site: Site, compiler: str, tmp_path: Path) -> None:
    app = tmp_path / "app"
    app.mkdir()
    (app / "Aptfile").write_text("libjson-perl\n!perl\n")
    (app / "Procfile").write_text("web: ls\n")
    built = build(site, compiler, folder_source(app).data)
    assert built.code == 0, built.output
    assert "       Left out: perl\n" in built.output
    (tmp_path / "slug").write_bytes(built.slug)
    listed = subprocess.run(
        ["unsquashfs", "-l", str(tmp_path / "slug")], capture_output=True, text=True, check=True
    ).stdout
    assert "/.apt/usr/share/perl5/JSON.pm\n" in listed
    assert "/.apt/usr/bin/perl\n" not in listed


@pytest.mark.parametrize(
    ("fixture", "reason"),
    [
        ("broken-nothing", "app-not-detected"),
        ("broken-no-procfile-processes", "procfile-empty"),
        ("broken-no-process-types", "process-types-missing"),
        ("broken-procfile-line", "procfile-bad-line"),
        ("broken-python-missing-package", "python-package-missing"),
        ("broken-python-no-lock", "python-lock-missing"),
        ("broken-nodejs-no-lock", "nodejs-lock-missing"),
        ("broken-nodejs-build-script", "nodejs-build-script-failed"),
        ("broken-ruby-no-lock", "ruby-lock-missing"),
        ("broken-apt-missing-package", "apt-package-missing"),
    ],
)
def test_a_broken_fixture_is_refused_with_its_reason(site: Site, compiler: str, fixture: str, reason: str) -> None:
    built = build(site, compiler, source_of(site, fixture))
    assert (built.code, built.slug) == (1, b"")
    assert "\n !     push rejected, failed to compile app\n" in built.output
    assert built.output.rstrip().endswith(f"\n !     Reason: {reason}")


def app_with_build_script(site: Site, name: str, script: str) -> bytes:
    """Return a Node.js app whose build script is `script`: a stranger's code in a build."""
    folder = site.scratch / f"app-{name}"
    folder.mkdir()
    scripts = {"start": "node server.js", "build": script}
    (folder / "package.json").write_text(json.dumps({"name": name, "version": "1.0.0", "scripts": scripts}))
    packages = {"": {"name": name, "version": "1.0.0"}}
    lock = {"name": name, "version": "1.0.0", "lockfileVersion": 3, "requires": True, "packages": packages}
    (folder / "package-lock.json").write_text(json.dumps(lock))
    return folder_source(folder).data


def test_a_time_in_a_slug_breaks_the_fixed_point_and_its_file_is_named(site: Site, compiler: str) -> None:
    source = app_with_build_script(site, "stamped", "mkdir -p lib && date +%s%N > lib/built-at.txt")
    copies = []
    for origin in ("S1", "S2"):
        built = build(site, compiler, source)
        assert built.code == 0, built.output
        sha256 = str(built.result["slug"])
        copies.append(fixed_point.Copy(origin, sha256, f"compile.squashfs {compiler}", lambda built=built: built.slug))
    proof = fixed_point.verdict([fixed_point.compare("stamped", copies)], None, {"stacks": {"rebuilt": False}})
    assert not proof.holds
    assert " differ in lib/built-at.txt: line 1 differs" in proof.detail


def test_a_stranger_s_build_script_sees_no_credential_and_has_no_privilege(site: Site, compiler: str) -> None:
    look = (
        "id -u; grep -E '^(CapEff|CapBnd|NoNewPrivs)' /proc/self/status; env; "
        "for p in /proc/[0-9]*; do tr '\\\\0' '\\\\n' < $p/environ 2>/dev/null; tr '\\\\0' ' ' < $p/cmdline; done; "
        "grep -rl SECRET-SIG[N]ATURE /tmp /app /compile 2>/dev/null && echo FOU''ND; echo; echo looked"
    )
    built = build(site, compiler, app_with_build_script(site, "looks", look), A_CREDENTIAL="hunter2")
    assert built.code == 0, built.output
    assert "       10000\n" in built.output
    for line in ("CapEff:\t0000000000000000", "CapBnd:\t0000000000000000", "NoNewPrivs:\t1"):
        assert f"       {line}\n" in built.output
    assert "       looked\n" in built.output
    for secret in ("SECRET-SIGNATURE", "hunter2", "SLUG_PUT_URL", "FOUND"):
        assert secret not in built.output


def test_a_build_that_never_ends_is_stopped_and_explained(site: Site, compiler: str) -> None:
    built = build(site, compiler, app_with_build_script(site, "waits", "echo begun; sleep 1000"), BUILD_TIMEOUT="15")
    assert (built.code, built.slug) == (3, b"")
    assert "       begun\n" in built.output
    assert "longer than its limit of 15 seconds" in built.output
    assert built.seconds < 40


def test_a_site_is_served_with_types_errors_and_no_way_out(site: Site, compiler: str) -> None:
    built = build(site, compiler, source_of(site, "static"))
    with running(site, built.slug, built.command) as address:
        assert get(f"{address}/assets/site.css")[2]["Content-Type"].startswith("text/css")
        assert get(f"{address}/about")[1] == "<!doctype html><title>About</title><p>static about</p>\n"
        assert get(f"{address}/nope")[:2] == (
            404,
            "<!doctype html><title>Not here</title><p>static has no such page</p>\n",
        )
        for path in (
            "/../etc/passwd",
            "/%2e%2e/static.json",
            "/..%2f.static/site.json",
            "/.static/server.py",
            "/static.json",
        ):
            assert get(f"{address}{path}")[0] == 404
        etag = get(f"{address}/")[2]["ETag"]
        assert get(f"{address}/", {"If-None-Match": etag})[0] == 304
        assert get(f"{address}/", {"If-Modified-Since": "Fri, 01 Jan 2100 00:00:00 GMT"})[0] == 200
