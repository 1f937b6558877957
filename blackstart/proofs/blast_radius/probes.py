"""How each capability is measured. A probe asks for the real thing and waits until it is seen from outside."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from blackstart.errors import BlackstartError, PlatformError, StopRequested
from blackstart.model.dyno import USER
from blackstart.proofs.blast_radius.scene import FIRST_SECONDS, Scene, as_platform_error, told
from blackstart.proofs.blast_radius.subjects import subject_source

ASK_SELF = "import urllib.request; urllib.request.urlopen('http://127.0.0.1:5000/', timeout=2)"
# A message in the WAL, so that there is something to switch; then the name of the file that must be archived.
SWITCH = """SELECT 1 FROM pg_logical_emit_message(true, 'blackstart', 'blast-radius');
SELECT pg_walfile_name(pg_switch_wal());
"""
ARCHIVED = "SELECT last_archived_wal FROM pg_stat_archiver;\n"
PSQL = """cd /app && for file in .profile.d/*.sh; do . "./$file"; done
exec "$(echo .apt/usr/lib/postgresql/*/bin/psql)" -h "$(echo /tmp/blackstart-postgres-*)" \
-U postgres -d postgres -X -qAt -v ON_ERROR_STOP=1"""


@dataclass(frozen=True)
class Probe:
    """Measures `names`, in this order: what it did not come to when it fails does not work either."""

    names: tuple[str, ...]
    measure: Callable[[Scene], None]


def dyno_restart(scene: Scene) -> None:
    """Kill a dyno's container; the engine starts another, which answers, and which routers then use."""
    (killed, remote), *_ = scene.containers(scene.subjects.victim, "web").items()
    remote.check(["docker", "kill", killed])
    again = scene.wait("dyno restart", "another container", lambda: _answering_other(scene, killed))
    scene.works("dyno restart", "killed; another answers")
    routed = scene.wait("routes", "requests to reach the new dyno", lambda: _reached(scene, again))
    scene.works("routes", f"{routed} answers through {scene.entry.name}")


def _answering_other(scene: Scene, killed: str) -> str | None:
    for container, remote in scene.containers(scene.subjects.victim, "web").items():
        if container != killed:
            as_platform_error(remote, ["docker", "exec", container, "python3", "-c", ASK_SELF])
            return container
    return None


def _reached(scene: Scene, container: str) -> str | None:
    dyno = scene.answer(scene.subjects.victim)["dyno"]
    return dyno if container.startswith(dyno) else None


def api_reads(scene: Scene) -> None:
    """Ask the API what it knows."""
    releases = scene.wait("API reads", "the API", lambda: _releases(scene, scene.subjects.steady))
    scene.works("API reads", f"{len(releases)} releases of {scene.subjects.steady}")


def _releases(scene: Scene, app: str) -> list[dict[str, object]]:
    found: list[dict[str, object]] = scene.client.call("GET", f"/apps/{app}/releases")
    return found


def upload(scene: Scene) -> None:
    """Store a source at an address that was signed before anything was stopped: the API is not asked."""
    scene.client.put(scene.put_url, subject_source(scene.word).data)
    scene.works("upload", "stored")


def deploy(scene: Scene) -> None:
    """Compile and release; its output is seen while it runs, its release answers."""
    app = scene.subjects.deployed
    build = scene.client.build(app, subject_source(scene.word), version=scene.word)
    with ThreadPoolExecutor(max_workers=1) as pool:
        live = pool.submit(_live_output, scene, app, build)
        ended = scene.wait("build", "the build", lambda: _ended(scene, f"/apps/{app}/builds/{build['id']}"))
        live.result()
    if ended["status"] != "succeeded":
        raise PlatformError(f"the build {ended['status']}", why=str(ended.get("failure") or ""))
    scene.works("build", "compiled")
    scene.wait("deploy", "the new release", lambda: scene.answer(app)["release"] == scene.word or None)
    scene.works("deploy", "the new release answers")


def _live_output(scene: Scene, app: str, build: dict[str, str]) -> None:
    """Note whether output comes before the build's end."""
    try:
        scene.wait("live output", "output", lambda: _first_output(scene, build))
        if _ended(scene, f"/apps/{app}/builds/{build['id']}") is not None:
            raise PlatformError("the output came only when the build had ended")
    except BlackstartError as error:
        scene.stops("live output", told(error))
    else:
        scene.works("live output", "output came while the build ran")


def _first_output(scene: Scene, build: dict[str, str]) -> bool | None:
    patience = scene.patience.get("live output", FIRST_SECONDS)
    for text in scene.client.output(build, seconds=patience):
        if text.strip("\0\n "):
            return True
        if time.monotonic() > scene.started + patience:  # a stream that waits says so, for hours
            raise PlatformError("nothing came")
    raise PlatformError("the output is empty")


def _ended(scene: Scene, path: str) -> dict[str, object] | None:
    found: dict[str, object] = scene.client.call("GET", path)
    return found if found["status"] in ("succeeded", "failed") else None


def config_change(scene: Scene) -> None:
    """Set a config var; the app answers with it."""
    app = scene.subjects.changed
    scene.client.call("PATCH", f"/apps/{app}/config-vars", {"WORD": scene.word})
    scene.wait("config change", "the new config", lambda: scene.answer(app)["config"] == scene.word or None)
    scene.works("config change", "the app answers with the new config")


def scale(scene: Scene) -> None:
    """Ask for another number of workers; so many containers run."""
    app, wanted = scene.subjects.steady, 1 + scene.number % 2
    scene.client.call("PATCH", f"/apps/{app}/formation", {"updates": [{"type": "worker", "quantity": wanted}]})
    scene.wait("scale", f"{wanted} workers", lambda: len(scene.containers(app, "worker")) == wanted or None)
    scene.works("scale", f"{wanted} workers run")


def one_off(scene: Scene) -> None:
    """Run a command in a one-off dyno and read its output."""
    app = scene.subjects.steady
    order = {"command": f"echo {scene.word}", "attach": False, "time_to_live": 60}
    path = f"/apps/{app}/dynos/{scene.client.call('POST', f'/apps/{app}/dynos', order)['id']}"
    ended = scene.wait("one-off", "the one-off's end", lambda: _one_off_ended(scene, path))
    if ended != "complete" or scene.word not in scene.client.text(f"{path}/output"):
        raise PlatformError(f"the one-off is {ended}", why=scene.client.text(f"{path}/output")[:200])
    scene.works("one-off", "ran and printed")


def _one_off_ended(scene: Scene, path: str) -> str | None:
    state = str(scene.client.call("GET", path)["state"])
    return state if state in ("complete", "failed") else None


def wal(scene: Scene) -> None:
    """Commit; then the file of the write-ahead log with it must be archived."""
    name = scene.wait("commit", "the database", lambda: _sql(scene, SWITCH).split()[-1])
    scene.works("commit", "committed")
    scene.wait("WAL archive", name, lambda: _sql(scene, ARCHIVED).strip() >= name or None)
    scene.works("WAL archive", f"{name} is in the archive")


def _sql(scene: Scene, statement: str) -> str:
    for container, remote in scene.containers("postgres", "db").items():
        argv = ["docker", "exec", "--interactive", "--user", USER, "--env", "HOME=/app", container]
        return as_platform_error(remote, [*argv, "bash", "-c", PSQL], stdin=statement)
    raise PlatformError("the database does not run")


PROBES = (
    Probe(("dyno restart", "routes"), dyno_restart),
    Probe(("API reads",), api_reads),
    Probe(("upload",), upload),
    Probe(("live output", "build", "deploy"), deploy),
    Probe(("config change",), config_change),
    Probe(("scale",), scale),
    Probe(("one-off",), one_off),
    Probe(("commit", "WAL archive"), wal),
)


def carry_out(scene: Scene) -> None:
    """Run every probe at the same time and fill the scene's cells."""
    with ThreadPoolExecutor(max_workers=len(PROBES)) as pool:
        list(pool.map(lambda probe: _carry_out(probe, scene), PROBES))


def _carry_out(probe: Probe, scene: Scene) -> None:
    try:
        probe.measure(scene)
    except StopRequested:
        raise
    except (BlackstartError, ValueError, LookupError) as error:
        reason = told(error) if isinstance(error, BlackstartError) else f"{type(error).__name__}: {error}"
        for name in _open(probe, scene):
            scene.stops(name, reason)


def _open(probe: Probe, scene: Scene) -> Iterator[str]:
    return (name for name in probe.names if name not in scene.cells)
