"""The engine on the platform's machines: whether it works, and what brings it back where it does not by itself.

A manager whose log could not be written (a full disk) stays out until its daemon is started again; when it was one of two,
nobody leads, and nothing can be asked of the engine any more. Restarting a daemon ends that machine's containers, so it is
done only when every machine is there and the engine had its time to elect a leader.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blackstart.errors import BlackstartError, ProofError
from blackstart.inventory import Host
from blackstart.remote import connected

ELECTION_SECONDS = 45.0
POLL_SECONDS = 1.0
RESTART_SECONDS = 120.0
LOOK = """test -e /var/lib/docker/swarm/docker-state.json || exit 0
timeout 10 docker info --format '{{.Swarm.LocalNodeState}}' 2>/dev/null || echo unknown
timeout 10 docker node ls --quiet >/dev/null 2>&1 && echo leader
exit 0
"""

Log = Callable[[str], None]


@dataclass(frozen=True)
class Member:
    """A machine that belongs to an engine. `answers`: as a manager it knows a leader, which answers."""

    host: Host
    state: str
    answers: bool

    @property
    def well(self) -> bool:
        """Whether it takes part."""
        return self.state == "active"


def works(hosts: Iterable[Host], *, seconds: float = 0.0) -> bool:
    """Whether the engine of these machines works, or comes to work within `seconds`. Without any member there is none yet."""
    deadline = time.monotonic() + seconds
    while not _work(_members(hosts)):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def bring_back(hosts: Iterable[Host], log: Log) -> None:
    """Restart the daemons of members that do not take part, then, while nobody leads, of all. Raises ProofError."""
    outside = [member for member in _members(hosts) if not member.well]
    for member in [*outside, *_members(hosts)]:
        if works(hosts):
            return
        log(f"{member.host.name}: its engine is {member.state}: starting its daemon again")
        with connected(member.host) as remote:
            remote.check(["systemctl", "restart", "docker.service"], seconds=RESTART_SECONDS)
        works(hosts, seconds=ELECTION_SECONDS)
    if not works(hosts):
        states = ", ".join(f"{member.host.name} is {member.state}" for member in _members(hosts))
        raise ProofError(
            "the engine has no leader, or a machine does not take part in it, also after its daemons were started again",
            why=states,
            fix="look at `journalctl -u docker` on these machines (is a disk full?), then run this again; "
            "docs/recovery.md says what to do when most managers are lost for good",
        )


def _work(members: list[Member]) -> bool:
    return all(member.well for member in members) and (not members or any(member.answers for member in members))


def _members(hosts: Iterable[Host]) -> list[Member]:
    with ThreadPoolExecutor(max_workers=10) as pool:
        return [member for member in pool.map(_look, hosts) if member is not None]


def _look(host: Host) -> Member | None:
    try:
        with connected(host) as remote:
            said = remote.check(["sh", "-c", LOOK]).split()
    except BlackstartError:
        return Member(host, "unreachable", answers=False)
    return Member(host, said[0], answers="leader" in said) if said else None
