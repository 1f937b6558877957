"""Facts of our own. A fact that cannot be read is None, never a guess."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable
from typing import Any

from pyinfra.api import FactBase

from blackstart.ownership import IDENTITY, parsed


class Engine(FactBase[dict[str, Any] | None]):
    """The engine's own view of this host: `docker info`'s Swarm part, None where no engine runs."""

    def requires_command(self) -> str:
        """Nothing to ask where Docker is not installed."""
        return "docker"

    def command(self) -> str:
        """Ask the engine; an engine that does not answer is no engine."""
        return "docker info --format '{{json .Swarm}}' 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> dict[str, Any] | None:
        """Return the object, e.g. {"LocalNodeState": "active", "ControlAvailable": true, "NodeID": …}."""
        value: dict[str, Any] | None = _json_or_none("".join(output))
        return value


class EngineNodes(FactBase[list[dict[str, Any]] | None]):
    """The engine's nodes as a manager lists them, None on a host that is none."""

    def requires_command(self) -> str:
        """Nothing to ask where Docker is not installed."""
        return "docker"

    def command(self) -> str:
        """Inspect every node at once."""
        return "docker node ls -q 2>/dev/null | xargs -r docker node inspect 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> list[dict[str, Any]] | None:
        """Return `docker node inspect`'s list."""
        value: list[dict[str, Any]] | None = _json_or_none("\n".join(output))
        return value


class JoinToken(FactBase[str | None]):
    """The token with which a worker joins the engine. Secret."""

    def requires_command(self) -> str:
        """Nothing to ask where Docker is not installed."""
        return "docker"

    def command(self) -> str:
        """Ask a manager."""
        return "docker swarm join-token -q worker 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> str | None:
        """Return the token."""
        return "".join(output).strip() or None


class Images(FactBase[list[str]]):
    """The names of the images that the engine has."""

    def requires_command(self) -> str:
        """Nothing to ask where Docker is not installed."""
        return "docker"

    def command(self) -> str:
        """List name:tag."""
        return "docker image ls --format '{{.Repository}}:{{.Tag}}' 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> list[str]:
        """Return the names."""
        return list(output)


class Networks(FactBase[list[str]]):
    """The names of the engine's networks."""

    def requires_command(self) -> str:
        """Nothing to ask where Docker is not installed."""
        return "docker"

    def command(self) -> str:
        """List names."""
        return "docker network ls --format '{{.Name}}' 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> list[str]:
        """Return the names."""
        return list(output)


class OutsideMtu(FactBase[int | None]):
    """The MTU of the interface with the default route, in bytes."""

    def command(self) -> str:
        """Read it from sysfs, so that iproute2's version does not matter."""
        return "cat /sys/class/net/$(ip -4 route show default | sed -n 's/.* dev \\([^ ]*\\).*/\\1/p' | head -n 1)/mtu"

    def process(self, output: Iterable[str]) -> int | None:
        """Return the number."""
        text = "".join(output).strip()
        return int(text) if text.isdigit() else None


class OsRelease(FactBase[dict[str, str]]):
    """/etc/os-release as a map."""

    def command(self) -> str:
        """Read the file."""
        return "cat /etc/os-release"

    def process(self, output: Iterable[str]) -> dict[str, str]:
        """Return the unquoted values."""
        pairs = (line.split("=", 1) for line in output if "=" in line)
        return {key: "".join(shlex.split(value)) for key, value in pairs}


class FreeMegabytes(FactBase[int | None]):
    """The free space below /var/lib, in MB."""

    def command(self) -> str:
        """Ask df in a form for programs."""
        return "df --output=avail -BM /var/lib | tail -n 1"

    def process(self, output: Iterable[str]) -> int | None:
        """Return the number."""
        text = "".join(output).strip().removesuffix("M")
        return int(text) if text.isdigit() else None


class ListeningPorts(FactBase[list[int] | None]):
    """The TCP ports on which something listens, read from the kernel, so that no program need be installed."""

    def command(self) -> str:
        """Both address families; a kernel without IPv6 has one file only."""
        return "cat /proc/net/tcp /proc/net/tcp6 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> list[int]:
        """Return the ports of the sockets in the state LISTEN (0A; proc_net_tcp(5))."""
        rows = [line.split() for line in output]
        return sorted({int(row[1].rpartition(":")[2], 16) for row in rows if len(row) > 3 and row[3] == "0A"})


class Components(FactBase[dict[str, bool] | None]):
    """Which components need nothing more, as `blackstart.components state` says; None where it cannot say."""

    def command(self, run: str) -> str:
        """Run the program where it is installed."""
        return f"{run} 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> dict[str, bool] | None:
        """Return the map."""
        value: dict[str, bool] | None = _json_or_none("".join(output))
        return value


class Succeeds(FactBase[bool]):
    """Whether a command exits 0; false where it is not installed."""

    def command(self, command: str) -> str:
        """Run it, silently."""
        return f"{command} > /dev/null 2>&1 && echo yes || echo no"

    def process(self, output: Iterable[str]) -> bool:
        """Return the answer."""
        return "".join(output).strip() == "yes"


class Identity(FactBase[dict[str, Any] | None]):
    """Whose machine this is: what blackstart/ownership.py compares, None where nobody's."""

    def command(self) -> str:
        """Read the file where it is."""
        return f"cat {IDENTITY} 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> dict[str, Any] | None:
        """Return the object."""
        return parsed("\n".join(output))


class Stage(FactBase[str | None]):
    """The stage in stage 0's own database (`stage-0`, `moving`, `moved`), None where there is none."""

    def command(self) -> str:
        """Ask PostgreSQL."""
        return "runuser -u postgres -- psql -d platform -qtA --command 'SELECT stage FROM platform' 2>/dev/null || true"

    def process(self, output: Iterable[str]) -> str | None:
        """Return the word."""
        return "".join(output).strip() or None


def _json_or_none(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None
