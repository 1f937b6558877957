"""What a change of config vars makes of a config: one rule for `/config-vars` and for a release that brings some."""

from __future__ import annotations

from api.errors import invalid
from blackstart.model import names

MAX_BYTES = 64 * 1024


def changed_config(before: dict[str, str], changes: dict[str, str | None]) -> dict[str, str]:
    """Return the config with `changes` made. Raises 422 for a bad name or value; removing needs no valid name."""
    after = dict(before)
    for key, value in changes.items():
        if value is None:
            after.pop(key, None)
            continue
        if "\0" in value:
            raise invalid(f"config var {key[:80]} holds a NUL, which no environment can carry")
        after[names.config_key(key)] = value
    if sum(len(key) + len(value.encode()) for key, value in after.items()) > MAX_BYTES:
        raise invalid(f"The config vars of one app can hold {MAX_BYTES} bytes together.")
    return after
