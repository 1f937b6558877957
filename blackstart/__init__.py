"""Blackstart: from bare machines to a self-hosting platform, and back after a disaster."""

__version__ = "0.1.0"
