"""The pivot: writers stop, the state moves from stage 0 to the platform's own stores, the platform takes over."""

from deploys import moving
from deploys.lib.context import in_stage0

if in_stage0():
    moving.pivot()
    moving.managers_move()
