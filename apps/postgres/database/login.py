"""`bin/add-login ROLE`: let ROLE (`platform_<epoch>`) log in beside the present one, with the password on standard input.

Runs beside the server (same user, same runtime folder). The roles of earlier epochs stay as they are until the server
starts with POSTGRES_ROLE of a later one. Exit 0: ROLE may log in.
"""

from __future__ import annotations

import argparse
import os
import sys

from blackstart.process.failure import ProcessFailed, exit_code_of, say

from . import settings, sql


def main() -> int:
    """Parse the command line and make the login."""
    parser = argparse.ArgumentParser(prog="bin/add-login", description="Let another role log in; password on stdin.")
    parser.add_argument("role")
    role: str = parser.parse_args().role
    return exit_code_of("add-login", lambda: run(role, sys.stdin.readline().strip()))


def run(role: str, password: str) -> int:
    """Make the login as the superuser."""
    if not password:
        raise ProcessFailed("there is no password on standard input")
    env = os.environ
    superuser = sql.Superuser(settings.paths(env), settings.programs(env), settings.port(env))
    for change in sql.ensure_login(superuser, settings.checked_login(role), password):
        say(f"postgres: {change}")
    return 0
