"""Running a data component as a dyno would: its slug's layout in a folder, its own user, real TLS; for the tests."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

CHECKOUT = Path(__file__).resolve().parents[3]
UNPRIVILEGED = 65534  # nobody: PostgreSQL refuses root


def wait_for(condition: Callable[[], object], what: str, *, within_s: float = 60) -> None:
    """Return when `condition` holds; fail after `within_s`."""
    until = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > until:
            raise AssertionError(f"not within {within_s:.0f} s: {what}")
        time.sleep(0.02)


def free_port() -> int:
    """Return a port that nobody listens on, and that the kernel gives nobody's connection."""
    return free_ports(1)


def free_ports(count: int) -> int:
    """Return the first of `count` free ports in a row, below the range the kernel picks from."""
    while True:
        first = random.randrange(20000, 30000)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                stack.enter_context(socket.socket()).bind(("127.0.0.1", port))
            return first


@contextlib.contextmanager
def folder() -> Iterator[Path]:
    """Yield a folder that the unprivileged user can reach (pytest's own are closed to it)."""
    path = Path(tempfile.mkdtemp(prefix="blackstart-test-"))
    path.chmod(0o755)
    try:
        yield path
    finally:
        shutil.rmtree(path)


@dataclass(frozen=True)
class Tls:
    """A CA and one certificate for every component of the tests."""

    ca_file: Path
    certificate: str
    key: str


def make_tls(path: Path) -> Tls:
    """Make a CA in `path` and a certificate for localhost."""
    now = datetime.datetime.now(datetime.UTC)

    def built(name: str, issuer: str, key: ec.EllipticCurvePrivateKey, by: ec.EllipticCurvePrivateKey, ca: bool) -> str:
        builder = (
            x509.CertificateBuilder()
            .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
            .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - datetime.timedelta(minutes=5))
            .not_valid_after(now + datetime.timedelta(days=1))
            .add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
            # Python 3.13 and later verify strictly (RFC 5280)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(by.public_key()), critical=False)
            .add_extension(key_usage(ca), critical=True)
        )
        if not ca:
            names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(by, hashes.SHA256()).public_bytes(serialization.Encoding.PEM).decode()

    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_file = path / "ca.pem"
    ca_file.write_text(built("test CA", "test CA", ca_key, ca_key, ca=True))
    ca_file.chmod(0o644)
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return Tls(ca_file, built("test", "test CA", key, ca_key, ca=False), pem.decode())


def key_usage(ca: bool) -> x509.KeyUsage:
    """Return what the key may do."""
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=ca,
        crl_sign=ca,
        encipher_only=False,
        decipher_only=False,
    )


def unpack_slug(app: str, package: str, path: Path) -> Path:
    """Lay out the slug of `app` in `path`, as the compiler does; return its folder."""
    home = path / f"{app}-app"
    ignored = shutil.ignore_patterns("__pycache__", "tests")
    for name in ("bin", package):
        shutil.copytree(CHECKOUT / "apps" / app / name, home / name, ignore=ignored)
    shutil.copytree(CHECKOUT / "blackstart" / "process", home / "blackstart" / "process", ignore=ignored)
    shutil.copy(CHECKOUT / "blackstart" / "__init__.py", home / "blackstart")
    return home


class Component:
    """One component's program, its data and its log."""

    def __init__(self, home: Path, program: str, env: Mapping[str, str], where: Path, *, user: int | None = None):
        self.home, self.program = home, program
        self.data, self.runtime, self.log_file = where / "data", where / "run", where / "log"
        self._user = user if os.getuid() == 0 else None
        for path in (self.data, self.runtime):
            path.mkdir(parents=True)
            if self._user is not None:
                os.chown(path, self._user, self._user)
        self.env = {
            "PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(where),
            "DATA_DIR": str(self.data),
            "RUNTIME_DIRECTORY": str(self.runtime),
            "PYTHONDONTWRITEBYTECODE": "1",
            **env,
        }
        if self._user is not None:  # another user may not reach this virtual environment
            self.env["PATH"] = "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
        self.process: subprocess.Popen[bytes] | None = None

    def _as_user(self) -> list[str]:
        if self._user is None:
            return []
        return ["setpriv", f"--reuid={self._user}", f"--regid={self._user}", "--clear-groups"]

    def start(self) -> None:
        """Start it; the log begins anew."""
        with self.log_file.open("wb") as log:
            self.process = subprocess.Popen(
                [*self._as_user(), str(self.home / "bin" / self.program)],
                env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log, process_group=0,
            )  # fmt: skip

    def run(self, program: str, *words: str, stdin: str = "", **env: str) -> subprocess.CompletedProcess[str]:
        """Run another program of the same slug to its end."""
        return subprocess.run(
            [*self._as_user(), str(self.home / "bin" / program), *words],
            env=self.env | env, input=stdin, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    @property
    def log(self) -> str:
        """What it said since its start."""
        return self.log_file.read_text(errors="replace")

    def wait_said(self, text: str, *, within_s: float = 60) -> None:
        """Return when the log holds `text`."""

        def said() -> bool:
            if text in self.log:
                return True
            assert self.process is not None
            assert self.process.poll() is None, f"{self.program} ended: {self.log[-3000:]}"
            return False

        wait_for(said, f"{self.program} says {text!r}; it said: {self.log[-3000:]}", within_s=within_s)

    def stop(self) -> int:
        """Ask it to stop; return its status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)

    def kill(self) -> None:
        """Kill it and everything it started at one instant, as a loss of power does."""
        if self.process is None:
            return
        tree = [self.process.pid, *descendants(self.process.pid)]
        for pid in tree:  # nobody may start another while the others die
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        tree = [*tree, *descendants(self.process.pid)]
        for pid in tree:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait(30)
        self.process = None
        # Until the kernel has ended the last of them, its port takes connections that the next life was meant for.
        wait_for(lambda: not any(map(is_alive, tree)), f"the processes of {self.program} to end")

    def command_lines(self) -> str:
        """Return the command lines of everything it started."""
        assert self.process is not None
        found = []
        for pid in (self.process.pid, *descendants(self.process.pid)):
            with contextlib.suppress(OSError):
                found.append(Path(f"/proc/{pid}/cmdline").read_text(errors="replace"))
        return "\n".join(found)


def is_alive(pid: int) -> bool:
    """Whether a process still holds what it had open."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rpartition(")")[2].split()[0] not in ("Z", "X")


def descendants(pid: int) -> list[int]:
    """Return the pids of all children of `pid`, and theirs."""
    found = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            for child in (task / "children").read_text().split():
                found += [int(child), *descendants(int(child))]
    return found


@contextlib.contextmanager
def running(component: Component) -> Iterator[Component]:
    """Yield `component`, started; nothing of it is left behind."""
    component.start()
    try:
        yield component
    finally:
        component.kill()


STORE_KEY, STORE_SECRET, STORE_BUCKET = "store-key", "store-secret-do-not-show", "acme"


def object_store(where: Path, tls: Tls) -> Component:
    """Return an object store that is not started yet; its endpoint is `env["ENDPOINT"]`."""
    where.mkdir(exist_ok=True)
    port = free_port()
    env = {
        "PORT": str(port),
        "ENDPOINT": f"https://localhost:{port}",
        "OBJECTS_BASE_PORT": str(free_ports(7)),
        "OBJECTS_KEY": STORE_KEY,
        "OBJECTS_SECRET": STORE_SECRET,
        "OBJECTS_BUCKET": STORE_BUCKET,
        "TLS_CERT": tls.certificate,
        "TLS_KEY": tls.key,
        "BLACKSTART_CA": str(tls.ca_file),
    }
    return Component(unpack_slug("objects", "store", where), "objects", env, where)
