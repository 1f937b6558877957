"""`bin/bus`: Redis for events, build output and the routing table.

    BUS_PASSWORD     of the one user, `default`; a new value is applied at the next start
    OLD_BUS_PASSWORD accepted too, while clients move to the new one
    BUS_PORT         default 6379; BUS_MEMORY_MB default 128
    beside those of blackstart/process/settings.py

What the bus holds can always be written again by its writers. So data that Redis cannot load is moved aside, and the
bus starts empty: a broken file must not keep a platform from starting.
"""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

from blackstart.process import children
from blackstart.process.children import Signals, child_env, program
from blackstart.process.failure import ProcessFailed, exit_code_of, say
from blackstart.process.files import disk_full_message, move_aside, take_lock, write_private
from blackstart.process.settings import data_dir, required, runtime_dir, whole_number, write_certificate

from . import config

STOP_WITHIN_S = 15.0
CHECK_WITHIN_S = 120.0
LOAD_FAILED = 1  # how Redis ends when it cannot load its data (a crash ends it by a signal)


def main() -> int:
    """Run until told to stop; 0 after a clean stop."""
    return exit_code_of("bus", run)


def run() -> int:
    """Check what is on disk, start Redis, watch."""
    env = os.environ
    data, runtime = data_dir(env), runtime_dir(env, "bus")
    home = Path(__file__).resolve().parents[1]
    folders = (home / ".apt/usr/bin", home / ".apt/usr/sbin")
    kept = data / "redis"
    with Signals() as signals:
        lock = take_lock(data / "lock")
        if full := disk_full_message(data):
            say(f"bus: {full}")
        write_private(runtime / "redis.conf", settings_text(env, kept, runtime))
        argv = [program("redis-server", env, folders=folders), runtime / "redis.conf"]
        status = serve(signals, kept, argv, lock)
        checker = program("redis-check-aof", env, folders=folders)
        if status == LOAD_FAILED and move_broken_aside(kept, checker, child_env(env)):
            status = serve(signals, kept, argv, lock)
    if status is None:
        return 0
    raise ProcessFailed(f"redis-server ended by itself (status {status})", why=disk_full_message(data))


def serve(signals: Signals, kept: Path, argv: Sequence[str | Path], lock: int) -> int | None:
    """Run Redis; return its status when it ended by itself, None when a stop was asked."""
    kept.mkdir(mode=0o700, exist_ok=True)
    server = children.start(argv, env=child_env(os.environ), dies_with=signal.SIGTERM, lock=lock)
    try:
        ended = signals.wait_for_end(server)
    finally:
        status = children.stop(server, signal.SIGTERM, within_s=STOP_WITHIN_S)
    return None if ended is None else status


def settings_text(env: Mapping[str, str], kept: Path, runtime: Path) -> str:
    """Return redis.conf for this environment."""
    return config.server_config(
        kept,
        runtime,
        whole_number(env, "BUS_PORT", 6379),
        passwords(env),
        whole_number(env, "BUS_MEMORY_MB", 128),
        write_certificate(env, runtime),
    )


def passwords(env: Mapping[str, str]) -> tuple[str, ...]:
    """Return what the bus accepts: the password, and while it is being replaced the old one too."""
    old = env.get("OLD_BUS_PASSWORD", "")
    return (required(env, "BUS_PASSWORD"), *([old] if old else []))


def move_broken_aside(kept: Path, checker: Path, env: Mapping[str, str]) -> bool:
    """Move `kept` aside if that is why Redis did not start; return whether it was moved.

    Only after a failed start: the check also refuses a tail cut short by a power loss, which Redis drops by itself.
    """
    folder = kept / "appendonlydir"
    if not folder.is_dir():
        return False
    problem = problem_of(folder, checker, env)
    if problem:
        moved = move_aside(kept)
        say(f"bus: {folder} is broken: it was moved to {moved}, the bus starts empty. Why: {problem}")
    return bool(problem)


def problem_of(folder: Path, checker: Path, env: Mapping[str, str]) -> str:
    """Return why Redis could not load `folder`, an empty text when it can."""
    manifests = list(folder.glob("*.manifest"))
    if not manifests:
        return "there is no manifest" if any(folder.iterdir()) else ""
    if manifests[0].stat().st_size == 0:  # redis-check-aof has no objection, redis-server has
        return "the manifest is empty"
    try:
        done = subprocess.run(
            [str(checker), str(manifests[0])],
            env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, errors="replace", check=False,
            timeout=CHECK_WITHIN_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"redis-check-aof did not end within {CHECK_WITHIN_S:.0f} s"
    return "" if done.returncode == 0 else (done.stdout + done.stderr).strip()[-500:]
