"""Every proof on a fresh platform, whole: what `verify` says and how long each proof took.

    .venv/bin/python bench/proofs.py

The test suite carries out the quick proofs, the black start, and parts of the fixed point and of the blast radius; here nothing is
left out. The limit is the proof itself: exit 1 unless all hold.
"""

from __future__ import annotations

import json
import subprocess
import sys

import running

from blackstart.proofs import kept

SECONDS = 3600


def main() -> int:
    """Bring a platform up, verify it, print; return the command's own exit code."""
    with running.platform() as platform:
        argv = [sys.executable, "-m", "blackstart", "verify", "--platform", running.NAME, "--json"]
        done = subprocess.run(argv, cwd=running.ROOT, stdout=subprocess.PIPE, text=True, timeout=SECONDS, check=False)
        known = platform.state.read_json(kept.FILE)
        for proof in json.loads(done.stdout)["proofs"]:
            seconds = known.get(proof["name"], {}).get("seconds") or 0.0
            print(f"{'holds' if proof['holds'] else 'FAILS'}  {proof['name']:14} {seconds:7.1f} s  {proof['detail']}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
