"""Source to first answer for the Flask fixture, beside `docker build` + `docker service update` of the same app.

    .venv/bin/python bench/deploy.py [--rounds N] [--nodes N]

Ours: upload, build, release, until a router answers with the new version. Theirs, on a node of the same platform: the
Dockerfile below, built on the node and put into a service there, until its port answers with the new version. `cold`:
nothing cached (a new app; `--no-cache`). `warm`: the app was deployed before and only its own code changed.
Each round does all four in turn. The platform has one node: on more, ours brings the app to every one of them, which theirs
does not do (`--nodes 3` shows what that costs on one machine's cores). Exit 1
unless our median is the lower one both cold and warm.
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import io
import shutil
import statistics
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import httpx
from running import ROOT, platform

from blackstart import observe
from blackstart.client import Client
from blackstart.platform import Platform
from blackstart.remote import Remote, connected
from blackstart.sources import folder_source

SECONDS = 300.0
PORT = 8099
DOCKERFILE = """FROM {image}
COPY ca-bundle.pem /ca.pem
ENV SSL_CERT_FILE=/ca.pem PATH=/srv/app/.venv/bin:/usr/local/bin:/usr/bin:/bin
WORKDIR /srv/app
COPY requirements.txt .
RUN uv venv --quiet --python /usr/bin/python3 .venv && uv pip install --quiet --python .venv/bin/python -r requirements.txt
COPY . .
CMD ["gunicorn", "--bind", "0.0.0.0:5000", "--workers", "2", "app:app"]
"""


def main() -> int:
    """Measure and print; return 1 when the aim is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--nodes", type=int, default=1)
    options = parser.parse_args()
    rounds: int = options.rounds
    took: dict[str, list[float]] = {name: [] for name in ("cold ours", "cold docker", "warm ours", "warm docker")}
    with (
        platform(nodes=options.nodes) as it,
        observe.answering_client(it) as client,
        connected(it.inventory.nodes[0]) as remote,
        tempfile.TemporaryDirectory() as folder,
    ):
        source = Path(folder) / "flask"
        shutil.copytree(ROOT / "tests" / "fixtures" / "flask", source)
        for number in range(rounds):
            app = f"bench-{number}"
            took["cold ours"].append(_ours(it, client, app, _version(source, f"cold{number}"), source))
            took["cold docker"].append(_docker(it, remote, _version(source, f"coldd{number}"), source, cached=False))
            took["warm ours"].append(_ours(it, client, app, _version(source, f"warm{number}"), source))
            took["warm docker"].append(_docker(it, remote, _version(source, f"warmd{number}"), source, cached=True))
            client.call("DELETE", f"/apps/{app}")
    median = {name: statistics.median(values) for name, values in took.items()}
    for name, values in took.items():
        print(f"{name:12} {median[name]:6.2f} s  ({', '.join(f'{value:.2f}' for value in values)})")
    ratios = [median[f"{kind} ours"] / median[f"{kind} docker"] for kind in ("cold", "warm")]
    print(f"ours / docker: cold {ratios[0]:.2f}, warm {ratios[1]:.2f} (aim: below 1)")
    return 0 if max(ratios) < 1 else 1


def _version(source: Path, version: str) -> str:
    """Change the app's own code so that its answer names `version`."""
    original = (ROOT / "tests" / "fixtures" / "flask" / "app.py").read_text()
    (source / "app.py").write_text(original.replace("flask {", version + " {"))
    return version


def _ours(it: Platform, client: Client, app: str, version: str, source: Path) -> float:
    started = time.monotonic()
    if client.maybe(f"/apps/{app}") is None:
        client.call("POST", "/apps", {"name": app})
    client.build(app, folder_source(source), version=version)
    _until(version, f"http://{it.node_addresses[0]}/", {"Host": f"{app}.{it.domain}"})
    return time.monotonic() - started


def _docker(it: Platform, remote: Remote, version: str, source: Path, *, cached: bool) -> float:
    context = _context(it, source)
    started = time.monotonic()
    image = f"127.0.0.1:1/bench:{version}"
    flags = [] if cached else ["--no-cache"]
    build = f"base64 -d | env DOCKER_BUILDKIT=0 docker build --quiet {' '.join(flags)} --tag {image} -"
    remote.check(["sh", "-c", build], stdin=context, seconds=SECONDS)
    exists = remote.run(["docker", "service", "inspect", "bench-peer"]).code == 0
    place = ["--constraint", f"node.hostname=={it.inventory.nodes[0].name}", "--replicas", "1"]
    make = ["create", "--name", "bench-peer", *place, "--publish", f"mode=host,target=5000,published={PORT}"]
    change = ["update", "--image", image, "bench-peer"]
    common = ["docker", "service", *(change[:1] if exists else make[:1]), "--detach", "--no-resolve-image"]
    remote.check([*common, *(change[1:] if exists else [*make[1:], image])], seconds=SECONDS)
    # nodes have neither python3 nor curl
    ask = (
        f"exec 3<>/dev/tcp/{it.inventory.nodes[0].address}/{PORT} && printf 'GET / HTTP/1.0\\r\\n\\r\\n' >&3 && cat <&3"
    )
    wait = f"until timeout 2 bash -c \"{ask}\" 2>/dev/null | grep -q '^{version} '; do sleep 0.02; done"
    remote.check(["bash", "-c", wait], seconds=SECONDS)
    return time.monotonic() - started


def _context(it: Platform, source: Path) -> str:
    """Return the build context as base64 of a tar: the source, the Dockerfile, this host's roots."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        files = {path.name: path.read_bytes() for path in source.iterdir() if path.is_file()}
        files["Dockerfile"] = DOCKERFILE.format(image=it.stacks.build.name).encode()
        files["ca-bundle.pem"] = Path("/etc/ssl/certs/ca-certificates.crt").read_bytes()
        for name, data in sorted(files.items()):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    return base64.b64encode(buffer.getvalue()).decode()


def _until(version: str, url: str, headers: dict[str, str]) -> None:
    """Ask until the answer names the version. Raises TimeoutError."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, headers=headers, timeout=5, trust_env=False).text.startswith(version):
                return
        time.sleep(0.02)
    raise TimeoutError(f"{url} did not answer with {version} within {SECONDS:.0f} s")


if __name__ == "__main__":
    sys.exit(main())
