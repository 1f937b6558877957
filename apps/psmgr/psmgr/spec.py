"""From a release to the service that runs it. Pure and deterministic: two process managers compute the same.

Nothing in a service's description expires: it holds no URL and no credential but the app's own config vars.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from urllib.parse import urlsplit

from blackstart.model.component import Component, Process
from blackstart.model.dyno import CAPABILITIES, ENTRY, SLUGS, TRUST_DIR, TRUST_ENV
from blackstart.model.sizes import DEFAULT, SIZES
from psmgr.engine import Limits, Mode, Mount, Node, Port, ServiceSpec, Task
from psmgr.settings import SLUG_BYTES, Settings

ENGINE_SOCKET = "/var/run/docker.sock"
WEB_PORT = 5000
TASK_ID = "TASK_ID"  # a process that proves says under this id that it does its work
NAME_LENGTH = 63  # an engine's service name is one DNS label

STOP_GRACE_S = 30

PLATFORM, KIND = "blackstart.platform", "blackstart.kind"
APP, APP_ID, PROCESS, VERSION = "blackstart.app", "blackstart.app_id", "blackstart.process", "blackstart.version"
SLUG = "blackstart.slug"  # what the dynos run (a build's: the compiler's), or what a job fetches
BUILD, DYNO_ID, NODE = "blackstart.build", "blackstart.dyno", "blackstart.node"
MADE_BY = "blackstart.made_by"  # the build whose slug a job waits for
TASK = "blackstart.task"
HELD = "blackstart.held"  # an operator stopped it for a while; see blackstart/hold.py

COMPONENT_PIDS = 1024
# Docker expands Go templates in the environment; a config var must arrive as it was set.
TEMPLATE = ("{{", '{{"{{"}}')


def service_name(platform: str, app: str, process: str, version: int) -> str:
    """Return the service's name; cut with a digest where it would be longer than the engine allows."""
    return short(f"{platform}_{app}_{process}_v{version}")


def short(name: str) -> str:
    """Return `name`, or its start and a digest of it where it is too long for the engine."""
    if len(name) <= NAME_LENGTH:
        return name
    return f"{name[: NAME_LENGTH - 11]}-{hashlib.sha256(name.encode()).hexdigest()[:10]}"


def limits_of(component: Component | None, process: Process, size: str) -> Limits:
    """Return the limits of a dyno. Only components have memory set aside: a user's app can never starve one."""
    if component is None:
        limit = SIZES.get(size.lower(), SIZES[DEFAULT.lower()])
        return Limits(limit.memory_mb, limit.cpus, limit.pids)
    return Limits(process.memory_mb, process.cpus, COMPONENT_PIDS, process.memory_mb // 2)


def literal_env(values: Mapping[str, str]) -> dict[str, str]:
    """Return `values` so that the engine hands them on unchanged."""
    return {key: value.replace(*TEMPLATE) for key, value in values.items()}


def is_routed(component: Component | None, type_: str) -> bool:
    """Return whether routers send requests to dynos of `type_`."""
    return type_ == "web" and not (component is not None and component.process(type_).network == "host")


def process_spec(
    settings: Settings,
    *,
    app: str,
    app_id: str,
    component: Component | None,
    process_type: str,
    command: str,
    version: int,
    slug: str,
    stack: str,
    quantity: int,
    size: str,
    config: Mapping[str, str],
) -> ServiceSpec:
    """Return the service of one process type of one release."""
    process = Process() if component is None else component.process(process_type)
    global_ = process.mode == "global"
    dyno = f"{process_type}." + ("{{.Node.Hostname}}" if global_ else "{{.Task.Slot}}")
    routed = is_routed(component, process_type)
    mode: Mode = "global" if global_ else "replicated"
    own = {"PORT": str(WEB_PORT)} if routed else {}
    if process.proves or process.engine_socket:
        own[TASK_ID] = "{{.Task.ID}}"
    return ServiceSpec(
        name=service_name(settings.platform, app, process_type, version),
        labels=_labels(settings, "process", app, app_id) | {PROCESS: process_type, VERSION: str(version), SLUG: slug},
        image=settings.stack_build if process.stack == "build" else stack,
        command=(*ENTRY, "start", command),
        env=_environment(config, slug, dyno) | own,
        limits=limits_of(component, process, size),
        mode=mode,
        replicas=quantity,
        network=_network(settings, component, process),
        alias=process.alias if _network(settings, component, process) == settings.platform else None,
        ports=_ports(process, routed),
        mounts=_mounts(settings, app, process),
        constraints=_constraints(app, process),
        capabilities=CAPABILITIES,
        restart_delay_s=2 if component is None else 1,
        replaceable=process.strategy == "recreate",
        check=check_command(process.check),
    )


def check_command(check: str | None) -> tuple[str, ...]:
    """Return what asks a dyno from inside whether it is healthy: `tcp:5432`, or `https:5000/health` with its own certificate."""
    if check is None:
        return ()
    kind, _, where = check.partition(":")
    if kind == "tcp":
        return ("bash", "-c", f": </dev/tcp/127.0.0.1/{where}")
    ask = ("curl", "--silent", "--fail", "--insecure", "--max-time", "8", "--output", "/dev/null")
    return (*ask, f"{kind}://127.0.0.1:{where}")


def one_off_spec(
    settings: Settings,
    *,
    app: str,
    app_id: str,
    component: Component | None,
    process_type: str,
    dyno_id: str,
    dyno_name: str,
    command: str,
    slug: str,
    stack: str,
    size: str,
    config: Mapping[str, str],
    lacking: Iterable[Node],
) -> ServiceSpec:
    """Return the job of a one-off dyno. It gets the app's network and config, but no volume, port or socket.

    It starts on none of the nodes in `lacking`: these have not the slug.
    """
    process = Process() if component is None else component.process(process_type)
    network = _network(settings, component, process)
    return ServiceSpec(
        name=short(f"{settings.platform}_{app}_run_{dyno_id}"),
        labels=_labels(settings, "one-off", app, app_id) | {DYNO_ID: dyno_id, SLUG: slug},
        image=settings.stack_build if process.stack == "build" else stack,
        command=(*ENTRY, "start", command),
        env=_environment(config, slug, dyno_name),
        limits=limits_of(component, process, size),
        mode="job",
        network=network,
        mounts=_base_mounts(),
        constraints=_elsewhere(lacking),
        capabilities=CAPABILITIES,
    )


def build_spec(
    settings: Settings,
    *,
    app: str,
    app_id: str,
    build_id: str,
    attempt: int,
    slug: str,
    env: Mapping[str, str],
    lacking: Iterable[Node],
) -> ServiceSpec:
    """Return the job of a build: `compile`'s slug in the build stack, on the node's own bridge, with limits.

    It starts on none of the nodes in `lacking`: these have not the compiler's slug.
    """
    return ServiceSpec(
        name=short(f"{settings.platform}_build_{build_id}_{attempt}"),
        labels=_labels(settings, "build", app, app_id) | {BUILD: build_id, VERSION: str(attempt), SLUG: slug},
        image=settings.stack_build,
        command=(*ENTRY, "start", "bin/build"),
        env=_environment(env, slug, f"build.{attempt}") | {"BLACKSTART_HOME": "/compile"},
        limits=Limits(settings.build_memory_mb, settings.build_cpus, settings.build_pids),
        mode="job",
        mounts=_base_mounts(),
        constraints=_elsewhere(lacking),
        hosts=public_hosts(settings),
        capabilities=CAPABILITIES,
    )


def fetch_spec(settings: Settings, *, slug: str, url: str, node_id: str | None) -> ServiceSpec:
    """Return the job that brings a slug onto every node (or onto `node_id`). The URL lives as long as the job."""
    return _fetch_job(
        settings,
        name=slug[:32],
        labels={SLUG: slug} | ({} if node_id is None else {NODE: node_id}),
        verb="fetch",
        env={"BLACKSTART_SLUG": slug, "BLACKSTART_SLUG_URL": url},
        seconds=settings.fetch_timeout_s,
        constraints=() if node_id is None else (f"node.id=={node_id}",),
    )


def early_fetch_spec(settings: Settings, *, build_id: str, url: str, seconds: int) -> ServiceSpec:
    """Return the job that waits on every node for the slug that a build will store at `url`, and brings it there."""
    return _fetch_job(
        settings,
        name=build_id,
        labels={MADE_BY: build_id},
        verb="await",
        env={"BLACKSTART_SLUG_URL": url, "BLACKSTART_SLUG_BYTES": str(SLUG_BYTES)},
        seconds=seconds,
        constraints=(),
    )


def _fetch_job(
    settings: Settings,
    *,
    name: str,
    labels: Mapping[str, str],
    verb: str,
    env: Mapping[str, str],
    seconds: int,
    constraints: tuple[str, ...],
) -> ServiceSpec:
    host = urlsplit(settings.objects_url).hostname or ""
    return ServiceSpec(
        name=short(f"{settings.platform}_fetch_{name}"),
        labels={PLATFORM: settings.platform, KIND: "fetch", **labels},
        image=settings.stack,
        command=(*ENTRY, verb),
        env={**TRUST_ENV, **env, "BLACKSTART_FETCH_SECONDS": str(seconds)},
        limits=Limits(256, 1.0, 64),
        mode="global-job",
        network=settings.platform if "." not in host and ":" not in host and host != "localhost" else None,
        mounts=(Mount(SLUGS, "/slugs", read_only=False), Mount(TRUST_DIR, TRUST_DIR)),
        constraints=constraints,
        hosts=public_hosts(settings),
        capabilities=(),
    )


def sweep_spec(settings: Settings, *, keep: frozenset[str], older_than_min: int, number: int) -> ServiceSpec:
    """Return the job that removes every slug but `keep` from every node's cache, and spares fresh ones.

    A slug that was taken away too early comes back: its dyno says that it misses it.
    """
    age = ("-mmin", f"+{older_than_min}") if older_than_min else ()
    names = [part for slug in sorted(keep) for part in ("!", "-name", f"{slug}.squashfs")]
    return ServiceSpec(
        name=short(f"{settings.platform}_sweep_{number}"),
        labels={PLATFORM: settings.platform, KIND: "sweep"},
        image=settings.stack,
        command=(
            *("find", "/slugs", "-maxdepth", "1", "-type", "f", "-name", "*.squashfs", *age),
            *names,
            "-delete",
        ),
        env={},
        limits=Limits(64, 0.5, 16),
        mode="global-job",
        mounts=(Mount(SLUGS, "/slugs", read_only=False),),
    )


def stop_spec(settings: Settings, task: Task) -> ServiceSpec:
    """Return the job that stops one dyno on its own node, as `docker stop` does; the engine then starts another.

    The engine has no call that ends one of a service's dynos, and its manager none that reaches another node's
    containers. So this job, which runs nothing but this one request, is given the socket of that node's engine.
    """
    url = f"http://engine/containers/{task.container}/stop?t={STOP_GRACE_S}"
    request = ("--silent", "--show-error", "--fail", "--max-time", str(STOP_GRACE_S + 30), "--request", "POST")
    return ServiceSpec(
        name=short(f"{settings.platform}_stop_{task.id}"),
        labels={PLATFORM: settings.platform, KIND: "stop", TASK: task.id, NODE: task.node_id},
        image=settings.stack,
        command=("curl", *request, "--unix-socket", ENGINE_SOCKET, url),
        env={},
        limits=Limits(64, 0.5, 16),
        mode="job",
        mounts=(Mount(ENGINE_SOCKET, ENGINE_SOCKET, read_only=False),),
        constraints=(f"node.id=={task.node_id}",),
    )


def public_hosts(settings: Settings) -> tuple[str, ...]:
    """Return the host entries (`address name`) a dyno needs to reach the object store through the routers.

    The platform's own domain need not be in any DNS; a host outside of it must be.
    """
    host = urlsplit(settings.objects_public_url).hostname or ""
    if not host.endswith(f".{settings.domain}"):
        return ()
    return tuple(f"{address} {host}" for address in settings.node_addresses)


def _labels(settings: Settings, kind: str, app: str, app_id: str) -> dict[str, str]:
    return {PLATFORM: settings.platform, KIND: kind, APP: app, APP_ID: app_id}


def _environment(config: Mapping[str, str], slug: str, dyno: str) -> dict[str, str]:
    own = {"BLACKSTART_SLUG": slug, "DYNO": dyno, "NODE": "{{.Node.Hostname}}"}
    return TRUST_ENV | literal_env(config) | own


def _network(settings: Settings, component: Component | None, process: Process) -> str | None:
    if component is None:
        return None
    return "host" if process.network == "host" else settings.platform


def _ports(process: Process, routed: bool) -> tuple[Port, ...]:
    if process.network == "host":
        return ()
    fixed = tuple(Port(port.target, port.port) for port in process.publish)
    return (*((Port(WEB_PORT),) if routed else ()), *fixed)


def _base_mounts() -> tuple[Mount, ...]:
    return (Mount(SLUGS, "/slugs"), Mount(TRUST_DIR, TRUST_DIR))


def _mounts(settings: Settings, app: str, process: Process) -> tuple[Mount, ...]:
    mounts = list(_base_mounts())
    if process.volume:
        mounts.append(Mount(f"{settings.platform}-{app}", "/data", kind="volume", read_only=False))
    if process.engine_socket:
        mounts.append(Mount(ENGINE_SOCKET, ENGINE_SOCKET, read_only=False))
    mounts.extend(Mount(path, path, read_only=False) for path in process.mounts)
    return tuple(mounts)


def _constraints(app: str, process: Process) -> tuple[str, ...]:
    volume = (f"node.labels.blackstart.{app}==true",) if process.volume else ()
    return (*volume, *(("node.role==manager",) if process.managers else ()))


def _elsewhere(lacking: Iterable[Node]) -> tuple[str, ...]:
    return tuple(f"node.id!={node.id}" for node in lacking)
