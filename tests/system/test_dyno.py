"""The dyno program in a real container of the run stack: what it unpacks, what it refuses, what its process may do."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blackstart.stacks import Stack

from .conftest import Shell

pytestmark = pytest.mark.system

SLUGS = "/var/lib/blackstart/slugs"
CAPABILITIES = ("CHOWN", "DAC_OVERRIDE", "FOWNER", "KILL", "SETGID", "SETPCAP", "SETUID")


def squashfs(folder: Path, to: Path) -> bytes:
    """Return a slug as the compiler makes it."""
    options = ["-noappend", "-quiet", "-no-progress", "-no-xattrs", "-all-root", "-comp", "zstd"]
    subprocess.run(["mksquashfs", str(folder), str(to), *options], check=True, timeout=60, capture_output=True)
    return to.read_bytes()


class Engine:
    """Starts dynos on the machine as the process manager does."""

    def __init__(self, shell: Shell, image: str) -> None:
        self.shell, self.image = shell, image

    def keep(self, data: bytes, name: str | None = None) -> str:
        """Put a slug into the node's cache; return its name."""
        digest = hashlib.sha256(data).hexdigest() if name is None else name
        self.shell.check("tee", f"{SLUGS}/{digest}.squashfs", stdin=data)
        return digest

    def container(
        self, *argv: str, env: dict[str, str], options: tuple[str, ...] = (), slugs: str = "ro"
    ) -> subprocess.CompletedProcess[str]:
        """Run a container of the stack with the dyno's capabilities."""
        flags = [
            "--rm",
            "--cap-drop=ALL",
            *(f"--cap-add={each}" for each in CAPABILITIES),
            f"--volume={SLUGS}:/slugs:{slugs}",
        ]
        variables = [f"--env={key}={value}" for key, value in env.items()]
        return self.shell.run("docker", "run", *flags, *variables, *options, self.image, *argv)

    def start(self, slug: str, command: str, *options: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `dyno start`."""
        argv = ("tini", "-g", "--", "/usr/lib/blackstart/dyno", "start", command)
        return self.container(*argv, env={"BLACKSTART_SLUG": slug, **env}, options=options)

    def fetch(self, slug: str, url: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `dyno fetch` on the machine's network."""
        variables = {"BLACKSTART_SLUG": slug, "BLACKSTART_SLUG_URL": url, **env}
        argv = ("/usr/lib/blackstart/dyno", "fetch")
        return self.container(*argv, env=variables, options=("--network=host",), slugs="rw")

    def wait(self, url: str, **env: str) -> subprocess.CompletedProcess[str]:
        """Run `dyno await` on the machine's network."""
        variables = {"BLACKSTART_SLUG_URL": url, "BLACKSTART_FETCH_SECONDS": "30", **env}
        argv = ("/usr/lib/blackstart/dyno", "await")
        return self.container(*argv, env=variables, options=("--network=host",), slugs="rw")


@pytest.fixture(scope="module")
def engine(engine_machine: Shell, run_stack: Stack) -> Engine:
    return Engine(engine_machine, run_stack.name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    folder = tmp_path_factory.mktemp("app")
    (folder / "hello").write_text("hello\n")
    (folder / ".profile.d").mkdir()
    (folder / ".profile.d" / "a.sh").write_text("export ORDER=a\n")
    (folder / ".profile.d" / "b.sh").write_text("export ORDER=${ORDER}b\n")
    return squashfs(folder, folder.parent / "slug.squashfs")


@pytest.fixture(scope="module")
def slug(engine: Engine, data: bytes) -> str:
    return engine.keep(data)


def test_the_image_is_named_by_its_content(engine: Engine, run_stack: Stack) -> None:
    assert engine.shell.check(*run_stack.check_vector()).strip() == f"sha256:{run_stack.digest}"


def test_the_command_runs_in_the_home_with_the_profile_and_its_exit_code(engine: Engine, slug: str) -> None:
    done = engine.start(slug, 'pwd; cat hello; echo "$ORDER $HOME $USER $PORT"; exit 3', PORT="5000")
    assert (done.returncode, done.stdout) == (3, "/app\nhello\nab /app dyno 5000\n")


def test_the_process_is_unprivileged_for_good(engine: Engine, slug: str) -> None:
    done = engine.start(slug, "id -u; id -G; grep -E '^(Cap|NoNewPrivs)' /proc/self/status")
    lines = done.stdout.split("\n")
    assert lines[:2] == ["10000", "10000"]
    status = dict(line.split(":\t") for line in lines[2:] if line)
    assert status.pop("NoNewPrivs") == "1"
    assert set(status) == {"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"}
    assert set(status.values()) == {"0" * 16}


def test_the_process_sees_no_variable_of_the_platform_and_no_other_slug(engine: Engine, slug: str) -> None:
    done = engine.start(slug, f"env | grep BLACKSTART; ls /slugs; cat /slugs/{slug}.squashfs | wc -c", MINE="yes")
    assert done.stdout == "0\n"
    assert done.stderr.count("Permission denied") == 2


def test_the_app_owns_its_files(engine: Engine, slug: str) -> None:
    done = engine.start(slug, "echo more >> hello && mkdir new && stat -c %U . hello .profile.d")
    assert (done.returncode, done.stdout) == (0, "dyno\n" * 3)


def test_the_home_may_be_elsewhere(engine: Engine, slug: str) -> None:
    done = engine.start(slug, "pwd; stat -c %U .; ls", BLACKSTART_HOME="/compile")
    assert done.stdout == "/compile\ndyno\nhello\n"


def test_a_new_volume_is_given_to_the_dyno(engine: Engine, slug: str) -> None:
    assert engine.start(slug, "touch /data/x && stat -c %U /data", "--volume=tdyno-data:/data").stdout == "dyno\n"


def test_the_engines_group_comes_with_its_socket_only(engine: Engine, slug: str) -> None:
    group = engine.shell.check("stat", "-c", "%g", "/var/run/docker.sock").strip()
    socket = "--volume=/var/run/docker.sock:/var/run/docker.sock"
    assert engine.start(slug, "id -G; test -w /var/run/docker.sock", socket).stdout.split() == ["10000", group]


def test_a_slug_that_is_not_there_is_44(engine: Engine) -> None:
    done = engine.start("0" * 64, "true")
    assert (done.returncode, done.stderr) == (44, f"dyno: slug {'0' * 64} is not on this node\n")


def test_a_slug_with_another_sha256_is_45(engine: Engine, data: bytes) -> None:
    engine.keep(data, "1" * 64)
    done = engine.start("1" * 64, "true")
    assert done.returncode == 45
    assert done.stderr.count("\n") == 1


def test_a_file_that_is_no_squashfs_is_46(engine: Engine) -> None:
    done = engine.start(engine.keep(b"no squashfs"), "true")
    assert done.returncode == 46
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("name", ["../x", "", "A" * 64])
def test_a_slug_name_that_is_no_sha256_is_refused(engine: Engine, name: str) -> None:
    assert engine.start(name, "true").returncode == 64


@pytest.fixture(scope="module")
def store(engine: Engine) -> Iterator[str]:
    """A web server on the machine that has whatever is in its folder."""
    engine.shell.check("mkdir", "-p", "/root/store")
    server = ("python3", "-m", "http.server", "8080", "--directory", "/root/store")
    run = ["docker", "run", "--detach", "--name=store", "--network=host", "--volume=/root/store:/root/store:ro"]
    engine.shell.check(*run, engine.image, *server)
    ask = "until curl -sf -o /dev/null http://127.0.0.1:8080/; do :; done"
    engine.shell.check("timeout", "20", "docker", "exec", "store", "bash", "-c", ask)
    yield "http://127.0.0.1:8080"
    engine.shell.check("docker", "rm", "--force", "store")


def test_fetch_brings_a_slug_once(engine: Engine, data: bytes, store: str) -> None:
    data += b"\0" * 4096
    digest = hashlib.sha256(data).hexdigest()
    engine.shell.check("tee", "/root/store/slug", stdin=data)
    assert engine.fetch(digest, f"{store}/slug?signature=x").returncode == 0
    assert engine.shell.check("stat", "-c", "%a %s", f"{SLUGS}/{digest}.squashfs").split() == ["644", str(len(data))]
    assert engine.start(digest, "cat hello").stdout == "hello\n"
    engine.shell.check("rm", "/root/store/slug")
    assert engine.fetch(digest, f"{store}/slug").returncode == 0


def test_fetch_replaces_a_damaged_slug(engine: Engine, data: bytes, store: str) -> None:
    data += b"\0" * 8192
    digest = engine.keep(b"damaged", hashlib.sha256(data).hexdigest())
    engine.shell.check("tee", "/root/store/slug", stdin=data)
    assert engine.fetch(digest, f"{store}/slug").returncode == 0
    assert engine.start(digest, "cat hello").stdout == "hello\n"


def test_fetch_keeps_nothing_that_is_wrong(engine: Engine, store: str) -> None:
    engine.shell.check("tee", "/root/store/other", stdin=b"something else")
    done = engine.fetch("2" * 64, f"{store}/other")
    assert (done.returncode, done.stderr.count("\n")) == (45, 1)
    assert "2" * 64 not in engine.shell.check("ls", "-A", SLUGS)


def test_a_refusal_by_the_store_is_final_and_shows_no_credential(engine: Engine, store: str) -> None:
    done = engine.fetch("3" * 64, f"{store}/absent?X-Amz-Signature=secret")
    assert done.returncode == 44
    assert "404" in done.stderr
    assert "secret" not in done.stderr + done.stdout


def test_fetch_tries_again_until_its_deadline(engine: Engine) -> None:
    done = engine.fetch("4" * 64, "http://127.0.0.1:9/slug", BLACKSTART_FETCH_SECONDS="3")
    assert done.returncode == 44
    assert "trying again" in done.stderr
    assert ".partial" not in engine.shell.check("ls", "-A", SLUGS)


def test_what_a_build_stores_is_waited_for_and_kept_under_its_digest(engine: Engine, data: bytes, store: str) -> None:
    data += b"\0" * 12288
    digest = hashlib.sha256(data).hexdigest()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(engine.wait, f"{store}/made?signature=x")
        asked = "until docker logs store 2>&1 | grep -q 'GET /made'; do sleep 0.05; done"
        engine.shell.check("timeout", "20", "bash", "-c", asked)
        engine.shell.check("tee", "/root/store/made.new", stdin=data)
        engine.shell.check("mv", "/root/store/made.new", "/root/store/made")
        done = waiting.result()
    assert (done.returncode, done.stderr) == (0, "")
    assert engine.start(digest, "cat hello").stdout == "hello\n"
    assert ".partial" not in engine.shell.check("ls", "-A", SLUGS)


@pytest.mark.parametrize(
    ("path", "env", "says"),
    [
        ("never?X-Amz-Signature=secret", {"BLACKSTART_FETCH_SECONDS": "2"}, "no slug came within 2 s"),
        ("large?X-Amz-Signature=secret", {"BLACKSTART_SLUG_BYTES": "99"}, "larger than 99 bytes"),
    ],
)
def test_what_cannot_be_waited_for_leaves_nothing(
    engine: Engine, store: str, path: str, env: dict[str, str], says: str
) -> None:
    engine.shell.check("tee", "/root/store/large", stdin=b"." * 100)
    before = engine.shell.check("ls", "-A", SLUGS)
    done = engine.wait(f"{store}/{path}", **env)
    assert done.returncode == 44
    assert says in done.stderr
    assert "secret" not in done.stderr + done.stdout
    assert engine.shell.check("ls", "-A", SLUGS) == before
