"""Teardown: stage 0 was destroyed only after it was proven unneeded, and nothing of it is there."""

from __future__ import annotations

from blackstart import observe
from blackstart.certificate import FILE, unproven
from blackstart.proofs import Proof
from blackstart.run import Run

NAME = "teardown"


def prove(run: Run) -> Proof:
    """Return the proof from the certificate, and from a look at the engine and at where stage 0 was."""
    certificate = run.platform.state.read_json(FILE)
    problems = unproven(certificate) if certificate else [f"the state folder has no {FILE}"]
    problems += left_of_stage0(run)
    if problems:
        return Proof(NAME, holds=False, detail="; ".join(problems), evidence=certificate)
    seen = ", ".join(item["name"] for item in certificate["items"])
    detail = f"certificate of {certificate['issued_at']} ({seen}); nothing of stage 0 is left"
    return Proof(NAME, holds=True, detail=detail, evidence=certificate)


def left_of_stage0(run: Run) -> list[str]:
    """Name what is left of stage 0: its membership of the engine, its machine, its services."""
    stage0 = run.platform.inventory.stage0
    left = []
    if stage0.address in observe.engine_member_addresses(run.platform.managers[0]):
        left.append(f"{stage0.name} is a member of the engine")
    if run.provider is not None and any(
        run.provider.exists(machine) for machine in run.provider.machines() if machine.group == "stage0"
    ):
        left.append(f"the machine {stage0.name} exists")
    if observe.has_stage0(stage0):
        left.append(f"{stage0.name} answers and has stage 0 on it")
    return left
