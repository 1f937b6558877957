"""A bundle of logs from every machine, for whoever has to find out why something failed. No secret is in it.

<host>/<what>.txt     what a command printed, its exit code first; unreachable.txt where there was no way in
operator/             the operator's own journals

Config vars are never asked for (nothing prints a service's or a container's environment), and every file is masked.
"""

from __future__ import annotations

import concurrent.futures
import datetime
import gzip
import io
import tarfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from blackstart.errors import BlackstartError
from blackstart.inventory import Host
from blackstart.masking import Masker
from blackstart.platform import Platform
from blackstart.remote import Remote, connected
from blackstart.sources import checkout_root, component_names
from blackstart.state import write_durably

CONNECT_SECONDS = 10.0
COMMAND_SECONDS = 30
LOG_LINES, TAIL_LINES = "5000", "1000"
KEPT_AT_MOST = 5
OPERATOR_FILES = ("journal.jsonl", "operations.jsonl", "proofs.json", "pivot.json", "certificate.json", "times.json")

COMMANDS: dict[str, list[str]] = {
    "journal-docker": ["journalctl", "--boot", "--no-pager", "--lines", LOG_LINES, "--unit", "docker.service"],
    "journal-ssh": ["journalctl", "--boot", "--no-pager", "--lines", LOG_LINES, "--unit", "ssh.service"],
    "journal-blackstart": ["journalctl", "--boot", "--no-pager", "--lines", LOG_LINES, "--unit", "blackstart-*"],
    "journal-stores": [
        "journalctl",
        "--boot",
        "--no-pager",
        "--lines",
        LOG_LINES,
        "--unit",
        "postgresql*",
        "--unit",
        "redis*",
    ],
    "units-failed": ["systemctl", "--failed", "--no-pager", "--full"],
    "nodes": ["docker", "node", "ls"],
    "services": ["docker", "service", "ls"],
    "containers": ["docker", "ps", "--all", "--no-trunc"],
    "firewall": ["nft", "list", "ruleset"],
    "disk": ["df", "--human-readable"],
    "inodes": ["df", "--inodes"],
    "memory": ["free", "--mebi"],
    "addresses": ["ip", "address"],
    "routes": ["ip", "route"],
    "connections": ["ss", "--tcp", "--numeric", "--processes"],
    "load": ["uptime"],
}


def gather(
    platform: Platform,
    hosts: Sequence[Host],
    *,
    log: Callable[[str], None] = lambda text: None,
    folder: Path | None = None,
) -> Path:
    """Collect from every host that can be reached into one tar.gz (0600) and return its path.

    It goes below the state folder unless `folder` is given. A host that cannot be reached is noted in it.
    """
    masker = Masker.of(platform.state)
    files = {f"operator/{name}": text for name, text in _operator_files(platform)}
    with concurrent.futures.ThreadPoolExecutor(max_workers=10) as pool:
        for host, found in zip(hosts, pool.map(_of_host, hosts), strict=True):
            files |= {f"{host.name}/{name}.txt": text for name, text in found.items()}
            log(f"{host.name}: {'cannot be reached' if 'unreachable' in found else f'{len(found)} files'}")
    target = folder if folder is not None else platform.state.folder / "bundles"
    return _write(target, {name: masker.mask(text) for name, text in files.items()})


def _write(folder: Path, files: dict[str, str]) -> Path:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    now = datetime.datetime.now(datetime.UTC)
    root = f"bundle-{now.strftime('%Y%m%dT%H%M%S%fZ')}"
    buffer = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb") as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name, text in sorted(files.items()):
            data = text.encode()
            entry = tarfile.TarInfo(f"{root}/{name}")
            entry.size, entry.mode, entry.mtime = len(data), 0o600, int(now.timestamp())
            tar.addfile(entry, io.BytesIO(data))
    path = folder / f"{root}.tar.gz"
    write_durably(path, buffer.getvalue())
    for old in sorted(folder.glob("bundle-*.tar.gz"))[:-KEPT_AT_MOST]:
        old.unlink(missing_ok=True)
    return path


def _operator_files(platform: Platform) -> Iterator[tuple[str, str]]:
    for name in OPERATOR_FILES:
        path = platform.state.folder / name
        if path.is_file():
            yield name, path.read_text(errors="replace")


def _of_host(host: Host) -> dict[str, str]:
    """Return what each command printed on the host; what is found before it is lost is kept."""
    found: dict[str, str] = {}
    try:
        with connected(host, seconds=CONNECT_SECONDS) as remote:
            for name, argv in COMMANDS.items():
                found[name] = _told(remote, argv)
            found["tasks"] = _tasks(remote)
            found |= _container_logs(remote)
    except BlackstartError as error:
        found["unreachable"] = f"{error}\n"
    return found


def _tasks(remote: Remote) -> str:
    services = _words(remote, ["docker", "service", "ls", "--quiet"])
    return (
        _told(remote, ["docker", "service", "ps", "--no-trunc", *services])
        if services
        else "no service is known here\n"
    )


def _container_logs(remote: Remote) -> dict[str, str]:
    """Return the last lines of each container of a component; the apps of users are not the operator's to read."""
    listed = ["docker", "ps", "--all", "--filter", "label=blackstart.app", "--format"]
    pairs = [line.split() for line in _lines(remote, [*listed, '{{.Names}} {{.Label "blackstart.app"}}'])]
    components = set(component_names(checkout_root()))
    names = [words[0] for words in pairs if len(words) == 2 and words[1] in components]
    return {
        f"logs/{name}": _told(remote, ["docker", "logs", "--timestamps", "--tail", TAIL_LINES, name]) for name in names
    }


def _words(remote: Remote, argv: list[str]) -> list[str]:
    return " ".join(_lines(remote, argv)).split()


def _lines(remote: Remote, argv: list[str]) -> list[str]:
    result = remote.run(_limited(argv), seconds=COMMAND_SECONDS + 10)
    return result.out.splitlines() if result.code == 0 else []


def _told(remote: Remote, argv: list[str]) -> str:
    result = remote.run(_limited(argv), seconds=COMMAND_SECONDS + 10)
    return f"$ {' '.join(argv)}\nexit code {result.code}\n\n{result.out}{result.err}"


def _limited(argv: list[str]) -> list[str]:
    return ["timeout", "--kill-after=5", str(COMMAND_SECONDS), *argv]
