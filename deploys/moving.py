"""Moving from stage 0 to the platform, and leaving stage 0 behind."""

from __future__ import annotations

import json
from io import StringIO

from pyinfra import host
from pyinfra.api import deploy
from pyinfra.api.exceptions import DeployError
from pyinfra.operations import files

from blackstart import certificate
from blackstart.ownership import identity
from blackstart.platform import TRUST
from deploys.control_plane import PYTHON, SETTINGS
from deploys.lib import operations
from deploys.lib.context import for_stage0, me, platform

ORDER = f"{SETTINGS}/pivot.json"


@deploy("Pivot")
def pivot() -> None:
    """Move the state and hand over."""
    files.put(
        name="Write what the pivot needs",
        src=StringIO(json.dumps(_order(), sort_keys=True)),
        dest=ORDER,
        user="root",
        group="root",
        mode="0600",
    )
    operations.pivoted(name="Move the state and hand over", run=f"{PYTHON} -m blackstart.pivot {ORDER}")


@deploy("Managers move")
def managers_move() -> None:
    """Stage 0 stops managing the engine; the nodes go on."""
    operations.engine_demoted(name="Stop managing the engine", address=me().address)


@deploy("Certificate")
def require_certificate() -> None:
    """Refuse to leave stage 0 before it was proven unneeded: run too early, what follows destroys the only control plane."""
    if not certificate.holds(platform().state):
        raise DeployError(
            f"{host.name}: stage 0 was not proven unneeded, so it stays ({certificate.FILE} in "
            f"{platform().state.folder} does not hold): run `python3 bootstrap.py up`, which looks and then tears it down"
        )


@deploy("Forget stage 0")
def forget_stage0() -> None:
    """Remove stage 0 from the engine; done by one manager."""
    if host.name == platform().managers[0].name:
        operations.engine_removed(name="Remove stage 0 from the engine", address=platform().inventory.stage0.address)


@deploy("Wipe")
def wipe() -> None:
    """Destroy every secret and every copy of state on the stage-0 machine."""
    operations.stage0_wiped(name="Wipe stage 0")


def _order() -> dict[str, object]:
    known = for_stage0()
    source = known.stage0_config("api")
    target = known.component_config("api")
    return {
        "network": known.name,
        "stack": known.stacks.run.name,
        "source_store": _store(source),
        "target_store": _store(target),
        "source_database": f"postgresql://platform:{known.secrets['stage0_database_password']}@/platform?host=/var/run/postgresql",
        "target_database": target["DATABASE_URL"].replace("postgresql+psycopg://", "postgresql://"),
        "owner": identity(known.state)["ca"],
        "ca": f"{TRUST}/ca.pem",
    }


def _store(config: dict[str, str]) -> dict[str, str]:
    return {
        "url": config["OBJECTS_URL"],
        "key": config["OBJECTS_KEY"],
        "secret": config["OBJECTS_SECRET"],
        "bucket": config["OBJECTS_BUCKET"],
    }
