"""Every proof on a fresh platform, whole: what `verify` says and how long each proof took.

    .venv/bin/python bench/proofs.py [--broken]

The test suite carries out the quick proofs, the black start, and parts of the fixed point and of the blast radius; here nothing is
left out. The limit is the proof itself: exit 1 unless all hold.

With `--broken` what the proofs claim is broken, one claim at a time, and all seven are carried out each time. Exactly the
one proof must fail, and say why (about 45 minutes):
- an undeclared dependency: the platform is made from a copy of this checkout in which `psmgr` does not declare that it needs the
  database; then it is upgraded to this checkout;
- a live role of stage 0: its database role may log in again, with its old password;
- a time in a slug: the compiler's slug has a file that says when it was made.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import running

sys.path.insert(0, str(running.ROOT / "apps" / "compile"))

from blackstart import observe
from blackstart.platform import Platform
from blackstart.proofs import kept
from blackstart.sources import LEFT_OUT
from tests.system.breaking import a_live_role_of_stage_0, a_time_in_the_compilers_slug

SECONDS = 3600
DECLARED = """[[needs]]
on = "postgres"
kind = "hard"
at = ["run"]
"""


def main() -> int:
    """Carry out the proofs, print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--broken", action="store_true", help="break one claim after the other")
    return broken() if parser.parse_args().broken else whole()


def whole() -> int:
    """Bring a platform up and verify it."""
    with running.platform() as platform:
        return 1 if failing(platform) else 0


def broken() -> int:
    """Bring a platform up from a checkout that hides a need; break one claim at a time; return 1 unless one proof each failed."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        hiding = without_a_need(folder / "checkout")
        with running.platform(root=hiding) as platform:
            good = [only(platform, "blast-radius", "an undeclared dependency", root=hiding)]
            running.blackstart("upgrade")
            with a_live_role_of_stage_0(platform):
                good.append(only(platform, "fencing", "a live role of stage 0"))
            with observe.answering_client(platform) as client, a_time_in_the_compilers_slug(client, folder):
                good.append(only(platform, "fixed-point", "a time in a slug"))
    return 0 if all(good) else 1


def only(platform: Platform, name: str, what: str, *, root: Path = running.ROOT) -> bool:
    """Carry out every proof where `what` is broken; return whether only the proof `name` fails."""
    print(f"--- {what}: {name} must fail, and nothing else", flush=True)
    return failing(platform, root) == [name]


def without_a_need(folder: Path) -> Path:
    """Copy this checkout to `folder`, without what `psmgr` says of the database; return it."""
    shutil.copytree(running.ROOT, folder, ignore=shutil.ignore_patterns(*LEFT_OUT), symlinks=True)
    description = folder / "apps" / "psmgr" / "component.toml"
    text = description.read_text()
    before, found, after = text.partition(DECLARED)
    if not found:
        raise SystemExit(f"psmgr does not declare this: {DECLARED}")
    description.write_text(before + after.partition("\n")[2])  # with the line that says why
    return folder


def failing(platform: Platform, root: Path = running.ROOT) -> list[str]:
    """Verify the platform with the checkout in `root`, print each proof, and return the names of those that fail."""
    argv = [sys.executable, "-m", "blackstart", "verify", "--platform", running.NAME, "--json"]
    done = subprocess.run(argv, cwd=root, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
    known = platform.state.read_json(kept.FILE)
    failed = []
    for proof in json.loads(done.stdout)["proofs"]:
        seconds = known.get(proof["name"], {}).get("seconds") or 0.0
        print(
            f"{'holds' if proof['holds'] else 'FAILS'}  {proof['name']:14} {seconds:7.1f} s  {proof['detail']}",
            flush=True,
        )
        failed += [] if proof["holds"] else [proof["name"]]
    if (done.returncode == 0) != (not failed):
        raise SystemExit(f"verify ended with {done.returncode}, and these fail: {failed}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
