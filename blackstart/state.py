"""The operator's state folder: one folder per platform, holding secrets (0600), journal, lock and reports.

<state>/<platform>/options.json    what `up` was asked for (machines, subnet)
                   secrets.json    passwords and keys of the platform; those that stage 0 knew, below `retired`
                   fencing.json    what the fence did, and what was seen before it
                   token           the operator's API token
                   ca/             the platform's certificate authority
                   ssh/            the key and known hosts of local machines
                   journal.jsonl   what was done, append-only
                   operations.jsonl when which operation ran on which host, append-only
                   proofs.json     the newest outcome of each proof
                   lock            held while a run changes something
                   report/         reports of runs
                   bundles/        bundles of logs
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets as random_secrets
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackstart.errors import BlackstartError, LockedError
from blackstart.model.names import NameRefused, platform_name
from blackstart.model.secrets import new_key, new_token


def state_root() -> Path:
    """Return the folder of all platforms' state: $BLACKSTART_STATE, else XDG's place for state."""
    chosen = os.environ.get("BLACKSTART_STATE")
    if chosen:
        return Path(chosen)
    base = os.environ.get("XDG_STATE_HOME") or str(Path.home() / ".local" / "state")
    return Path(base) / "blackstart"


def write_durably(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace `path` by `data` at once: after a crash it holds the old bytes or the new, never a part."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as stream:
            os.fchmod(stream.fileno(), mode)
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise
    _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class State:
    """The state folder of one platform."""

    platform: str
    folder: Path

    @classmethod
    def of(cls, platform: str) -> State:
        """Return the state of `platform`, its folder made when it is missing."""
        try:
            folder = state_root() / platform_name(platform)
        except NameRefused as error:
            raise BlackstartError(str(error), fix="choose another --platform") from error
        for needed in (folder, folder / "ca", folder / "ssh", folder / "report"):
            needed.mkdir(mode=0o700, parents=True, exist_ok=True)
        return cls(platform=platform, folder=folder)

    def read_json(self, name: str) -> dict[str, Any]:
        """Return the object in `name`, empty when there is no such file."""
        path = self.folder / name
        try:
            text = path.read_text()
        except FileNotFoundError:
            return {}
        try:
            value = json.loads(text)
        except (OSError, ValueError) as error:
            raise _damaged(path, str(error)) from error
        if not isinstance(value, dict):
            raise _damaged(path, "it is not a JSON object")
        return value

    def read_hint(self, name: str) -> dict[str, Any]:
        """Return the object in `name`, empty when it is missing or damaged: nothing is decided by it."""
        try:
            return self.read_json(name)
        except BlackstartError:
            return {}

    def write_json(self, name: str, value: dict[str, Any]) -> None:
        """Replace `name` durably, readable by its owner only."""
        write_durably(self.folder / name, (json.dumps(value, indent=1, sort_keys=True) + "\n").encode())

    def remember(self, name: str, key: str, value: Any) -> None:
        """Set one key of the object in `name`."""
        self.write_json(name, {**self.read_json(name), key: value})

    def forget(self, name: str) -> None:
        """Remove the file `name`."""
        (self.folder / name).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove the platform's state: its secrets are of no use to anything that is left."""
        shutil.rmtree(self.folder)

    @property
    def journal_path(self) -> Path:
        """Where the journal is."""
        return self.folder / "journal.jsonl"

    @property
    def operations_path(self) -> Path:
        """Where it is written when which operation ran on which host."""
        return self.folder / "operations.jsonl"

    @property
    def report_folder(self) -> Path:
        """Where the reports of runs are."""
        return self.folder / "report"

    @property
    def token_path(self) -> Path:
        """Where the operator's API token is."""
        return self.folder / "token"

    @property
    def ca_path(self) -> Path:
        """Where the platform's CA certificate is."""
        return self.folder / "ca" / "ca.pem"

    def secrets(self) -> dict[str, str]:
        """Return the platform's secrets, making those that are missing.

        A secret is made once and then kept: a rerun meets its old volumes with the old passwords.
        """
        with self.making():
            known = self.read_json("secrets.json")
            made = {name: maker() for name, maker in _SECRETS.items() if name not in known}
            if made:
                known = {**known, **made}
                self.write_json("secrets.json", known)
            if not self.token_path.exists() or self.token_path.read_bytes().strip() != str(known["api_token"]).encode():
                write_durably(self.token_path, (known["api_token"] + "\n").encode())
        return {name: value for name, value in known.items() if isinstance(value, str)}

    @property
    def epoch(self) -> int:
        """Return the epoch of the secrets: 0 until stage 0's are retired."""
        return int(self.read_json("secrets.json").get("epoch", 0))

    def retired(self) -> dict[str, str]:
        """Return what stage 0 knew; empty until it is retired. Kept for ever, so that it can be shown to be refused."""
        return {name: str(value) for name, value in self.read_json("secrets.json").get("retired", {}).items()}

    def retire_secrets(self, also: dict[str, str]) -> None:
        """Begin epoch 1: make what replaces everything that stage 0 knows, and keep the old beside `also`; once only.

        It is on disk before anything uses it, so a rerun goes on with the same secrets. The API's token is made by the
        API: `replace_token`.
        """
        self.secrets()
        with self.making():
            known = self.read_json("secrets.json")
            if known.get("epoch", 0) > 0:
                return
            old = {name: known[name] for name in (*_KNOWN_TO_STAGE0, "api_token")}
            made = {name: _SECRETS[name]() for name in _KNOWN_TO_STAGE0}
            self.write_json("secrets.json", {**known, **made, "epoch": 1, "retired": {**old, **also}})

    def replace_token(self, token: str, authorization: str) -> None:
        """Keep the operator's new API token and the id of its authorization."""
        with self.making():
            known = self.read_json("secrets.json")
            self.write_json("secrets.json", {**known, "api_token": token, "api_authorization": authorization})
        self.secrets()

    def kept_secrets(self) -> dict[str, str]:
        """Return the secrets that are there, and make none."""
        return {name: value for name, value in self.read_json("secrets.json").items() if isinstance(value, str)}

    @contextlib.contextmanager
    def making(self) -> Iterator[None]:
        """Wait until no other process makes secrets or certificates, and make them alone.

        Two deploys of one `up` run side by side; without this each would make its own CA (seen).
        """
        with (self.folder / "making.lock").open("a") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield

    @contextlib.contextmanager
    def lock(self, purpose: str) -> Iterator[None]:
        """Hold the platform's lock. The kernel drops it when this process dies, however it dies."""
        path = self.folder / "lock"
        with path.open("a+") as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError as error:
                stream.seek(0)
                raise LockedError(
                    f"another run works on the platform {self.platform!r}",
                    why=f"{path} is held by: {stream.read().strip() or 'a process that just started'}",
                    fix="wait until it ends, or stop it (Ctrl-C in its terminal); then run this again",
                ) from error
            stream.seek(0)
            stream.truncate()
            stream.write(f"pid {os.getpid()}, {purpose}\n")
            stream.flush()
            yield


def _password() -> str:
    return random_secrets.token_urlsafe(24)


_SECRETS = {
    "secret_key": new_key,
    "api_token": new_token,
    "stage0_database_password": _password,
    "stage0_objects_key": lambda: random_secrets.token_hex(10),
    "stage0_objects_secret": _password,
    "stage0_bus_password": _password,
    "database_password": _password,
    "objects_key": lambda: random_secrets.token_hex(10),
    "objects_secret": _password,
    "bus_password": _password,
    "backup_passphrase": _password,
}


_KNOWN_TO_STAGE0 = ("database_password", "objects_key", "objects_secret", "bus_password")
"""Credentials of the platform's own stores that stage 0 hands to the components."""


def _damaged(path: Path, why: str) -> BlackstartError:
    return BlackstartError(f"{path} is damaged", why=why, fix=_MENDING.get(path.name, _MENDING[""]))


_MENDING = {
    "options.json": "restore it from a copy; or remove it and give `up` the --nodes and --subnet of the first time",
    "secrets.json": "restore it from a copy: the platform's stores know no other passwords. "
    "When the platform may be lost: `down`, then `up`",
    "": "restore it from a copy; or remove it: what it says is measured again, or counts as not proven",
}
"""What to do about a damaged file, by its name."""
