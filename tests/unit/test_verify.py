"""A proof that disturbs the platform is carried out on users' apps only when the operator names it."""

from __future__ import annotations

import pytest

from blackstart.verify import DISTURBING, OWN_APP, PROVERS, refused


def test_what_disturbs_is_not_carried_out_on_users_apps() -> None:
    found = refused("blast-radius", 3)
    assert found is not None
    assert not found.holds
    assert found.detail == (
        "not carried out: the platform serves 3 apps; name it with --blast-radius to stop components one by one"
    )


@pytest.mark.parametrize(("name", "apps"), [("blast-radius", 0), ("graph", 3)])
def test_a_platform_without_users_and_a_quiet_proof_are_never_refused(name: str, apps: int) -> None:
    assert refused(name, apps) is None


def test_what_disturbs_comes_last() -> None:
    names = list(PROVERS)
    assert set(names[-len(DISTURBING) :]) == set(DISTURBING)


@pytest.mark.parametrize(
    ("name", "own"),
    [("canary-0a1b2c3d", True), ("blast-0a1b2c3d-steady", True), ("blast-furnace", False), ("shop", False)],
)
def test_the_apps_of_proofs_are_nobodys(name: str, own: bool) -> None:
    assert (OWN_APP.fullmatch(name) is not None) == own
