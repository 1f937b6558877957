"""The components as apps, brought up through stage 0's API by the program of this checkout on the stage-0 machine."""

from __future__ import annotations

from pyinfra.api import deploy

from deploys.control_plane import PYTHON, SETTINGS
from deploys.lib import operations


@deploy("Components as apps")
def components() -> None:
    """Create, build, release and scale every component."""
    operations.components_applied(
        name="Bring every component up as an app",
        run=f"{PYTHON} -m blackstart.components {{verb}} {SETTINGS}/components.json",
    )
