"""What the router promises about each request."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import socket
import ssl
from collections.abc import Callable

import httpx
import pytest
from router_harness import DEADLINE, Authority, Backend, Bus, Router, request, until, websocket


@pytest.fixture
def shop(bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]) -> Router:
    bus.table({"shop": [backend("one").entry()]})
    one = router(ROUTER_FIRST_BYTE_SECONDS="1", ROUTER_IDLE_SECONDS="2")
    bus.applied(1)
    return one


def seen(port: int, **headers: str) -> dict[str, list[str]]:
    """Return the headers that the dyno gets."""
    sent = {name.replace("_", "-"): value for name, value in headers.items()}
    names: dict[str, list[str]] = {}
    for name, value in json.loads(request(port, "/echo", headers=sent).text):
        names.setdefault(name.lower(), []).append(value)
    return names


def test_the_dyno_gets_herokus_headers(shop: Router) -> None:
    got = seen(shop.port)
    assert got["host"] == ["shop.example"]
    assert got["x-forwarded-for"] == ["127.0.0.1"]
    assert got["x-forwarded-proto"] == ["http"]
    assert got["x-forwarded-port"] == [str(shop.port)]
    assert re.fullmatch(r"\d{13}", got["x-request-start"][0])
    assert re.fullmatch(r"[0-9a-f-]{36}", got["x-request-id"][0])
    assert got["via"] == ["1.1 blackstart"]


def test_forged_headers_do_not_hide_the_client(shop: Router) -> None:
    got = seen(
        shop.port, X_Forwarded_For="6.6.6.6", X_Forwarded_Proto="https", X_Forwarded_Port="443", X_Request_Start="1"
    )
    assert ", ".join(got["x-forwarded-for"]) == "6.6.6.6, 127.0.0.1"
    assert got["x-forwarded-proto"] == ["http"]
    assert got["x-forwarded-port"] == [str(shop.port)]
    assert got["x-request-start"] != ["1"]


def test_a_good_request_id_is_kept_and_a_bad_one_replaced(shop: Router) -> None:
    good = "0123456789abcdef-0123456789"
    assert seen(shop.port, X_Request_Id=good)["x-request-id"] == [good]
    assert seen(shop.port, X_Request_Id="short")["x-request-id"] != ["short"]


def test_the_answer_carries_via(shop: Router) -> None:
    assert request(shop.port).headers["via"] == "1.1 blackstart"


@pytest.mark.parametrize("host", ["shop.example:8080", "SHOP.example"])
def test_port_and_case_of_the_host_do_not_matter(shop: Router, host: str) -> None:
    assert request(shop.port, host=host).status == 200


def test_an_unknown_host_is_no_such_app(shop: Router) -> None:
    plain = request(shop.port, host="other.example")
    assert (plain.status, plain.text.startswith("No such app.")) == (404, True)
    assert "<h1>No such app</h1>" in request(shop.port, host="other.example", headers={"Accept": "text/html"}).text


def test_the_routers_own_health_is_on_no_apps_address(shop: Router) -> None:
    assert request(shop.port, "/_blackstart/router", host="127.0.0.1").text == "ok"
    assert request(shop.port, "/_blackstart/router").text == "one GET"


def test_no_answer_in_time_is_h12(shop: Router) -> None:
    got = request(shop.port, "/hold")
    assert (got.status, "H12" in got.text) == (504, True)


def test_a_stream_may_be_longer_than_every_timeout(shop: Router) -> None:
    got = request(shop.port, "/chunks/12")
    assert (got.status, got.text.count("line")) == (200, 12)


def test_a_closed_connection_is_h13_and_a_post_is_sent_once(shop: Router) -> None:
    got = request(shop.port, "/close", method="POST", body=b"x")
    assert (got.status, "H13" in got.text) == (502, True)
    shop.says("retries=0")


def test_a_failure_is_logged_with_the_id_that_the_app_saw(shop: Router) -> None:
    request(shop.port, "/close", method="POST", body=b"x")
    shop.says('at=error method=POST host=shop.example path="/close" request_id=')
    (*_, line) = (line for line in shop.log().splitlines() if 'path="/close"' in line)
    assert re.search(r" request_id=[0-9a-f]{8}-[0-9a-f-]{27} ", line), line


def test_the_apps_own_errors_pass_untouched(shop: Router) -> None:
    assert (request(shop.port, "/boom").status, request(shop.port, "/boom").text) == (500, "one GET")


def test_a_large_body_and_large_headers_pass(shop: Router) -> None:
    size = 20_000_000
    assert request(shop.port, "/size", method="POST", body=b"x" * size).text == str(size)
    assert request(shop.port, headers={"Request-Id": "a" * 7000, "Cookie": "b" * 16000}).status == 200


def test_a_slow_upload_is_not_cut_by_the_first_byte_timeout(shop: Router) -> None:
    with socket.create_connection(("127.0.0.1", shop.port), timeout=DEADLINE) as peer:
        peer.sendall(b"POST /size HTTP/1.1\r\nHost: shop.example\r\nContent-Length: 6\r\n\r\n")
        for _ in range(6):
            # Each pause is below the idle time-out, all together are above both.
            with contextlib.suppress(TimeoutError):
                peer.settimeout(0.6)
                assert peer.recv(1) == b"", "answered before the body was sent"
            peer.sendall(b"x")
        peer.settimeout(DEADLINE)
        assert peer.recv(65536).startswith(b"HTTP/1.1 200")


def test_websockets_pass(shop: Router) -> None:
    with websocket(shop.port) as peer:
        peer.sendall(b"hello")
        assert peer.recv(100) == b"hello"


def test_two_requests_in_one_connection_may_be_for_different_apps(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend]
) -> None:
    bus.table({"shop": [backend("one").entry()], "blog": [backend("two").entry()]})
    one = router()
    bus.applied(1)
    with httpx.Client(base_url=f"http://127.0.0.1:{one.port}") as client:
        texts = [client.get("/", headers={"Host": f"{app}.example"}).text for app in ("shop", "blog", "shop")]
    assert texts == ["one GET", "two GET", "one GET"]


def test_https_speaks_both_http_versions_and_no_old_tls(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend], authority: Authority
) -> None:
    certificate, key = authority.issue("*.apps.example")
    bus.table({"shop": [backend("one").entry()]}, {"shop.apps.example": "shop"})
    one = router(TLS_CERT=certificate.read_text(), TLS_KEY=key.read_text())
    bus.applied(1)
    for http2, version in ((False, "HTTP/1.1"), (True, "HTTP/2")):
        trust = ssl.create_default_context(cafile=str(authority.path))
        with httpx.Client(verify=trust, http2=http2) as client:
            got = client.get(
                f"https://127.0.0.1:{one.https_port}/echo",
                headers={"Host": "shop.apps.example"},
                extensions={"sni_hostname": "shop.apps.example"},
            )
        assert (got.status_code, got.http_version) == (200, version)
        assert ["x-forwarded-proto", "https"] in got.json() or ["X-Forwarded-Proto", "https"] in got.json()
    old = ssl.create_default_context(cafile=str(authority.path))
    old.set_ciphers("DEFAULT:@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
    with (
        socket.create_connection(("127.0.0.1", one.https_port), timeout=DEADLINE) as raw,
        pytest.raises((ssl.SSLError, OSError)),
    ):
        old.wrap_socket(raw, server_hostname="shop.apps.example")
    files = list(authority.folder.glob("router-*/*.pem"))
    assert [path.stat().st_mode & 0o777 for path in files] == [0o600]


def test_tls_to_the_dyno_is_verified_by_the_apps_name(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend], authority: Authority
) -> None:
    good, bad = backend("good", tls=authority.issue("api")), backend("bad", tls=authority.issue("other"))
    bus.table({"shop": []})
    one = router()
    bus.applied(1)
    hosts = {"api.example": "api", "blog.example": "blog"}
    bus.applied(
        bus.table(
            {"api": {"tls": True, "servers": [good.entry()]}, "blog": {"tls": True, "servers": [bad.entry()]}}, hosts
        )
    )
    until(lambda: bus.ack()["servers"]["bad"]["status"] == "DOWN", "the router refuses the wrong certificate")
    assert request(one.port, host="api.example").text == "good GET"
    assert request(one.port, host="blog.example").status == 503


def test_an_app_may_change_from_plain_to_tls(
    bus: Bus, router: Callable[..., Router], backend: Callable[..., Backend], authority: Authority
) -> None:
    plain, secure = backend("plain"), backend("secure", tls=authority.issue("api"))
    bus.table({"api": [plain.entry()]})
    one = router()
    bus.applied(1)
    bus.applied(bus.table({"api": {"tls": True, "servers": [secure.entry()]}}))
    assert request(one.port, host="api.example").text == "secure GET"


def test_a_slow_client_holds_no_dyno(shop: Router, bus: Bus) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(50):
            peer = stack.enter_context(socket.create_connection(("127.0.0.1", shop.port), timeout=DEADLINE))
            peer.sendall(b"GET / HTTP/1.1\r\nHost: shop.example\r\nX-Slow: ")
        assert request(shop.port).status == 200
        assert bus.ack()["servers"]["one"]["sessions"] == 0


def test_requests_in_parallel_all_get_their_own_answer(shop: Router) -> None:
    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ids = [f"{number:032d}" for number in range(200)]
        got = list(pool.map(lambda one: seen(shop.port, X_Request_Id=one)["x-request-id"], ids))
    assert got == [[one] for one in ids]
