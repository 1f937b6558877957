"""How a dyno is started, whoever does it: `psmgr` as a service of the engine, the operator's side as a container on a node."""

from __future__ import annotations

INIT = "/usr/lib/blackstart/dyno"
ENTRY = ("tini", "-g", "--", INIT)
SLUGS = "/var/lib/blackstart/slugs"
USER = "10000"
TRUST_DIR = "/etc/blackstart/trust"
BUNDLE = f"{TRUST_DIR}/ca-bundle.pem"
TRUST_VARS = (
    "SSL_CERT_FILE",
    "PIP_CERT",
    "REQUESTS_CA_BUNDLE",
    "CURL_CA_BUNDLE",
    "NODE_EXTRA_CA_CERTS",
    "AWS_CA_BUNDLE",
)
TRUST_ENV = dict.fromkeys(TRUST_VARS, BUNDLE)

# What the dyno's init needs until it drops them all: give files away (CHOWN), become the unprivileged user
# (SETUID, SETGID, SETPCAP), and, for tini as root, pass signals on to it (KILL).
CAPABILITIES = ("CHOWN", "KILL", "SETGID", "SETPCAP", "SETUID")
