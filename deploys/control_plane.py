"""Stage 0's control plane on one machine: Debian's PostgreSQL and Redis, and this checkout's own components."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO, StringIO

from pyinfra.api import deploy
from pyinfra.operations import apt, files, server, systemd

from blackstart.platform import BUS_PORT, TRUST
from blackstart.sources import checkout_root, checkout_source, uv_binary
from deploys.lib.context import me, platform

PACKAGES = ["postgresql", "redis-server", "python3", "squashfs-tools", "rsync"]
HOME = "/opt/blackstart"
CHECKOUT = f"{HOME}/checkout"
SETTINGS = "/etc/blackstart/stage0"
VENVS = ("api", "psmgr", "objects", "operator")


@dataclass(frozen=True)
class Service:
    """A component that runs as a systemd service."""

    name: str
    command: str
    user: str = "blackstart"
    groups: tuple[str, ...] = ()


SERVICES = (
    Service("objects", "bin/objects"),
    Service("api", "bin/web"),
    Service("psmgr", "bin/worker", groups=("docker",)),
)


@deploy("Stores")
def stores() -> None:
    """Database, bus and folders of stage 0."""
    apt.packages(
        name="Install the stores",
        packages=PACKAGES,
        no_recommends=True,
        _env={"DEBIAN_FRONTEND": "noninteractive"},
    )
    server.user(name="Make the user of stage 0's services", user="blackstart", system=True, home=HOME, shell="/usr/sbin/nologin")
    files.directory(name=f"Make {SETTINGS}", path=SETTINGS, user="root", group="blackstart", mode="0750")
    files.directory(name="Make the objects' folder", path="/var/lib/blackstart/objects", user="blackstart", group="blackstart", mode="0700")
    _database()
    _bus()


def _database() -> None:
    sql = files.template(
        name="Write the database's role",
        src="templates/stage0/database.sql.j2",
        dest=f"{SETTINGS}/database.sql",
        user="root",
        group="root",
        mode="0600",
        password=platform().secrets["stage0_database_password"],
    )
    access = files.put(
        name="Let the platform's role in by password only",
        src=StringIO("local all postgres peer\nlocal platform platform scram-sha-256\nhost platform platform 127.0.0.1/32 scram-sha-256\n"),
        dest="/etc/postgresql/17/main/pg_hba.conf",
        user="postgres",
        group="postgres",
        mode="0640",
    )
    server.shell(
        name="Set up the database",
        commands=[
            "systemctl reload-or-restart postgresql@17-main.service",
            f"runuser -u postgres -- psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 < {SETTINGS}/database.sql",
        ],
        _if=[lambda: sql.did_change() or access.did_change()],
        _retries=10,
        _retry_delay=1,
    )


def _bus() -> None:
    config = files.template(
        name="Configure the bus",
        src="templates/stage0/redis.conf.j2",
        dest="/etc/redis/redis.conf",
        user="redis",
        group="redis",
        mode="0640",
        port=BUS_PORT,
        password=platform().secrets["stage0_bus_password"],
    )
    systemd.service(name="Restart the bus", service="redis-server.service", restarted=True, _if=[config.did_change])


@deploy("Checkout")
def checkout() -> None:
    """This checkout, and a virtual environment for each program in it, from hashed requirements."""
    source = checkout_source(checkout_root())
    tarball = files.put(
        name="Upload the checkout", src=BytesIO(source.data), dest=f"{HOME}/checkout.tar.gz", user="root", group="root", mode="0644"
    )
    tool = files.put(
        name="Upload uv", src=str(uv_binary()), dest=f"{HOME}/uv", user="root", group="root", mode="0755", add_deploy_dir=False
    )
    files.put(
        name="Install with-env",
        src="templates/stage0/with-env",
        dest=f"{HOME}/with-env",
        user="root",
        group="root",
        mode="0755",
        add_deploy_dir=False,
    )
    server.shell(
        name="Unpack the checkout",
        commands=[f"rm -rf {CHECKOUT} && mkdir -m 0755 {CHECKOUT} && tar -xzf {HOME}/checkout.tar.gz -C {CHECKOUT} --no-same-owner"],
        _if=[tarball.did_change],
    )
    server.shell(
        name="Install the programs' libraries",
        commands=[_venv(name) for name in VENVS],
        _env=_package_sources(),
        _if=[lambda: tarball.did_change() or tool.did_change()],
    )


def _venv(name: str) -> str:
    requirements = "requirements.lock" if name == "operator" else f"apps/{name}/requirements.txt"
    python = f"{HOME}/venvs/{name}/bin/python"
    return (
        f"{{ test -x {python} || {HOME}/uv venv --quiet --no-config --python /usr/bin/python3 {HOME}/venvs/{name}; }} && "
        f"{HOME}/uv pip sync --quiet --no-config --require-hashes --python {python} {CHECKOUT}/{requirements}"
    )


def _package_sources() -> dict[str, str]:
    index = me().settings.python_index
    own = {} if index is None else {"UV_DEFAULT_INDEX": index}
    return {"SSL_CERT_FILE": f"{TRUST}/ca-bundle.pem", "UV_CACHE_DIR": f"{HOME}/uv-cache", **own}


@deploy("Components")
def components() -> None:
    """The database's tables, the operator's account, the seed of the compiler, the services."""
    changes = [_settings(service.name) for service in SERVICES]
    server.shell(
        name="Create the tables, the platform's row and the operator's account",
        commands=[_admin("migrate"), f"{_admin(_init())} < {SETTINGS}/token"],
        _if=[lambda: True],
    )
    for service in SERVICES:
        changes.append(_unit(service))
    server.shell(
        name="Start stage 0's services",
        commands=[
            "systemctl daemon-reload",
            *(f"systemctl enable --quiet blackstart-{service.name}.service" for service in SERVICES),
            "systemctl restart " + " ".join(f"blackstart-{service.name}.service" for service in SERVICES),
        ],
        _if=[lambda: any(change.did_change() for change in changes)],
    )


def _settings(component: str) -> object:
    """Write a component's environment, which only its user may read."""
    return files.put(
        name=f"Configure {component}",
        src=StringIO(json.dumps(_environment(component), sort_keys=True)),
        dest=f"{SETTINGS}/{component}.json",
        user="root",
        group="blackstart",
        mode="0640",
    )


def _environment(component: str) -> dict[str, str]:
    own = {"DATA_DIR": "/var/lib/blackstart/objects"} if component == "objects" else {}
    return {**platform().stage0_config(component), "BLACKSTART_CA": f"{TRUST}/ca.pem", **own}


def _unit(service: Service) -> object:
    return files.template(
        name=f"Install the unit of {service.name}",
        src="templates/stage0/component.service.j2",
        dest=f"/etc/systemd/system/blackstart-{service.name}.service",
        user="root",
        group="root",
        mode="0644",
        component=service.name,
        command=service.command,
        groups=service.groups,
        bundle=f"{TRUST}/ca-bundle.pem",
        **{"service_user": service.user},
    )
