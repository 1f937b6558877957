"""What the report says of the live platform: versions measured on each node and in each component's dynos, digests, nodes."""

from __future__ import annotations

import concurrent.futures
import contextlib
import re
from importlib.metadata import PackageNotFoundError, version
from platform import python_version

from blackstart.errors import BlackstartError
from blackstart.inventory import Host
from blackstart.platform import Platform
from blackstart.remote import connected

LOOK_SECONDS = 5.0
VERSION_SECONDS = 30.0
OPERATOR_PACKAGES = ("pyinfra", "paramiko", "httpx", "cryptography", "pydantic", "networkx", "jinja2", "uv")

NODE_SCRIPT = r"""
. /etc/os-release
printf 'node\tDebian\t%s (%s)\n' "$PRETTY_NAME" "$(cat /etc/debian_version)"
printf 'node\tKernel\t%s\n' "$(uname -r)"
printf 'node\tEngine\tDocker %s\n' "$(docker version --format '{{.Server.Version}}')"
docker ps --filter label=blackstart.kind=process --format '{{.ID}} {{.Label "blackstart.app"}}' | while read -r id app; do
  case "$app" in
    postgres) ask='/app/.apt/usr/lib/postgresql/*/bin/postgres --version; /app/.apt/usr/bin/pgbackrest version' ;;
    bus) ask='/app/.apt/usr/bin/redis-server --version' ;;
    router) ask='/app/.apt/usr/sbin/haproxy -v | head -1' ;;
    objects) ask='/app/.venv/bin/weed version' ;;
    api|psmgr) ask='python3 --version' ;;
    *) continue ;;
  esac
  timeout 10 docker exec --env HOME=/app "$id" bash -c "
    export LD_LIBRARY_PATH=/app/.apt/usr/lib/x86_64-linux-gnu
    $ask
    cd /app/.venv/lib/python3*/site-packages 2>/dev/null && ls -d *.dist-info" 2>/dev/null </dev/null |
  while read -r line; do printf 'app %s\t%s\n' "$app" "$line"; done
done
"""
"""Fixed text: nothing is put into it. Prints `node<TAB>what<TAB>version` and `app NAME<TAB>line`."""

PROGRAMS = {
    "PostgreSQL": re.compile(r"postgres \(PostgreSQL\) (\S+)"),
    "pgBackRest": re.compile(r"pgBackRest (\S+)"),
    "Redis": re.compile(r"Redis server v=(\S+)"),
    "HAProxy": re.compile(r"HAProxy version (\S+)"),
    "SeaweedFS": re.compile(r"version \S+ (\S+)"),
    "Python": re.compile(r"Python (\S+)"),
}
COMPONENT_PACKAGES = frozenset({"alembic", "boto3", "docker", "fastapi", "psycopg", "redis", "sqlalchemy", "uvicorn"})


def node_versions(platform: Platform) -> tuple[dict[str, dict[str, str]], dict[str, list[str]]]:
    """Return versions by node, and by component. A node that does not answer has `unreachable`."""
    with concurrent.futures.ThreadPoolExecutor(max_workers=10) as pool:
        answers = list(zip(platform.inventory.nodes, pool.map(_ask, platform.inventory.nodes), strict=True))
    nodes: dict[str, dict[str, str]] = {}
    components: dict[str, set[str]] = {}
    for host, lines in answers:
        nodes[host.name] = {} if lines is not None else {"unreachable": "over SSH"}
        for words in (line.split("\t") for line in lines or []):
            _take(words, nodes[host.name], components)
    return nodes, {app: sorted(lines, key=_library_last) for app, lines in sorted(components.items())}


def _take(words: list[str], node: dict[str, str], components: dict[str, set[str]]) -> None:
    if len(words) == 3 and words[0] == "node":
        node[words[1]] = words[2]
    elif len(words) == 2 and words[0].startswith("app "):
        told = _told(words[1].strip())
        if told:
            components.setdefault(words[0].removeprefix("app "), set()).add(told)


def _told(line: str) -> str:
    """Return what a line says of a version, shortened; empty for a package of no interest."""
    if line.endswith(".dist-info"):
        name, _, number = line.removesuffix(".dist-info").rpartition("-")
        return f"{name.lower()} {number}" if name.lower() in COMPONENT_PACKAGES else ""
    for name, pattern in PROGRAMS.items():
        found = pattern.match(line)
        if found is not None:
            return f"{name} {found[1]}"
    return ""


def _library_last(line: str) -> tuple[bool, str]:
    return line.split()[0] in COMPONENT_PACKAGES, line


def operator_versions() -> dict[str, str]:
    """Return the versions of what this host works with."""
    versions = {"Python": python_version()}
    for name in OPERATOR_PACKAGES:
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    return versions


def stack_digests(platform: Platform) -> dict[str, str]:
    """Return the digests of the stack images that this checkout and platform use; empty when they are not built."""
    try:
        stacks = platform.stacks
    except BlackstartError:
        return {}
    return {kind: stack.name.rpartition(":")[2] for kind, stack in (("run", stacks.run), ("build", stacks.build))}


def _ask(host: Host) -> list[str] | None:
    try:
        with connected(host, seconds=LOOK_SECONDS) as remote:
            return remote.run(["bash", "-s"], stdin=NODE_SCRIPT, seconds=VERSION_SECONDS).out.splitlines()
    except BlackstartError:
        return None
