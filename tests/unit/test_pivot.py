"""Two pivots never move at once, whoever was killed; and a pivot whose operator is gone goes on to its end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from blackstart.client import wait_for
from blackstart.sources import checkout_root

PROGRAM = """
import sys, time
from pathlib import Path
from blackstart import pivot

pivot.LOCK = Path(sys.argv[1])
with pivot.alone():
    pivot.say("alone")
    while not Path(sys.argv[2]).exists():
        time.sleep(0.05)
    pivot.say("the end")
Path(sys.argv[2] + ".ended").touch()
"""


@pytest.fixture
def start(tmp_path):
    """Start a program that holds the pivot's lock until a file appears."""
    started = []

    def go(until: str) -> tuple[subprocess.Popen[str], Path]:
        out = (tmp_path / f"{until}.out").open("w")
        argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "lock"), str(tmp_path / until)]
        with out:
            process = subprocess.Popen(argv, cwd=checkout_root(), stdout=out, text=True)
        started.append(process)
        return process, tmp_path / f"{until}.out"

    yield go
    for process in started:
        process.kill()
        process.wait(30)


def says(path: Path, text: str) -> None:
    wait_for(lambda: True if text in path.read_text() else None, f"{text!r}", seconds=30)


def test_a_second_pivot_waits_for_the_first(start, tmp_path):
    _, first = start("one")
    says(first, "alone")
    _, second = start("two")
    says(second, "waiting for an earlier pivot that still runs here")
    assert "alone" not in second.read_text()
    (tmp_path / "one").touch()
    says(second, "alone")


def test_a_killed_pivot_lets_go(start):
    process, first = start("one")
    says(first, "alone")
    process.kill()
    _, second = start("two")
    says(second, "alone")


def test_a_pivot_without_a_reader_goes_on_to_its_end(tmp_path):
    read, write = os.pipe()
    argv = [sys.executable, "-c", PROGRAM, str(tmp_path / "lock"), str(tmp_path / "one")]
    process = subprocess.Popen(argv, cwd=checkout_root(), stdout=write, stderr=subprocess.DEVNULL)
    os.close(write)
    assert b"alone" in os.read(read, 100)
    os.close(read)  # the operator's connection is gone
    (tmp_path / "one").touch()
    process.wait(30)
    assert (tmp_path / "one.ended").exists()
