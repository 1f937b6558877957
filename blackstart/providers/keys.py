"""SSH identities: the platform's own key, one host key per machine, and the known hosts that make SSH strict."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from blackstart.errors import BlackstartError
from blackstart.state import write_durably

_known_hosts_lock = threading.Lock()
_key_lock = threading.Lock()


@dataclass(frozen=True)
class SshFolder:
    """The folder `ssh` of a platform's state."""

    folder: Path

    @property
    def key(self) -> Path:
        """The private key that all machines of the platform let in."""
        return self.folder / "id_ed25519"

    @property
    def known_hosts(self) -> Path:
        """The machines' host keys, in OpenSSH's format."""
        return self.folder / "known_hosts"

    def ensure_key(self) -> str:
        """Return the public key's line; make the pair when it is missing."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with _key_lock:
            if not self.key.exists():
                write_durably(self.key, new_private_key())
        kept = self.kept_key()
        if kept is None:
            raise BlackstartError(f"{self.key} vanished", fix="restore it from a copy")
        return kept

    def kept_key(self) -> str | None:
        """Return the public key's line, None when there is no key. Raises BlackstartError for a damaged one."""
        try:
            return public_line(self.key.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError, UnsupportedAlgorithm) as error:
            raise BlackstartError(
                f"{self.key} is damaged",
                why=str(error),
                fix="restore it from a copy: the machines let in no other key",
            ) from error

    def know(self, address: str, host_key: str) -> None:
        """Trust `host_key` at `address`, and no other key."""
        self._rewrite(address, f"{address} {host_key}")

    def forget(self, address: str) -> None:
        """Trust no key at `address`."""
        self._rewrite(address, None)

    def _rewrite(self, address: str, line: str | None) -> None:
        """Machines are made in parallel, so one thread at a time."""
        with _known_hosts_lock:
            before = self.known_hosts.read_text().splitlines() if self.known_hosts.exists() else []
            lines = [old for old in before if old.split(" ", 1)[0] != address] + ([line] if line is not None else [])
            if lines != before:
                write_durably(self.known_hosts, "".join(f"{each}\n" for each in lines).encode())


def new_private_key() -> bytes:
    """Return a new Ed25519 key in OpenSSH's format."""
    return Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )


def public_line(private: bytes) -> str:
    """Return the public half as `ssh-ed25519 AAAA…`."""
    key = serialization.load_ssh_private_key(private, password=None)
    return key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH).decode()


def write_private(path: Path, data: bytes) -> None:
    """Write a private file that never exists with a wider mode."""
    path.unlink(missing_ok=True)
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(handle, "wb") as stream:
        stream.write(data)
