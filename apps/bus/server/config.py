"""redis.conf as a pure function of the settings."""

from __future__ import annotations

import hashlib
from pathlib import Path

from blackstart.process.failure import ProcessFailed
from blackstart.process.settings import Certificate

# Everything but what stops, empties, reconfigures or spies on the server. INFO is harmless and clients ask for it.
RIGHTS = "~* &* +@all -@admin -@dangerous +info"


def server_config(
    data: Path, runtime: Path, port: int, passwords: tuple[str, ...], memory_mb: int, certificate: Certificate
) -> str:
    """Return redis.conf. It holds the passwords' sha256, never a password."""
    for path in (data, runtime):
        if any(character.isspace() or character in "\"'\\" for character in str(path)):
            raise ProcessFailed(f"path {path} has a character that redis.conf cannot carry")
    digests = " ".join(f"#{hashlib.sha256(password.encode()).hexdigest()}" for password in passwords)
    return f"""# Written at every start: changes here are lost.
port 0
tls-port {port}
bind * -::*
protected-mode no
unixsocket ""
tls-cert-file {certificate.certificate}
tls-key-file {certificate.key}
tls-auth-clients no
tls-protocols "TLSv1.2 TLSv1.3"
tcp-keepalive 300
timeout 0
user default reset on {digests} {RIGHTS}
dir {data}
save ""
appendonly yes
appendfsync everysec
aof-load-truncated yes
auto-aof-rewrite-percentage 100
auto-aof-rewrite-min-size 32mb
maxmemory {memory_mb}mb
maxmemory-policy volatile-lru
daemonize no
supervised no
logfile ""
loglevel notice
always-show-logo no
enable-debug-command no
enable-module-command no
"""
