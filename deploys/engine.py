"""The engine's membership: one first manager, the nodes as members, some of them managers."""

from __future__ import annotations

from pyinfra.api import deploy

from deploys.lib import operations
from deploys.lib.context import me, platform
from deploys.nodes import overlay_mtu


@deploy("Engine")
def first_manager() -> None:
    """Start the engine on this host, and make the components' network."""
    operations.engine_started(
        name="Start the engine", address=me().address, pool=str(me().settings.engine_address_pool)
    )
    operations.overlay_network(name="Make the components' network", network=platform().name, mtu=overlay_mtu())


@deploy("Engine member")
def member() -> None:
    """Join this host to the engine."""
    operations.engine_joined(name="Join the engine", address=me().address)


@deploy("Engine managers")
def managers() -> None:
    """Make managers of the nodes that should be; say which node keeps which volume; keep dynos off stage 0."""
    addresses = [node.address for node in platform().managers]
    operations.engine_managers(name="Promote the managers", addresses=addresses)
    volumes = {f"blackstart.{app}": node.address for app, node in platform().volume_nodes.items()}
    operations.engine_labels(
        name="Label the nodes that keep volumes, and keep dynos off stage 0",
        labels={**volumes, "blackstart.cordoned": me().address},
    )
