"""Fencing: every store says no to the very credentials that stage 0 had, and yes to those of now, at the same place.

Breaking it, for a test: let stage 0's role log in again,
`ALTER ROLE platform LOGIN PASSWORD '<the retired one>'` as the database's superuser; the detail then names the database.
"""

from __future__ import annotations

from typing import Any

from blackstart import observe
from blackstart.fencing import (
    CREDENTIALS,
    KEPT,
    engine_secrets,
    known_credentials,
    retired_credentials,
    stage0_members,
    try_credentials,
)
from blackstart.platform import Platform
from blackstart.proofs import Proof
from blackstart.remote import connected
from blackstart.run import Run

NAME = "fencing"


def prove(run: Run) -> Proof:
    """Try what stage 0 knew and what is in use now against every store; look at the engine and at the epoch's marker."""
    platform = run.platform
    kept, retired = platform.state.read_hint(KEPT), platform.state.retired()
    if not kept or not retired:
        return Proof(
            NAME, holds=False, detail="the state folder knows no retired credentials: stage 0 was never fenced"
        )
    sets = {"stage0": retired_credentials(platform), "current": known_credentials(platform)}
    with observe.answering_client(platform) as client:
        tried = try_credentials(platform, client, sets)
    engine = _engine(platform, retired)
    evidence = {
        "worked_before": kept["worked_before"],
        "tried": tried["sets"],
        "epoch": tried["epoch"],
        "engine": engine,
    }
    wrong = [*_wrong_answers(kept["worked_before"], tried["sets"]), *_wrong_epoch(tried["epoch"]), *engine["wrong"]]
    if wrong:
        return Proof(NAME, holds=False, detail="; ".join(wrong), evidence=evidence)
    detail = (
        f"{', '.join(CREDENTIALS)} and engine refuse what stage 0 knew (each worked before the fence) and take the"
        " credentials of now; the epoch's marker is written once"
    )
    return Proof(NAME, holds=True, detail=detail, evidence=evidence)


def _wrong_answers(before: dict[str, Any], tried: dict[str, Any]) -> list[str]:
    wrong = []
    for store in CREDENTIALS:
        old, new = tried["stage0"][store], tried["current"][store]
        if before[store]["answer"] != "accepted":
            wrong.append(f"{store}: stage 0's credential was not seen to work before the fence")
        if old["answer"] == "accepted":
            wrong.append(f"{store}: takes stage 0's credential ({old['said']})")
        elif old["answer"] != "refused":
            wrong.append(f"{store}: did not refuse stage 0's credential but failed ({old['said']})")
        if new["answer"] != "accepted":
            wrong.append(f"{store}: does not take the credential of now ({new['said']}), so a refusal shows nothing")
    return wrong


def _wrong_epoch(epoch: dict[str, str]) -> list[str]:
    if epoch == {"marker": "there", "second_write": "refused"}:
        return []
    return [f"epoch: marker {epoch['marker']}, second write {epoch['second_write']}"]


def _engine(platform: Platform, retired: dict[str, str]) -> dict[str, Any]:
    """Compare the engine's CA and join tokens with those that stage 0 had; none of them is in the evidence."""
    with connected(platform.managers[0]) as remote:
        members = stage0_members(platform, remote)
        now = engine_secrets(remote)
    same = sorted(name for name, value in now.items() if retired.get(name) == value)
    wrong = [f"engine: {name.removeprefix('engine_').replace('_', ' ')} is as stage 0 knew it" for name in same]
    if members:
        wrong.append("engine: stage 0 is a member")
    return {"stage0_members": members, "replaced": sorted(set(now) - set(same)), "wrong": wrong}
