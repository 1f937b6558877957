"""Names for apps that come without one: `steady-ridge-04821`."""

from __future__ import annotations

import secrets

FIRST = (
    "amber autumn bold brave bright calm clear cold crisp dawn deep dry early fair fast fresh gentle glad golden "
    "green grey kind late light long low lucid mild misty morning new north open plain proud quick quiet rapid "
    "silent silver simple slow small soft steady still strong sunny swift warm west wide wild young"
)
SECOND = (
    "arch bay beach brook canyon cape cave cliff cloud coast cove creek delta dune falls field fjord forest garden "
    "glade grove harbor heath hill inlet island lagoon lake ledge marsh meadow mesa moor oasis ocean orchard pass "
    "path peak plain pond prairie rain reef ridge river shore snow spring stone stream summit surf tide trail "
    "valley wave wind wood"
)


def generated_name() -> str:
    """Return a name that is a valid app name and very likely free."""
    return f"{secrets.choice(FIRST.split())}-{secrets.choice(SECOND.split())}-{secrets.randbelow(100_000):05d}"
