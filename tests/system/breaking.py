"""Breaking one proof on a live platform, and mending it: a time in the compiler's slug; a role of stage 0 that is alive."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.slug import make_slug

from blackstart.client import Client
from blackstart.platform import Platform
from blackstart.remote import connected

COMPILER = "compile"  # it has no dyno that another release would replace
FILE = "built-at.txt"
RELEASE_SECONDS = 180.0


def with_a_time(slug: bytes, folder: Path) -> bytes:
    """Return the same slug with a file that says when it was made."""
    (folder / "before.squashfs").write_bytes(slug)
    argv = ["unsquashfs", "-quiet", "-no-progress", "-dest", str(folder / "app"), str(folder / "before.squashfs")]
    subprocess.run(argv, check=True, capture_output=True)
    (folder / "app" / FILE).write_text(f"{time.time_ns()}\n")
    return make_slug(folder / "app", folder / "after.squashfs", seconds=60).path.read_bytes()


@contextmanager
def a_time_in_the_compilers_slug(client: Client, folder: Path) -> Iterator[str]:
    """Release such a slug as the platform's compiler and yield its sha256; the one before is released again at the end."""
    releases = client.call("GET", f"/apps/{COMPILER}/releases")
    before = next(release["slug"]["id"] for release in releases if release["current"])
    slug = client.call("GET", f"/apps/{COMPILER}/slugs/{before}")
    data = with_a_time(client.download(slug["blob"]["url"]), folder)
    sha256 = hashlib.sha256(data).hexdigest()
    body = {
        "process_types": slug["process_types"],
        "checksum": f"SHA256:{sha256}",
        "size": len(data),
        "stack": slug["stack"]["name"],
        "commit": "smuggled",
    }
    made = client.call("POST", f"/apps/{COMPILER}/slugs", body)
    client.put(made["blob"]["url"], data)
    try:
        _release(client, made["id"])
        yield sha256
    finally:
        _release(client, before)


def _release(client: Client, slug: str) -> None:
    release = client.release_slug(COMPILER, slug)
    ended = client.released(COMPILER, release["id"], seconds=RELEASE_SECONDS)
    assert ended["status"] == "succeeded", ended


@contextmanager
def a_live_role_of_stage_0(platform: Platform) -> Iterator[None]:
    """Let stage 0's database role log in again, with its old password; shut out again at the end."""
    password = platform.state.retired()["database_password"]
    _as_superuser(platform, f"ALTER ROLE platform LOGIN PASSWORD '{password}'")
    try:
        yield
    finally:
        _as_superuser(platform, "ALTER ROLE platform NOLOGIN PASSWORD NULL")


def _as_superuser(platform: Platform, statement: str) -> None:
    """Run SQL as the superuser of the platform's database, as nobody can from outside of its dyno."""
    program = (
        "import os, sys; sys.path[:0] = ['/app']; from database import settings, sql; env = os.environ; "
        "sql.Superuser(settings.paths(env), settings.programs(env), settings.port(env)).run(sys.stdin.read())"
    )
    node = platform.volume_nodes["postgres"]
    with connected(node) as remote:
        container = remote.check(["docker", "ps", "--quiet", "--filter", "label=blackstart.app=postgres"]).split()[0]
        into = ["docker", "exec", "--interactive", "--user", "10000", "--workdir", "/app", "--env", "HOME=/app"]
        remote.check([*into, container, "python3", "-c", program], stdin=statement)
