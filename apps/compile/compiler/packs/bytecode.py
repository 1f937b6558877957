"""Python bytecode that is the same on every machine and day.

A .pyc holds by default its source's time; one made with `unchecked-hash` (PEP 552) holds a hash of the source. What
marshal writes depends on which objects are shared in memory, so each half is compiled by one fresh process in
sorted order, whatever the number of cores.
"""

from __future__ import annotations

import subprocess
from pathlib import Path

HALVES = 2


def compile_bytecode(python: Path, folder: Path) -> None:
    """Compile every module in `folder` with `python`. A module that is no valid Python is left as it is."""
    entries = sorted(path for path in folder.iterdir() if path.is_dir() or path.suffix == ".py")
    halves = [entries[start::HALVES] for start in range(HALVES)]
    children = [
        subprocess.Popen(
            [
                str(python),
                "-I",
                "-m",
                "compileall",
                "-q",
                "-q",
                "-j",
                "1",
                "--invalidation-mode",
                "unchecked-hash",
                *(str(entry) for entry in half),
            ],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for half in halves
        if half
    ]
    for child in children:
        child.wait()
