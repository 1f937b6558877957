"""`verify`: which proofs there are, in the order in which they are carried out; those that disturb the platform come last."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence

from blackstart import hold, observe
from blackstart.errors import BlackstartError
from blackstart.proofs import (
    Proof,
    Prover,
    black_start,
    blast_radius,
    carried_out,
    fencing,
    fixed_point,
    graph,
    kept,
    no_op_pivot,
    teardown,
)
from blackstart.run import Run

PROVERS: dict[str, Prover] = {
    "graph": graph.prove,
    "no-op-pivot": no_op_pivot.prove,
    "fencing": fencing.prove,
    "fixed-point": fixed_point.prove,
    "teardown": teardown.prove,
    "blast-radius": blast_radius.prove,
    "black-start": black_start.prove,
}
DISTURBING = {
    "blast-radius": "stop components one by one",
    "black-start": "cut the power of every node",
}
"""What a proof does to a platform that serves users: only for an operator who names the proof."""
LOOK_SECONDS = 5.0
OWN_APP = re.compile(r"(canary|blast)-[0-9a-f]{8}(-[a-z]+)?")
"""The apps of the proofs themselves, which a killed run leaves."""


def run_proofs(names: Sequence[str], run: Run, *, named: Collection[str] = ()) -> list[Proof]:
    """Carry out the proofs `names`, showing each as a step and keeping it, and return them in the order of PROVERS.

    A proof of DISTURBING that is not in `named` is not carried out while the platform serves users' apps, and not kept.
    """
    release_left_holds(run)
    proofs = []
    chosen = [name for name in PROVERS if name in names]
    with run.progress.showing({name: name for name in chosen}):
        for name in chosen:
            with run.progress.step(name):
                refusal = None if name in named else _refusal(name, run)
                proofs.append(refusal or carried_out(name, PROVERS[name], run))
            if refusal is None:
                kept.keep(run.platform.state, proofs[-1], seconds=run.progress.seconds(name))
    return proofs


def release_left_holds(run: Run) -> None:
    """Release what a run that was killed left held, and wait until it is up. A platform that is away is left alone."""
    if not run.nodes:
        return
    try:
        names = hold.release_all(run.platform, seconds=LOOK_SECONDS)
        if names:
            run.progress.say(f"released what an earlier run held: {', '.join(names)}")
            hold.wait_until_up(run.platform)
    except BlackstartError as error:
        run.progress.say(f"whether anything is held is not known: {error.what}")


def _refusal(name: str, run: Run) -> Proof | None:
    """Return the proof that is not carried out because it would disturb users, or None."""
    if name not in DISTURBING:
        return None
    try:
        return refused(name, users_apps(run))
    except BlackstartError as error:
        return Proof(name, holds=False, detail=f"not carried out: whom the platform serves is not known: {error.what}")


def refused(name: str, users_apps: int) -> Proof | None:
    """Return the proof `name` as not carried out where it would disturb `users_apps` apps, or None."""
    if name not in DISTURBING or not users_apps:
        return None
    apps = "1 app" if users_apps == 1 else f"{users_apps} apps"
    why = f"not carried out: the platform serves {apps}; name it with --{name} to {DISTURBING[name]}"
    return Proof(name, holds=False, detail=why)


def users_apps(run: Run) -> int:
    """Return how many apps the platform serves that are no components and not a proof's own."""
    with observe.answering_client(run.platform) as client:
        apps = client.call("GET", "/apps")
    return sum(1 for app in apps if app.get("component") is None and OWN_APP.fullmatch(app["name"]) is None)
