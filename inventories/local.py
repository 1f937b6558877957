"""Machines made on this host with systemd-nspawn: the default inventory.

What `bootstrap.py up --platform … --nodes … --subnet …` was asked for is kept in the state folder, so the pyinfra CLI
sees the same machines; $BLACKSTART_PLATFORM chooses among several platforms.
"""

from blackstart.providers.options import local_hosts as _local_hosts

_hosts = _local_hosts()
stage0 = _hosts["stage0"]
runtime = _hosts["runtime"]
