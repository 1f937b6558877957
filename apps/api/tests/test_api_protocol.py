"""HTTP itself: errors, sizes, request ids, headers, TLS, the log."""

import socket
import ssl
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from api.log import line
from api.serve import main, options, tls_files
from api.settings import SettingsRefused, read_settings

GOOD = {
    "DATABASE_URL": "postgresql+psycopg://x@127.0.0.1:1/x",
    "SECRET_KEY": "A" * 43 + "=",
    "PLATFORM": "black",
    "DOMAIN": "black.test",
}


def test_an_unknown_route_is_herokus_404(alice: httpx.Client) -> None:
    for method, path in (("GET", "/nope"), ("GET", "/apps/"), ("GET", "/docs"), ("GET", "/openapi.json")):
        answer = alice.request(method, path)
        assert (answer.status_code, answer.json()["id"]) == (404, "not_found")
    assert alice.put("/apps").json()["id"] == "method_not_allowed"


@pytest.mark.parametrize("body", [b"{", b"\xff", b"{'a': 1}", b"[" * 2000])
def test_a_body_that_is_no_json_is_400(alice: httpx.Client, body: bytes) -> None:
    answer = alice.post("/apps", content=body, headers={"Content-Type": "application/json"})
    assert (answer.status_code, answer.json()["id"]) == (400, "bad_request")


def test_a_wrong_type_names_the_field(alice: httpx.Client) -> None:
    answer = alice.post("/apps", json={"name": ["x"]})
    assert (answer.status_code, answer.json()["message"]) == (422, "name: Input should be a valid string")


@pytest.mark.parametrize("type_", [None, "application/x-www-form-urlencoded", "application/vnd.heroku+json; version=3"])
def test_a_body_is_json_whatever_its_type_says(alice: httpx.Client, type_: str | None) -> None:
    headers = {} if type_ is None else {"Content-Type": type_}
    assert alice.post("/apps", content=b'{"name": "shop"}', headers=headers).json()["name"] == "shop"


def test_a_body_over_the_limit_is_413_with_and_without_a_length(alice: httpx.Client) -> None:
    def chunks() -> Any:
        for _ in range(20):
            yield b" " * 65536

    for content in (b" " * (1024 * 1024 + 1), chunks()):
        answer = alice.post("/apps", content=content)
        assert (answer.status_code, answer.json()["id"]) == (413, "payload_too_large")


def test_request_ids_are_echoed_when_plain_and_made_otherwise(alice: httpx.Client) -> None:
    assert alice.get("/account", headers={"Request-Id": "abc-1"}).headers["Request-Id"] == "abc-1"
    for odd in ("a,b", "x" * 7000):
        answer = alice.get("/account", headers={"Request-Id": odd})
        assert answer.status_code == 200
        assert len(answer.headers["Request-Id"]) == 36


def test_every_answer_has_the_headers_that_clients_read(alice: httpx.Client, nobody: httpx.Client) -> None:
    for answer in (alice.get("/account"), nobody.get("/account"), alice.get("/nope"), nobody.get("/health")):
        assert answer.headers["RateLimit-Remaining"] == "4500"
        assert answer.headers["Cache-Control"] == "private, no-store"
        assert "server" not in answer.headers or "uvicorn" in answer.headers["server"]


def test_the_log_has_one_line_and_no_secret(
    alice: httpx.Client, shop: str, capsys: pytest.CaptureFixture[str], eventually: Callable[..., Any]
) -> None:
    made = alice.post("/apps/shop/builds", json={"source_blob": {"url": "https://example.com/hidden"}}).json()
    alice.patch("/apps/shop/config-vars", json={"KEY": "hidden"})
    httpx.get(made["output_stream_url"].replace("builds/", "builds/x"), trust_env=False)
    seen: list[str] = []

    def logged() -> bool:
        seen.append(capsys.readouterr().out)
        return "route=/streams/builds/{build}/{signature}" in "".join(seen)

    eventually(logged, "the log line")
    log = "".join(seen)
    token = alice.headers["Authorization"].split()[1]
    for secret in ("hidden", token, made["output_stream_url"].rpartition("/")[2]):
        assert secret not in log
    assert "method=PATCH route=/apps/{app}/config-vars app=shop status=200" in log


def test_log_values_cannot_forge_a_line() -> None:
    forged = line("request", {"app": 'x"\nat=admin', "n": 1, "none": None})
    assert forged == 'at=request app="x\'\\nat=admin" n=1 none=-'


@pytest.mark.parametrize(
    ("wrong", "names"),
    [
        ({"DATABASE_URL": ""}, "DATABASE_URL"),
        ({"DATABASE_URL": "postgres://x"}, "DATABASE_URL"),
        ({"SECRET_KEY": "short"}, "SECRET_KEY"),
        ({"PLATFORM": "-rf"}, "PLATFORM"),
        ({"DOMAIN": "a b"}, "DOMAIN"),
        ({"ROLE": "king"}, "ROLE"),
        ({"OBJECTS_KEY": "k"}, "OBJECTS_PUBLIC_URL, OBJECTS_BUCKET, OBJECTS_SECRET"),
        ({"TLS_CERT": "x"}, "TLS_KEY"),
        ({"PORT": "x"}, "PORT"),
    ],
)
def test_a_wrong_config_var_stops_the_start_and_is_named(
    wrong: dict[str, str], names: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main({**GOOD, **wrong}) == 2
    error = capsys.readouterr().err
    assert error.startswith("api cannot start: ")
    assert names in error


def test_settings_have_sound_defaults() -> None:
    settings = read_settings(GOOD)
    assert (settings.role, settings.bus_url, settings.objects) == ("app", None, None)
    assert settings.ca == "/etc/blackstart/trust/ca.pem"
    assert options({}, 5000)["host"] == "0.0.0.0"


@pytest.fixture
def pair(tmp_path: Path) -> tuple[str, str]:
    """A certificate for 127.0.0.1 and its key."""
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 1 -subj /CN=api"
    files = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", "key.pem", "-out", "cert.pem"]
    subprocess.run([*command.split(), *files], cwd=tmp_path, check=True, stderr=subprocess.DEVNULL)
    return (tmp_path / "cert.pem").read_text(), (tmp_path / "key.pem").read_text()


def test_the_key_is_private_and_goes_away(pair: tuple[str, str]) -> None:
    with tls_files({"TLS_CERT": pair[0], "TLS_KEY": pair[1]}) as files:
        key = Path(files["ssl_keyfile"])
        assert key.stat().st_mode & 0o777 == 0o600
        assert key.parent.stat().st_mode & 0o777 == 0o700
    assert not key.exists()
    with tls_files({}) as files:
        assert files == {}
    with pytest.raises(SettingsRefused), tls_files({"TLS_KEY": "x"}):
        pass


def test_the_web_process_speaks_tls_and_stops_on_sigterm(
    pair: tuple[str, str], tmp_path: Path, eventually: Callable[..., Any]
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    env = {**GOOD, "TLS_CERT": pair[0], "TLS_KEY": pair[1], "PORT": str(port), "HOST": "127.0.0.1"}
    env["PATH"] = f"{Path(sys.executable).parent}:/usr/bin:/bin"
    program = Path(__file__).resolve().parent.parent / "bin" / "web"
    trust = ssl.create_default_context(cadata=pair[0])

    def answers() -> Any:
        try:
            return httpx.get(f"https://127.0.0.1:{port}/health", verify=trust, trust_env=False)
        except httpx.TransportError:
            return None

    with subprocess.Popen([program], env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as web:
        try:
            assert eventually(answers, "the web process").json()["status"] == "degraded"
        finally:
            web.terminate()
        output, _ = web.communicate(timeout=30)
    assert f"at=start port={port} tls=True role=app" in output
    assert "PRIVATE KEY" not in output
