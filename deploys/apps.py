"""The components as apps, brought up through stage 0's API by the program of this checkout on the stage-0 machine."""

from __future__ import annotations

import json
from io import StringIO

from pyinfra.api import deploy
from pyinfra.operations import files

from blackstart.components import boot_order
from blackstart.platform import STAGE0_API_PORT, TRUST
from blackstart.sources import checkout_root
from deploys.control_plane import CHECKOUT, HOME, SETTINGS
from deploys.lib import operations
from deploys.lib.context import platform

ORDER = f"{SETTINGS}/components.json"
PYTHON = f"env PYTHONPATH={CHECKOUT} {HOME}/venvs/operator/bin/python"


@deploy("Components as apps")
def components() -> None:
    """Create, build, release and scale every component."""
    files.put(
        name="Write what the components need",
        src=StringIO(json.dumps(_order(), sort_keys=True)),
        dest=ORDER,
        user="root",
        group="root",
        mode="0600",
    )
    operations.components_applied(
        name="Bring every component up as an app", run=f"{PYTHON} -m blackstart.components {{verb}} {ORDER}"
    )


def _order() -> dict[str, object]:
    known = platform()
    return {
        "endpoint": {"host": "localhost", "address": "127.0.0.1", "port": STAGE0_API_PORT},
        "token": known.secrets["api_token"],
        "ca": f"{TRUST}/ca.pem",
        "root": CHECKOUT,
        "stack": known.stacks.build.name,
        "config": {name: known.component_config(name) for name in boot_order(checkout_root())},
    }
