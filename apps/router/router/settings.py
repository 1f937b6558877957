"""What the environment says. See README.md for the meaning of each variable."""

from __future__ import annotations

import os
import re
import resource
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from blackstart.model.bus import TRUST

NODE_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,252}[A-Za-z0-9])?")
SYSTEM_PATHS = ("/usr/sbin", "/usr/local/sbin")
RESERVED_FILES = 600  # health checks, idle server connections, listeners, the process's own
LEAST_CONNECTIONS = 100
LONGEST_STATE = 80  # bytes; HAProxy's sockets are made in it, and their paths have at most 97


class SettingRefused(ValueError):
    """A variable of the environment is missing or wrong. The message names it and what to do."""


@dataclass(frozen=True)
class Timeouts:
    """Seconds. Heroku's: 30 to the first byte, then 55 between bytes in either direction."""

    first_byte: int = 30
    idle: int = 55
    stop: int = 25


@dataclass(frozen=True)
class Settings:
    """The whole configuration of one router."""

    node: str
    bus_url: str
    haproxy: Path
    state: Path
    ca: Path
    certificate: str
    http_port: int
    https_port: int
    bind: tuple[str, ...]
    threads: int
    max_connections: int
    timeouts: Timeouts
    least_slots: int
    task: str


def from_environment(env: Mapping[str, str]) -> Settings:
    """Return the settings in `env`, or raise `SettingRefused`."""
    return Settings(
        node=_node(env.get("NODE", "")),
        bus_url=env.get("BUS_URL", ""),
        haproxy=_haproxy(env),
        state=_state(env),
        ca=Path(env.get("ROUTER_CA", TRUST)),
        certificate=_certificate(env),
        http_port=_number(env, "HTTP_PORT", 80, 1, 65535),
        https_port=_number(env, "HTTPS_PORT", 443, 1, 65535),
        bind=tuple(env["ROUTER_BIND"].split(",")) if env.get("ROUTER_BIND") else _every_address(),
        threads=_number(env, "ROUTER_THREADS", min(4, len(os.sched_getaffinity(0))), 1, 64),
        max_connections=min(
            _number(env, "ROUTER_MAXCONN", 8000, LEAST_CONNECTIONS, 1_000_000), _connections(_raise_file_limit())
        ),
        timeouts=Timeouts(
            first_byte=_number(env, "ROUTER_FIRST_BYTE_SECONDS", 30, 1, 3600),
            idle=_number(env, "ROUTER_IDLE_SECONDS", 55, 1, 3600),
            stop=_number(env, "ROUTER_STOP_SECONDS", 25, 1, 3600),
        ),
        least_slots=_number(env, "ROUTER_SLOTS", 64, 1, 65536),
        task=env.get("TASK_ID", ""),
    )


def _state(env: Mapping[str, str]) -> Path:
    state = env.get("ROUTER_STATE", "/var/lib/blackstart/router")
    if len(state.encode()) > LONGEST_STATE:
        raise SettingRefused(
            f"ROUTER_STATE={state}: a path of {len(state.encode())} bytes is too long for HAProxy's sockets; "
            f"give a folder whose path has at most {LONGEST_STATE}"
        )
    return Path(state)


def _connections(files: int) -> int:
    """Return how many connections `files` descriptors carry: each needs one to the client and one to the dyno."""
    return max(LEAST_CONNECTIONS, (files - RESERVED_FILES) // 2)


def _raise_file_limit() -> int:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard == resource.RLIM_INFINITY:
        hard = 1_048_576
    if soft < hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard


def _node(value: str) -> str:
    if NODE_NAME.fullmatch(value) is None:
        raise SettingRefused(f"NODE is {value!r}: set it to the engine's name of this node")
    return value


def _haproxy(env: Mapping[str, str]) -> Path:
    own = (str(Path(env.get("HOME", "/app")) / ".apt/usr/sbin"),)
    named = env.get("HAPROXY", "haproxy")
    found = shutil.which(named, path=os.pathsep.join((env.get("PATH", ""), *own, *SYSTEM_PATHS)))
    if found is None:
        raise SettingRefused(
            f"no program {named!r} found: install Debian's package haproxy, or set HAPROXY to its path"
        )
    return Path(found)


def _certificate(env: Mapping[str, str]) -> str:
    certificate, key = env.get("TLS_CERT", ""), env.get("TLS_KEY", "")
    if bool(certificate) != bool(key):
        raise SettingRefused("only one of TLS_CERT and TLS_KEY is set: set both (PEM), or none to serve HTTP only")
    return f"{certificate.strip()}\n{key.strip()}\n" if certificate else ""


def _every_address() -> tuple[str, ...]:
    try:
        has_ipv6 = Path("/proc/net/if_inet6").read_text().strip() != ""
    except OSError:
        has_ipv6 = False
    return ("0.0.0.0", "::") if has_ipv6 else ("0.0.0.0",)  # noqa: S104 - a public router


def _number(env: Mapping[str, str], name: str, default: int, low: int, high: int) -> int:
    text = env.get(name, "") or str(default)
    if not text.isascii() or not text.isdigit() or not low <= int(text) <= high:
        raise SettingRefused(f"{name} is {text!r}: set it to a whole number from {low} to {high}")
    return int(text)
