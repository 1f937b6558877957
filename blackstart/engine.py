"""The engine on the platform's machines: whether it works, and what brings it back where it does not by itself.

A manager whose log could not be written (a full disk) stays out until its daemon is started again; when it was one of two,
nobody leads, and nothing can be asked of the engine any more. Restarting a daemon ends that machine's containers, so it is
done only when every machine is there and the engine had its time to elect a leader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blackstart import observe
from blackstart.client import wait_for
from blackstart.errors import BlackstartError, ProofError
from blackstart.inventory import Host
from blackstart.remote import connected

ELECTION_SECONDS = 90.0
SEED_SECONDS = 30.0
FALLEN_OUT = ("error", "unknown")
"""A daemon that stopped taking part, and one that does not answer."""

POLL_SECONDS = 1.0
RESTART_SECONDS = 120.0
LOOK = """test -e /var/lib/docker/swarm/docker-state.json || exit 0
state=$(timeout 10 docker info --format '{{.Swarm.LocalNodeState}}' 2>/dev/null)
echo "${state:-unknown}"
timeout 10 docker node ls --quiet >/dev/null 2>&1 && echo leader
exit 0
"""
"""Without its daemon, `docker info` prints an empty state."""

FORGET_OTHERS = """self=$(docker info --format '{{.Swarm.NodeID}}')
for id in $(docker node ls --quiet); do
    test "$id" != "$self" || continue
    docker node demote "$id" > /dev/null
    tries=0
    until docker node rm --force "$id" > /dev/null; do tries=$((tries + 1)); test $tries -lt 30 || exit 1; sleep 1; done
done
"""
LEAVE = "systemctl stop docker.service docker.socket; rm -rf /var/lib/docker/swarm; systemctl start docker.service"
"""Also where the daemon does not start any more, because a part of its log is missing."""

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
    return observe.holds(
        lambda: wait_for(lambda: _work(_members(hosts)) or None, "the engine", seconds=seconds, poll=POLL_SECONDS)
    )


def bring_back(hosts: Sequence[Host], log: Log, *, seed: Host | None = None) -> None:
    """Restart the daemons that fell out; while nobody leads then, start over, or restart all. Raises ProofError.

    `seed` is a manager from whose log alone the engine may start over: stage 0, before the pivot. Without it, after the
    pivot, the daemons of all members are restarted, one after another.
    """
    _restart([member for member in _members(hosts) if member.state in FALLEN_OUT], log)
    if works(hosts, seconds=patience(seed)):
        return
    if seed is not None:
        _start_over(seed, [host for host in hosts if host.name != seed.name], log)
    for member in _members(hosts):
        if works(hosts, seconds=patience(seed)):
            return
        _restart([member], log)
    if not works(hosts, seconds=patience(seed)):
        states = ", ".join(f"{member.host.name} is {member.state}" for member in _members(hosts))
        raise ProofError(
            "the engine has no leader, or a machine does not take part in it, also after its daemons were started again",
            why=states,
            fix="look at `journalctl -u docker` on these machines (is a disk full?), then run this again; "
            "docs/recovery.md says what to do when most managers are lost for good",
        )


def patience(seed: Host | None) -> float:
    """Return how many seconds an election may take: after the pivot, users' dynos run, and machines may be booting."""
    return ELECTION_SECONDS if seed is None else SEED_SECONDS


def _restart(members: Sequence[Member], log: Log) -> None:
    for member in members:
        log(f"{member.host.name}: its engine is {member.state}: starting its daemon again")
        with connected(member.host) as remote:
            remote.run(
                ["systemctl", "restart", "docker.service"], seconds=RESTART_SECONDS
            )  # whether it helped is looked at


def _start_over(seed: Host, others: Sequence[Host], log: Log) -> None:
    """Make `seed` the only manager, of what its own log says; the others leave, and stage 1 has them join again.

    A machine that dies while it is promoted counts as a manager and has no log, so that two managers never have a majority.
    """
    log(f"nobody leads: {seed.name} starts the engine over from its own log, and the others join it again")
    with connected(seed) as remote:
        init = ["docker", "swarm", "init", "--force-new-cluster", "--advertise-addr", seed.address]
        remote.check(init, seconds=RESTART_SECONDS)
        remote.check(["sh", "-c", FORGET_OTHERS], seconds=RESTART_SECONDS)
    for host in others:
        with connected(host) as remote:
            remote.check(["sh", "-c", LEAVE], seconds=RESTART_SECONDS)


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
