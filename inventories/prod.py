"""Named hosts: copy this file, name yours, run `python3 bootstrap.py up --inventory inventories/prod.py`.

Each host needs Debian 13, SSH, and root or a user with password-less sudo. The stage-0 host is wiped at the end.
All data and their defaults are in blackstart/settings.py; data of all hosts go into group_data/all.py or here.
"""

_all = {
    "platform": "prod",  # 3 to 12 letters and digits; prefixes all that could collide
    "domain": "platform.example",  # apps answer at <app>.<domain>: point *.<domain> at the runtime hosts
    "ssh_user": "admin",  # or root; a user needs sudo without a password, and then also:
    "_sudo": True,
    "ssh_port": 22,
    # "ssh_key": "~/.ssh/id_ed25519",
    # "ssh_known_hosts_file": "~/.ssh/known_hosts",
    # "ssh_strict_host_key_checking": "yes",     # refuse hosts that are not known yet; the default accepts new ones
    # "engine_address_pool": "10.210.0.0/16",    # overlay networks; cannot be changed later
    # "dyno_network": "172.30.0.0/16",           # the bridge of users' dynos on every node
    # "extra_ca_bundle": "company-roots.pem",    # PEM on this host: trusted by machines, builds and dynos
    # "apt_mirror": "https://debian.mirror.example/debian",
    # "python_index": "https://python.mirror.example/simple",
    # "npm_registry": "https://npm.mirror.example",
    # "gem_mirror": "https://gems.mirror.example",
    # "cache": "/var/cache/blackstart",          # stacks and images on this host
    # "build_memory_mb": 1536,
    # "build_seconds": 900,
    # "builds_at_once": 2,
}

stage0 = [
    ("stage0.platform.example", {**_all, "address": "192.0.2.10"}),
]

runtime = [
    ("node1.platform.example", {**_all, "address": "192.0.2.11"}),
    ("node2.platform.example", {**_all, "address": "192.0.2.12"}),
    ("node3.platform.example", {**_all, "address": "192.0.2.13"}),
]
