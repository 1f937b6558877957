"""Stage 0's compiler: a slug of apps/compile packed straight from the checkout, before any compiler exists.

`python -m blackstart.seed apply FILE` on the stage-0 machine, with the same FILE as `blackstart.components`. Then it runs a
one-off dyno of it: the proof that stage 0 works.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from blackstart.client import Client, wait_for
from blackstart.components import API_SECONDS, Plan, read_order, say
from blackstart.errors import BlackstartError, ProofError
from blackstart.model import provenance
from blackstart.sources import component_source, read_component

SEED_SECONDS = 120
RELEASE_SECONDS = 180.0
COMPILER = "compile"
WORD = "stage-0-works"
CHECK = "check"
"""The type of its dyno: `run` is for the compiler's own tools, which need the build stack, and that is on the nodes only."""


def seed(client: Client, plan: Plan) -> None:
    """Release the seed unless the compiler has a release with a slug; then run a one-off dyno of it."""
    if client.maybe(f"/apps/{COMPILER}") is None:
        component = read_component(plan.root, COMPILER).model_dump(mode="json")
        client.call("POST", "/apps", {"name": COMPILER, "component": component})
    if not is_seeded(client):
        _release_seed(client, plan)
    _run_one_off(client)


def _release_seed(client: Client, plan: Plan) -> None:
    with tempfile.TemporaryDirectory() as folder:
        data = _packed(plan.root, Path(folder))
    sha256, source = hashlib.sha256(data).hexdigest(), component_source(plan.root, COMPILER).sha256
    body = {
        "process_types": _procfile(plan.root),
        "checksum": f"SHA256:{sha256}",
        "size": len(data),
        "stack": plan.stack,
        "source_checksum": f"SHA256:{source}",
        "commit": "seed",
        "buildpack_provided_description": "seed",
        "provenance": seed_statement(sha256, source),
    }
    slug = client.call("POST", f"/apps/{COMPILER}/slugs", body)
    client.put(slug["blob"]["url"], data)
    release = {"slug": slug["id"], "description": "Seed of the compiler"}
    client.call("POST", f"/apps/{COMPILER}/releases", release)
    say(COMPILER, f"seeded, {len(data) // 1024} KiB")


def seed_statement(slug: str, source: str) -> dict[str, Any]:
    """Return the seed's provenance: no compiler, stack or buildpack made it, but `bin/seed` of the checkout."""
    builder = provenance.Builder(provenance.CHECKOUT, source)
    return provenance.statement(provenance.Made(COMPILER, slug, source, stacks=(), buildpacks=(), builder=builder))


def _packed(root: Path, folder: Path) -> bytes:
    """Return the slug that `bin/seed` makes in `folder`."""
    argv = [str(root / "apps" / COMPILER / "bin" / "seed"), str(folder)]
    done = subprocess.run(argv, check=False, capture_output=True, text=True, timeout=SEED_SECONDS)
    slugs = sorted(folder.glob("*.squashfs"))
    if done.returncode != 0 or len(slugs) != 1:
        raise BlackstartError("the seed of the compiler could not be packed", why=(done.stderr or done.stdout)[-2000:])
    return slugs[0].read_bytes()


def _procfile(root: Path) -> dict[str, str]:
    lines = (root / "apps" / COMPILER / "Procfile").read_text().splitlines()
    return {
        type_.strip(): command.strip() for type_, _, command in (line.partition(":") for line in lines if line.strip())
    }


def _run_one_off(client: Client) -> None:
    """Run `echo` in a one-off dyno and require its word. It needs a release that the process manager has carried out."""
    newest = client.call("GET", f"/apps/{COMPILER}/releases")[-1]["version"]
    client.released(COMPILER, newest, seconds=RELEASE_SECONDS)
    dyno = client.call("POST", f"/apps/{COMPILER}/dynos", {"command": f"echo {WORD}", "attach": False, "type": CHECK})

    def ended() -> dict[str, Any] | None:
        now: dict[str, Any] = client.call("GET", f"/apps/{COMPILER}/dynos/{dyno['id']}")
        return now if now["state"] in ("complete", "failed", "crashed") else None

    last = wait_for(ended, "a one-off dyno on stage 0", seconds=RELEASE_SECONDS)
    output = str(client.text(f"/apps/{COMPILER}/dynos/{dyno['id']}/output"))
    if last["state"] != "complete" or WORD not in output:
        raise ProofError(
            f"a one-off dyno on stage 0 ended as {last['state']}", why=output[-1000:] or "it printed nothing"
        )
    say(COMPILER, "a one-off dyno ran")


def is_seeded(client: Client) -> bool:
    """Whether the compiler has a release with a slug."""
    if client.maybe(f"/apps/{COMPILER}") is None:
        return False
    return any(release["slug"] for release in client.call("GET", f"/apps/{COMPILER}/releases"))


def main(arguments: list[str]) -> int:
    """Run `apply FILE`, or `check FILE`, which exits 1 unless the compiler is seeded."""
    verb, path = arguments
    try:
        client, plan = read_order(Path(path))
        with client:
            if verb == "check":
                return 0 if is_seeded(client) else 1
            client.wait_until_up(seconds=API_SECONDS)
            seed(client, plan)
    except BlackstartError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
