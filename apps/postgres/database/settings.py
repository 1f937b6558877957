"""What the programs of this component know from their environment.

POSTGRES_ROLE         the role that may log in: `platform` (default), or `platform_<epoch>`, which acts as `platform`
POSTGRES_PASSWORD     of that role; a new value is applied at the next start
POSTGRES_PORT         default 5432
OBJECTS_URL           S3 endpoint (https); without it nothing is archived
OBJECTS_KEY, OBJECTS_SECRET, OBJECTS_BUCKET, BACKUP_PASSPHRASE    needed with OBJECTS_URL
BACKUP_INTERVAL_S     between base backups, default a day
BACKUP_KEEP           base backups to keep, default 7
ARCHIVE_QUEUE_MB      WAL that may wait for the store before it is given up, default 2048
beside those of blackstart/process/settings.py
"""

from __future__ import annotations

import os
import pwd
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from blackstart.process.children import child_env, program
from blackstart.process.failure import ProcessFailed
from blackstart.process.settings import Environment, ca_file, data_dir, required, runtime_dir, whole_number

ROLE = "platform"
LOGIN = re.compile(rf"{ROLE}(?:_([1-9][0-9]{{0,5}}))?")
DATABASE = "platform"
SUPERUSER = "postgres"
ARCHIVE_PREFIX = "/wal"


@dataclass(frozen=True)
class Archive:
    """Where WAL and base backups go."""

    host: str
    port: int
    key: str
    secret: str
    bucket: str
    passphrase: str
    ca: Path
    interval_s: int
    keep: int
    queue_mb: int


@dataclass(frozen=True)
class Paths:
    """Every path that this component uses."""

    data: Path
    runtime: Path

    @property
    def cluster(self) -> Path:
        """The data directory."""
        return self.data / "cluster"

    @property
    def unfinished(self) -> Path:
        """A data directory in the making; it is thrown away when its making was interrupted."""
        return self.data / "cluster.new"

    @property
    def lock(self) -> Path:
        return self.data / "lock"

    @property
    def config(self) -> Path:
        return self.runtime / "postgresql.conf"

    @property
    def access(self) -> Path:
        return self.runtime / "pg_hba.conf"

    @property
    def identities(self) -> Path:
        return self.runtime / "pg_ident.conf"

    @property
    def backup_config(self) -> Path:
        return self.runtime / "pgbackrest.conf"


def paths(env: Environment) -> Paths:
    """Return the component's paths; both folders exist."""
    found = Paths(data_dir(env), runtime_dir(env, "postgres"))
    if len(str(found.runtime)) > 80:
        raise ProcessFailed(f"RUNTIME_DIRECTORY {found.runtime} is too long for a unix socket (80 characters at most)")
    return found


def port(env: Environment) -> int:
    """Return the TCP port of the server."""
    return whole_number(env, "POSTGRES_PORT", 5432)


def login(env: Environment) -> str:
    """Return the role that may log in."""
    return checked_login(env.get("POSTGRES_ROLE", "") or ROLE)


def checked_login(role: str) -> str:
    """Return `role`, which becomes part of SQL statements, or refuse it."""
    if LOGIN.fullmatch(role) is None:
        raise ProcessFailed(f"{role!r} is no role of this database", fix=f"name {ROLE}, or {ROLE}_<epoch>")
    return role


def epoch_of(role: str) -> int:
    """Return the epoch of a login role; `platform` itself is of epoch 0."""
    found = LOGIN.fullmatch(role)
    return int(found[1] or 0) if found is not None else 0


def user_name() -> str:
    """Return the name of the system's user, which PostgreSQL insists on."""
    if os.getuid() == 0:
        raise ProcessFailed("PostgreSQL does not run as root", fix="run it as another user")
    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError as error:
        raise ProcessFailed(f"uid {os.getuid()} has no name in /etc/passwd") from error


def archive(env: Environment) -> Archive | None:
    """Return where to archive, or None when OBJECTS_URL is not set."""
    url = env.get("OBJECTS_URL", "")
    if not url:
        return None
    parts = urlsplit(url)
    if parts.scheme != "https" or parts.hostname is None or parts.path not in ("", "/"):
        raise ProcessFailed(f"config var OBJECTS_URL is {url!r}, not https://HOST[:PORT]")
    return Archive(
        host=parts.hostname,
        port=parts.port or 443,
        key=required(env, "OBJECTS_KEY"),
        secret=required(env, "OBJECTS_SECRET"),
        bucket=required(env, "OBJECTS_BUCKET"),
        passphrase=required(env, "BACKUP_PASSPHRASE"),
        ca=ca_file(env),
        interval_s=whole_number(env, "BACKUP_INTERVAL_S", 86400),
        keep=whole_number(env, "BACKUP_KEEP", 7),
        queue_mb=whole_number(env, "ARCHIVE_QUEUE_MB", 2048),
    )


@dataclass(frozen=True)
class Programs:
    """PostgreSQL's programs, and the environment they run in."""

    root: Path
    folder: Path
    env: dict[str, str]

    def __getitem__(self, name: str) -> Path:
        return program(name, self.env, folders=(self.folder, self.root / "usr/bin"))

    @property
    def version(self) -> int:
        """The major version, as the folder of Debian's packages names it."""
        match = re.fullmatch(r"\d+", self.folder.parent.name)
        if match is None:
            raise ProcessFailed(f"cannot tell PostgreSQL's version from {self.folder}")
        return int(match.group())


def library_path(root: Path, env: Environment) -> dict[str, str]:
    """Return LD_LIBRARY_PATH for packages unpacked below `root`; a program run by `docker exec` has no .profile.d."""
    if root == Path("/") or env.get("LD_LIBRARY_PATH"):
        return {}
    return {"LD_LIBRARY_PATH": ":".join(str(path) for path in (*root.glob("usr/lib/*-linux-gnu"), root / "usr/lib"))}


def programs(env: Environment, *, app: Path | None = None) -> Programs:
    """Return the newest PostgreSQL of the slug, or of the system (stage 0)."""
    home = app or Path(__file__).resolve().parents[1]
    for root in (home / ".apt", Path("/")):
        folders = [path for path in root.glob("usr/lib/postgresql/*/bin") if (path / "postgres").is_file()]
        if folders:
            newest = max(folders, key=lambda path: int(path.parent.name))
            return Programs(root, newest, child_env(env) | library_path(root, env))
    raise ProcessFailed("PostgreSQL is not installed", why="no usr/lib/postgresql/*/bin in the slug or the system")
