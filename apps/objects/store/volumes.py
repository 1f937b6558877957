"""Volumes after an unclean stop: their indexes are rebuilt from their data.

SeaweedFS writes an index (.idx) without a sync, the data (.dat) with one. After a loss of power an index may lack its
end, and the store would then cut the data off there: acknowledged objects would be gone.
"""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path

from blackstart.process.failure import ProcessFailed, say
from blackstart.process.files import sync_folder, sync_tree

FIX_WITHIN_S = 3600.0


class UncleanMark:
    """A file that is there while the store runs: found at a start, the last stop was not a clean one."""

    def __init__(self, data: Path) -> None:
        self._path = data / "running"

    @property
    def found(self) -> bool:
        """Whether the last stop was not clean."""
        return self._path.exists()

    def set(self) -> None:
        """The store starts."""
        self._path.touch(mode=0o600)
        sync_folder(self._path.parent)

    def clear(self) -> None:
        """The store was stopped by us: what it wrote is with the kernel, and now on disk."""
        sync_tree(self._path.parent)
        self._path.unlink(missing_ok=True)
        sync_folder(self._path.parent)


def rebuild_indexes(weed: Path, folder: Path, env: Mapping[str, str]) -> None:
    """Rebuild the index of every volume in `folder`. What was cut short in the data was never acknowledged."""
    if not any(folder.glob("*.dat")):
        return
    say("objects: the last stop was not clean: rebuilding the indexes of the volumes")
    try:
        done = subprocess.run(
            [str(weed), "-logtostderr=true", "fix", str(folder)],
            env=dict(env), stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=FIX_WITHIN_S,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise ProcessFailed(f"rebuilding the indexes in {folder} took more than {FIX_WITHIN_S:.0f} s") from error
    if done.returncode != 0:
        raise ProcessFailed(
            f"the indexes of the volumes in {folder} cannot be rebuilt",
            why=done.stderr.strip()[-2000:],
            fix="move the volume named above away (its objects are then missing), or restore it from the off-site copy",
        )
