"""The data of an inventory: every datum, its default, its check. `inventories/prod.py` shows them all."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from blackstart.errors import InventoryError
from blackstart.model import names


def _address(value: str) -> str:
    return str(ipaddress.IPv4Address(value))


def _private_network(value: str) -> str:
    network = ipaddress.IPv4Network(value)
    if not network.is_private:
        raise ValueError("is not a private network")
    return str(network)


def _existing_file(value: str) -> str:
    if not Path(value).is_file():
        raise ValueError("there is no such file on this host")
    return value


def _url(value: str) -> str:
    if not value.startswith(("http://", "https://")) or any(letter.isspace() for letter in value):
        raise ValueError("is not an http(s) URL")
    return value


Address = Annotated[str, AfterValidator(_address)]
Network = Annotated[str, AfterValidator(_private_network)]
ExistingFile = Annotated[str, AfterValidator(_existing_file)]
Url = Annotated[str, AfterValidator(_url)]
Port = Annotated[int, Field(ge=1, le=65535)]


class HostSettings(BaseModel):
    """What the inventory says of one host. Keys that start with `ssh_` or `_` are pyinfra's own and not seen here."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    platform: Annotated[str, AfterValidator(names.platform_name)]
    """The platform's name; it prefixes all that could collide."""

    domain: Annotated[str, AfterValidator(names.domain)]
    """Apps answer at `<app>.<domain>`."""

    address: Address
    """The host's address, as the other machines and the users reach it."""

    engine_address_pool: Network = "10.210.0.0/16"
    """Where the engine takes its overlay networks from. It cannot be changed later."""

    dyno_network: Network = "172.30.0.0/16"
    """The bridge of users' dynos, on every node the same."""

    extra_ca_bundle: ExistingFile | None = None
    """A PEM file on this host with further roots to trust: on machines, in builds, in dynos."""

    apt_mirror: Url | None = None
    """The Debian mirror for machines, stacks and Aptfiles; else the machine's own sources."""

    python_index: Url | None = None
    """The Python package index of builds; else uv's default."""

    npm_registry: Url | None = None
    """The npm registry of builds; else npm's default."""

    gem_mirror: Url | None = None
    """The RubyGems mirror of builds; else Bundler's default."""

    cache: str = "/var/cache/blackstart"
    """Where this host keeps stacks and machine images."""

    build_memory_mb: Annotated[int, Field(ge=256)] = 1536
    """The memory limit of a build."""

    build_seconds: Annotated[int, Field(ge=30)] = 900
    """The time limit of a build."""

    builds_at_once: Annotated[int, Field(ge=1, le=64)] = 2
    """How many builds run at the same time on the whole platform."""


class SshSettings(BaseModel):
    """How a host is reached: pyinfra's own data, of which these are used."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    ssh_hostname: str | None = None
    ssh_port: Port = 22
    ssh_user: str = "root"
    ssh_key: str | None = None
    ssh_known_hosts_file: str | None = None
    ssh_strict_host_key_checking: Literal["accept-new", "yes"] = "accept-new"


PYINFRA_PREFIXES = ("ssh_", "_")
Model = TypeVar("Model", bound=BaseModel)


def checked_ssh(host: str, data: dict[str, Any]) -> dict[str, Any]:
    """Return the `ssh_` part of `host`'s data when it is right. Raises InventoryError naming the key's path and the host."""
    ssh = {key: value for key, value in data.items() if key.startswith("ssh_")}
    user = _validated(SshSettings, host, ssh).ssh_user
    if user != "root" and data.get("_sudo") is not True:
        raise InventoryError(
            f"the inventory is not valid:\n  {host}: data._sudo is missing, and data.ssh_user is {user!r}",
            why="everything that is done on a machine needs root",
            fix='set "_sudo": True (the user needs sudo without a password), or "ssh_user": "root"',
        )
    return ssh


def host_settings(host: str, data: dict[str, Any]) -> HostSettings:
    """Return the checked settings of `host`. Raises InventoryError naming the key's path and the host."""
    own = {key: value for key, value in data.items() if not key.startswith(PYINFRA_PREFIXES)}
    return _validated(HostSettings, host, own)


def _validated(model: type[Model], host: str, data: dict[str, Any]) -> Model:
    try:
        return model.model_validate(data)
    except ValidationError as error:
        problems = [f"{host}: data.{_path(item['loc'])}: {_message(dict(item))}" for item in error.errors()]
        raise InventoryError(
            "the inventory is not valid:\n  " + "\n  ".join(problems),
            fix="correct these data in the inventory or in group_data; inventories/prod.py documents every datum",
        ) from error


def _path(location: tuple[int | str, ...]) -> str:
    return ".".join(str(part) for part in location)


def _message(item: dict[str, Any]) -> str:
    if item["type"] == "extra_forbidden":
        return "unknown key"
    if item["type"] == "missing":
        return "is missing"
    return f"{item['msg'].removeprefix('Value error, ')} (it is {item['input']!r})"
