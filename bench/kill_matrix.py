"""The kill matrix: `up` is hurt at every step in turn, and the plain rerun must end in the same platform.

    .venv/bin/python bench/kill_matrix.py [--faults during,after,ssh,disk] [--steps pivot,teardown] [--nodes 1] [--json FILE]

    during   SIGKILL to the whole process group, at a random line of the step's progress
    after    SIGKILL right after the step
    ssh      SSH to the machines is refused from a random line of the step until `up` has failed
    disk     the machines' disks are full from a random line of the step until `up` has failed, or for a minute

One bootstrap serves all cells of a fault: hurt at step 1, rerun, hurt at step 2, and so on; then a plain `up`, which must
exit 0, and a comparison with a platform that was never hurt. A cell is right when its rerun got on; a fault's cells count
only when its last comparison holds. Prints the table and N/N; exit 0 only for N/N. A step that had
nothing to do (`so already`) is not counted.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.faults import Rehearsal, Up, differences, done, line_of, picture  # noqa: E402
from blackstart.up import STEPS  # noqa: E402

NAMES = tuple(step.name for step in STEPS)
OFF_MACHINES = ("host", "stacks")
"""Steps that touch no machine: nothing to cut."""
WRITES_NOTHING = (*OFF_MACHINES, "machines", "engine", "released", "teardown", "ready")
"""Steps that write nothing large on a machine: no disk to fill."""
FULL_SECONDS = 60.0


@dataclass
class Cell:
    """One fault at one step."""

    fault: str
    step: str
    right: bool = True
    already: bool = False
    """The step had nothing to do, so nothing of it was hurt: such a cell does not count."""

    note: str = ""
    seconds: float = 0.0


@dataclass
class Chain:
    """All cells of one fault, in one bootstrap."""

    rehearsal: Rehearsal
    fault: str
    steps: tuple[str, ...]
    usual: dict[str, int]
    """How many lines each step shows when nothing is wrong."""
    chance: random.Random
    cells: list[Cell] = field(default_factory=list)
    wrong_at_the_end: list[str] = field(default_factory=list)

    def carry_out(self, reference: dict[str, Any]) -> None:
        """Hurt every step in turn, then run plainly and compare."""
        if self.fault == "disk":
            self.rehearsal.give_disks_of_their_own()
        for step in self.steps:
            self._hurt(step)
        started = time.monotonic()
        up = self.rehearsal.start()
        code = up.end()
        say(f"{self.fault}: the last, plain `up` exits {code} after {time.monotonic() - started:.0f} s")
        if code != 0:
            self.wrong_at_the_end.append(f"the plain rerun exits {code}: {up.error()}")
        else:
            self.wrong_at_the_end += differences(reference, picture(self.rehearsal))
        for cell in self.cells:
            cell.right = cell.right and not self.wrong_at_the_end

    def _hurt(self, step: str) -> None:
        """Run `up` until the step, do the harm. That `up` does not come so far is the cell before's fault."""
        started = time.monotonic()
        cell = Cell(self.fault, step)
        for _ in range(2):
            up = self.rehearsal.start()
            moment = self._moment(step)
            if up.reaches(moment):
                cell.already = "is so already" in up.texts(step)
                cell.note = ACTIONS[self.fault](self.rehearsal, up)
                break
            if "is so already" in up.texts(step) or up.end() == 0:
                cell.already, cell.note = True, "was so already"
                break
            self._blame(step, up)
        up.kill()
        if self.rehearsal.operators_left():
            time.sleep(1.0)
        if left := self.rehearsal.operators_left():
            cell.right, cell.note = False, f"still runs: {left}"
        cell.seconds = round(time.monotonic() - started, 1)
        self.cells.append(cell)
        say(f"{self.fault} at {step}: {cell.note} ({cell.seconds:.0f} s)")

    def _moment(self, step: str) -> Callable[[Up], bool]:
        if self.fault == "after":
            return lambda up: done(step)(up) or "is so already" in up.texts(step)
        lines = max(self.usual.get(step, 2) - 1, 1)
        wanted = line_of(step, self.chance.randrange(lines))
        return lambda up: wanted(up) or done(step)(up) or "is so already" in up.texts(step)

    def _blame(self, step: str, up: Up) -> None:
        blamed = self.cells[-1] if self.cells else Cell(self.fault, step)
        blamed.right = False
        blamed.note += f"; the rerun failed: {up.error()}"
        say(f"{self.fault} at {blamed.step}: THE RERUN FAILED\n{up.error()}")


def _kill(rehearsal: Rehearsal, up: Up) -> str:
    at = up.lines[-1]
    up.kill()
    return f"at [{at[0]}] {at[1].strip()}"


def _cut_ssh(rehearsal: Rehearsal, up: Up) -> str:
    at = up.lines[-1]
    with rehearsal.ssh_cut():
        code = up.end()
    return f"at [{at[0]}] {at[1].strip()}; up exits {code}"


def _fill_disks(rehearsal: Rehearsal, up: Up) -> str:
    at = up.lines[-1]
    with rehearsal.disks_full(), contextlib.suppress(Exception):
        up.end(seconds=FULL_SECONDS)
    code = up.end()
    return f"at [{at[0]}] {at[1].strip()}; up exits {code}"


ACTIONS: dict[str, Callable[[Rehearsal, Up], str]] = {
    "during": _kill,
    "after": _kill,
    "ssh": _cut_ssh,
    "disk": _fill_disks,
}


def steps_of(fault: str, chosen: tuple[str, ...]) -> tuple[str, ...]:
    """Return the steps, in order, at which the fault makes sense."""
    without = {"ssh": OFF_MACHINES, "disk": WRITES_NOTHING}.get(fault, ())
    return tuple(name for name in NAMES if name in chosen and name not in without)


def main() -> int:
    """Carry out the matrix and print it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--faults", default=",".join(ACTIONS), help="comma-separated")
    parser.add_argument("--steps", default=",".join(NAMES), help="comma-separated")
    parser.add_argument("--nodes", type=int, default=1)
    parser.add_argument("--platform", default="tkil")
    parser.add_argument("--subnet", default="10.79.32.0/24")
    parser.add_argument(
        "--seed", type=int, default=None, help="of the random moments; printed, so that a run can be had again"
    )
    parser.add_argument(
        "--reference", type=Path, help="keep the picture of the unhurt platform here, or take it from here"
    )
    parser.add_argument("--json", type=Path, help="write the table here too")
    options = parser.parse_args()
    seed = options.seed if options.seed is not None else random.SystemRandom().randrange(10**6)
    chance = random.Random(seed)
    say(f"seed {seed}")
    faults, chosen = options.faults.split(","), tuple(options.steps.split(","))
    if unknown := [name for name in (*faults, *chosen) if name not in (*ACTIONS, *NAMES)]:
        parser.error(f"unknown: {', '.join(unknown)}; steps: {', '.join(NAMES)}; faults: {', '.join(ACTIONS)}")
    with tempfile.TemporaryDirectory() as folder:
        rehearsal = Rehearsal(options.platform, options.subnet, options.nodes, Path(folder))
        try:
            usual, reference = _reference(rehearsal, options.reference)
            chains = []
            for fault in faults:
                chain = Chain(rehearsal, fault, steps_of(fault, chosen), usual, chance)
                chains.append(chain)
                try:
                    chain.carry_out(reference)
                except Exception as error:  # the table of the other faults is still wanted
                    chain.wrong_at_the_end.append(f"{type(error).__name__}: {error}")
                    say(f"{fault}: {chain.wrong_at_the_end}")
                    for cell in chain.cells:
                        cell.right = False
                rehearsal.down()
                _print_table(chains)
        finally:
            rehearsal.down()
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(seed, chains), indent=1))
    cells = [cell for chain in chains for cell in chain.cells]
    return 0 if cells and all(cell.right for cell in cells) else 1


def _reference(rehearsal: Rehearsal, kept: Path | None) -> tuple[dict[str, int], dict[str, Any]]:
    """Return how many lines each step shows, and the picture of a platform that was never hurt."""
    if kept is not None and kept.exists():
        value = json.loads(kept.read_text())
        return value["lines"], value["picture"]
    up = rehearsal.start()
    if up.end() != 0:
        sys.exit(f"`up` fails without any harm done:\n{up.error()}")
    value = {"lines": {name: len(up.texts(name)) for name in NAMES}, "picture": picture(rehearsal)}
    rehearsal.down()
    if kept is not None:
        kept.write_text(json.dumps(value, indent=1))
    return value["lines"], value["picture"]


def as_json(seed: int, chains: list[Chain]) -> dict[str, Any]:
    """Return the whole matrix."""
    return {
        "seed": seed,
        "cells": [asdict(cell) for chain in chains for cell in chain.cells],
        "ends": {chain.fault: chain.wrong_at_the_end for chain in chains},
    }


def _print_table(chains: list[Chain]) -> None:
    print(f"{'step':12}" + "".join(f"{chain.fault:>12}" for chain in chains))
    for name in NAMES:
        found = [next((cell for cell in chain.cells if cell.step == name), None) for chain in chains]
        print(f"{name:12}" + "".join(f"{_shown(cell):>12}" for cell in found))
    cells = [cell for chain in chains for cell in chain.cells if not cell.already]
    print(f"{sum(cell.right for cell in cells)}/{len(cells)}", flush=True)
    for chain in chains:
        for wrong in chain.wrong_at_the_end:
            print(f"{chain.fault}, at the end: {wrong}")


def _shown(cell: Cell | None) -> str:
    if cell is None:
        return "-"
    return "WRONG" if not cell.right else "so already" if cell.already else "same"


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"{time.strftime('%H:%M:%S')}  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
