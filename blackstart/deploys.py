"""Running the pyinfra deploys of this checkout, by the very command that an operator would type."""

from __future__ import annotations

import datetime
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blackstart.errors import DeployError
from blackstart.operations import Operation, OperationReader
from blackstart.programs import dying_with_us, ended_on_stop
from blackstart.sources import checkout_root

DEPLOY_SECONDS = 3600
TAIL_LINES = 40


@dataclass(frozen=True)
class Deployed:
    """What a deploy did: how many operations changed something, per host."""

    changed: dict[str, int]


def run_deploy(
    inventory: str,
    deploy: str,
    *,
    log: Callable[[str], None],
    env: dict[str, str] | None = None,
    limit: str | None = None,
    on_operation: Callable[[Operation], None] = lambda operation: None,
) -> Deployed:
    """Run `pyinfra INVENTORY deploys/DEPLOY.py` and return what it changed. Raises DeployError.

    `log` gets its lines and `on_operation` each operation that ended on a host, while it works.

    It is believed only when it exits 0 *and* its JSON says that no operation failed on any host: pyinfra exits 0
    after Ctrl-C, and goes on without hosts that it cannot reach.
    """
    argv = [
        sys.executable,
        "-m",
        "pyinfra",
        "-y",
        "--json",
        *(["--limit", limit] if limit else []),
        inventory,
        f"deploys/{deploy}.py",
    ]
    process = subprocess.Popen(
        dying_with_us(argv, "KILL"),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        cwd=checkout_root(),
        env={**os.environ, **(env or {}), "PYTHONUNBUFFERED": "1"},
        start_new_session=True,
    )
    lines: list[str] = []
    operations = OperationReader(deploy)
    reader = threading.Thread(target=_follow, args=(process, lines, log, operations, on_operation), daemon=True)
    reader.start()
    alarm = threading.Timer(DEPLOY_SECONDS, _stop, (process,))
    alarm.start()
    try:
        if process.stdout is None:
            raise DeployError(f"deploys/{deploy}.py could not be started")
        with ended_on_stop(process):
            output = process.stdout.read()
            code = process.wait(timeout=DEPLOY_SECONDS)
    except BaseException:
        _stop(process)
        raise
    finally:
        alarm.cancel()
    reader.join(timeout=5)
    process.stdout.close()
    if process.stderr is not None and not reader.is_alive():
        process.stderr.close()
    return _result(deploy, code, output, lines)


def _follow(
    process: subprocess.Popen[str],
    lines: list[str],
    log: Callable[[str], None],
    operations: OperationReader,
    on_operation: Callable[[Operation], None],
) -> None:
    if process.stderr is None:
        return
    for line in process.stderr:
        text = line.rstrip()
        if not text:
            continue
        lines.append(text)
        operation = operations.read(text, datetime.datetime.now(datetime.UTC))
        if operation is not None:
            on_operation(operation)
        if not text.endswith(("Success", "No changes")):
            log(text.removeprefix("--> "))


def _stop(process: subprocess.Popen[str]) -> None:
    """End pyinfra and what it started on this host."""
    for ending in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, ending)
            process.wait(timeout=5)
        except (ProcessLookupError, subprocess.TimeoutExpired):
            continue
        return


def _result(deploy: str, code: int, output: str, lines: list[str]) -> Deployed:
    try:
        results: dict[str, Any] = json.loads(output)["results"]
    except (ValueError, KeyError, TypeError):
        results = {}
    operations: list[dict[str, Any]] = results.get("operations", [])
    failed = {str(host) for entry in operations for host in entry["error"]} | set(results.get("failed_hosts", []))
    if code != 0 or failed or not results:
        where = f" on {', '.join(sorted(failed))}" if failed else ""
        raise DeployError(
            f"deploys/{deploy}.py failed{where} (pyinfra's exit code is {code})",
            why="\n".join(lines[-TAIL_LINES:]),
            fix="remove the cause and run the same command again: what is done already is left alone",
        )
    changed: dict[str, int] = {}
    for entry in operations:
        for host in entry["success"]:
            changed[str(host)] = changed.get(str(host), 0) + 1
    return Deployed(changed=changed)
