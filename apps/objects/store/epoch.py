"""`bin/put-epoch N`: write the marker `epoch/<N>` once, with a conditional put; the store refuses a second writer.

    TARGET_URL, TARGET_KEY, TARGET_SECRET, TARGET_BUCKET; the CA from BLACKSTART_CA

Exit 0: the marker is there, written now or by an earlier run of the same pivot.
"""

from __future__ import annotations

import argparse

from blackstart.process.failure import exit_code_of

from .copy import Bucket


def main() -> int:
    """Parse the command line and write."""
    parser = argparse.ArgumentParser(prog="bin/put-epoch", description="Write an epoch marker once.")
    parser.add_argument("epoch", type=int)
    epoch: int = parser.parse_args().epoch
    return exit_code_of("put-epoch", lambda: put(Bucket("TARGET"), epoch))


def put(bucket: Bucket, epoch: int) -> int:
    """Put the marker and say who wrote it."""
    key = f"epoch/{epoch:06d}"
    written = bucket.put_once(key, b"pivot\n")
    print(f"{key} {'written' if written else 'is there'}")
    return 0
