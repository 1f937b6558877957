"""Stage 0's control plane on one machine: Debian's PostgreSQL and Redis, and this checkout's own components."""

from __future__ import annotations

import json
from dataclasses import dataclass
from io import BytesIO, StringIO

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.api.operation import OperationMeta
from pyinfra.facts.files import File
from pyinfra.operations import apt, files, server

from blackstart.graph import component_order
from blackstart.platform import BUS_PORT, STAGE0_API_PORT, TRUST
from blackstart.sources import checkout_root, checkout_source, uv_binary
from deploys import nodes
from deploys.lib import facts
from deploys.lib.applied import applied
from deploys.lib.context import for_stage0, me, platform

PACKAGES = ["postgresql", "redis-server", "python3", "squashfs-tools", "rsync"]
CLUSTER = "/etc/postgresql/17/main"
HBA = f"{CLUSTER}/pg_hba.conf"
REDIS = "/etc/redis/redis.conf"
HOME = "/opt/blackstart"
CHECKOUT = f"{HOME}/checkout"
SETTINGS = "/etc/blackstart/stage0"
PYTHON = f"env PYTHONPATH={CHECKOUT} {HOME}/venvs/operator/bin/python"
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
    nodes.finish_installation()
    apt.packages(
        name="Install the stores",
        packages=PACKAGES,
        no_recommends=True,
        _env={"DEBIAN_FRONTEND": "noninteractive"},
    )
    server.user(
        name="Make the user of stage 0's services", user="blackstart", system=True, home=HOME, shell="/usr/sbin/nologin"
    )
    files.directory(name=f"Make {SETTINGS}", path=SETTINGS, user="root", group="blackstart", mode="0750")
    files.directory(
        name="Make the objects' folder",
        path="/var/lib/blackstart/objects",
        user="blackstart",
        group="blackstart",
        mode="0700",
    )
    _cluster()
    _database()
    _bus()


def _cluster() -> None:
    """Make the database's cluster where the package could not: it says so in its log only, and counts as installed."""
    configured = f"{CLUSTER}/postgresql.conf"
    if host.get_fact(File, path=configured) is None:
        server.shell(
            name="See that the database's cluster is there",
            commands=[f"test -e {configured} || {{ rm -rf {CLUSTER} && pg_createcluster 17 main; }}"],
        )


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
        src=StringIO(
            "local all postgres peer\nlocal platform platform scram-sha-256\nhost platform platform 127.0.0.1/32 scram-sha-256\n"
        ),
        dest=HBA,
        user="postgres",
        group="postgres",
        mode="0640",
    )
    set_up = applied("database", (f"{SETTINGS}/database.sql", HBA))
    server.shell(
        name="Set up the database",
        commands=[
            "systemctl reload-or-restart postgresql@17-main.service",
            f"runuser -u postgres -- psql --quiet --no-psqlrc --set ON_ERROR_STOP=1 < {SETTINGS}/database.sql",
            set_up.command,
        ],
        _if=[set_up.due((sql, access))],
        _retries=10,
        _retry_delay=1,
    )


def _bus() -> None:
    config = files.template(
        name="Configure the bus",
        src="templates/stage0/redis.conf.j2",
        dest=REDIS,
        user="redis",
        group="redis",
        mode="0640",
        port=BUS_PORT,
        password=platform().secrets["stage0_bus_password"],
    )
    restarted = applied("bus", (REDIS,))
    server.shell(
        name="Restart the bus",
        commands=["systemctl restart redis-server.service", restarted.command],
        _if=[restarted.due([config])],
    )


def _checkout() -> list[OperationMeta]:
    """This checkout, and a virtual environment for each program in it, from hashed requirements. Returns what changes them."""
    source = checkout_source(checkout_root())
    tarball = files.put(
        name="Upload the checkout",
        src=BytesIO(source.data),
        dest=f"{HOME}/checkout.tar.gz",
        user="root",
        group="root",
        mode="0644",
    )
    tool = files.put(
        name="Upload uv",
        src=str(uv_binary()),
        dest=f"{HOME}/uv",
        user="root",
        group="root",
        mode="0755",
        add_deploy_dir=False,
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
    unpacked = applied("checkout", (f"{HOME}/checkout.tar.gz",))
    server.shell(
        name="Unpack the checkout",
        commands=[
            f"rm -rf {CHECKOUT} && mkdir -m 0755 {CHECKOUT} && tar -xzf {HOME}/checkout.tar.gz -C {CHECKOUT} --no-same-owner",
            unpacked.command,
        ],
        _if=[unpacked.due([tarball])],
    )
    installed = applied("libraries", (f"{HOME}/checkout.tar.gz", f"{HOME}/uv"))
    server.shell(
        name="Install the programs' libraries",
        commands=[*(_venv(name) for name in VENVS), installed.command],
        _env=_package_sources(),
        _if=[installed.due([tarball, tool])],
    )
    return [tarball, tool]


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
    """This checkout's programs, the database's tables, the operator's account, the services, the seed of the compiler."""
    programs = _checkout()
    changes = [_settings(service.name) for service in SERVICES]
    token = files.put(
        name="Write the operator's token",
        src=StringIO(platform().secrets["api_token"] + "\n"),
        dest=f"{SETTINGS}/token",
        user="root",
        group="root",
        mode="0600",
    )
    changes += [token, *(_unit(service) for service in SERVICES)]
    order = files.put(
        name="Write what the components need",
        src=StringIO(json.dumps(apps_order(), sort_keys=True)),
        dest=f"{SETTINGS}/components.json",
        user="root",
        group="root",
        mode="0600",
    )
    check = files.template(
        name="Install the check of stage 0",
        src="templates/stage0/check-stage0.j2",
        dest=f"{HOME}/check-stage0",
        user="root",
        group="root",
        mode="0755",
        python=PYTHON,
        order=f"{SETTINGS}/components.json",
    )
    works = host.get_fact(facts.Succeeds, command=f"{HOME}/check-stage0")
    started = applied(
        "services",
        (
            *(f"{SETTINGS}/{service.name}.json" for service in SERVICES),
            *(_unit_path(service) for service in SERVICES),
            f"{SETTINGS}/components.json",
            f"{HOME}/checkout.tar.gz",
        ),
    )
    server.shell(
        name="Create the tables, start the services, seed the compiler",
        commands=[
            _admin("migrate"),
            f"{_admin(f'init --name {platform().name} --domain {platform().domain}')} < {SETTINGS}/token",
            "systemctl daemon-reload",
            *(f"systemctl enable --quiet blackstart-{service.name}.service" for service in SERVICES),
            "systemctl restart " + " ".join(f"blackstart-{service.name}.service" for service in SERVICES),
            f"{PYTHON} -m blackstart.seed apply {SETTINGS}/components.json",
            started.command,
        ],
        _if=[lambda: not works or started.due([*changes, order, check, *programs])()],
    )


def _admin(arguments: str) -> str:
    """Return the command line of the API's own helper, with the API's environment."""
    path = f"PATH={HOME}/venvs/api/bin:/usr/bin:/bin"
    return f"env {path} {HOME}/with-env {SETTINGS}/api.json {CHECKOUT}/apps/api/bin/admin {arguments}"


def apps_order() -> dict[str, object]:
    """Return what `blackstart.components` reads: through which API, and every component's config."""
    known = for_stage0()
    return {
        "endpoint": {"host": "localhost", "address": "127.0.0.1", "port": STAGE0_API_PORT},
        "token": known.secrets["api_token"],
        "ca": f"{TRUST}/ca.pem",
        "root": CHECKOUT,
        "stack": known.stacks.run.name,
        "config": {name: known.component_config(name) for name in component_order(checkout_root())},
    }


def _settings(component: str) -> OperationMeta:
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


def _unit_path(service: Service) -> str:
    return f"/etc/systemd/system/blackstart-{service.name}.service"


def _unit(service: Service) -> OperationMeta:
    return files.template(
        name=f"Install the unit of {service.name}",
        src="templates/stage0/component.service.j2",
        dest=_unit_path(service),
        user="root",
        group="root",
        mode="0644",
        component=service.name,
        command=service.command,
        groups=service.groups,
        bundle=f"{TRUST}/ca-bundle.pem",
        service_user=service.user,
    )
