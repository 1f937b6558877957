"""The stack images, built a second time from nothing, under another host name, time zone and locale."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from blackstart.errors import ProofError
from blackstart.layers import extract_layer, read_layer
from blackstart.run import Run
from blackstart.sources import checkout_root
from blackstart.stacks import Stack, Stacks, StackSources, cached_stacks

PREFIX = "rebuilt-stacks."
SECONDS = 1800.0
CHANGED = {"hostname": "another-host", "TZ": "Pacific/Chatham", "LANG": "C", "LC_ALL": "C"}


@dataclass
class Rebuild:
    """A rebuild that runs beside the rest of the proof."""

    folder: Path
    sources: StackSources
    process: subprocess.Popen[str]
    began: float

    def finished(self) -> Stacks:
        """Wait, and return the new stacks. Raises ProofError when they could not be built."""
        try:
            output, _ = self.process.communicate(timeout=SECONDS)
        except subprocess.TimeoutExpired as error:
            raise ProofError(f"the stack images were not built again within {SECONDS:.0f} s") from error
        if self.process.returncode != 0:
            raise ProofError("the stack images could not be built again", why=output[-2000:])
        return cached_stacks(self.folder, self.sources)


@contextlib.contextmanager
def rebuilding(run: Run) -> Iterator[Rebuild]:
    """Build both stacks again in a folder of its own; it is gone at the end, and so is the builder."""
    for left in run.cache.glob(f"{PREFIX}*"):  # `verify` holds the platform's lock; another platform's proof is newer
        if time.time() - left.stat().st_mtime > SECONDS:
            shutil.rmtree(left, ignore_errors=True)
    with tempfile.TemporaryDirectory(dir=run.cache, prefix=PREFIX) as folder:
        process = _start(Path(folder), run.platform.stack_sources)
        try:
            yield Rebuild(Path(folder), run.platform.stack_sources, process, time.monotonic())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _start(folder: Path, sources: StackSources) -> subprocess.Popen[str]:
    named = 'hostname "$1" && shift && exec "$@"'
    builder = [sys.executable, "-m", "blackstart.stacks", str(folder)]
    process = subprocess.Popen(
        [
            "setpriv",
            "--pdeathsig",
            "KILL",
            "--",
            "unshare",
            "--uts",
            "sh",
            "-c",
            named,
            "sh",
            CHANGED["hostname"],
            *builder,
        ],
        cwd=checkout_root(),
        env={**os.environ, **{name: CHANGED[name] for name in ("TZ", "LANG", "LC_ALL")}},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    if process.stdin is not None:
        process.stdin.write(json.dumps(vars(sources)))
        process.stdin.close()
        process.stdin = None
    return process


def stacks_difference(kept: Stacks, again: Stacks, scratch: Path) -> str | None:
    """Return the first path that differs in the two builds of a stack, or None when both images are the same."""
    for one, other in ((kept.run, again.run), (kept.build, again.build)):
        if one.digest != other.digest:
            stack = one.name.rpartition("/")[2].rpartition(":")[0]
            return f"{stack}: {_layer_difference(one, other, scratch)}"
    return None


def _layer_difference(one: Stack, other: Stack, scratch: Path) -> str:
    """Compare the stacks' own layers, the last ones."""
    first, second = (_signatures(stack, scratch / name) for stack, name in ((one, "kept.tar"), (other, "again.tar")))
    for path in sorted(first.keys() | second.keys()):
        if first.get(path) != second.get(path):
            return f"{path} differs (a newer package of the mirror, or a step that is not reproducible)"
    return "every path is the same; their order or times differ"


def _signatures(stack: Stack, to: Path) -> dict[str, Any]:
    layer = extract_layer(stack.path, stack.layers[-1], to)
    with layer.path.open("rb") as stream:
        return {entry.info.name: entry.signature for entry in read_layer(stream)}
