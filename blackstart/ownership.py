"""Whose machines these are: no run touches machines that another state folder made.

Every machine of a platform carries IDENTITY: the platform's name, its CA's digest and a digest of each secret. A state
folder that is lost, stale or of another platform does not match it: it would bring new secrets to old volumes, or a
second control plane. The deploys write the file before anything secret reaches the machine.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from blackstart.ca import check_ca
from blackstart.errors import BlackstartError, HostError
from blackstart.inventory import Host
from blackstart.platform import Platform
from blackstart.remote import connected
from blackstart.state import State

IDENTITY = "/etc/blackstart/identity.json"
LOOK_SECONDS = 5.0
STAGE0 = "stage0_"
"""How the names of secrets begin that are revoked with stage 0: they tell nothing of the nodes."""


def identity(state: State) -> dict[str, Any]:
    """Return what this state folder's machines carry. A secret is 80 random bits or more, so its digest tells nothing."""
    ca = None
    if state.ca_path.exists():
        ca = x509.load_pem_x509_certificate(state.ca_path.read_bytes()).fingerprint(hashes.SHA256()).hex()
    return {"platform": state.platform, "ca": ca, "secrets": _digests(state.kept_secrets())}


def _digests(secrets: dict[str, str]) -> dict[str, str]:
    return {name: _digest(name, value) for name, value in sorted(secrets.items()) if not name.startswith(STAGE0)}


def _digest(name: str, secret: str) -> str:
    return hashlib.sha256(f"blackstart identity\0{name}\0{secret}".encode()).hexdigest()[:32]


def differences(carried: dict[str, Any], state: State) -> list[str]:
    """Return in words what a machine carries and this state folder lacks or has otherwise.

    A secret that was replaced, and is kept below `retired`, is this platform's too: a machine learns of new ones later.
    """
    ours, retired = identity(state), _digests(state.read_json("secrets.json").get("retired", {}))
    found = []
    if carried.get("platform") != ours["platform"]:
        found.append(f"it is a machine of the platform {carried.get('platform')}")
    if carried.get("ca") != ours["ca"]:
        found.append("it trusts another CA" if ours["ca"] is not None else "the CA is missing here")
    for name, digest in carried.get("secrets", {}).items():
        if digest not in (ours["secrets"].get(name), retired.get(name)):
            found.append(f"its {name} is {'another' if name in ours['secrets'] else 'missing here'}")
    return found


def check_machines(platform: Platform, hosts: Iterable[Host]) -> None:
    """Refuse the hosts that another state folder made. Raises HostError. A host that does not answer is passed over."""
    check_ca(platform.state)
    with ThreadPoolExecutor(max_workers=10) as pool:
        for host, carried in zip(hosts, pool.map(carried_identity, hosts), strict=True):
            check_carried(host.name, carried, platform.state)


def check_carried(host: str, carried: dict[str, Any] | None, state: State) -> None:
    """Refuse a host by what it carries. Raises HostError."""
    if carried is not None and (wrong := differences(carried, state)):
        raise HostError(
            f"{host} belongs to a platform that this state folder does not know; nothing was changed",
            why=f"{'; '.join(wrong[:4])} (compared with {state.folder})",
            fix="restore the state folder from its copy, or name the right one with $BLACKSTART_STATE; "
            "when that platform may be lost, remove its machines first (docs/recovery.md)",
        )


def carried_identity(host: Host) -> dict[str, Any] | None:
    """Return what the host carries; None when it carries nothing or does not answer."""
    try:
        with connected(host, seconds=LOOK_SECONDS) as remote:
            result = remote.run(["cat", IDENTITY])
    except BlackstartError:
        return None
    return parsed(result.out) if result.code == 0 else None


def parsed(text: str) -> dict[str, Any] | None:
    """Return an identity; None for a file that a killed run left half written (the deploy writes it again)."""
    try:
        value = json.loads(text)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None
