"""`bin/objects`: the object store. Its public port opens when a request is answered, not before.

PORT                public port, HTTPS (default 5000)
OBJECTS_KEY, OBJECTS_SECRET, OBJECTS_BUCKET    the one credential and its bucket, which is made at the start
OLD_OBJECTS_KEY, OLD_OBJECTS_SECRET            accepted too, while clients move to the new one
OBJECTS_BASE_PORT   first of the loopback ports (default 9333); OBJECTS_VOLUME_MB size of a volume (default 256)
OBJECTS_SERVER_MB, OBJECTS_GATEWAY_MB    what the two processes try to keep their memory to (200, 160)
beside those of blackstart/process/settings.py
"""

from __future__ import annotations

import http.client
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from urllib.parse import quote

from blackstart.process import children
from blackstart.process.children import Signals, child_env, program
from blackstart.process.failure import ProcessFailed, exit_code_of, say
from blackstart.process.files import disk_full_message, take_lock, write_private
from blackstart.process.settings import (
    Certificate,
    data_dir,
    required,
    runtime_dir,
    whole_number,
    write_certificate,
)

from . import config
from .config import Identity, Ports
from .volumes import UncleanMark, rebuild_indexes

READY_WITHIN_S = 300.0
# The filer waits for streams that nobody ends. It may be killed: what it acknowledged is on disk.
STOP_WITHIN_S = 2.0
BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def main() -> int:
    """Run until told to stop; 0 after a clean stop."""
    return exit_code_of("objects", run)


def run() -> int:
    """Prepare, start the server, wait for its answer, start the gateway, watch."""
    env = os.environ
    data, runtime = data_dir(env), runtime_dir(env, "objects")
    ports = Ports(whole_number(env, "PORT", 5000), whole_number(env, "OBJECTS_BASE_PORT", 9333, least=1024))
    accepted = identities()
    weed = find_weed()
    with Signals() as signals:
        lock = take_lock(data / "lock")
        if full := disk_full_message(data):
            say(f"objects: {full}")
        server_home, gateway_home, certificate = write_files(data, runtime, accepted)
        mark = UncleanMark(data)
        if mark.found:
            rebuild_indexes(weed, volume_folder(data), child_env(env))
        mark.set()
        running: list[subprocess.Popen[bytes]] = []
        try:
            running.append(start_server(weed, data, runtime, ports, server_home, lock))
            if wait_ready(signals, running[0], ports):
                ensure_bucket(ports, accepted[0].bucket)
                running.append(start_gateway(weed, runtime, ports, gateway_home, certificate, lock))
                say(f"objects: ready on port {ports.public}")
            ended = signals.wait_for_end(*running)
        finally:
            for child in reversed(running):
                children.stop(child, signal.SIGTERM, within_s=STOP_WITHIN_S)
        if ended is None:
            mark.clear()
    if ended is None:
        return 0
    part = "server" if ended is running[0] else "S3 gateway"
    raise ProcessFailed(f"SeaweedFS's {part} {children.end_of(ended)}", why=disk_full_message(data))


def identities() -> tuple[Identity, ...]:
    """Return what the store accepts: the credential, and while it is being replaced the old one too."""
    env, bucket = os.environ, bucket_name()
    current = Identity(required(env, "OBJECTS_KEY"), required(env, "OBJECTS_SECRET"), bucket)
    if not env.get("OLD_OBJECTS_KEY"):
        return (current,)
    return (current, Identity(env["OLD_OBJECTS_KEY"], required(env, "OLD_OBJECTS_SECRET"), bucket))


def bucket_name() -> str:
    """Return OBJECTS_BUCKET, which becomes a folder's name."""
    name = required(os.environ, "OBJECTS_BUCKET")
    if BUCKET.fullmatch(name) is None or ".." in name:
        raise ProcessFailed(f"config var OBJECTS_BUCKET is {name!r}, not a bucket's name ({BUCKET.pattern})")
    return name


def find_weed() -> Path:
    """Return SeaweedFS's binary: beside this Python (its virtual environment), or on PATH."""
    return program("weed", os.environ, folders=(Path(sys.executable).parent,))


def volume_folder(data: Path) -> Path:
    """Return the folder of volumes, master's state and names; made at the first start."""
    folder = data / "weed"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def write_files(data: Path, runtime: Path, accepted: tuple[Identity, ...]) -> tuple[Path, Path, Certificate]:
    """Write what both processes read; return their working folders: each looks for its TOML files there."""
    certificate = write_certificate(os.environ, runtime)
    write_private(runtime / "s3.json", config.identities(accepted))
    homes = runtime / "server", runtime / "gateway"
    for home in homes:
        shutil.rmtree(home, ignore_errors=True)
        home.mkdir(mode=0o700)
    write_private(homes[0] / "filer.toml", config.filer_toml(volume_folder(data)))
    write_private(homes[1] / "security.toml", config.s3_security_toml(certificate))
    for left in runtime.glob("*.sock"):
        left.unlink()
    return *homes, certificate


def weed_env(home: Path, memory_mb: int) -> dict[str, str]:
    """Return the environment of a SeaweedFS process. AWS_* must not reach it: it would make an identity of them."""
    return child_env(os.environ, HOME=str(home), GOMEMLIMIT=f"{memory_mb}MiB", GOGC="50")


def start_server(weed: Path, data: Path, runtime: Path, ports: Ports, home: Path, lock: int) -> subprocess.Popen[bytes]:
    """Start master, volume server and filer."""
    limit = whole_number(os.environ, "OBJECTS_VOLUME_MB", 256)
    return children.start(
        config.server_argv(weed, volume_folder(data), runtime, ports, limit),
        env=weed_env(home, whole_number(os.environ, "OBJECTS_SERVER_MB", 200)),
        dies_with=signal.SIGTERM,
        lock=lock,
        cwd=home,
    )


def start_gateway(
    weed: Path, runtime: Path, ports: Ports, home: Path, certificate: Certificate, lock: int
) -> subprocess.Popen[bytes]:
    """Start the S3 gateway: the public port."""
    return children.start(
        config.s3_argv(weed, runtime, ports, certificate),
        env=weed_env(home, whole_number(os.environ, "OBJECTS_GATEWAY_MB", 160)),
        dies_with=signal.SIGTERM,
        lock=lock,
        cwd=home,
    )


def wait_ready(signals: Signals, server: subprocess.Popen[bytes], ports: Ports) -> bool:
    """Return True once all three parts work. One after the other: a filer that is asked to store a file before the
    master knows a volume tries again only after many seconds.
    """
    steps: tuple[Callable[[], bool], ...] = (
        lambda: ask(ports.master, "GET", "/dir/assign", within_s=2) == HTTPStatus.OK,
        lambda: stored(ports, "/etc/seaweedfs/filer.conf", config.FSYNC_EVERYTHING.encode()),
        lambda: stored(ports, "/probe", b"p" * config.INLINE_BYTES),
    )
    until = time.monotonic() + READY_WITHIN_S
    for step in steps:
        while not step():
            if time.monotonic() >= until:
                raise ProcessFailed(f"SeaweedFS does not take a write within {READY_WITHIN_S:.0f} s of its start")
            if server.poll() is not None or not signals.sleep(0.05):
                return False
    return True


def ensure_bucket(ports: Ports, bucket: str) -> None:
    """Make the bucket's folder; a folder that is there already is refused as a conflict, which is as good."""
    status = ask(ports.filer, "POST", f"/buckets/{quote(bucket)}/")
    if status not in (HTTPStatus.OK, HTTPStatus.CREATED, HTTPStatus.CONFLICT):
        raise ProcessFailed(f"bucket {bucket} cannot be made", why=f"the filer answers {status}")


def stored(ports: Ports, path: str, body: bytes) -> bool:
    """Return whether the filer stored `body` at `path`."""
    return ask(ports.filer, "PUT", path, body) in (HTTPStatus.OK, HTTPStatus.CREATED)


def ask(port: int, method: str, path: str, body: bytes = b"", *, within_s: float = 10) -> int:
    """Return the status that `port` answers with; 0 when it does not within `within_s`."""
    connection = http.client.HTTPConnection(config.LOOPBACK, port, timeout=within_s)
    try:
        connection.request(method, path, body or None, {"Content-Type": "application/json"} if body else {})
        return connection.getresponse().status
    except (OSError, http.client.HTTPException):
        return 0
    finally:
        connection.close()
