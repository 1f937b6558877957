"""The data directory: made once and whole, checked, cleaned of what a power loss left, asked for its state."""

from __future__ import annotations

import contextlib
import re
import subprocess

from blackstart.process.failure import ProcessFailed, say
from blackstart.process.files import disk_full_message, remove, sync_folder

from .settings import SUPERUSER, Paths, Programs


def prepare(paths: Paths, programs: Programs) -> None:
    """Make the cluster unless it exists. Call it under the lock."""
    remove(paths.unfinished)
    if paths.cluster.exists():
        _check_version(paths, programs)
    else:
        _initialise(paths, programs)
    _remove_leftovers(paths)


def _initialise(paths: Paths, programs: Programs) -> None:
    """Run initdb (which syncs its files) beside the final place, then rename: interrupted, it starts over."""
    say("postgres: first start: making a new database cluster")
    locale = ["--locale=C.UTF-8"]
    if programs.version >= 17:
        locale += ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    done = subprocess.run(
        [
            str(programs["initdb"]), f"--pgdata={paths.unfinished}", f"--username={SUPERUSER}", "--encoding=UTF8",
            *locale, "--data-checksums", "--auth-local=peer", "--auth-host=scram-sha-256",
        ],
        env=programs.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=300,
    )  # fmt: skip
    if done.returncode != 0:
        why = done.stderr.strip()
        with contextlib.suppress(OSError):
            remove(paths.unfinished)
        raise ProcessFailed(f"initdb failed in {paths.data}", why=why, fix=disk_full_message(paths.data))
    install(paths)


def install(paths: Paths) -> None:
    """Make the finished data directory the cluster."""
    paths.unfinished.rename(paths.cluster)
    sync_folder(paths.data)


def _check_version(paths: Paths, programs: Programs) -> None:
    try:
        found = (paths.cluster / "PG_VERSION").read_text(encoding="ascii").strip()
    except FileNotFoundError as error:
        raise ProcessFailed(
            f"{paths.cluster} is no PostgreSQL data directory (no PG_VERSION)",
            fix="restore a backup: move the folder away and run bin/restore",
        ) from error
    if found != str(programs.version):
        raise ProcessFailed(
            f"{paths.cluster} is of PostgreSQL {found}, the programs are of {programs.version}",
            fix=f"release the slug with PostgreSQL {found}, or use bin/move-database into a new cluster",
        )


def _remove_leftovers(paths: Paths) -> None:
    """Remove pid files of a server that is gone. The lock proves that it is; its pid may be somebody else's by now."""
    (paths.cluster / "postmaster.pid").unlink(missing_ok=True)
    for left in paths.runtime.glob(".s.PGSQL.*"):
        left.unlink()


def control(paths: Paths, programs: Programs) -> dict[str, str]:
    """Return pg_controldata's lines."""
    done = subprocess.run(
        [str(programs["pg_controldata"]), f"--pgdata={paths.cluster}"],
        env=programs.env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=30,
    )  # fmt: skip
    if done.returncode != 0:
        raise ProcessFailed(f"{paths.cluster} cannot be read", why=done.stderr.strip(), fix="restore a backup")
    return {
        name.strip(): value.strip() for name, _, value in (line.partition(":") for line in done.stdout.splitlines())
    }


def stanza(paths: Paths, programs: Programs) -> str:
    """Return the name of this cluster in the archive."""
    identifier = control(paths, programs).get("Database system identifier", "")
    if re.fullmatch(r"\d+", identifier) is None:
        raise ProcessFailed(f"{paths.cluster} has no system identifier")
    return f"pg-{identifier}"
