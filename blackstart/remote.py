"""Commands on a machine of the inventory, over SSH (paramiko). Vectors in, text out, a deadline always."""

from __future__ import annotations

import contextlib
import logging
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import paramiko

from blackstart.errors import HostError
from blackstart.inventory import Host

# What goes wrong is raised as HostError; paramiko would print its own tracebacks beside it.
logging.getLogger("paramiko").addHandler(logging.NullHandler())
logging.getLogger("paramiko").propagate = False

CONNECT_SECONDS = 15.0
CLOSED = "SSH protocol banner"
PENALTY = "A server that saw wrong keys lately refuses this address for a while: then wait a minute"
"""OpenSSH since 9.8 (`PerSourcePenalties` in sshd_config(5))."""
COMMAND_SECONDS = 60.0
NO_SUDO = "let the user run sudo without a password (`USER ALL=(ALL) NOPASSWD: ALL` in /etc/sudoers.d), or set ssh_user to root"


@dataclass(frozen=True)
class Result:
    """What a command printed, and its exit code."""

    code: int
    out: str
    err: str


class Remote:
    """An open connection to one host."""

    def __init__(self, host: Host, client: paramiko.SSHClient) -> None:
        self.host = host
        self._client = client

    def run(self, argv: list[str], *, stdin: str = "", seconds: float = COMMAND_SECONDS) -> Result:
        """Run `argv` as root and return its result, whatever the exit code."""
        try:
            input_, output, errors = self._client.exec_command(self._command(argv), timeout=seconds)
            input_.write(stdin)
            input_.channel.shutdown_write()
            out = output.read().decode(errors="replace")
            err = errors.read().decode(errors="replace")
            return Result(code=output.channel.recv_exit_status(), out=out, err=err)
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise unreachable(self.host, f"{argv[0]} did not end: {type(error).__name__} {error}") from error

    def talk(self, argv: list[str], sent: bytes, *, seconds: float = COMMAND_SECONDS) -> bytes:
        """Run `argv`, give it `sent`, and return what it prints until it ends. Its input stays open until then."""
        try:
            input_, output, _ = self._client.exec_command(self._command(argv), timeout=seconds)
            input_.write(sent)
            input_.flush()
            return bytes(output.read())
        except (OSError, EOFError, paramiko.SSHException) as error:
            raise unreachable(self.host, f"{argv[0]} did not end: {type(error).__name__} {error}") from error

    def _command(self, argv: list[str]) -> str:
        sudo = ["sudo", "-n", "--"] if self.host.ssh.get("ssh_user", "root") != "root" else []
        return " ".join(shlex.quote(word) for word in [*sudo, *argv])

    def check(self, argv: list[str], *, stdin: str = "", seconds: float = COMMAND_SECONDS) -> str:
        """Run `argv` and return what it printed. Raises HostError when it fails."""
        result = self.run(argv, stdin=stdin, seconds=seconds)
        if result.code != 0:
            why = (result.err or result.out).strip()[-1500:]
            raise HostError(
                f"{self.host.name}: {' '.join(argv[:4])} failed with exit code {result.code}",
                why=why,
                fix=NO_SUDO if why.startswith("sudo:") else "",
            )
        return result.out


@contextlib.contextmanager
def connected(host: Host, *, seconds: float = CONNECT_SECONDS) -> Iterator[Remote]:
    """Open a connection to `host` within `seconds`, with the SSH data that pyinfra uses too. Raises HostError."""
    client = paramiko.SSHClient()
    known_hosts = host.ssh.get("ssh_known_hosts_file")
    if known_hosts is not None:
        with contextlib.suppress(FileNotFoundError):
            client.load_host_keys(str(known_hosts))
    else:
        client.load_system_host_keys()
    strict = host.ssh.get("ssh_strict_host_key_checking", "accept-new")
    client.set_missing_host_key_policy(paramiko.AutoAddPolicy() if strict == "accept-new" else paramiko.RejectPolicy())
    try:
        client.connect(
            str(host.ssh.get("ssh_hostname", host.name)),
            port=int(host.ssh.get("ssh_port", 22)),
            username=str(host.ssh.get("ssh_user", "root")),
            key_filename=_key(host),
            timeout=seconds,
            banner_timeout=seconds,
            auth_timeout=seconds,
            allow_agent=host.ssh.get("ssh_key") is None,
            look_for_keys=host.ssh.get("ssh_key") is None,
        )
    except (OSError, EOFError, paramiko.SSHException) as error:
        client.close()
        raise unreachable(host, f"{type(error).__name__}: {error}") from error
    try:
        yield Remote(host, client)
    finally:
        client.close()


def unreachable(host: Host, why: str) -> HostError:
    """Return the error for a host that cannot be worked on over SSH."""
    where = (
        f"{host.ssh.get('ssh_user', 'root')}@{host.ssh.get('ssh_hostname', host.name)}:{host.ssh.get('ssh_port', 22)}"
    )
    fix = "check that the machine is on, its address, port, user and key in the inventory; then run this again"
    if CLOSED in why:
        fix += f". {PENALTY}"
    return HostError(f"{host.name} cannot be reached over SSH as {where}", why=why, fix=fix)


def _key(host: Host) -> str | None:
    key = host.ssh.get("ssh_key")
    return None if key is None else str(Path(str(key)).expanduser())
