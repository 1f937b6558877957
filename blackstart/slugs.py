"""Slugs, as the operator's side looks at them: why two are not the same bytes."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from blackstart.errors import ProofError
from blackstart.sources import checkout_root

COMPARE_SECONDS = 300


def slug_difference(one: bytes, other: bytes) -> str | None:
    """Return the first file that differs in two slugs, and what about it, by the compiler's own program; None: the same bytes."""
    if one == other:
        return None
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, name) for name in ("one.squashfs", "other.squashfs")]
        for path, data in zip(paths, (one, other), strict=True):
            path.write_bytes(data)
        argv = [sys.executable, "-m", "compiler.difference", *(str(path) for path in paths)]
        compiler = checkout_root() / "apps" / "compile"
        done = subprocess.run(argv, cwd=compiler, capture_output=True, text=True, timeout=COMPARE_SECONDS, check=False)
    if done.returncode != 1 or not done.stdout.strip():
        raise ProofError(
            "two slugs that differ could not be compared",
            why=(done.stderr or done.stdout)[-1500:],
            fix="install squashfs-tools on this host",
        )
    return done.stdout.strip()
