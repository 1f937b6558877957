"""The runtime API, through HAProxy's master socket: one socket reaches the worker and, after a reload, older workers."""

from __future__ import annotations

import csv
import io
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from router.plan import Actual, Live

SECONDS = 5.0
BATCH = 30  # commands a line; a line must fit HAProxy's buffer
ADMIN_MAINT = 0x01 | 0x02 | 0x04 | 0x20 | 0x40
ADMIN_DRAIN = 0x08 | 0x10
EXPECTED = ("New server registered.", "Server deleted.")
OWN = ("slot-",)


class RuntimeFailed(Exception):
    """HAProxy did not answer a command."""


@dataclass(frozen=True)
class Processes:
    """What the master says about its workers."""

    reloads: int
    failed: int
    workers: tuple[int, ...]
    old_workers: tuple[int, ...]


class Runtime:
    """A client that asks one question a connection and never waits for longer than `SECONDS` for a piece of answer."""

    def __init__(self, path: Path) -> None:
        self._path = str(path)

    def ask(self, line: str) -> str:
        """Return the answer to one line of commands."""
        chunks: list[bytes] = []
        try:
            with socket.socket(socket.AF_UNIX) as peer:
                peer.settimeout(SECONDS)
                peer.connect(self._path)
                peer.sendall(line.encode("ascii") + b"\n")
                peer.shutdown(socket.SHUT_WR)
                while chunk := peer.recv(65536):
                    chunks.append(chunk)
        except OSError as error:
            raise RuntimeFailed(f"HAProxy did not answer {line[:60]!r}: {error}") from error
        return b"".join(chunks).decode("ascii", "replace")

    def send(self, commands: Sequence[str]) -> list[str]:
        """Run `commands` in order on the worker. Returns what HAProxy said that was not expected."""
        remarks: list[str] = []
        for start in range(0, len(commands), BATCH):
            answer = self.ask(";".join(f"@1 {command}" for command in commands[start : start + BATCH]))
            remarks += [line for line in answer.splitlines() if line.strip() and line not in EXPECTED]
        return remarks

    def processes(self) -> Processes:
        """Return the master's workers."""
        return parse_processes(self.ask("show proc"))

    def reload(self) -> None:
        """Ask for a reload; the answer of older versions says nothing, so the caller watches `processes`."""
        self.ask("reload")

    def actual(self, map_path: str) -> Actual:
        """Return what the worker has."""
        return parse_actual(
            self.ask("@1 show servers state"), self.ask("@1 show stat -1 4 -1"), self.ask(f"@1 show map {map_path}")
        )

    def old_sessions(self, pids: Iterable[int]) -> dict[str, int]:
        """Return the sessions by server name in workers that are finishing after a reload or a stop."""
        sums: dict[str, int] = {}
        for pid in pids:
            try:
                answer = self.ask(f"@!{pid} show stat -1 4 -1")
            except RuntimeFailed:
                continue  # it ended meanwhile
            for (_, name), row in parse_stat(answer).items():
                sums[name] = sums.get(name, 0) + _sessions(row)
        return sums


def parse_processes(text: str) -> Processes:
    """Parse `show proc` (2.6 to 3.0 differ in trailing blanks only)."""
    reloads = failed = 0
    groups: dict[str, list[int]] = {"# workers": [], "# old workers": []}
    current: list[int] | None = None
    for line in text.splitlines():
        words = line.split()
        if line.startswith("# "):
            current = groups.get(line.strip())
        elif len(words) > 2 and words[1] == "master":
            reloads = int(words[2])
            failed = int(words[4].rstrip("]")) if len(words) > 4 and words[3] == "[failed:" else 0
        elif len(words) > 1 and words[1] == "worker" and current is not None:
            current.append(int(words[0]))
    return Processes(reloads, failed, tuple(groups["# workers"]), tuple(groups["# old workers"]))


def parse_stat(text: str) -> dict[tuple[str, str], Mapping[str, str]]:
    """Parse `show stat` into rows by (backend, server)."""
    lines = text.lstrip().removeprefix("# ")
    rows = csv.DictReader(io.StringIO(lines))
    return {
        (row["pxname"], row["svname"]): row
        for row in rows
        if row.get("pxname", "").startswith(OWN) and row.get("svname")
    }


def parse_actual(state: str, stat: str, hosts: str) -> Actual:
    """Combine `show servers state`, `show stat` and `show map`."""
    if "srv_admin_state" not in state or "svname" not in stat:
        raise RuntimeFailed(f"HAProxy's answer is not understood: {state[:80]!r} {stat[:80]!r}")
    columns: list[str] = []
    rows = parse_stat(stat)
    servers: dict[str, dict[str, Live]] = {}
    for line in state.splitlines():
        words = line.split()
        if line.startswith("# "):
            columns = words[1:]
        elif columns and len(words) >= len(columns) and words[1].startswith(OWN):
            field = dict(zip(columns, words, strict=False))
            backend, name = field["be_name"], field["srv_name"]
            servers.setdefault(backend, {})[name] = _live(field, rows.get((backend, name), {}))
    return Actual(servers, dict(_map_entry(line) for line in hosts.splitlines() if len(line.split()) == 3))


def _live(field: Mapping[str, str], row: Mapping[str, str]) -> Live:
    admin = int(field["srv_admin_state"])
    maint, drain = admin & ADMIN_MAINT != 0, admin & ADMIN_DRAIN != 0
    status = "MAINT" if maint else "DRAIN" if drain else "DOWN" if field["srv_op_state"] == "0" else "UP"
    return Live(field["srv_addr"], int(field["srv_port"]), maint, drain, status, _sessions(row))


def _sessions(row: Mapping[str, str]) -> int:
    return int(row.get("scur") or 0) + int(row.get("qcur") or 0)


def _map_entry(line: str) -> tuple[str, str]:
    _, host, backend = line.split()
    return host, backend
