"""`/apps/x/config-vars`: a change makes a release; a change that changes nothing makes none."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body

from api.call import Caller
from api.config_changes import changed_config
from api.releases import find_release
from blackstart.model.releases import config_of, create_release, current_release

router = APIRouter()
MAX_DESCRIPTION = 300


@router.get("/apps/{app}/config-vars")
def config_vars(call: Caller, app: str) -> dict[str, str]:
    """Show an app's config vars."""
    return config_of(call.session, call.services.sealer, call.app(app))


@router.get("/apps/{app}/releases/{release}/config-vars")
def config_vars_of_release(call: Caller, app: str, release: str) -> dict[str, str]:
    """Show the config vars of a release."""
    found = call.app(app)
    return call.services.sealer.open(find_release(call, found, release).config, str(found.id))


@router.patch("/apps/{app}/config-vars")
def config_vars_update(call: Caller, app: str, body: Annotated[dict[str, str | None], Body()]) -> dict[str, str]:
    """Set config vars; null removes one."""
    found = call.app(app, lock=True)
    before = config_of(call.session, call.services.sealer, found)
    after = changed_config(before, body)
    if after == before:
        return before
    current = current_release(call.session, found)
    create_release(
        call.session,
        call.services.sealer,
        found,
        user=call.account,
        description=description(before, after),
        slug=None if current is None else current.slug,
        config=after,
    )
    call.commit("release", found.name)
    return after


def description(before: dict[str, str], after: dict[str, str]) -> str:
    """Return what changed, by names only: `Set A, B and remove C config vars`."""
    was_set = sorted(key for key, value in after.items() if before.get(key) != value)
    removed = sorted(set(before) - set(after))
    parts = [f"{verb} {', '.join(keys)}" for verb, keys in (("set", was_set), ("remove", removed)) if keys]
    text = f"{' and '.join(parts)} config vars"
    text = text[0].upper() + text[1:]
    return text if len(text) <= MAX_DESCRIPTION else text[: MAX_DESCRIPTION - 1] + "…"
