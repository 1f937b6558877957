"""The pivot, run on the stage-0 machine by deploys/pivot.py: `python -m blackstart.pivot apply|state FILE`.

FILE (0600) is JSON: `{"platform", "network", "stack", "slugs": {"postgres","objects"}?, "stage0": {…stores…},
"target": {"database_url","objects_url","objects_key","objects_secret"}, "endpoint", "token", "ca"}`.

Order, and why a kill at any point is harmless:
1. stage 0's process manager stops, its database says `moving`: nothing writes. (A rerun starts here again.)
2. objects are copied and checked by sha256; copying again is a check.
3. the database is moved in one transaction: the target has all or nothing.
4. the epoch marker is put once, with a conditional put; then the target's row says `self-hosted`, in one statement.
   From here on the new control plane acts; before, nobody does.
5. stage 0's services are stopped for good; its own database says `moved`.
A failure before 4 gives stage 0 its control plane back.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

from blackstart.client import Client, Endpoint
from blackstart.errors import BlackstartError, ProofError

TRUST = "/etc/blackstart/trust"
SLUGS = Path("/var/lib/blackstart/slugs")
SERVICES = ("psmgr", "api", "objects")
MOVE_SECONDS = 3600
COMMAND_SECONDS = 120


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
    endpoint: Endpoint
    token: str
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
                "endpoint": Endpoint(**raw["endpoint"]),
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
    slugs = _component_slugs(order)
    for sha in slugs.values():
        _fetch_slug(order.source_store, order.ca, sha)
    if target_stage(order, slugs["postgres"]) != "self-hosted":
        stop_writers()
        try:
            copy_objects(order, slugs["objects"])
            move_database(order, slugs["postgres"])
        except BaseException:
            give_back()
            raise
        take_over(order, slugs["postgres"])
    set_local_stage("moved")


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


def copy_objects(order: Order, slug: str) -> None:
    """Copy sources, slugs and caches, each checked by sha256 on both sides."""
    say("moving slugs and sources")
    env = {**order.source_store.env("SOURCE"), **order.target_store.env("TARGET")}
    say(in_slug(order, slug, "bin/copy-bucket", env, seconds=MOVE_SECONDS).strip())


def move_database(order: Order, slug: str) -> None:
    """Move the database in one transaction, every error fatal, and compare both sides.

    What an earlier, failed try left in the target may go: nobody writes there before it says `self-hosted`.
    """
    say("moving the database")
    env = {"SOURCE_DATABASE_URL": order.source_database, "TARGET_DATABASE_URL": order.target_database}
    socket = "/var/run/postgresql"
    say(
        in_slug(
            order, slug, "bin/move-database --replace", env, seconds=MOVE_SECONDS, mounts=[f"{socket}:{socket}"]
        ).strip()
    )


def take_over(order: Order, slug: str) -> None:
    """Write the epoch once, then let the platform's own control plane act."""
    say("handing over to the platform's own control plane")
    _put_epoch(order, 1)
    sql = "UPDATE platform SET stage = 'self-hosted', epoch = 1 WHERE stage = 'moving'"
    _target_sql(order, slug, sql)
    if target_stage(order, slug) != "self-hosted":
        raise ProofError("the new database does not say self-hosted after the hand-over", fix="run this again")


def _put_epoch(order: Order, epoch: int) -> None:
    """Put the epoch marker unless it is there: the store refuses a second writer. Read through the platform's network."""
    env = {**order.target_store.env("TARGET"), "EPOCH": str(epoch)}
    code = (
        "import boto3, json, os\n"
        "from botocore.exceptions import ClientError\n"
        "s3 = boto3.client('s3', endpoint_url=os.environ['TARGET_URL'], aws_access_key_id=os.environ['TARGET_KEY'],\n"
        "    aws_secret_access_key=os.environ['TARGET_SECRET'], region_name='us-east-1', verify='/etc/blackstart/trust/ca.pem')\n"
        "key = 'epoch/%06d' % int(os.environ['EPOCH'])\n"
        "try:\n"
        "    s3.put_object(Bucket=os.environ['TARGET_BUCKET'], Key=key, IfNoneMatch='*', Body=b'pivot')\n"
        "except ClientError as error:\n"
        "    if error.response['Error']['Code'] != 'PreconditionFailed': raise\n"
        "print(key)\n"
    )
    slug = _component_slugs(order)["objects"]
    in_slug(order, slug, 'python -c "$CODE"', {**env, "CODE": code})


def target_stage(order: Order, slug: str) -> str | None:
    """Return the stage in the platform's own database, None while it has no tables."""
    # One statement: psql would resolve the table's name before to_regclass could say that there is none.
    query = "SELECT stage FROM platform"
    sql = f"SELECT query_to_xml('{query}', true, true, '')::text WHERE to_regclass('platform') IS NOT NULL"
    found = re.search(r"<stage>([a-z0-9-]+)</stage>", _target_sql(order, slug, sql))
    return None if found is None else found.group(1)


def _target_sql(order: Order, slug: str, sql: str) -> str:
    """Run one statement on the platform's own database; the program is PostgreSQL's, not Debian's wrapper of it."""
    program = '"$(echo "$HOME"/.apt/usr/lib/postgresql/*/bin/psql)"'
    flags = "--no-psqlrc --quiet --tuples-only --no-align --set ON_ERROR_STOP=1"
    command = f'{program} {flags} --command "$SQL" "$TARGET_DATABASE_URL"'
    return in_slug(order, slug, command, {"SQL": sql, "TARGET_DATABASE_URL": order.target_database})


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


def _component_slugs(order: Order) -> dict[str, str]:
    """Return the slugs of the two components whose programs do the move."""
    with Client(order.endpoint, token=order.token, ca=order.ca) as client:
        known = {entry["app"]: entry["slug"] for entry in client.call("GET", "/platform")["components"]}
    return {name: known[name] for name in ("postgres", "objects")}


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


def in_slug(
    order: Order,
    slug: str,
    command: str,
    env: dict[str, str],
    *,
    seconds: int = COMMAND_SECONDS,
    mounts: list[str] | None = None,
) -> str:
    """Run a command of a component's slug in a container on the platform's network, and return what it printed."""
    flags = ["--volume", f"{SLUGS}:/slugs:ro", "--volume", f"{TRUST}:{TRUST}:ro"]
    for mount in mounts or []:
        flags += ["--volume", mount]
    with tempfile.TemporaryDirectory() as folder:
        names = []
        for name in env:
            names += ["--env", name]
        # The values travel in the client's environment: neither a process list nor a file shows them.
        settings = {**env, "BLACKSTART_SLUG": slug, "SSL_CERT_FILE": f"{TRUST}/ca-bundle.pem"}
        argv = ["docker", "run", "--rm", "--pull", "never", "--network", order.network, *flags, *names]
        argv += ["--env", "BLACKSTART_SLUG", "--env", "SSL_CERT_FILE"]
        argv += [order.stack, "tini", "-g", "--", "/usr/lib/blackstart/dyno", "start", command]
        return run(argv, env=settings, cwd=folder, seconds=seconds)


def run(
    argv: list[str], *, env: dict[str, str] | None = None, cwd: str | None = None, seconds: int = COMMAND_SECONDS
) -> str:
    """Run a program and return what it printed. Raises BlackstartError with its errors."""
    try:
        done = subprocess.run(
            argv,
            check=False,
            capture_output=True,
            text=True,
            timeout=seconds,
            cwd=cwd,
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
    """Print one line of progress with the seconds since the start."""
    print(f"-----> {time.monotonic() - STARTED:6.1f}s {text}", flush=True)


def main(arguments: list[str]) -> int:
    """Run `apply FILE`, or print this machine's stage for `state FILE`."""
    verb, path = arguments
    try:
        if verb == "state":
            print(local_stage())
        else:
            apply(Order.read(Path(path)))
    except BlackstartError as error:
        print(str(error), file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
