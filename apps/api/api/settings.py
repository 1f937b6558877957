"""The API's settings: config vars, checked once at the start."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from blackstart.model import bus, names

ROLES = ("stage-0", "app")
Role = Literal["stage-0", "app"]


class SettingsRefused(ValueError):
    """A config var is missing or wrong. The message names it."""


@dataclass(frozen=True)
class ObjectStore:
    """Where presigned URLs point, and the credential that signs them."""

    public_url: str
    url: str
    bucket: str
    key: str
    secret: str


@dataclass(frozen=True)
class Settings:
    """What the API needs to know. `bus_url` and `objects` may be absent: then it runs without them."""

    database_url: str
    secret_key: str
    platform: str
    domain: str
    role: Role
    bus_url: str | None
    objects: ObjectStore | None
    ca: str
    node_addresses: tuple[str, ...] = ()


def read_settings(env: Mapping[str, str]) -> Settings:
    """Return the settings in `env`. Raises SettingsRefused."""
    return Settings(
        database_url=_database_url(env),
        secret_key=_secret_key(env),
        platform=_checked(names.platform_name, env, "PLATFORM"),
        domain=_checked(names.domain, env, "DOMAIN"),
        role=_role(env),
        bus_url=env.get("BUS_URL") or None,
        objects=_objects(env),
        ca=env.get("BLACKSTART_CA") or bus.TRUST,
        node_addresses=tuple(part.strip() for part in env.get("NODE_ADDRESSES", "").split(",") if part.strip()),
    )


def _needed(env: Mapping[str, str], key: str) -> str:
    value = env.get(key, "")
    if value == "":
        raise SettingsRefused(f"the config var {key} is not set; docs/how-it-works.md says what it holds")
    return value


def _checked(check: Callable[[str], str], env: Mapping[str, str], key: str) -> str:
    value = _needed(env, key)
    try:
        return check(value)
    except names.NameRefused as error:
        raise SettingsRefused(f"the config var {key} is wrong: {error}") from error


def _database_url(env: Mapping[str, str]) -> str:
    value = _needed(env, "DATABASE_URL")
    if not value.startswith("postgresql+psycopg://"):
        raise SettingsRefused("the config var DATABASE_URL must start with postgresql+psycopg://")
    return value


def _secret_key(env: Mapping[str, str]) -> str:
    value = _needed(env, "SECRET_KEY")
    try:
        size = len(base64.b64decode(value, validate=True))
    except binascii.Error:
        size = 0
    if size != 32:
        raise SettingsRefused("the config var SECRET_KEY must be base64 of 32 bytes")
    return value


def _role(env: Mapping[str, str]) -> Role:
    value = env.get("ROLE", "app")
    if value == "stage-0":
        return "stage-0"
    if value == "app":
        return "app"
    raise SettingsRefused(f"the config var ROLE is {value[:40]!r}; it is one of {', '.join(ROLES)}")


def _objects(env: Mapping[str, str]) -> ObjectStore | None:
    keys = ("OBJECTS_PUBLIC_URL", "OBJECTS_BUCKET", "OBJECTS_KEY", "OBJECTS_SECRET")
    given = [key for key in keys if env.get(key)]
    if not given:
        return None
    missing = [key for key in keys if key not in given]
    if missing:
        raise SettingsRefused(f"of the object store's config vars, {', '.join(missing)} must be set too")
    public = env["OBJECTS_PUBLIC_URL"].rstrip("/")
    return ObjectStore(
        public_url=public,
        url=env.get("OBJECTS_URL", public).rstrip("/"),
        bucket=env["OBJECTS_BUCKET"],
        key=env["OBJECTS_KEY"],
        secret=env["OBJECTS_SECRET"],
    )
