"""SeaweedFS's files and command lines, as pure functions of the settings.

Two processes. `weed server` (master, volume server, filer) listens on loopback only: none of its ports asks who you
are. `weed s3` is the one public port, started last, so that an open port means an answer.

Durability, all three needed (each write is on disk before the acknowledgement):
- volumes: `fsync` for every path below /buckets (filer.conf);
- the filer's names: SQLite, which syncs each transaction; the default LevelDB store never does;
- the bucket's index is rebuilt from the volumes after an unclean stop (`weed fix`): it is written without a sync.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from blackstart.process.failure import ProcessFailed
from blackstart.process.settings import Certificate

LOOPBACK = "127.0.0.1"
INLINE_BYTES = 2048  # smaller files are kept beside their name: the filer reads its settings before it knows a volume
FSYNC_EVERYTHING = json.dumps({"locations": [{"locationPrefix": "/buckets/", "fsync": True}]})


@dataclass(frozen=True)
class Ports:
    """The public port, and the loopback ports from `base` on (gRPC ports beside them)."""

    public: int
    base: int

    @property
    def master(self) -> int:
        return self.base

    @property
    def volume(self) -> int:
        return self.base + 2

    @property
    def filer(self) -> int:
        return self.base + 4

    @property
    def s3_grpc(self) -> int:
        return self.base + 6

    @property
    def filer_address(self) -> str:
        """The filer as `weed s3` wants it: host:port.grpcPort."""
        return f"{LOOPBACK}:{self.filer}.{self.filer + 1}"


@dataclass(frozen=True)
class Identity:
    """A credential for the one bucket."""

    key: str
    secret: str
    bucket: str


def server_argv(weed: Path, data: Path, runtime: Path, ports: Ports, volume_limit_mb: int) -> list[str]:
    """Return the command line of master, volume server and filer."""
    return [
        str(weed), "-logtostderr=true", "server",
        f"-ip={LOOPBACK}", f"-ip.bind={LOOPBACK}", f"-dir={data}",
        f"-master.port={ports.master}", f"-master.port.grpc={ports.master + 1}",
        "-master.peers=none",       # alone: no election, so it answers at once after a restart
        "-master.telemetry=false",
        f"-master.volumeSizeLimitMB={volume_limit_mb}",
        f"-volume.port={ports.volume}", f"-volume.port.grpc={ports.volume + 1}",
        "-volume.max=0",            # as many volumes as the disk has room for
        "-volume.minFreeSpace=1GiB" if volume_limit_mb >= 256 else "-volume.minFreeSpace=16MiB",
        "-volume.preStopSeconds=0",
        "-filer", f"-filer.port={ports.filer}", f"-filer.port.grpc={ports.filer + 1}",
        f"-filer.localSocket={runtime / 'filer.sock'}", f"-filer.saveToFilerLimit={INLINE_BYTES}",
    ]  # fmt: skip


def s3_argv(weed: Path, runtime: Path, ports: Ports, certificate: Certificate) -> list[str]:
    """Return the command line of the S3 gateway."""
    return [
        str(weed), "-logtostderr=true", "s3",
        f"-filer={ports.filer_address}", f"-ip={LOOPBACK}", "-ip.bind=0.0.0.0", f"-port={ports.public}",
        f"-port.grpc={ports.s3_grpc}", "-port.iceberg=0", "-port.lance=0", "-iam=false",
        f"-config={runtime / 's3.json'}", f"-localSocket={runtime / 's3.sock'}",
        f"-cert.file={certificate.certificate}", f"-key.file={certificate.key}",
        "-autoCreateBucket=false", "-allowDeleteBucketNotEmpty=false", "-cacheCapacityMB=0",
        "-readerCacheSizeMB=32", "-concurrentUploadLimitMB=128",
    ]  # fmt: skip


def filer_toml(data: Path) -> str:
    """Return filer.toml: names are kept in SQLite."""
    return f"[sqlite]\nenabled = true\ndbFile = {json.dumps(str(data / 'filer.db'))}\n"


def s3_security_toml(certificate: Certificate) -> str:
    """Return security.toml of the gateway. Its gRPC port cannot be bound elsewhere than the public one; through it
    anybody could add identities. So it asks for a client certificate, and only our own (trusted as itself) will do.
    """
    cert, key = json.dumps(str(certificate.certificate)), json.dumps(str(certificate.key))
    return f"[grpc]\nca = {cert}\n\n[grpc.s3]\ncert = {cert}\nkey = {key}\n"


def identities(accepted: tuple[Identity, ...]) -> str:
    """Return the gateway's one identity: everything in one bucket, nothing elsewhere. It may have several credentials."""
    credentials = []
    for each in accepted:
        for name, value in (("OBJECTS_KEY", each.key), ("OBJECTS_SECRET", each.secret)):
            if not (value.isascii() and value.isprintable()):
                raise ProcessFailed(f"config var {name} must be printable ASCII")
        credentials.append({"accessKey": each.key, "secretKey": each.secret})
    actions = [f"{action}:{accepted[0].bucket}" for action in ("Admin", "Read", "Write", "List", "Tagging")]
    return json.dumps({"identities": [{"name": "platform", "credentials": credentials, "actions": actions}]})
