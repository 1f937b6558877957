"""Presigned URLs equal botocore's."""

import datetime

import botocore.auth
import pytest
from api.objects import object_key, presigned
from api.settings import ObjectStore
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

AT = datetime.datetime(2026, 11, 24, 21, 0, 0, tzinfo=datetime.UTC)
STORES = [
    ObjectStore("https://objects.black.test", "https://objects:5000", "black", "KEY", "s3cr3t/+="),
    ObjectStore("http://127.0.0.1:8333", "http://127.0.0.1:8333", "black", "a b", "x"),
    ObjectStore("https://objects.black.test:443/s3", "https://o", "black", "k", "x"),
]


@pytest.mark.parametrize("store", STORES, ids=lambda store: store.public_url)
@pytest.mark.parametrize("method", ["GET", "PUT"])
@pytest.mark.parametrize("key", ["sources/0cdffc60", "slugs/ab.squashfs", "a b/ü+~"])
def test_a_presigned_url_is_botocores(
    store: ObjectStore, method: str, key: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(botocore.auth, "get_current_datetime", lambda *_: AT.replace(tzinfo=None))
    ours = presigned(store, method, key, seconds=3600, at=AT)
    request = AWSRequest(method=method, url=ours.partition("?")[0])
    auth = botocore.auth.S3SigV4QueryAuth(Credentials(store.key, store.secret), "s3", "us-east-1", expires=3600)
    auth.add_auth(request)
    assert ours == request.url


def test_an_object_of_ours_is_recognised_by_either_address() -> None:
    store = STORES[0]
    for base in ("https://objects.black.test", "https://OBJECTS.black.test", "https://objects:5000"):
        assert object_key(store, f"{base}/black/sources/1?X-Amz-Expires=1") == "sources/1"
    for url in ("https://objects.black.test/other/sources/1", "https://example.com/black/sources/1"):
        assert object_key(store, url) is None
