"""What was written and what was applied are two things: a run may be killed between them, and the next one writes nothing.

So whoever applies files (restarts a service, loads rules) leaves a stamp of their content on the machine, and applies them
again until the stamp is right.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pyinfra import host
from pyinfra.api.operation import OperationMeta

from deploys.lib import facts

STAMPS = "/var/lib/blackstart/applied"


@dataclass(frozen=True)
class Applied:
    """The stamp `name` of the files `paths` on this host, as it was when the deploy began."""

    name: str
    paths: tuple[str, ...]
    was_current: bool

    def due(self, changes: Sequence[OperationMeta]) -> Callable[[], bool]:
        """Return whether to apply: a file changes in this run, or the stamp is not right."""
        return lambda: not self.was_current or any(change.did_change() for change in changes)

    @property
    def command(self) -> str:
        """The last command of those that apply: set the stamp."""
        return f"mkdir -p {STAMPS} && {_digest(self.paths)} > {STAMPS}/{self.name}"


def applied(name: str, paths: Sequence[str]) -> Applied:
    """Look at the stamp `name`."""
    same = f'test "$({_digest(paths)})" = "$(cat {STAMPS}/{name})"'
    return Applied(
        name, tuple(paths), was_current=bool(host.get_fact(facts.Succeeds, command=f"sh -c {shlex.quote(same)}"))
    )


def _digest(paths: Sequence[str]) -> str:
    return f"cat -- {' '.join(shlex.quote(path) for path in paths)} | sha256sum"
