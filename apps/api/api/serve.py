"""`python -m api.serve`: the web process. Serves TLS itself when TLS_CERT and TLS_KEY are set."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from api.catch_up import StartRefused, catch_up
from api.log import say
from api.main import create_app
from api.settings import SettingsRefused, read_settings

# The CLI's Request-Id header alone grows to 7 KB.
MAX_HEADERS = 64 * 1024
KEEP_ALIVE_SECONDS = 75
GRACE_SECONDS = 20


def main(env: Mapping[str, str]) -> int:
    """Serve until SIGTERM. Returns 2 when the config is not usable, 3 when the database's schema cannot be moved."""
    try:
        settings = read_settings(env)
        app = create_app(settings)
        port = _port(env)
        catch_up(settings)
        with tls_files(env) as tls:
            say("start", port=port, tls=bool(tls), role=env.get("ROLE", "app"))
            uvicorn.run(app, **options(env, port), **tls)
    except SettingsRefused as error:
        print(f"api cannot start: {error}", file=sys.stderr)
        return 2
    except StartRefused as error:
        print(f"api cannot start: {error}", file=sys.stderr)
        return 3
    return 0


def options(env: Mapping[str, str], port: int) -> dict[str, Any]:
    """Return uvicorn's options. Our own middleware logs requests, without secrets."""
    return {
        "host": env.get("HOST", "0.0.0.0"),  # noqa: S104 - a dyno's port; only routers reach it
        "port": port,
        "workers": 1,  # not $WEB_CONCURRENCY, which the buildpack sets: the formation says how many there are
        "access_log": False,
        "log_level": "warning",
        "server_header": False,
        "proxy_headers": False,
        "h11_max_incomplete_event_size": MAX_HEADERS,
        "timeout_keep_alive": KEEP_ALIVE_SECONDS,
        "timeout_graceful_shutdown": GRACE_SECONDS,
    }


@contextmanager
def tls_files(env: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    """Give uvicorn's TLS options; the key is a file of mode 0600 in a folder of mode 0700 that goes away with us."""
    certificate, key = env.get("TLS_CERT", ""), env.get("TLS_KEY", "")
    if (certificate == "") != (key == ""):
        raise SettingsRefused("TLS_CERT and TLS_KEY must be set together")
    if certificate == "":
        yield {}
        return
    with tempfile.TemporaryDirectory(prefix="api-tls-") as folder:
        yield {
            "ssl_certfile": _private(Path(folder, "cert.pem"), certificate),
            "ssl_keyfile": _private(Path(folder, "key.pem"), key),
        }


def _private(path: Path, text: str) -> str:
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    return str(path)


def _port(env: Mapping[str, str]) -> int:
    text = env.get("PORT", "5000")
    if not text.isdigit() or not 0 < int(text[:6]) < 65536:
        raise SettingsRefused(f"PORT is {text[:20]!r}; it must be a number from 1 to 65535")
    return int(text)


if __name__ == "__main__":
    sys.exit(main(os.environ))
