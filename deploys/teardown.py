"""Stage 0 leaves the engine and is wiped. Run only after the platform was proven to work with it cut off."""

from deploys import moving
from deploys.lib.context import in_runtime, in_stage0

if in_runtime():
    moving.forget_stage0()

if in_stage0():
    moving.wipe()
