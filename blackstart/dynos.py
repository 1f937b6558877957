"""Dynos that the operator's side starts on a machine, or enters, beside those that `psmgr` runs."""

from __future__ import annotations

from collections.abc import Sequence

from blackstart.errors import ProofError
from blackstart.model.dyno import ENTRY, SLUGS, TRUST_DIR, USER
from blackstart.remote import Remote


def run_argv(stack: str, slug: str, command: str, *, options: Sequence[str] = ()) -> list[str]:
    """Return what runs `command` in a container of the slug, which is removed when it ends. `options` are of `docker run`."""
    volumes = ["--volume", f"{SLUGS}:/slugs:ro", "--volume", f"{TRUST_DIR}:{TRUST_DIR}:ro"]
    what = ["--env", f"BLACKSTART_SLUG={slug}", stack, *ENTRY, "start", command]
    return ["docker", "run", "--rm", "--pull", "never", *options, *volumes, *what]


def inside(remote: Remote, platform: str, app: str) -> list[str]:
    """Return the start of a command that runs in the one dyno of a component on this machine, as the dyno's own user.

    Raises ProofError when not exactly one runs there.
    """
    labels = {"blackstart.platform": platform, "blackstart.app": app, "blackstart.kind": "process"}
    filters = [word for key, value in labels.items() for word in ("--filter", f"label={key}={value}")]
    running = remote.check(["docker", "ps", "--quiet", *filters]).split()
    if len(running) != 1:
        raise ProofError(
            f"{len(running)} dynos of {app} run on {remote.host.name}", fix="look at `python3 bootstrap.py status`"
        )
    return ["docker", "exec", "--interactive", "--user", USER, "--workdir", "/app", "--env", "HOME=/app", running[0]]
