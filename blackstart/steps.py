"""The engine room: an ordered list of idempotent steps. First boot, resume, upgrade and recovery are such lists.

A step whose `verify` holds is skipped, so a rerun after a crash at any point converges. The journal only tells people
what happened; it decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from blackstart.errors import BlackstartError, ProofError
from blackstart.journal import Journal
from blackstart.progress import Progress

C = TypeVar("C")


@dataclass(frozen=True)
class Step(Generic[C]):
    """`run` brings about what `verify` measures, given that what the steps in `needs` bring about is there."""

    name: str
    title: str
    run: Callable[[C], None]
    verify: Callable[[C], bool]
    needs: tuple[str, ...] = ()


SETTLE_SECONDS = 30.0
POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Took:
    """How long a step took, in seconds; 0 when it was so already."""

    name: str
    seconds: float


def run_steps(steps: Sequence[Step[C]], context: C, *, progress: Progress, journal: Journal) -> list[Took]:
    """Run those steps that do not hold yet, in order, and return how long each took. Raises what a step raises."""
    _check_order(steps)
    took = []
    with progress.showing({step.name: step.title for step in steps}):
        for step in steps:
            took.append(_run_step(step, context, progress, journal))
    return took


def _run_step(step: Step[C], context: C, progress: Progress, journal: Journal) -> Took:
    if step.verify(context):
        progress.already(step.name)
        return Took(step.name, 0.0)
    journal.add("step started", step=step.name, title=step.title)
    started = time.monotonic()
    try:
        with progress.step(step.name):
            step.run(context)
            if not _comes_about(step, context):
                raise ProofError(
                    f"the step {step.name} ran without an error, but what it should bring about is not there "
                    f"after {SETTLE_SECONDS:.0f} s",
                    fix="run the same command again; when it fails here again, look at the machines' logs",
                )
    except BaseException as error:
        journal.add("step failed", step=step.name, reason=_reason(error))
        raise
    seconds = time.monotonic() - started
    journal.add("step done", step=step.name, seconds=round(seconds, 2))
    return Took(step.name, seconds)


def _comes_about(step: Step[C], context: C) -> bool:
    """Whether what the step brings about is there in time: just after a black start, say, an API may answer and not answer."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while not step.verify(context):
        if time.monotonic() >= deadline:
            return False
        time.sleep(POLL_SECONDS)
    return True


def _reason(error: BaseException) -> str:
    return error.what if isinstance(error, BlackstartError) else type(error).__name__


def _check_order(steps: Sequence[Step[C]]) -> None:
    seen: set[str] = set()
    for step in steps:
        missing = set(step.needs) - seen
        if missing:
            raise BlackstartError(f"step {step.name} comes before what it needs: {', '.join(sorted(missing))}")
        seen.add(step.name)
