"""`bin/copy-bucket`: everything arrives and is proven, whatever happened in between."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest

from apps.objects.tests.running import STORE_BUCKET, STORE_KEY, STORE_SECRET, Component, folder, make_tls, object_store
from apps.objects.tests.running import running as started
from apps.objects.tests.test_objects_store import client, wait_open


@dataclass(frozen=True)
class Stores:
    """Where to copy from and to."""

    source: Component
    target: Component

    def copy(self, *prefixes: str, **change: str) -> subprocess.CompletedProcess[str]:
        sides = {
            f"{side}_{name}": value
            for side, store in (("SOURCE", self.source), ("TARGET", self.target))
            for name, value in (
                ("URL", store.env["ENDPOINT"]),
                ("KEY", STORE_KEY),
                ("SECRET", STORE_SECRET),
                ("BUCKET", STORE_BUCKET),
            )
        }
        return self.source.run("copy-bucket", *prefixes, **(sides | change))


@pytest.fixture(scope="module")
def stores() -> Iterator[Stores]:
    with folder() as path:
        tls = make_tls(path)
        with (
            started(object_store(path / "source", tls)) as source,
            started(object_store(path / "target", tls)) as target,
        ):
            for store in (source, target):
                wait_open(store)
            yield Stores(source, target)


@pytest.fixture
def objects(stores: Stores) -> dict[str, bytes]:
    """What the source holds, and nothing else; the target holds nothing."""
    for store in (stores.source, stores.target):
        s3 = client(store)
        for page in s3.get_paginator("list_objects_v2").paginate(Bucket=STORE_BUCKET):
            for entry in page.get("Contents", []):
                s3.delete_object(Bucket=STORE_BUCKET, Key=entry["Key"])
    slug = os.urandom(9_000_000)
    content = {
        "sources/one": b"one",
        "sources/empty": b"",
        "builds/x/result.json": b"{}",
        f"slugs/{hashlib.sha256(slug).hexdigest()}.squashfs": slug,
        "wal/not-to-be-copied": b"w",
    } | {f"sources/many-{number}": os.urandom(2000) for number in range(20)}
    for key, body in content.items():
        client(stores.source).put_object(Bucket=STORE_BUCKET, Key=key, Body=body)
    return {key: body for key, body in content.items() if not key.startswith("wal/")}


def held(store: Component) -> dict[str, bytes]:
    s3: Any = client(store)
    keys = [entry["Key"] for entry in s3.list_objects_v2(Bucket=STORE_BUCKET).get("Contents", [])]
    return {key: s3.get_object(Bucket=STORE_BUCKET, Key=key)["Body"].read() for key in keys}


def test_copies_everything_and_says_what(stores: Stores, objects: dict[str, bytes]) -> None:
    done = stores.copy()
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert held(stores.target) == objects
    assert report["sha256"] == {key: hashlib.sha256(body).hexdigest() for key, body in objects.items()}
    assert (report["objects"], report["written"]) == (len(objects), len(objects))
    assert STORE_SECRET not in done.stdout + done.stderr


def test_second_run_writes_nothing_but_proves_all(stores: Stores, objects: dict[str, bytes]) -> None:
    assert stores.copy().returncode == 0
    report = json.loads(stores.copy().stdout)
    assert (report["written"], report["already_equal"]) == (0, len(objects))


def test_an_object_damaged_in_the_target_is_written_again(stores: Stores, objects: dict[str, bytes]) -> None:
    assert stores.copy().returncode == 0
    client(stores.target).put_object(Bucket=STORE_BUCKET, Key="sources/one", Body=b"0ne")
    report = json.loads(stores.copy().stdout)
    assert report["written"] == 1
    assert held(stores.target) == objects


def test_a_slug_that_is_not_its_name_ends_the_copy(stores: Stores, objects: dict[str, bytes]) -> None:
    key = f"slugs/{'0' * 64}.squashfs"
    client(stores.source).put_object(Bucket=STORE_BUCKET, Key=key, Body=b"other")
    done = stores.copy("slugs/")
    assert done.returncode == 1
    assert f"{key} of the source has sha256" in done.stderr
    assert done.stdout == ""


def test_a_refused_credential_ends_the_copy(stores: Stores, objects: dict[str, bytes]) -> None:
    done = stores.copy(TARGET_SECRET="wrong")
    assert done.returncode == 1
    assert "a store failed" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_copy_that_was_cut_short_goes_on(stores: Stores, objects: dict[str, bytes]) -> None:
    assert stores.copy("sources/one").returncode == 0
    assert json.loads(stores.copy().stdout)["already_equal"] == 1
    assert held(stores.target) == objects


def claim(store: Component, owner: str) -> subprocess.CompletedProcess[str]:
    values = {"URL": store.env["ENDPOINT"], "KEY": STORE_KEY, "SECRET": STORE_SECRET, "BUCKET": STORE_BUCKET}
    return store.run("put-epoch", "7", owner, **{f"TARGET_{name}": value for name, value in values.items()})


def test_an_epoch_is_claimed_once(stores: Stores) -> None:
    first, again, other = (claim(stores.target, owner) for owner in ("ours", "ours", "theirs"))
    assert (first.returncode, again.returncode) == (0, 0), first.stderr + again.stderr
    assert (first.stdout, again.stdout) == ("epoch/000007 written\n", "epoch/000007 is there\n")
    assert other.returncode == 1
    assert "epoch/000007" in other.stderr
    assert "is ours's, not theirs's: another control plane took over" in other.stderr
    body = client(stores.target).get_object(Bucket=STORE_BUCKET, Key="epoch/000007")["Body"].read()
    assert body == b"ours\n"


def test_of_two_that_claim_an_epoch_at_once_one_gets_it(stores: Stores) -> None:
    client(stores.target).delete_object(Bucket=STORE_BUCKET, Key="epoch/000007")
    with ThreadPoolExecutor(max_workers=4) as pool:
        codes = list(pool.map(lambda owner: claim(stores.target, owner).returncode, ("a", "b", "c", "d")))
    assert sorted(codes) == [0, 1, 1, 1]
