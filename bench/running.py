"""A platform for benchmarks: brought up, used, removed; or one that is up already ($BLACKSTART_BENCH_STATE names its state)."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from blackstart.inventory import load_inventory  # noqa: E402
from blackstart.platform import Platform  # noqa: E402
from blackstart.state import State  # noqa: E402

NAME = "bench"
SUBNET = "10.79.8.0/24"
UP_SECONDS = 1500


@contextlib.contextmanager
def platform(*, nodes: int = 3, root: Path = ROOT) -> Iterator[Platform]:
    """Yield a platform that is up: a new one of `nodes` nodes, made of the checkout in `root`, or $BLACKSTART_BENCH_STATE's."""
    kept = os.environ.get("BLACKSTART_BENCH_STATE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ.update({"BLACKSTART_STATE": kept or folder, "BLACKSTART_PLATFORM": NAME})
        try:
            if kept is None:
                blackstart("up", "--subnet", SUBNET, "--nodes", str(nodes), root=root)
            yield Platform(load_inventory(ROOT / "inventories" / "local.py"), State.of(NAME))
        finally:
            if kept is None:
                blackstart("down")


def blackstart(*arguments: str, root: Path = ROOT) -> None:
    """Run a command of `bootstrap.py` on the platform, with the checkout in `root`."""
    argv = [sys.executable, "-m", "blackstart", *arguments, "--platform", NAME]
    subprocess.run(argv, cwd=root, check=True, timeout=UP_SECONDS, stdout=subprocess.DEVNULL)
