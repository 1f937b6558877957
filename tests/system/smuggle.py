"""Breaking the fixed point on a live platform, and mending it: the compiler's slug gets a file with a time in it."""

from __future__ import annotations

import hashlib
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from compiler.slug import make_slug

from blackstart.client import Client

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
