"""The object store: what it answers, to whom, and that nothing acknowledged is lost when the power goes."""

from __future__ import annotations

import gc
import hashlib
import http.client
import os
import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from apps.objects.tests.running import (
    STORE_BUCKET,
    STORE_KEY,
    STORE_SECRET,
    Component,
    Tls,
    folder,
    make_tls,
    object_store,
    running,
    wait_for,
)


def client(store: Component, key: str = STORE_KEY, secret: str = STORE_SECRET) -> Any:
    return boto3.client(
        "s3",
        endpoint_url=store.env["ENDPOINT"],
        aws_access_key_id=key,
        aws_secret_access_key=secret,
        region_name="us-east-1",
        verify=store.env["BLACKSTART_CA"],
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4", retries={"total_max_attempts": 1}),
    )


@pytest.fixture(scope="module")
def place() -> Iterator[Path]:
    with folder() as path:
        yield path


@pytest.fixture(scope="module")
def tls(place: Path) -> Tls:
    return make_tls(place)


@pytest.fixture(scope="module")
def store(place: Path, tls: Tls) -> Iterator[Component]:
    with running(object_store(place / "shared", tls)) as component:
        component.wait_said("objects: ready")
        wait_open(component)
        yield component


def wait_open(store: Component) -> None:
    def is_open() -> bool:
        try:
            socket.create_connection(("127.0.0.1", int(store.env["PORT"])), 1).close()
        except OSError:
            return False
        return True

    wait_for(is_open, "the public port is open")


def request(store: Component, method: str, url: str, host: str, body: bytes = b"") -> tuple[int, bytes]:
    """Send `url` as the router does: to the store's port, with the public host's name."""
    context = ssl.create_default_context(cafile=store.env["BLACKSTART_CA"])
    connection = http.client.HTTPSConnection("localhost", int(store.env["PORT"]), context=context, timeout=20)
    parts = urlsplit(url)
    connection.request(method, f"{parts.path}?{parts.query}", body, {"Host": host})
    answer = connection.getresponse()
    found = answer.status, answer.read()
    connection.close()
    return found


def test_first_request_after_the_port_opens_is_answered(place: Path, tls: Tls) -> None:
    with running(object_store(place / "first", tls)) as store:
        wait_open(store)
        client(store).put_object(Bucket=STORE_BUCKET, Key="first", Body=b"1")


def test_presigned_urls_work_through_the_public_host_name(store: Component) -> None:
    public = boto3.client(
        "s3",
        endpoint_url="https://objects.example.test",
        aws_access_key_id=STORE_KEY,
        aws_secret_access_key=STORE_SECRET,
        region_name="us-east-1",
        config=Config(s3={"addressing_style": "path"}, signature_version="s3v4"),
    )
    where = {"Bucket": STORE_BUCKET, "Key": "sources/1"}
    put = public.generate_presigned_url("put_object", Params=where, ExpiresIn=60)
    get = public.generate_presigned_url("get_object", Params=where, ExpiresIn=60)
    body = os.urandom(3_000_000)

    assert request(store, "PUT", put, "objects.example.test", body)[0] == 200
    assert request(store, "GET", get, "objects.example.test") == (200, body)
    assert request(store, "GET", get.replace("sources/1", "sources/2"), "objects.example.test")[0] == 403
    assert request(store, "GET", get, "elsewhere.example.test")[0] == 403


def test_the_old_key_is_accepted_only_while_it_is_named(place: Path, tls: Tls) -> None:
    with running(object_store(place / "keys", tls)) as store:
        wait_open(store)
        assert store.stop() == 0
        store.env |= {
            "OBJECTS_KEY": "new-key",
            "OBJECTS_SECRET": "new-secret",
            "OLD_OBJECTS_KEY": STORE_KEY,
            "OLD_OBJECTS_SECRET": STORE_SECRET,
        }
        store.start()
        wait_open(store)
        client(store).put_object(Bucket=STORE_BUCKET, Key="by-the-old", Body=b"1")
        client(store, "new-key", "new-secret").head_object(Bucket=STORE_BUCKET, Key="by-the-old")
        assert store.stop() == 0
        del store.env["OLD_OBJECTS_KEY"], store.env["OLD_OBJECTS_SECRET"]
        store.start()
        wait_open(store)
        with pytest.raises(ClientError, match="InvalidAccessKeyId"):
            client(store).list_objects_v2(Bucket=STORE_BUCKET)
        client(store, "new-key", "new-secret").head_object(Bucket=STORE_BUCKET, Key="by-the-old")


def test_conditional_put_writes_once(store: Component) -> None:
    s3 = client(store)
    s3.put_object(Bucket=STORE_BUCKET, Key="once", Body=b"1", IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        s3.put_object(Bucket=STORE_BUCKET, Key="once", Body=b"2", IfNoneMatch="*")
    assert s3.get_object(Bucket=STORE_BUCKET, Key="once")["Body"].read() == b"1"


def test_the_credential_opens_its_own_bucket_only(store: Component) -> None:
    with pytest.raises(ClientError, match="AccessDenied"):
        client(store).put_object(Bucket="other", Key="x", Body=b"")
    with pytest.raises(ClientError, match="SignatureDoesNotMatch"):
        client(store, secret="wrong").list_objects_v2(Bucket=STORE_BUCKET)
    with pytest.raises(ClientError, match="InvalidAccessKeyId"):
        client(store, key="wrong").list_objects_v2(Bucket=STORE_BUCKET)


def test_only_the_s3_port_answers_from_outside(store: Component) -> None:
    """127.0.0.2 stands for another machine: it reaches what listens on every address, not what is on 127.0.0.1."""
    base = int(store.env["OBJECTS_BASE_PORT"])
    for port in range(base, base + 6):
        socket.create_connection(("127.0.0.1", port), 5).close()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(("127.0.0.2", port), 5)

    context = ssl.create_default_context(cafile=store.env["BLACKSTART_CA"])
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    with (
        pytest.raises(ssl.SSLError, match="ALERT"),  # it wants a client certificate
        socket.create_connection(("127.0.0.2", base + 6), 5) as plain,
    ):
        context.wrap_socket(plain)


def test_secrets_are_in_no_command_line_and_no_log(store: Component) -> None:
    assert STORE_SECRET not in store.command_lines()
    assert STORE_SECRET not in store.log
    assert "PRIVATE KEY" not in store.log
    assert (store.runtime / "s3.json").stat().st_mode & 0o777 == 0o600
    assert (store.runtime / "tls-key.pem").stat().st_mode & 0o777 == 0o600


# The client's connections break in the middle of requests; which of a broken one's objects is collected first is chance.
@pytest.mark.filterwarnings("ignore:unclosed <ssl.SSLSocket:ResourceWarning")
def test_no_acknowledged_object_is_lost_when_killed(place: Path, tls: Tls) -> None:
    store = object_store(place / "killed", tls)
    acknowledged: dict[str, str] = {}
    for life in range(3):
        with running(store):
            wait_open(store)
            for key, sha256 in acknowledged.items():
                found = client(store).get_object(Bucket=STORE_BUCKET, Key=key)["Body"].read()
                assert hashlib.sha256(found).hexdigest() == sha256, f"{key} in life {life}"
            if life == 2:
                break
            writers = [
                threading.Thread(target=write_until_dead, args=(store, f"{life}/{n}", acknowledged)) for n in (1, 2)
            ]
            already = len(acknowledged)
            for writer in writers:
                writer.start()
            while len(acknowledged) < already + 25:
                assert any(writer.is_alive() for writer in writers), store.log[-2000:]
            store.kill()
            for writer in writers:
                writer.join(60)
        if life == 1:  # what only a loss of power does: the end of an index never reached the disk
            for index in store.data.glob("weed/acme_*.idx"):
                os.truncate(index, index.stat().st_size // 32 * 16)
    assert "rebuilding the indexes" in store.log
    assert len(acknowledged) >= 50
    gc.collect()  # here, where it is expected, not in a later test


def write_until_dead(store: Component, prefix: str, acknowledged: dict[str, str]) -> None:
    s3 = client(store)
    number = 0
    while True:
        body = os.urandom(random.choice([10, 5_000, 200_000, 6_000_000]))
        key = f"{prefix}/{number}"
        try:
            s3.put_object(Bucket=STORE_BUCKET, Key=key, Body=body)
        except (BotoCoreError, ClientError):
            return
        acknowledged[key] = hashlib.sha256(body).hexdigest()
        number += 1


def test_stops_in_order_when_asked(place: Path, tls: Tls) -> None:
    store = object_store(place / "stopped", tls)
    with running(store):
        wait_open(store)
        client(store).put_object(Bucket=STORE_BUCKET, Key="kept", Body=b"kept")
        assert store.stop() == 0
    with running(store):
        wait_open(store)
        assert client(store).get_object(Bucket=STORE_BUCKET, Key="kept")["Body"].read() == b"kept"
        assert "rebuilding" not in store.log


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"OBJECTS_SECRET": ""}, "config var OBJECTS_SECRET is not set"),
        ({"OBJECTS_BUCKET": "../etc"}, "config var OBJECTS_BUCKET is '../etc', not a bucket's name"),
        ({"PORT": "http"}, "config var PORT is 'http', not a whole number"),
        ({"DATA_DIR": "/nowhere"}, "data folder /nowhere is missing or not writable"),
    ],
)
def test_bad_settings_are_told(tmp_path: Path, tls: Tls, change: dict[str, str], message: str) -> None:
    done = object_store(tmp_path / "bad", tls).run("objects", **change)
    assert done.returncode == 1
    assert message in done.stderr
