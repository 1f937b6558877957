"""What one run of bootstrap.py works on: the platform, the machines' provider, and where its progress is shown."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from blackstart import observe
from blackstart.deploys import Deployed, run_deploy
from blackstart.inventory import Host
from blackstart.journal import Journal
from blackstart.operations import Operation
from blackstart.platform import Platform
from blackstart.progress import Progress
from blackstart.providers import Provider

OPTIONS = "options.json"


@dataclass(frozen=True)
class Run:
    """What steps and proofs work on. `provider` is None where the inventory names machines that exist."""

    inventory_argument: str
    platform: Platform
    provider: Provider | None
    progress: Progress

    def log(self, step: str) -> Callable[[str], None]:
        """Return a function that shows a line of `step`."""
        return lambda text: self.progress.line(step, text)

    def deploy(self, step: str, name: str, *, limit: str | None = None) -> Deployed:
        """Run a pyinfra deploy of this checkout on the inventory, and write down what it does when, for the report."""
        keep = self._keeper(step)
        return run_deploy(self.inventory_argument, name, log=self.log(step), limit=limit, on_operation=keep)

    def _keeper(self, step: str) -> Callable[[Operation], None]:
        """Return a function that writes down an operation, for the report; a full disk must not hold up the deploy."""
        journal = Journal(self.platform.state.operations_path)

        def keep(operation: Operation) -> None:
            with contextlib.suppress(OSError):
                journal.add("operation", step=step, **asdict(operation))

        return keep

    @property
    def cache(self) -> Path:
        """Where this host keeps images and stacks."""
        return Path(self.platform.inventory.hosts[0].settings.cache)

    @property
    def pivoted(self) -> bool:
        """Whether the platform's own control plane is in charge, measured. Then stage 0 is never made again."""
        return observe.is_self_hosted(self.platform) or observe.handed_over(self.stage0, self.nodes)

    @property
    def stage0(self) -> Host | None:
        """The stage-0 machine, None where it is known not to run."""
        host = self.platform.inventory.stage0
        return host if self._may_run(host) else None

    @property
    def nodes(self) -> tuple[Host, ...]:
        """The nodes that may run."""
        return tuple(host for host in self.platform.inventory.nodes if self._may_run(host))

    def _may_run(self, host: Host) -> bool:
        """Whether a host may answer: a local machine that is off need not be waited for."""
        if self.provider is None:
            return True
        return any(machine.name == host.name and self.provider.running(machine) for machine in self.provider.machines())

    def remember(self, key: str, value: object) -> None:
        """Keep a fact in the state folder."""
        self.platform.state.remember(OPTIONS, key, value)
