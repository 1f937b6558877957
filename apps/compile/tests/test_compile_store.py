"""The object store: what is tried again, what is final, what is said."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from compiler.errors import Failure, SourceRefused, StoreFailed
from compiler.store import Store

from apps.compile.tests.compile_fakes import FakeStore


def client(seconds: float = 30.0) -> tuple[Store, list[float]]:
    pauses: list[float] = []
    return Store(seconds=seconds, pause=pauses.append), pauses


def test_what_is_put_is_got_back_with_its_sha256(store: FakeStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"slug")
    client()[0].put(store.url("slug"), tmp_path / "a", what="the slug")
    assert (
        client()[0].get(store.url("slug"), tmp_path / "b", what="the slug", limit=10)
        == hashlib.sha256(b"slug").hexdigest()
    )
    assert (tmp_path / "b").read_bytes() == b"slug"


def test_a_passing_failure_is_tried_again_with_growing_jittered_pauses(store: FakeStore, tmp_path: Path) -> None:
    store.objects["x"] = b"1"
    store.failures[("GET", "x")] = [503, 500, 429]
    get, pauses = client()
    get.get(store.url("x"), tmp_path / "x", what="the source", limit=10)
    assert store.requests[("GET", "x")] == 4
    assert [low <= pause <= 2 * low for low, pause in zip([0.25, 0.5, 1.0], pauses, strict=True)] == [True] * 3


def test_a_put_is_tried_again_from_its_first_byte(store: FakeStore, tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"slug" * 100_000)
    store.failures[("PUT", "slug")] = [503]
    client()[0].put(store.url("slug"), tmp_path / "a", what="the slug")
    assert store.objects["slug"] == b"slug" * 100_000


def test_a_store_that_stays_away_is_named_after_the_last_try(store: FakeStore, tmp_path: Path) -> None:
    store.failures[("GET", "x")] = [503] * 20
    with pytest.raises(StoreFailed) as failed:
        client()[0].get(store.url("x"), tmp_path / "x", what="the source", limit=10)
    assert (failed.value.reason, failed.value.code) == ("store-unreachable", 4)
    assert failed.value.what == "The source could not be read: the object store did not answer as it must."
    assert failed.value.why == "6 tries; the last one: HTTP 503"


def test_the_deadline_ends_the_tries(store: FakeStore, tmp_path: Path) -> None:
    store.failures[("GET", "x")] = [503] * 20
    with pytest.raises(StoreFailed, match="did not answer"):
        client(seconds=0.1)[0].get(store.url("x"), tmp_path / "x", what="the source", limit=10)
    assert store.requests[("GET", "x")] == 1


def test_a_refused_address_is_not_tried_again_and_not_shown(store: FakeStore, tmp_path: Path) -> None:
    store.failures[("GET", "x")] = [403]
    with pytest.raises(StoreFailed) as failed:
        client()[0].get(store.url("x"), tmp_path / "x", what="the source", limit=10)
    assert failed.value.what == "The source could not be read: the object store answered HTTP 403."
    assert "SECRET" not in f"{failed.value.what}{failed.value.why}{failed.value.fixes}"
    assert store.requests[("GET", "x")] == 1


def test_a_cache_that_is_not_there_is_no_failure(store: FakeStore, tmp_path: Path) -> None:
    assert client()[0].get_if_there(store.url("cache"), tmp_path / "x", what="the cache", limit=10) is False


def test_a_source_that_is_not_there_is_named(store: FakeStore, tmp_path: Path) -> None:
    with pytest.raises(StoreFailed) as failed:
        client()[0].get(store.url("nothing"), tmp_path / "x", what="the source", limit=10)
    assert failed.value.reason == "store-not-found"


def test_a_download_over_its_limit_is_stopped(store: FakeStore, tmp_path: Path) -> None:
    store.objects["x"] = bytes(2_000_001)
    with pytest.raises(SourceRefused, match="larger than 2 MB"):
        client()[0].get(store.url("x"), tmp_path / "x", what="the source", limit=2_000_000)


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "/etc/passwd", ""])
def test_an_address_that_is_not_http_is_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(Failure) as refused:
        client()[0].get(url, tmp_path / "x", what="the source", limit=10)
    assert refused.value.reason == "source-address"


def test_nobody_at_the_address_is_said(tmp_path: Path) -> None:
    with pytest.raises(StoreFailed) as failed:
        client()[0].get("http://127.0.0.1:1/x", tmp_path / "x", what="the source", limit=10)
    assert failed.value.why == "6 tries; the last one: [Errno 111] Connection refused"
