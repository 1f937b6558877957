"""Makes `router` and `router_harness` importable wherever pytest was started; the fixtures are the harness's."""

import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent
for folder in (TESTS, TESTS.parent, TESTS.parents[2]):
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))

from router_harness import authority, backend, bus, router, tmp_path  # noqa: E402

__all__ = ["authority", "backend", "bus", "router", "tmp_path"]
