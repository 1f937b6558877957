"""`upgrade`: the ordered steps that bring a live platform to this checkout, component by component, while apps serve.

The platform compiles everything first; only then is anything replaced. A component whose source, stack and config are what
runs already is left alone. The steps of a run that was killed are taken up by the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from blackstart import observe, rolling
from blackstart.client import Client
from blackstart.errors import BlackstartError, ProofError
from blackstart.graph import component_order
from blackstart.rolling import Target
from blackstart.run import Run
from blackstart.steps import Step
from blackstart.up import (
    build_stacks,
    check_reachable,
    host_is_prepared,
    is_ready,
    prepare_host,
    stacks_are_built,
    wait_ready,
)

FIRST = "api"
"""It owns the database's schema, which the others read: the schema moves first, and old programs work with a newer one."""

COMPILES_ON = "psmgr"
"""Its config says on which stacks builds run."""


def stack_vars(run: Run) -> dict[str, str]:
    """Return the config vars that name the stacks of this checkout."""
    config = run.platform.component_config(COMPILES_ON)
    return {name: config[name] for name in ("STACK", "STACK_BUILD")}


def upgrade_order(root: Path, only: Sequence[str] = ()) -> list[str]:
    """Return the components to upgrade, each after those that it needs. Raises BlackstartError for a name that is none."""
    order = component_order(root)
    unknown = sorted(set(only) - set(order))
    if unknown:
        raise BlackstartError(
            f"there is no component {', '.join(unknown)}", fix=f"choose among {', '.join(sorted(order))}"
        )
    chosen = [name for name in order if not only or name in only]
    return sorted(chosen, key=lambda name: name != FIRST)


@dataclass
class Upgrade:
    """One upgrade of the platform to the checkout `root`."""

    root: Path
    order: list[str]
    whole: bool = True
    prepared_nodes: bool = False
    _targets: dict[str, Target] = field(default_factory=dict)

    def steps(self) -> tuple[Step[Run], ...]:
        """Return the steps, in order. One that is not of the whole checkout leaves stacks and nodes alone."""
        reachable = Step("reachable", "Reach the nodes and the API", require_reachable, is_reachable)
        machines = (
            Step("host", "Prepare this host", prepare_host, host_is_prepared),
            Step("stacks", "Build the stack images", build_stacks, stacks_are_built, needs=("host",)),
            Step(
                "nodes",
                "Bring the nodes to this checkout",
                self.prepare_nodes,
                self.nodes_are_prepared,
                needs=("stacks",),
            ),
            Step(
                "stack",
                "Compile on this checkout's stack",
                self.use_stack,
                self.is_stack_used,
                needs=("nodes", "reachable"),
            ),
        )
        build = Step("build", "Compile the components on the platform", self.build, self.is_built, needs=("reachable",))
        rolls = tuple(self._roll_step(name) for name in self.order)
        last = Step("ready", "See every component up", wait_ready, is_ready, needs=tuple(step.name for step in rolls))
        return (reachable, *(machines if self.whole else ()), build, *rolls, last)

    def _roll_step(self, name: str) -> Step[Run]:
        title = f"Replace {name}, if it changed"
        return Step(name, title, partial(self.roll, name), partial(self.is_rolled, name), needs=("build",))

    def target(self, run: Run, name: str) -> Target:
        """Return what a component should be; the checkout is read once."""
        if name not in self._targets:
            self._targets[name] = rolling.target_of(run.platform, self.root, name)
        return self._targets[name]

    def prepare_nodes(self, run: Run) -> None:
        """Run the nodes' deploy on one node after the other: what it changes may restart the node's engine."""
        for node in run.platform.inventory.nodes:
            deployed = run.deploy("nodes", "nodes_only", limit=node.name)
            if deployed.changed:
                run.log("nodes")(f"{node.name}: {sum(deployed.changed.values())} changes")
                wait_ready(run)
        self.prepared_nodes = True

    def nodes_are_prepared(self, run: Run) -> bool:
        """Whether this run did it: only the deploy itself knows what it would change."""
        return self.prepared_nodes

    def use_stack(self, run: Run) -> None:
        """Let the process manager compile on the stacks of this checkout: what runs keeps the one it was compiled on."""
        with observe.answering_client(run.platform) as client:
            rolling.configure(client, {COMPILES_ON: rolling.differing(stack_vars(run))}, run.log("stack"))

    def is_stack_used(self, run: Run) -> bool:
        """Whether builds run on the stacks of this checkout."""
        with observe.answering_client(run.platform) as client:
            return rolling.is_configured(client, COMPILES_ON, rolling.differing(stack_vars(run)))

    def _missing(self, run: Run, client: Client) -> list[Target]:
        targets = [self.target(run, name) for name in self.order]
        return [target for target in targets if rolling.built_slug(client, target) is None]

    def build(self, run: Run) -> None:
        """Compile what the platform has no slug of; nothing is released."""
        with observe.answering_client(run.platform) as client:
            rolling.build(client, self._missing(run, client), run.log("build"))

    def is_built(self, run: Run) -> bool:
        """Whether the platform has a slug of every component's source on this stack."""
        with observe.answering_client(run.platform) as client:
            return not self._missing(run, client)

    def roll(self, name: str, run: Run) -> None:
        """Replace one component."""
        with observe.answering_client(run.platform) as client:
            rolling.roll(client, self.target(run, name), run.log(name))

    def is_rolled(self, name: str, run: Run) -> bool:
        """Whether what runs of it is what the checkout says."""
        with observe.answering_client(run.platform) as client:
            return rolling.is_current(client, self.target(run, name))


def require_reachable(run: Run) -> None:
    """Raise unless every node answers over SSH and the platform's own API acts."""
    check_reachable(run.platform.inventory.nodes)
    if not observe.is_self_hosted(run.platform):
        raise ProofError(
            f"{run.platform.name} is not self-hosted, or no router answers for its API",
            why=f"asked: {', '.join(run.platform.node_addresses)}",
            fix="run `up` to the end first; look at `bootstrap.py status`",
        )


def is_reachable(run: Run) -> bool:
    """Whether every node answers over SSH and the platform's own API acts."""
    return observe.holds(lambda: check_reachable(run.platform.inventory.nodes)) and observe.is_self_hosted(run.platform)
