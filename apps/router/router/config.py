"""haproxy.cfg and its map, rendered. Pure: the same input gives the same text.

The configuration holds the whole present table, so a (re)started HAProxy routes from its first moment; later changes
go through the runtime API (plan.py).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from router import pages
from router.pages import Page
from router.plan import NO_WEB, Target, Wanted, endpoint, server_options, slot_name
from router.settings import Settings

NO_APP = "no-app"
# Mozilla's "intermediate" set for TLS 1.2; TLS 1.3 keeps OpenSSL's default suites.
CIPHERS = (
    "ECDHE-ECDSA-AES128-GCM-SHA256:ECDHE-RSA-AES128-GCM-SHA256:ECDHE-ECDSA-AES256-GCM-SHA384:"
    "ECDHE-RSA-AES256-GCM-SHA384:ECDHE-ECDSA-CHACHA20-POLY1305:ECDHE-RSA-CHACHA20-POLY1305"
)


@dataclass(frozen=True)
class Paths:
    """Files of one HAProxy. `handover` is shared by the routers of one node; None where there is no such place."""

    run: Path
    handover: Path | None

    @property
    def config(self) -> Path:
        return self.run / "haproxy.cfg"

    @property
    def hosts(self) -> Path:
        return self.run / "hosts.map"

    @property
    def certificate(self) -> Path:
        return self.run / "default.pem"

    @property
    def master(self) -> Path:
        return self.run / "master.sock"


@dataclass(frozen=True)
class Shape:
    """What of the configuration may change while the router runs (a reload): slots, and whether there is a CA."""

    slots: int
    tls: bool


def render(settings: Settings, paths: Paths, shape: Shape, want: Wanted, version: tuple[int, int]) -> str:
    """Return haproxy.cfg for HAProxy `version`."""
    sections = [
        _global(settings, paths),
        _defaults(settings, paths, version),
        _frontend("http", settings.http_port, "", settings, paths),
        _answer(
            NO_APP,
            pages.NO_SUCH_APP,
            paths,
            ["http-request return status 200 content-type text/plain string ok if { path /_blackstart/router }"],
        ),
        _answer(NO_WEB, pages.NO_WEB, paths, []),
        *(_slot(name, want.servers.get(name, {}), settings, version) for name in map(slot_name, range(shape.slots))),
    ]
    if settings.certificate:
        secure = f" ssl crt {paths.certificate} alpn h2,http/1.1"
        sections.insert(3, _frontend("https", settings.https_port, secure, settings, paths))
    if shape.tls:
        sections.append(_trust(settings))
    return "\n\n".join("\n    ".join(lines) for lines in sections) + "\n"


def render_hosts(hosts: Mapping[str, str]) -> str:
    """Return the map file: host, backend."""
    return "".join(f"{host} {backend}\n" for host, backend in sorted(hosts.items()))


def _global(settings: Settings, paths: Paths) -> list[str]:
    lines = [
        "global",
        "log stdout format raw local0 info",
        f"maxconn {settings.max_connections}",
        f"nbthread {settings.threads}",
        # Headers up to 32 KB: the Heroku CLI's Request-Id alone grows to 7 KB.
        "tune.bufsize 32768",
        "tune.http.maxhdr 128",
        # A WebSocket outlives this many reloads; a reload is rare (more slots).
        "mworker-max-reloads 50",
        "ssl-default-bind-options ssl-min-ver TLSv1.2",
        f"ssl-default-bind-ciphers {CIPHERS}",
        "ssl-default-server-options ssl-min-ver TLSv1.2",
    ]
    if paths.handover is not None:
        # Only hands the listening sockets to the next router of this node; `user` level changes nothing.
        lines.append(f"stats socket {paths.handover} mode 600 level user expose-fd listeners")
    return lines


def _defaults(settings: Settings, paths: Paths, version: tuple[int, int]) -> list[str]:
    times = settings.timeouts
    first = times.first_byte if _can_change_timeout(version) else max(times.idle, times.first_byte)
    return [
        "defaults",
        "mode http",
        "log global",
        "option dontlognull",
        "option dontlog-normal",
        # A stopping router answers the next request on an idle connection, then closes it: closing at once would race.
        "option idle-close-on-response",
        "option forwardfor",
        "timeout connect 2s",
        "timeout queue 30s",
        "timeout http-request 10s",
        "timeout http-keep-alive 20s",  # below the time a stopping router has, see settings.Timeouts.stop
        f"timeout client {times.idle}s",
        "timeout client-fin 10s",
        f"timeout server {first}s",
        "timeout server-fin 10s",
        f"timeout tunnel {times.idle}s",
        "balance roundrobin",
        # A failed connect is tried on another dyno at once. A request that was sent is repeated only when its method
        # is safe (see the slots) and the dyno closed without one byte of answer.
        "retries 4",
        "option redispatch 1",
        "retry-on conn-failure empty-response",
        *(
            f'http-error status {page.status} content-type "text/html; charset=utf-8"'
            f" file {paths.run / (pages.name(page) + '.html')} hdr Cache-Control no-store"
            for page in pages.FIXED
        ),
    ]


def _frontend(scheme: str, port: int, secure: str, settings: Settings, paths: Paths) -> list[str]:
    """One frontend a scheme, so that what depends on it is a constant and no condition is evaluated per request."""
    binds = [f"bind {_listen(address, port)}{secure}" for address in settings.bind]
    rules = [
        f"http-request set-header X-Forwarded-Proto {scheme}",
        f"http-request set-header X-Forwarded-Port {port}",
        "http-request set-header X-Request-Start %[date(0,ms)]",
        "http-request set-header X-Request-Id %[uuid()] unless { req.hdr(x-request-id) -m reg ^[A-Za-z0-9-]{20,200}$ }",
        "http-request set-var(txn.id) req.hdr(x-request-id)",  # a capture would be what the client sent
        "http-request set-var(txn.host) req.hdr(host),host_only,lower",
        'http-request add-header Via "1.1 blackstart"',
        'http-response add-header Via "1.1 blackstart"',
    ]
    # Only failures are logged (dontlog-normal); the path without its query, which may carry secrets.
    log = (
        'log-format "at=error method=%HM host=%[var(txn.host)] path=%{+Q}[capture.req.uri,word(1,?)]'
        " request_id=%[var(txn.id)] fwd=%ci backend=%b dyno=%s connect_ms=%Tc service_ms=%Tr"
        ' status=%ST bytes=%B state=%tsc retries=%rc"'
    )
    return [
        f"frontend {scheme}",
        *binds,
        log,
        *rules,
        f"use_backend %[var(txn.host),map({paths.hosts},{NO_APP})]",
    ]


def _listen(address: str, port: int) -> str:
    return f"ipv6@[{address}]:{port} v6only" if ":" in address else f"{address}:{port}"


def _answer(name: str, page: Page, paths: Paths, before: list[str]) -> list[str]:
    def answer(kind: str, suffix: str) -> str:
        file = paths.run / f"{pages.name(page)}.{suffix}"
        content = f'content-type "text/{kind}; charset=utf-8"'
        return f"http-request return status {page.status} {content} file {file} hdr Cache-Control no-store"

    browser = answer("html", "html") + " if { req.hdr(accept) -m sub text/html }"
    return [f"backend {name}", *before, browser, answer("plain", "txt")]


def _slot(name: str, servers: Mapping[str, Target], settings: Settings, version: tuple[int, int]) -> list[str]:
    """A draining server is not in the file: the runtime API adds it, already draining."""
    return [
        f"backend {name}",
        # To be able to repeat a request it must be copied, a fifth of the router's work: only where another dyno is.
        "http-request disable-l7-retry if { nbsrv lt 2 } || !{ method GET HEAD OPTIONS }",
        *([f"http-response set-timeout server {settings.timeouts.idle}s"] if _can_change_timeout(version) else []),
        *(
            f"server {server} {endpoint(target.address, target.port)} {server_options(target, str(settings.ca))}"
            for server, target in sorted(servers.items())
            if not target.drain
        ),
    ]


def _can_change_timeout(version: tuple[int, int]) -> bool:
    """Tell whether the time-out may change once the answer began: 55 s rather than 30. HAProxy 2.6 cannot."""
    return version >= (3, 0)


def _trust(settings: Settings) -> list[str]:
    """Load the CA: `add server … ca-file` takes only files that the configuration has loaded."""
    return ["backend trust", f"server unused 127.0.0.1:1 disabled ssl verify required ca-file {settings.ca}"]
