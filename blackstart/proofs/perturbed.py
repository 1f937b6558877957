"""Builds in which what must not matter is changed: node, clock, time zone, locale, host name, folders, order of files, cores.

Each is the platform's own compiler, in the build stack, in a container on a node, over SSH. `/app` is not changed: it is the
home of every dyno, so programs in a slug may hold it.
"""

from __future__ import annotations

import base64
import contextlib
import datetime
import io
import random
import secrets
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from blackstart.dynos import run_argv
from blackstart.errors import ProofError
from blackstart.inventory import Host
from blackstart.model.dyno import CAPABILITIES, TRUST_ENV
from blackstart.platform import Platform
from blackstart.remote import Remote, connected
from blackstart.sources import SourceTarball

LATE_SECONDS = 60.0

# The variables come on standard input before the source: no process list shows them, though an index's URL may hold a password.
COMMAND = """set -eu
while IFS= read -r line && [ -n "$line" ]; do export "${line?}"; done
umask "$PERTURBED_UMASK"
mkdir -p "$PERTURBED_SOURCE" && base64 -d > "$PERTURBED_SOURCE.tar"
python3 -c 'import sys; from pathlib import Path; from compiler import source; source.unpack(*map(Path, sys.argv[1:]))' \
"$PERTURBED_SOURCE.tar" "$PERTURBED_SOURCE"
bin/compile "$PERTURBED_SOURCE" --scratch "$PERTURBED_SCRATCH" --output "$PERTURBED_SCRATCH.squashfs" >&2
sha256=$(sha256sum < "$PERTURBED_SCRATCH.squashfs" | cut -c1-64)
echo "$sha256"
[ "$sha256" = "$PERTURBED_EXPECTED" ] || base64 -w0 "$PERTURBED_SCRATCH.squashfs"
"""


@dataclass(frozen=True)
class Variant:
    """What is changed. `cores` is a set of CPUs, None for all; `dated` is the time of every file of the source."""

    timezone: str
    locale: str
    hostname: str
    home: str
    source: str
    scratch: str
    umask: str
    order: str
    dated: int
    cores: str | None

    @property
    def shown(self) -> dict[str, Any]:
        """Return it for the report."""
        dated = datetime.datetime.fromtimestamp(self.dated, datetime.UTC).isoformat()
        return {**vars(self), "dated": dated, "cores": self.cores or "all"}


VARIANTS = (
    Variant(
        timezone="Asia/Kathmandu",
        locale="tr_TR.UTF-8",
        hostname="elsewhere",
        home="/opt/another-compiler",
        source="/tmp/one/source",  # noqa: S108 - in a container
        scratch="/tmp/one/scratch",  # noqa: S108
        umask="077",
        order="reversed",
        dated=1_000_000_000,
        cores="0",
    ),
    Variant(
        timezone="America/St_Johns",
        locale="ja_JP.eucJP",
        hostname="a-host-with-a-much-longer-name",
        home="/srv/x",
        source="/var/tmp/other-folder/of/sources",  # noqa: S108
        scratch="/var/tmp/other-folder/s",  # noqa: S108
        umask="002",
        order="shuffled",
        dated=2_000_000_000,
        cores=None,
    ),
)


@dataclass(frozen=True)
class Perturbed:
    """A perturbed build that ended: `data` is the slug where it was not the expected one."""

    node: str
    variant: Variant
    sha256: str
    began: str
    data: bytes | None


def perturbed_source(source: SourceTarball, variant: Variant) -> bytes:
    """Return the same source with its files in another order and of another time."""
    with tarfile.open(fileobj=io.BytesIO(source.data), mode="r:gz") as tar:
        members = [(member, tar.extractfile(member)) for member in tar]
        files = [(member, None if stream is None else stream.read()) for member, stream in members]
    if variant.order == "reversed":
        files.reverse()
    else:
        random.Random(variant.hostname).shuffle(files)  # noqa: S311 - an order, no secret
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for member, data in files:
            member.mtime = variant.dated
            tar.addfile(member, None if data is None else io.BytesIO(data))
    return buffer.getvalue()


def container_argv(platform: Platform, compiler: str, variant: Variant, name: str) -> list[str]:
    """Return what runs the compiler's slug in a container of the build stack."""
    settings = platform.inventory.hosts[0].settings
    limits = ["--memory", f"{settings.build_memory_mb}m", "--cpus", "1", "--pids-limit", "1024"]
    cores = [] if variant.cores is None else ["--cpuset-cpus", variant.cores]
    rights = ["--cap-drop", "ALL", *(word for right in CAPABILITIES for word in ("--cap-add", right))]
    machine = ["--interactive", "--name", name, "--hostname", variant.hostname]
    home = ["--env", f"BLACKSTART_HOME={variant.home}"]
    return run_argv(platform.stacks.build.name, compiler, COMMAND, options=[*machine, *limits, *cores, *rights, *home])


def standard_input(platform: Platform, source: bytes, variant: Variant, expected: str) -> str:
    """Return what the container reads: variables, an empty line, the source."""
    variables: Mapping[str, str] = {
        **TRUST_ENV,
        **platform.package_sources,
        "STACK": platform.stacks.run.name,
        "TZ": variant.timezone,
        "LANG": variant.locale,
        "LC_ALL": variant.locale,
        "PERTURBED_UMASK": variant.umask,
        "PERTURBED_SOURCE": variant.source,
        "PERTURBED_SCRATCH": variant.scratch,
        "PERTURBED_EXPECTED": expected,
    }
    lines = [f"{name}={value}" for name, value in variables.items()]
    return "\n".join([*lines, "", base64.encodebytes(source).decode()])


def perturbed_build(
    platform: Platform, node: Host, app: str, source: SourceTarball, variant: Variant, *, compiler: str, expected: str
) -> Perturbed:
    """Build `source` on `node` with the compiler's slug `compiler`. Raises ProofError when it cannot be built."""
    name = f"blackstart-perturbed-{secrets.token_hex(6)}"
    argv = container_argv(platform, compiler, variant, name)
    stdin = standard_input(platform, perturbed_source(source, variant), variant, expected)
    seconds = platform.inventory.hosts[0].settings.build_seconds + LATE_SECONDS
    began = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    with connected(node) as remote, _removed(remote, name):
        ran = remote.run(argv, stdin=stdin, seconds=seconds)
    if ran.code != 0:
        raise ProofError(f"a perturbed build of {app} failed on {node.name}", why=(ran.err or ran.out)[-2000:])
    sha256, _, rest = ran.out.partition("\n")
    return Perturbed(node.name, variant, sha256, began, base64.b64decode(rest) if rest.strip() else None)


@contextlib.contextmanager
def _removed(remote: Remote, container: str) -> Any:
    """Leave no container behind, also when the build ran over its time."""
    try:
        yield
    finally:
        remote.run(["docker", "rm", "--force", container])
