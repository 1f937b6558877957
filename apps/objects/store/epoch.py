"""`bin/put-epoch N OWNER`: write the marker `epoch/<N>` once, with a conditional put; the store refuses a second writer.

    TARGET_URL, TARGET_KEY, TARGET_SECRET, TARGET_BUCKET; the CA from BLACKSTART_CA

Exit 0: the marker names OWNER, written now or by an earlier run of the same pivot. Exit 1: it names another.
"""

from __future__ import annotations

import argparse

from blackstart.process.failure import ProcessFailed, exit_code_of

from .copy import Bucket


def main() -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="bin/put-epoch", description="Write an epoch marker once.")
    parser.add_argument("epoch", type=int)
    parser.add_argument("owner", help="who becomes the control plane")
    options = parser.parse_args()
    return exit_code_of("put-epoch", lambda: put(Bucket("TARGET"), options.epoch, options.owner))


def put(bucket: Bucket, epoch: int, owner: str) -> int:
    """Put the marker and say who wrote it. Raises ProcessFailed when it is another's."""
    key = f"epoch/{epoch:06d}"
    if bucket.put_once(key, f"{owner}\n".encode()):
        print(f"{key} written")
        return 0
    before = bucket.text(key).strip()
    if before != owner:
        raise ProcessFailed(
            f"{key} of the bucket {bucket.name} is {before[:80]}'s, not {owner}'s: another control plane took over there",
            why="an epoch is written once, and decides who is the control plane",
            fix="give this platform an object store of its own",
        )
    print(f"{key} is there")
    return 0
