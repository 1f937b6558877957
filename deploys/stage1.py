"""Stage 1: the nodes join the engine, and every component becomes an app through stage 0's API."""

from deploys import apps, engine, nodes
from deploys.lib import operations
from deploys.lib.context import in_runtime, in_stage0

if in_runtime():
    nodes.node()
    engine.member()

operations.meet(name="Wait until every node has joined")

if in_stage0():
    engine.managers()
    apps.components()
