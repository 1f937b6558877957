"""The platform as its inventory and state folder describe it: addresses, credentials, the config of each component."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from blackstart.ca import Pair, ensure_ca, ensure_leaf
from blackstart.inventory import Host, Inventory
from blackstart.model import dyno
from blackstart.sources import checkout_root, component_names, read_component
from blackstart.stacks import Stacks, StackSources, cached_stacks
from blackstart.state import State

TRUST = dyno.TRUST_DIR
TRUST_CA = f"{TRUST}/ca.pem"
STAGE0_API_PORT = 5000
STAGE0_OBJECTS_PORT = 8333
OBJECTS_PORT = 5000
BUS_PORT = 6379


@dataclass(frozen=True)
class Platform:
    """Everything that the deploys and steps must agree on."""

    inventory: Inventory
    state: State

    @property
    def secrets(self) -> dict[str, str]:
        """The platform's secrets, from the state folder; read each time, because the fence replaces them."""
        return self.state.secrets()

    @property
    def database_login(self) -> str:
        """The database's role that may log in: `platform` until stage 0 is fenced, then one of the epoch."""
        epoch = self.state.epoch
        return "platform" if epoch == 0 else f"platform_{epoch}"

    @property
    def stack_sources(self) -> StackSources:
        """Where the stacks' packages come from."""
        settings = self.inventory.hosts[0].settings
        return StackSources.of(settings.apt_mirror, settings.python_index)

    @cached_property
    def stacks(self) -> Stacks:
        """The stack images, already built. Raises StackError."""
        return cached_stacks(Path(self.inventory.hosts[0].settings.cache), self.stack_sources)

    @property
    def name(self) -> str:
        """The platform's name."""
        return self.inventory.platform

    @property
    def domain(self) -> str:
        """The platform's domain."""
        return self.inventory.domain

    @property
    def node_addresses(self) -> tuple[str, ...]:
        """The addresses of the routers."""
        return tuple(host.address for host in self.inventory.nodes)

    @property
    def managers(self) -> tuple[Host, ...]:
        """The nodes that manage the engine: 1, 3 or 5, never an even number."""
        count = len(self.inventory.nodes)
        return self.inventory.nodes[: 1 if count < 3 else 3 if count < 5 else 5]

    @property
    def ca(self) -> Pair:
        """The platform's CA."""
        return ensure_ca(self.state)

    @cached_property
    def volume_nodes(self) -> dict[str, Host]:
        """Which node keeps the volume of which component: spread over the nodes, the same on every run."""
        with_volume = [
            name
            for name in component_names(checkout_root())
            if any(process.volume for process in read_component(checkout_root(), name).processes.values())
        ]
        return {name: self.inventory.nodes[place % len(self.inventory.nodes)] for place, name in enumerate(with_volume)}

    def component_config(self, app: str) -> dict[str, str]:
        """Return the config vars of the component `app`; see docs/how-it-works.md."""
        common = {"PLATFORM": self.name, "DOMAIN": self.domain, "ROLE": "app"}
        return {**common, **self._tls(app), **self._own_config(app)}

    def stage0_config(self, app: str) -> dict[str, str]:
        """Return the environment of the same program run on the stage-0 machine."""
        address = self.inventory.stage0.address
        common = {"PLATFORM": self.name, "DOMAIN": self.domain, "ROLE": "stage-0"}
        pair = ensure_leaf(self.state, "stage0", hosts=(address, "localhost", "127.0.0.1"))
        tls = {"TLS_CERT": pair.certificate, "TLS_KEY": pair.key}
        own = {
            "api": {
                **self._stage0_stores(),
                "PORT": str(STAGE0_API_PORT),
                "NODE_ADDRESSES": ",".join(self.node_addresses),
                **tls,
            },
            "psmgr": {**self._stage0_stores(), **self._engine_settings()},
            "objects": {**self._stage0_objects(), "PORT": str(STAGE0_OBJECTS_PORT), "LISTEN": address, **tls},
        }
        return {**common, **own[app]}

    def _tls(self, app: str) -> dict[str, str]:
        addresses = self.node_addresses
        hosts = {
            "api": ("api", f"api.{self.domain}"),
            "objects": ("objects", f"objects.{self.domain}"),
            "postgres": ("postgres",),
            "bus": ("bus", *addresses),
            "router": (f"*.{self.domain}", self.domain, *addresses),
        }.get(app)
        if hosts is None:
            return {}
        pair = ensure_leaf(self.state, app, hosts=hosts)
        return {"TLS_CERT": pair.certificate, "TLS_KEY": pair.key}

    def _own_config(self, app: str) -> dict[str, str]:
        secrets = self.secrets
        if app == "api":
            return self._stores()
        if app == "psmgr":
            return {**self._stores(), **self._engine_settings()}
        if app == "router":
            return {"BUS_URL": bus_url(secrets["bus_password"], self.volume_nodes["bus"].address)}
        if app == "bus":
            return {"BUS_PASSWORD": secrets["bus_password"]}
        if app == "objects":
            return self._objects()
        if app == "postgres":
            passwords = {
                "POSTGRES_ROLE": self.database_login,
                "POSTGRES_PASSWORD": secrets["database_password"],
                "BACKUP_PASSPHRASE": secrets["backup_passphrase"],
            }
            return {**self._objects(), **passwords}
        return {}

    def _stores(self) -> dict[str, str]:
        return {
            "DATABASE_URL": database_url(self.secrets["database_password"], "postgres", login=self.database_login),
            "BUS_URL": bus_url(self.secrets["bus_password"], "bus"),
            "SECRET_KEY": self.secrets["secret_key"],
            **self._objects(),
        }

    def _objects(self) -> dict[str, str]:
        return {
            "OBJECTS_URL": f"https://objects:{OBJECTS_PORT}",
            "OBJECTS_PUBLIC_URL": f"https://objects.{self.domain}",
            "OBJECTS_KEY": self.secrets["objects_key"],
            "OBJECTS_SECRET": self.secrets["objects_secret"],
            "OBJECTS_BUCKET": self.name,
        }

    def _stage0_stores(self) -> dict[str, str]:
        return {
            "DATABASE_URL": database_url(self.secrets["stage0_database_password"], "127.0.0.1", verified=False),
            "BUS_URL": f"redis://:{quote(self.secrets['stage0_bus_password'])}@127.0.0.1:{BUS_PORT}/0",
            "SECRET_KEY": self.secrets["secret_key"],
            **self._stage0_objects(),
        }

    def _stage0_objects(self) -> dict[str, str]:
        url = f"https://{self.inventory.stage0.address}:{STAGE0_OBJECTS_PORT}"
        return {
            "OBJECTS_URL": url,
            "OBJECTS_PUBLIC_URL": url,
            "OBJECTS_KEY": self.secrets["stage0_objects_key"],
            "OBJECTS_SECRET": self.secrets["stage0_objects_secret"],
            "OBJECTS_BUCKET": self.name,
        }

    def _engine_settings(self) -> dict[str, str]:
        """What `psmgr` needs to start dynos and builds, the same in stage 0 and as an app."""
        settings = self.inventory.hosts[0].settings
        return {
            "STACK": self.stacks.run.name,
            "STACK_BUILD": self.stacks.build.name,
            "NODE_ADDRESSES": ",".join(self.node_addresses),
            "BUILD_MEMORY_MB": str(settings.build_memory_mb),
            "BUILD_TIMEOUT": str(settings.build_seconds),
            "BUILDS_AT_ONCE": str(settings.builds_at_once),
            **self.package_sources,
        }

    @property
    def package_sources(self) -> dict[str, str]:
        """Where builds get packages from, as variables of a build; what the inventory does not name is left out."""
        settings = self.inventory.hosts[0].settings
        sources = {
            "UV_INDEX_URL": settings.python_index,
            "NPM_CONFIG_REGISTRY": settings.npm_registry,
            "BUNDLE_MIRROR": settings.gem_mirror,
            "APT_SOURCE": settings.apt_mirror,
        }
        return {name: value for name, value in sources.items() if value is not None}


def database_url(password: str, host: str, *, login: str = "platform", verified: bool = True) -> str:
    """Return SQLAlchemy's URL of the platform's database."""
    tls = f"?sslmode=verify-full&sslrootcert={TRUST_CA}" if verified else ""
    return f"postgresql+psycopg://{login}:{quote(password, safe='')}@{host}:5432/platform{tls}"


def bus_url(password: str, host: str) -> str:
    """Return the URL of the platform's bus."""
    return f"rediss://:{quote(password, safe='')}@{host}:{BUS_PORT}/0"
