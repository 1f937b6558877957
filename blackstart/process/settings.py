"""Settings: config vars of the app, and the few paths that differ between a dyno and a systemd service.

DATA_DIR            where data lives (default /data)
RUNTIME_DIRECTORY   private files that need not survive (systemd sets it); default a private folder in TMPDIR
BLACKSTART_CA       the platform's CA (default /etc/blackstart/trust/ca.pem)
TLS_CERT, TLS_KEY   PEM texts of the certificate and its key
"""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blackstart.process.failure import ProcessFailed
from blackstart.process.files import write_private

DEFAULT_CA = "/etc/blackstart/trust/ca.pem"

Environment = Mapping[str, str]


def required(env: Environment, name: str) -> str:
    """Return the config var `name`, which must be set and not empty."""
    value = env.get(name, "")
    if not value:
        raise ProcessFailed(f"config var {name} is not set", fix=f"set {name} and start again")
    return value


def whole_number(env: Environment, name: str, default: int, *, least: int = 1) -> int:
    """Return the config var `name` as a number of at least `least`."""
    text = env.get(name, "") or str(default)
    try:
        number = int(text)
    except ValueError as error:
        raise ProcessFailed(f"config var {name} is {text!r}, not a whole number") from error
    if number < least:
        raise ProcessFailed(f"config var {name} is {number}; the least is {least}")
    return number


def data_dir(env: Environment) -> Path:
    """Return the folder of the component's data, which must exist and be writable."""
    path = Path(env.get("DATA_DIR", "") or "/data")
    if not path.is_dir() or not os.access(path, os.W_OK | os.X_OK):
        raise ProcessFailed(
            f"data folder {path} is missing or not writable by uid {os.getuid()}",
            fix="mount a volume there, or set DATA_DIR to a folder of this user",
        )
    return path


def runtime_dir(env: Environment, name: str) -> Path:
    """Return a folder of mode 0700 for `name`'s private files (keys, sockets); its path is the same at every start."""
    given = env.get("RUNTIME_DIRECTORY", "")
    path = Path(given) if given else Path(tempfile.gettempdir()) / f"blackstart-{name}-{os.getuid()}"
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid():
        raise ProcessFailed(f"runtime folder {path} is not a folder of uid {os.getuid()}", fix="remove it")
    path.chmod(0o700)
    return path


def ca_file(env: Environment) -> Path:
    """Return the path of the platform's CA."""
    return Path(env.get("BLACKSTART_CA", "") or DEFAULT_CA)


@dataclass(frozen=True)
class Certificate:
    """Where the certificate and its key were written."""

    certificate: Path
    key: Path


def write_certificate(env: Environment, folder: Path) -> Certificate:
    """Write TLS_CERT and TLS_KEY into `folder`, 0600."""
    files = Certificate(folder / "tls-cert.pem", folder / "tls-key.pem")
    write_private(files.certificate, required(env, "TLS_CERT").rstrip("\n") + "\n")
    write_private(files.key, required(env, "TLS_KEY").rstrip("\n") + "\n")
    return files
