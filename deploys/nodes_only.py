"""The nodes' part of stage 1 that does not need stage 0, so that `bootstrap.py` may run it beside stage 0's deploy."""

from deploys import nodes
from deploys.lib.context import in_runtime

if in_runtime():
    nodes.node()
