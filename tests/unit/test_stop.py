"""Ctrl-C, SIGTERM and SIGKILL of a process whose deploys run side by side: nothing of it goes on afterwards."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from blackstart.client import wait_for
from blackstart.sources import checkout_root

MAIN = """
    import sys
    from concurrent.futures import ThreadPoolExecutor, as_completed
    from blackstart import cli, observe
    from blackstart.deploys import run_deploy
    from blackstart.errors import StopRequested

    cli._stop_cleanly()

    def work():
        with ThreadPoolExecutor(max_workers=2) as pool:
            jobs = [pool.submit(run_deploy, "@local", sys.argv[1], log=lambda text: print(text, flush=True)) for _ in "12"]
            for job in as_completed(jobs):
                job.result()

    try:
        observe.holds(work)  # what looks whether something holds must not swallow the stop
    except StopRequested as stop:
        print(stop, flush=True)
        sys.exit(130)
"""
SLOW = 'from pyinfra.operations import server\nserver.shell(name="Be slow", commands=["exec sleep {number}"])\n'


@pytest.fixture
def running(tmp_path):
    """A process in the middle of two slow deploys, and how to see what is left of them."""
    mark = f"6{os.getpid()}.{abs(hash(tmp_path)) % 10**6}"  # a number of seconds that nothing else sleeps
    (tmp_path / "slow.py").write_text(SLOW.format(number=mark))
    (tmp_path / "main.py").write_text(textwrap.dedent(MAIN))
    deploy = os.path.relpath(tmp_path / "slow", checkout_root() / "deploys")
    process = subprocess.Popen(
        [sys.executable, str(tmp_path / "main.py"), deploy],
        cwd=checkout_root(),
        env={**os.environ, "PYTHONPATH": str(checkout_root())},
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )

    def left() -> list[str]:
        return [line for line in map(_command_line, Path("/proc").iterdir()) if str(tmp_path) in line or deploy in line]

    def sleeping() -> bool | None:
        return True if sum(f"sleep {mark}" in _command_line(each) for each in Path("/proc").iterdir()) >= 2 else None

    try:
        wait_for(sleeping, "both deploys to be in the middle", seconds=60)
        yield process, left
    finally:
        process.kill()
        process.wait(30)
        if process.stdout is not None:
            process.stdout.close()
        for each in Path("/proc").iterdir():
            if f"sleep {mark}" in _command_line(each):
                os.kill(int(each.name), signal.SIGKILL)


def _command_line(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_text(errors="replace").replace("\0", " ") if folder.name.isdigit() else ""
    except OSError:
        return ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_the_deploys_of_every_thread_and_says_how_to_go_on(running, number):
    process, left = running
    process.send_signal(number)
    process.send_signal(number)  # an impatient operator
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"stopped by {number.name}" in output
    assert "run the same command again to go on" in output
    assert left() == []


def test_deploys_die_with_a_killed_process(running):
    process, left = running
    os.killpg(process.pid, signal.SIGKILL)
    process.wait(30)
    wait_for(lambda: None if left() else True, "the deploys to end", seconds=30)
