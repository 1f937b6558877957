"""Stage 0 is cut off: every node's firewall refuses its address, in both directions."""

from deploys import nodes
from deploys.lib.context import in_runtime

if in_runtime():
    nodes.firewall(cut_off=True)
