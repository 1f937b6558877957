"""Start of a dyno beside plain `docker run` of the same image, on one node, in turn.

    .venv/bin/python bench/dyno.py [--rounds N]

Both run `true` to its end; the dyno also checks, unpacks and leaves its privileges. The slug is the Flask fixture's.
Exit 1 when the median of the pairwise differences is more than 0.2 s.
"""

from __future__ import annotations

import argparse
import shlex
import statistics
import sys

from running import ROOT, platform

from blackstart import observe
from blackstart.remote import connected
from blackstart.sources import folder_source

AIM_SECONDS = 0.2
BUILD_SECONDS = 300
PAIRS = """
for round in $(seq 0 "$1"); do
    started=$EPOCHREALTIME; {plain} > /dev/null || exit
    between=$EPOCHREALTIME; {dyno} > /dev/null || exit
    echo "$started $between $EPOCHREALTIME"
done
"""
"""A line of three times for each round, on the node, which has no python3. The first round warms up."""


def main() -> int:
    """Measure and print; return 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    rounds: int = parser.parse_args().rounds
    with platform() as it, observe.answering_client(it) as client:
        client.call("POST", "/apps", {"name": "bench-dyno"})
        build = client.build("bench-dyno", folder_source(ROOT / "tests" / "fixtures" / "flask"), version="bench")
        slug_id = client.finished_build("bench-dyno", build["id"], seconds=BUILD_SECONDS)["slug"]["id"]
        client.released("bench-dyno", 2, seconds=BUILD_SECONDS)
        slug = client.call("GET", f"/apps/bench-dyno/slugs/{slug_id}")
        sha = slug["checksum"].removeprefix("SHA256:")
        image = it.stacks.run.name
        plain = ["docker", "run", "--rm", "--pull", "never", image, "true"]
        mounts = ["--volume", "/var/lib/blackstart/slugs:/slugs:ro", "--env", f"BLACKSTART_SLUG={sha}"]
        entry = ["tini", "-g", "--", "/usr/lib/blackstart/dyno", "start", "true"]
        dyno = ["docker", "run", "--rm", "--pull", "never", *mounts, image, *entry]
        with connected(it.inventory.nodes[0]) as remote:
            script = PAIRS.format(plain=shlex.join(plain), dyno=shlex.join(dyno))
            out = remote.check(["env", "LC_ALL=C", "bash", "-c", script, "pairs", str(rounds)], seconds=600)
        client.call("DELETE", "/apps/bench-dyno")
    times = [[float(word) for word in line.split()] for line in out.splitlines()[1:]]
    pairs = [(between - started, ended - between) for started, between, ended in times]
    more = statistics.median(second - first for first, second in pairs)
    print(f"docker run  {statistics.median(first for first, _ in pairs):.3f} s (median of {rounds})")
    print(f"dyno        {statistics.median(second for _, second in pairs):.3f} s (slug of {slug['size'] / 1e6:.1f} MB)")
    print(f"difference  {more:.3f} s (aim: at most {AIM_SECONDS} s)")
    return 0 if more <= AIM_SECONDS else 1


if __name__ == "__main__":
    sys.exit(main())
