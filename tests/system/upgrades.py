"""Checkouts whose components are broken on purpose, or changed harmlessly: what an upgrade is tried with."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from blackstart.sources import LEFT_OUT, checkout_root

PARTS = ("apps", "blackstart", "deploys", "inventories", "templates", "requirements.lock", "pyproject.toml")


def checkout_copy(to: Path) -> Path:
    """Copy what an upgrade needs of this checkout."""
    root = checkout_root()
    for part in PARTS:
        source = root / part
        if source.is_dir():
            shutil.copytree(source, to / part, ignore=shutil.ignore_patterns(*LEFT_OUT, "tests"), symlinks=True)
        else:
            shutil.copy2(source, to / part)
    return to


@dataclass(frozen=True)
class Broken:
    """A way to break a component: `program` of it becomes `text`; `why` is in what the upgrade says."""

    name: str
    component: str
    program: str
    text: str
    why: str

    def breaks(self, root: Path) -> None:
        """Break the component in the checkout `root`."""
        path = root / "apps" / self.component / self.program
        path.write_text(self.text)
        path.chmod(0o755)


CRASH = "#!/bin/sh\necho broken on purpose >&2\nexit 7\n"
IDLE = "#!/bin/sh\nexec sleep 100000\n"
DIES_LATER = "#!/bin/sh\n{ sleep 5; kill -9 $$; } &\nexec python3 -m psmgr.main\n"
LEADS_IDLY = """#!/bin/sh
exec python3 -c '
import time
import psmgr.loop, psmgr.main
psmgr.loop.Reconciler.step = lambda *_: time.sleep(100000)
psmgr.main.main()
'
"""
ANSWERS_500 = """#!/usr/bin/env python3
import http.server, os, ssl
class Broken(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_error(500)
server = http.server.ThreadingHTTPServer(("0.0.0.0", int(os.environ["PORT"])), Broken)
for name in ("TLS_CERT", "TLS_KEY"):
    open(f"/tmp/{name}", "w").write(os.environ[name])
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain("/tmp/TLS_CERT", "/tmp/TLS_KEY")
server.socket = context.wrap_socket(server.socket, server_side=True)
server.serve_forever()
"""

BROKEN = (
    Broken("api that answers 500", "api", "bin/web", ANSWERS_500, "web is not up"),
    Broken("bus that crashes", "bus", "bin/bus", CRASH, "failed soon after its start"),
    Broken("router that does nothing", "router", "bin/router", IDLE, "does not say that it does its work"),
    Broken("objects that crash", "objects", "bin/objects", CRASH, "failed soon after its start"),
    Broken("postgres that crashes", "postgres", "bin/postgres", CRASH, "failed soon after its start"),
    Broken("psmgr that does nothing", "psmgr", "bin/worker", IDLE, "does not say that it does its work"),
    Broken("psmgr that dies after 5 s", "psmgr", "bin/worker", DIES_LATER, "times (exit code 137)"),
    Broken("psmgr that leads and does nothing", "psmgr", "bin/worker", LEADS_IDLY, "did not show within 30 seconds"),
    Broken("compile that cannot compile", "compile", "bin/build", CRASH, "does not compile"),
)
"""One way for each component at least, three for the one that would have to go back by itself."""
