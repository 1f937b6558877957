"""The pivot, run on the stage-0 machine by deploys/pivot.py: `python -m blackstart.pivot FILE`.

FILE (0600) is JSON of the shape of `Order`; deploys/moving.py writes it.

Order, and why a kill at any point is harmless:
1. stage 0's process manager stops, its database says `moving`: nothing writes. (A rerun starts here again.)
2. sources and slugs are copied and checked by sha256; copying again is a check.
3. at the same time the database is moved in one transaction: the target has all or nothing.
4. the epoch marker is put once, with a conditional put; then the target's row says `self-hosted`, in one statement.
   From here on the new control plane acts; before, nobody does.
5. stage 0's services are stopped for good; its own database says `moved`.
A failure before 4 gives stage 0 its control plane back. After a kill between 4 and 5 its API refuses all, so that is not asked.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from blackstart.dynos import run_argv
from blackstart.errors import BlackstartError, ProofError
from blackstart.model import dyno

SLUGS = Path(dyno.SLUGS)
LOCK = Path("/run/blackstart-pivot.lock")
SERVICES = ("psmgr", "api", "objects")
MOVE_SECONDS = 3600
COMMAND_SECONDS = 120
READY = "/tmp/ready"  # noqa: S108 - in the container
MOVERS = ("postgres", "objects")
SERVING = f"""
SELECT DISTINCT ON (apps.name) apps.name || '=' || slugs.sha256
FROM apps JOIN releases ON releases.app_id = apps.id JOIN slugs ON slugs.id = releases.slug_id
WHERE apps.name IN {MOVERS} AND releases.status = 'succeeded'
ORDER BY apps.name, releases.version DESC
"""  # noqa: S608 - two of our own words

Program = Callable[[str, dict[str, str], int], str]
"""Runs a shell command with variables and a deadline in seconds; returns what it printed."""


@dataclass(frozen=True)
class Store:
    """An object store and its bucket."""

    url: str
    key: str
    secret: str
    bucket: str

    def env(self, prefix: str) -> dict[str, str]:
        """Return the variables that `bin/copy-bucket` reads."""
        values = {"URL": self.url, "KEY": self.key, "SECRET": self.secret, "BUCKET": self.bucket}
        return {f"{prefix}_{name}": value for name, value in values.items()}


@dataclass(frozen=True)
class Order:
    """What to move, from where to where."""

    network: str
    stack: str
    source_store: Store
    target_store: Store
    source_database: str
    target_database: str
    owner: str
    """Who becomes the control plane, in the epoch's marker: the fingerprint of the platform's CA."""

    ca: Path

    @classmethod
    def read(cls, path: Path) -> Order:
        """Return the order in a file."""
        raw: dict[str, Any] = json.loads(path.read_text())
        return cls(
            **{
                **raw,
                "source_store": Store(**raw["source_store"]),
                "target_store": Store(**raw["target_store"]),
                "ca": Path(raw["ca"]),
            }
        )


def apply(order: Order) -> None:
    """Do the pivot, or the rest of it."""
    if local_stage() != "moved":
        _move(order)
    _retire()
    say("the platform is self-hosted")


def _move(order: Order) -> None:
    slugs = component_slugs()
    for sha in slugs.values():
        _fetch_slug(order.source_store, order.ca, sha)
    say("the programs that move are here")
    socket = "/var/run/postgresql"
    with (
        in_slug(order, slugs["postgres"], mounts=(f"{socket}:{socket}",)) as postgres,
        in_slug(order, slugs["objects"]) as objects,
    ):
        if target_stage(order, postgres) != "self-hosted":
            stop_writers()
            try:
                _copy(order, postgres, objects)
                claim_epoch(order, objects)
            except BaseException:
                give_back()
                raise
            take_over(order, postgres)
    set_local_stage("moved")


def _copy(order: Order, postgres: Program, objects: Program) -> None:
    """Move both stores at the same time: neither looks at the other."""
    with ThreadPoolExecutor(max_workers=2) as pool:
        moves = (pool.submit(copy_objects, order, objects), pool.submit(move_database, order, postgres))
        for move in moves:
            move.result()


def stop_writers() -> None:
    """Stop stage 0's process manager, and make its API refuse writes."""
    say("stopping stage 0's writers")
    run(["systemctl", "stop", "blackstart-psmgr.service"])
    set_local_stage("moving")


def give_back() -> None:
    """Give stage 0 its control plane back after a failure: nothing was switched yet."""
    say("the move failed: stage 0 goes on")
    set_local_stage("stage-0")
    run(["systemctl", "start", "blackstart-psmgr.service"])


def copy_objects(order: Order, objects: Program) -> None:
    """Copy sources and slugs, each checked by sha256 on both sides. Build caches are made anew."""
    say("moving slugs and sources")
    env = {**order.source_store.env("SOURCE"), **order.target_store.env("TARGET")}
    say(objects("bin/copy-bucket sources/ slugs/", env, MOVE_SECONDS).strip())


def move_database(order: Order, postgres: Program) -> None:
    """Move the database in one transaction, every error fatal, and compare both sides.

    What an earlier, failed try left in the target may go: nobody writes there before it says `self-hosted`.
    """
    say("moving the database")
    env = {"SOURCE_DATABASE_URL": order.source_database, "TARGET_DATABASE_URL": order.target_database}
    say(postgres("bin/move-database --replace", env, MOVE_SECONDS).strip())


def claim_epoch(order: Order, objects: Program) -> None:
    """Write the epoch's marker once. Who finds another's there is not the control plane, and ends here."""
    env = {**order.target_store.env("TARGET"), "OWNER": order.owner}
    say(objects('bin/put-epoch 1 "$OWNER"', env, COMMAND_SECONDS).strip())


def take_over(order: Order, postgres: Program) -> None:
    """Let the platform's own control plane act: from this one write on, stage 0 is not the control plane."""
    say("handing over to the platform's own control plane")
    target_sql(order, postgres, "UPDATE platform SET stage = 'self-hosted', epoch = 1 WHERE stage = 'moving'")
    if target_stage(order, postgres) != "self-hosted":
        raise ProofError("the new database does not say self-hosted after the hand-over", fix="run this again")


def target_stage(order: Order, postgres: Program) -> str | None:
    """Return the stage in the platform's own database, None while it has no tables."""
    # One statement: psql would resolve the table's name before to_regclass could say that there is none.
    query = "SELECT stage FROM platform"
    sql = f"SELECT query_to_xml('{query}', true, true, '')::text WHERE to_regclass('platform') IS NOT NULL"
    found = re.search(r"<stage>([a-z0-9-]+)</stage>", target_sql(order, postgres, sql))
    return None if found is None else found.group(1)


def target_sql(order: Order, postgres: Program, sql: str) -> str:
    """Run one statement on the platform's own database; the program is PostgreSQL's, not Debian's wrapper of it."""
    program = '"$(echo "$HOME"/.apt/usr/lib/postgresql/*/bin/psql)"'
    flags = "--no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
    command = f'{program} {flags} --command "$SQL" "$TARGET_DATABASE_URL"'
    return postgres(command, {"SQL": sql, "TARGET_DATABASE_URL": order.target_database}, COMMAND_SECONDS)


def local_stage() -> str:
    """Return the stage in stage 0's own database."""
    return _local_sql("SELECT stage FROM platform").strip()


def set_local_stage(stage: str) -> None:
    """Set the stage in stage 0's own database."""
    _local_sql(f"UPDATE platform SET stage = '{stage}'")  # noqa: S608 - one of our own words


def _local_sql(sql: str) -> str:
    argv = [
        "runuser",
        "-u",
        "postgres",
        "--",
        "psql",
        "-d",
        "platform",
        "--no-psqlrc",
        "-qtA",
        "--set",
        "ON_ERROR_STOP=1",
    ]
    return run([*argv, "--command", sql])


def _retire() -> None:
    """Stop stage 0's services for good."""
    units = [f"blackstart-{name}.service" for name in SERVICES]
    run(["systemctl", "disable", "--now", "--quiet", *units])


def component_slugs() -> dict[str, str]:
    """Return the slugs of the two components whose programs do the move.

    Stage 0's database is asked, not its API: that refuses all once another control plane acts, and a move that was killed
    just then has still to be finished.
    """
    found = dict(line.split("=") for line in _local_sql(SERVING).split())
    missing = [name for name in MOVERS if name not in found]
    if missing:
        raise BlackstartError(f"no release of {', '.join(missing)} runs", fix="run `up` again: stage 1 comes first")
    return found


def _fetch_slug(store: Store, ca: Path, sha: str) -> None:
    """Put a slug into this machine's cache; `dyno start` checks its sha256."""
    path = SLUGS / f"{sha}.squashfs"
    if path.exists():
        return
    client = boto3.client(
        "s3",
        endpoint_url=store.url,
        aws_access_key_id=store.key,
        aws_secret_access_key=store.secret,
        region_name="us-east-1",
        verify=str(ca),
        config=Config(
            connect_timeout=5,
            read_timeout=60,
            retries={"max_attempts": 4, "mode": "standard"},
            s3={"addressing_style": "path"},
        ),
    )
    partial = path.with_suffix(".partial")
    try:
        client.download_file(store.bucket, f"slugs/{sha}.squashfs", str(partial))
    except ClientError as error:
        raise BlackstartError(f"the slug {sha} is not in stage 0's object store", why=str(error)) from error
    os.replace(partial, path)


@contextlib.contextmanager
def in_slug(order: Order, slug: str, *, mounts: tuple[str, ...] = ()) -> Iterator[Program]:
    """Start a container of a component's slug on the platform's network; yield what runs commands in it, unprivileged.

    Its name is fixed: a pivot that was killed leaves its containers, and what runs in them must not go on beside this one.
    """
    name = f"blackstart-pivot-{slug[:12]}"
    run(["docker", "rm", "--force", name])
    volumes = [flag for volume in mounts for flag in ("--volume", volume)]
    options = [
        "--detach",
        "--name",
        name,
        "--network",
        order.network,
        *volumes,
        "--env",
        f"SSL_CERT_FILE={dyno.BUNDLE}",
    ]
    started = f"touch {READY} && exec sleep {MOVE_SECONDS}"
    container = run(run_argv(order.stack, slug, started, options=options)).strip()

    def program(command: str, env: dict[str, str], seconds: int) -> str:
        inside = 'for file in .profile.d/*.sh; do . "./$file"; done; exec bash -c "$1"'
        into = ["docker", "exec", "--user", dyno.USER, "--workdir", "/app", "--env", "HOME=/app", *_names(env)]
        return run([*into, container, "bash", "-c", inside, "dyno", command], env=env, seconds=seconds)

    try:
        wait = f"for try in $(seq 600); do test -e {READY} && exit 0; sleep 0.1; done; exit 1"
        run(["docker", "exec", container, "sh", "-c", wait])
        yield program
    finally:
        run(["docker", "rm", "--force", container])


def _names(env: dict[str, str]) -> list[str]:
    """Return flags that pass variables by name: the values travel in the client's environment, in no process list."""
    return [flag for name in env for flag in ("--env", name)]


def run(argv: list[str], *, env: dict[str, str] | None = None, seconds: int = COMMAND_SECONDS) -> str:
    """Run a program and return what it printed. Raises BlackstartError with its errors."""
    try:
        done = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
            env={**os.environ, **(env or {})},
        )
    except subprocess.TimeoutExpired as error:
        raise BlackstartError(f"{argv[0]} {argv[1]} did not end within {seconds} s") from error
    if done.returncode != 0:
        raise BlackstartError(
            f"{' '.join(argv[:2])} failed with exit code {done.returncode}", why=(done.stderr or done.stdout)[-3000:]
        )
    return done.stdout


STARTED = time.monotonic()


def say(text: str) -> None:
    """Print one line of progress with the seconds since the start. Without a reader (the operator is gone) it goes on."""
    with contextlib.suppress(BrokenPipeError):
        print(f"-----> {time.monotonic() - STARTED:6.1f}s {text}", flush=True)


@contextlib.contextmanager
def alone() -> Iterator[None]:
    """Wait until no other pivot runs on this machine, then hold it for ourselves. The kernel lets go when we die.

    An operator's run that was killed leaves its pivot running; the next run waits for it and does what is left.
    """
    with LOCK.open("a") as stream:
        deadline = time.monotonic() + MOVE_SECONDS
        waiting = False
        while not _locked(stream.fileno()):
            if not waiting:
                say("waiting for an earlier pivot that still runs here")
            waiting = True
            if time.monotonic() > deadline:
                raise BlackstartError(
                    f"an earlier pivot did not end within {MOVE_SECONDS} s", fix=f"see who holds {LOCK}"
                )
            time.sleep(0.2)
        yield


def _locked(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def main(arguments: list[str]) -> int:
    """Do what the order file says; exit 1 with a reason when it fails."""
    (path,) = arguments
    try:
        with alone():
            apply(Order.read(Path(path)))
    except BlackstartError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
