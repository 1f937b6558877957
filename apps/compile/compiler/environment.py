"""The environment of a buildpack: made anew from an allow list, so that a build sees no credential.

What is the same on every node is set here; only where packages come from, and which TLS roots count, comes from outside.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

PACKAGE_SOURCES = ("UV_INDEX_URL", "PIP_INDEX_URL", "NPM_CONFIG_REGISTRY", "BUNDLE_MIRROR", "APT_SOURCE")
TRUST = (
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
    "GIT_SSL_CAINFO",
)
PROXIES = ("http_proxy", "https_proxy", "no_proxy", "HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY")
ALLOWED = (*PACKAGE_SOURCES, *TRUST, *PROXIES, "STACK")

SOURCE_DATE = 946_684_800
"""2000-01-01, in seconds: what tools that stamp their output are told (reproducible-builds.org, SOURCE_DATE_EPOCH)."""

FIXED = {
    "PATH": "/usr/local/bin:/usr/bin:/bin",
    "LANG": "C.UTF-8",
    "LC_ALL": "C.UTF-8",
    "TZ": "UTC",
    "SOURCE_DATE_EPOCH": str(SOURCE_DATE),
    "PYTHONHASHSEED": "0",
    "PYTHONUNBUFFERED": "1",
    "PYTHONDONTWRITEBYTECODE": "1",
    "TERM": "dumb",
}


def build_environment(outside: Mapping[str, str], *, home: Path, temporary: Path) -> dict[str, str]:
    """Return the environment of buildpacks. `outside` is this process's own; only the allow list passes."""
    allowed = {key: outside[key] for key in ALLOWED if outside.get(key)}
    return {**FIXED, **allowed, "HOME": str(home), "TMPDIR": str(temporary), "USER": "dyno", "LOGNAME": "dyno"}


def take(environment: os._Environ[str], names: tuple[str, ...]) -> dict[str, str]:
    """Remove `names` from this process's environment and return those that were set and not empty."""
    taken = {name: environment.pop(name, "") for name in names}
    return {name: value for name, value in taken.items() if value}
