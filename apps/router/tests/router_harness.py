"""Real HAProxy, real Redis, real backends, all on loopback. HAProxy: $HAPROXY or the PATH."""

from __future__ import annotations

import contextlib
import datetime
import http.client
import ipaddress
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import redis
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

APP = Path(__file__).resolve().parents[1]
ROOT = APP.parents[1]
DEADLINE = 30.0
SYSTEM = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin"))


def until(condition: Callable[[], Any], what: str, seconds: float = DEADLINE) -> Any:
    """Return the first true value of `condition`; fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds:.0f} s: {what}")
        time.sleep(0.02)


def program(name: str, variable: str) -> str:
    found = shutil.which(os.environ.get(variable, name), path=SYSTEM)
    if found is None:
        pytest.fail(f"{name} is not installed: install Debian's package, or set {variable} to its path")
    return found


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[Any]) -> None:
    if process.poll() is None:
        process.kill()
    process.wait()
    for stream in (process.stdout, process.stderr):
        if stream is not None:
            stream.close()


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    text: str


def request(
    port: int,
    path: str = "/",
    *,
    host: str = "shop.example",
    method: str = "GET",
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    timeout: float = DEADLINE,
) -> Answer:
    """Return the router's answer on a fresh connection."""
    with contextlib.closing(http.client.HTTPConnection("127.0.0.1", port, timeout=timeout)) as client:
        client.request(method, path, body=body, headers={"Host": host, **(headers or {})})
        got = client.getresponse()
        return Answer(got.status, {name.lower(): value for name, value in got.getheaders()}, got.read().decode())


@dataclass
class Backend:
    name: str
    port: int
    process: subprocess.Popen[str]
    id: str = ""

    def entry(self, state: str = "ready") -> dict[str, object]:
        return {"id": self.id or self.name, "address": "127.0.0.1", "port": self.port, "state": state}


def start_backend(name: str, port: int = 0, tls: tuple[Path, Path] | None = None) -> Backend:
    files = [str(path) for path in tls] if tls is not None else []
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("backend.py")), str(port), name, *files],
        stdout=subprocess.PIPE,
        text=True,
    )
    line = process.stdout.readline().split() if process.stdout is not None else []
    if len(line) != 2:
        end(process)
        pytest.fail(f"backend {name} did not start")
    return Backend(name, int(line[1]), process)


@pytest.fixture
def backend() -> Iterator[Callable[..., Backend]]:
    started: list[Backend] = []

    def start(name: str, port: int = 0, tls: tuple[Path, Path] | None = None) -> Backend:
        started.append(start_backend(name, port, tls))
        return started[-1]

    yield start
    for one in started:
        end(one.process)


class Bus:
    """A real Redis that can be killed and started again on the same port."""

    def __init__(self, folder: Path) -> None:
        self.port, self.folder = free_port(), folder
        self.url = f"redis://127.0.0.1:{self.port}/0"
        self.client = redis.Redis.from_url(self.url, decode_responses=True)
        self.version = 0
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self.process = subprocess.Popen(
            [
                program("redis-server", "REDIS_SERVER"),
                "--port",
                str(self.port),
                "--bind",
                "127.0.0.1",
                "--save",
                "",
                "--dir",
                str(self.folder),
                "--daemonize",
                "no",
            ],
            stdout=subprocess.DEVNULL,
        )
        until(self.answers, "the bus answers")

    def answers(self) -> bool:
        try:
            return bool(self.client.ping())
        except redis.RedisError:
            return False

    def stop(self) -> None:
        if self.process is not None:
            end(self.process)

    def table(self, apps: dict[str, Any], hosts: dict[str, str] | None = None, version: int | None = None) -> int:
        """Publish a table as psmgr does. `apps`: name to list of server entries, or to a whole app."""
        self.version = self.version + 1 if version is None else version
        whole = {name: app if isinstance(app, dict) else {"tls": False, "servers": app} for name, app in apps.items()}
        names = {f"{name}.example": name for name in apps} if hosts is None else hosts
        self.text(json.dumps({"version": self.version, "hosts": names, "apps": whole}))
        return self.version

    def text(self, text: str) -> None:
        self.client.set("routes", text)
        self.client.publish("routes", str(self.version))

    def ack(self, node: str = "node1") -> dict[str, Any]:
        value = self.client.get(f"router:{node}")
        return json.loads(str(value)) if value is not None else {"version": 0, "servers": {}}

    def applied(self, version: int, node: str = "node1") -> dict[str, Any]:
        return dict(
            until(lambda: (ack := self.ack(node))["version"] >= version and ack, f"version {version} acknowledged")
        )


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    one = Bus(tmp_path)
    one.start()
    yield one
    one.stop()
    one.client.close()


@dataclass
class Router:
    """A driver as its own process, as on a node."""

    process: subprocess.Popen[str]
    port: int
    https_port: int
    lines: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def log(self) -> str:
        return "\n".join(self.lines)

    def stop(self) -> None:
        """SIGTERM as a dyno gets it: the first program (tini -g) hands it to the whole process group."""
        os.killpg(self.process.pid, signal.SIGTERM)

    def masters(self) -> list[int]:
        return children(self.process.pid)

    def says(self, text: str) -> None:
        deadline = time.monotonic() + DEADLINE
        while text not in self.log():
            if time.monotonic() > deadline or (self.process.poll() is not None and not self.reader.is_alive()):
                pytest.fail(f"the router never said {text!r}; it said:\n{self.log()}")
            time.sleep(0.02)

    def read(self) -> None:
        if self.process.stdout is not None:
            with self.process.stdout as stream:
                for line in stream:
                    self.lines.append(line.rstrip())


def children(pid: int) -> list[int]:
    try:
        return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder with a short name: HAProxy refuses sockets whose path has more than 97 characters, and pytest's may."""
    with tempfile.TemporaryDirectory(prefix="router-") as folder:
        yield Path(folder)


@pytest.fixture
def router(tmp_path: Path, bus: Bus) -> Iterator[Callable[..., Router]]:
    started: list[Router] = []
    ports = {"HTTP_PORT": free_port(), "HTTPS_PORT": free_port()}

    def start(**extra: str) -> Router:
        state = tmp_path / "state"
        state.mkdir(exist_ok=True)
        env = {
            "PATH": SYSTEM,
            "PYTHONPATH": f"{APP}:{ROOT}",
            "NODE": "node1",
            "BUS_URL": bus.url,
            "ROUTER_STATE": str(state),
            "HAPROXY": program("haproxy", "HAPROXY"),
            "ROUTER_BIND": "127.0.0.1",
            "PYTHONWARNINGS": "error",
            "ROUTER_CA": str(tmp_path / "ca.pem"),
            "ROUTER_MAXCONN": "1000",
            "HOME": str(tmp_path),
            "TMPDIR": str(tmp_path),
            **{name: str(port) for name, port in ports.items()},
            **extra,
        }
        process = subprocess.Popen(
            [sys.executable, "-m", "router"],
            env=env,
            cwd=APP,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            process_group=0,
        )
        one = Router(process, ports["HTTP_PORT"], ports["HTTPS_PORT"])
        started.append(one)
        one.says("HAProxy serves version")
        return one

    yield start
    for one in started:
        masters = one.masters()
        if one.process.poll() is None:
            one.process.send_signal(signal.SIGTERM)
            one.process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                one.process.wait(10)
        one.process.kill()
        one.process.wait()
        for pid in masters:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        one.reader.join(10)


class Load:
    """Constant requests from a few clients until it is left; `failures` holds every answer that is not the app's."""

    def __init__(
        self, port: int, *, host: str = "shop.example", methods: tuple[str, ...] = ("GET",), fresh: bool = False
    ) -> None:
        self.port, self.host, self.methods, self.fresh = port, host, methods, fresh
        self.failures: list[str] = []
        self.done = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, args=(method,)) for method in methods for _ in range(2)]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def more(self, count: int = 50) -> None:
        """Wait until `count` more requests are answered."""
        goal = self.done + count
        until(lambda: self.done >= goal or self.failures, "more requests are answered")

    def _work(self, method: str) -> None:
        client = http.client.HTTPConnection("127.0.0.1", self.port, timeout=DEADLINE)
        while not self._ended.is_set():
            try:
                client.request(method, "/", body=b"x" if method == "POST" else None, headers={"Host": self.host})
                got = client.getresponse()
                text = got.read()
                if got.status != 200:
                    self.failures.append(f"{method} {got.status} {text[:200]!r}")
                if self.fresh or got.getheader("Connection", "").lower() == "close":
                    client.close()
            except (OSError, http.client.HTTPException) as error:
                self.failures.append(f"{method} {error!r}")
                client.close()
            self.done += 1
            self._ended.wait(0.002)
        client.close()


@contextlib.contextmanager
def websocket(port: int, host: str = "shop.example") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE) as peer:
        peer.sendall(
            f"GET /chat HTTP/1.1\r\nHost: {host}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
            "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += peer.recv(1)
        assert head.startswith(b"HTTP/1.1 101")
        yield peer


class Authority:
    """A small CA that writes PEM files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign("Test CA", self.key, self.key.public_key(), None, ca=True)
        self.path = folder / "ca.pem"
        self.path.write_bytes(self.certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> tuple[Path, Path]:
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = self._sign(name, self.key, key.public_key(), self.certificate.subject, ca=False)
        cert_path, key_path = (
            self.folder / f"{name.replace('*', '_')}.crt",
            self.folder / f"{name.replace('*', '_')}.key",
        )
        cert_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        key_path.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return cert_path, key_path

    def _sign(
        self,
        name: str,
        key: ec.EllipticCurvePrivateKey,
        public: ec.EllipticCurvePublicKey,
        issuer: x509.Name | None,
        *,
        ca: bool,
    ) -> x509.Certificate:
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = datetime.datetime.now(datetime.UTC)
        alternatives: list[x509.GeneralName] = (
            [x509.DNSName(name)] if not ca else [x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        )
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(issuer or subject)
            .public_key(public)
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(days=1))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
            .sign(key, hashes.SHA256())
        )


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path)
