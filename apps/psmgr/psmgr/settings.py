"""Everything `psmgr` is told from outside, read once from the environment."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

from blackstart.model import names
from blackstart.model.bus import TRUST

# Where builds get packages from, handed on when the inventory names any.
PACKAGE_SOURCES = ("UV_INDEX_URL", "PIP_INDEX_URL", "NPM_CONFIG_REGISTRY", "BUNDLE_MIRROR", "APT_SOURCE")
ROLES = ("stage-0", "app")

SLUG_BYTES = 500_000_000
"""A slug's limit, Heroku's: the compiler keeps to it, but what runs in a build could store more."""


class SettingRefused(ValueError):
    """A variable of the environment is missing or not valid."""


@dataclass(frozen=True)
class Settings:
    """See the README for each variable."""

    platform: str
    domain: str
    database_url: str
    bus_url: str
    objects_url: str
    objects_public_url: str
    objects_key: str
    objects_secret: str
    objects_bucket: str
    secret_key: str
    stack: str
    stack_build: str
    role: Literal["stage-0", "app"] = "app"
    task_id: str | None = None
    node_addresses: tuple[str, ...] = ()
    ca: str = TRUST
    s3_ca: str = TRUST
    docker_host: str = "unix:///var/run/docker.sock"
    compile_slug: str | None = None
    network_mtu: int | None = None
    build_timeout_s: int = 900
    build_memory_mb: int = 1536
    build_cpus: float = 1.0
    build_pids: int = 1024
    builds_at_once: int = 2
    deploy_timeout_s: int = 180
    boot_timeout_s: int = 60
    fetch_timeout_s: int = 100
    drain_s: int = 30
    ack_s: int = 30
    gc_s: int = 3600
    package_sources: tuple[tuple[str, str], ...] = ()

    @property
    def stage(self) -> str:
        """Return the platform's stage in which this process manager acts."""
        return "stage-0" if self.role == "stage-0" else "self-hosted"


def settings_from(env: Mapping[str, str] = os.environ) -> Settings:
    """Return the settings in `env`. Raises SettingRefused with the variable's name."""
    role = env.get("ROLE", "app")
    if role not in ROLES:
        raise SettingRefused(f"ROLE={role!r} is not one of {', '.join(ROLES)}")
    platform = names.platform_name(_needed(env, "PLATFORM"))
    ca = env.get("BLACKSTART_CA", TRUST)
    slug = env.get("COMPILE_SLUG") or None
    return Settings(
        platform=platform,
        domain=names.domain(_needed(env, "DOMAIN")),
        database_url=_needed(env, "DATABASE_URL"),
        bus_url=_needed(env, "BUS_URL"),
        objects_url=_needed(env, "OBJECTS_URL"),
        objects_public_url=env.get("OBJECTS_PUBLIC_URL") or _needed(env, "OBJECTS_URL"),
        objects_key=_needed(env, "OBJECTS_KEY"),
        objects_secret=_needed(env, "OBJECTS_SECRET"),
        objects_bucket=env.get("OBJECTS_BUCKET") or platform,
        secret_key=_needed(env, "SECRET_KEY"),
        stack=_needed(env, "STACK"),
        stack_build=_needed(env, "STACK_BUILD"),
        role=cast(Literal["stage-0", "app"], role),
        task_id=env.get("TASK_ID") or None,
        node_addresses=tuple(part.strip() for part in env.get("NODE_ADDRESSES", "").split(",") if part.strip()),
        ca=ca,
        s3_ca=env.get("AWS_CA_BUNDLE") or ca,
        docker_host=env.get("DOCKER_HOST") or "unix:///var/run/docker.sock",
        compile_slug=None if slug is None else names.sha256(slug),
        network_mtu=_number(env, "NETWORK_MTU", 0) or None,
        build_timeout_s=_number(env, "BUILD_TIMEOUT", 900),
        build_memory_mb=_number(env, "BUILD_MEMORY_MB", 1536),
        build_cpus=_fraction(env, "BUILD_CPUS", 1.0),
        build_pids=_number(env, "BUILD_PIDS", 1024),
        builds_at_once=_number(env, "BUILDS_AT_ONCE", 2),
        deploy_timeout_s=_number(env, "DEPLOY_TIMEOUT_S", 180),
        boot_timeout_s=_number(env, "BOOT_TIMEOUT_S", 60),
        fetch_timeout_s=_number(env, "FETCH_TIMEOUT_S", 100),
        drain_s=_number(env, "DRAIN_S", 30),
        ack_s=_number(env, "ACK_S", 30),
        gc_s=_number(env, "GC_S", 3600),
        package_sources=tuple((key, env[key]) for key in PACKAGE_SOURCES if env.get(key)),
    )


def _needed(env: Mapping[str, str], key: str) -> str:
    value = env.get(key, "")
    if value == "":
        raise SettingRefused(f"the environment lacks {key}: set it as a config var of psmgr (see its README)")
    return value


def _number(env: Mapping[str, str], key: str, default: int) -> int:
    return int(_fraction(env, key, default))


def _fraction(env: Mapping[str, str], key: str, default: float) -> float:
    try:
        value = float(env.get(key) or default)
    except ValueError:
        raise SettingRefused(f"{key}={env[key]!r} is not a number") from None
    if value < 0:
        raise SettingRefused(f"{key}={env[key]!r} is below zero")
    return value
