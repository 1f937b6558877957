"""Stage 0: one machine runs the components as plain systemd services, and an engine with one manager."""

from deploys import control_plane, engine, nodes
from deploys.lib.context import in_stage0

if in_stage0():
    nodes.node()
    engine.first_manager()
    control_plane.stores()
    control_plane.components()
