"""Stage 0 leaves the engine and is wiped. Run only after the platform was proven to work with it cut off."""

from deploys import moving
from deploys.lib import operations
from deploys.lib.context import in_runtime, in_stage0

moving.require_certificate()

if in_runtime():
    moving.forget_stage0()

operations.meet(name="Wait until stage 0 has left the engine")

if in_stage0():
    moving.wipe()
