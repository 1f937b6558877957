"""Refuse hosts that cannot become the platform's, before anything is changed on any of them."""

from deploys import nodes

nodes.check()
