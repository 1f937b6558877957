"""When the engine counts as working, and whose daemon is started again when it does not."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from blackstart import engine
from blackstart.engine import Member
from blackstart.errors import ProofError


class Machines:
    """Machines that say what a test wants, and note whose daemon was started again."""

    def __init__(self, **said: tuple[str, bool]) -> None:
        self.hosts = [SimpleNamespace(name=name, address=f"{name}.example") for name in said]
        self.said = said
        self.healed: dict[str, tuple[str, bool]] = {}
        self.anew: dict[str, tuple[str, bool]] = {}
        self.restarted: list[str] = []
        self.started_over: list[tuple[str, str]] = []

    def look(self, host) -> Member | None:
        state, answers = self.said[host.name]
        return Member(host, state, answers=answers) if state != "none" else None

    @contextmanager
    def connected(self, host):
        def check(argv, seconds):
            if argv == ["systemctl", "restart", "docker.service"]:
                self.restarted.append(host.name)
                self.said |= self.healed
            else:
                self.started_over.append((host.name, " ".join(argv[:4])))
                self.said |= self.anew

        yield SimpleNamespace(check=check, run=check)


@pytest.fixture
def machines(monkeypatch):
    def make(**said: tuple[str, bool]) -> Machines:
        made = Machines(**said)
        monkeypatch.setattr(engine, "_look", made.look)
        monkeypatch.setattr(engine, "connected", made.connected)
        monkeypatch.setattr(engine, "patience", lambda seed: 0.0)
        return made

    return make


@pytest.mark.parametrize(
    ("said", "works"),
    [
        ({"s0": ("none", False), "n1": ("none", False)}, True),
        ({"s0": ("active", True), "n1": ("none", False)}, True),
        ({"n1": ("active", True), "n2": ("active", False)}, True),
        ({"n1": ("active", True), "n2": ("error", False)}, False),
        ({"n1": ("pending", False), "n2": ("active", False)}, False),
        ({"n1": ("unreachable", False), "n2": ("active", True)}, False),
    ],
)
def test_it_works_when_somebody_leads_and_every_member_takes_part(machines, said, works):
    assert engine.works(machines(**said).hosts) is works


def test_only_the_one_that_fell_out_is_started_again(machines):
    made = machines(n1=("active", True), n2=("error", False), n3=("active", True))
    made.healed = {"n2": ("active", True)}
    engine.bring_back(made.hosts, lambda text: None)
    assert made.restarted == ["n2"]


def test_where_nobody_leads_one_after_another_until_one_does(machines):
    made = machines(n1=("active", False), n2=("active", False))
    made.healed = {"n1": ("active", True)}
    engine.bring_back(made.hosts, lambda text: None)
    assert made.restarted == ["n1"]


def test_what_does_not_come_back_is_said_with_every_machines_state(machines):
    made = machines(n1=("active", False), n2=("error", False))
    with pytest.raises(ProofError) as refused:
        engine.bring_back(made.hosts, lambda text: None)
    assert made.restarted == ["n2", "n1", "n2"]  # the one that fell out first, then each
    assert "n1 is active, n2 is error" in str(refused.value)
    assert "journalctl -u docker" in str(refused.value)


def test_before_the_pivot_stage_0_starts_the_engine_over_from_its_log(machines):
    made = machines(s0=("pending", False), n1=("error", False))
    made.anew = {"s0": ("active", True), "n1": ("none", False)}
    engine.bring_back(made.hosts, lambda text: None, seed=made.hosts[0])
    assert made.started_over[0] == ("s0", "docker swarm init --force-new-cluster")
    assert ("n1", f"sh -c {engine.LEAVE}") in made.started_over
    assert "n1" not in [name for name, what in made.started_over if "init" in what]


def test_without_a_seed_nothing_is_started_over(machines):
    made = machines(n1=("pending", False), n2=("error", False))
    with pytest.raises(ProofError):
        engine.bring_back(made.hosts, lambda text: None)
    assert made.started_over == []
