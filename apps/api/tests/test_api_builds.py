"""Sources, builds, and their output as it comes."""

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from api.streams import read_entries

URL = "https://example.com/shop.tar.gz"
SUM = "SHA256:" + "ab" * 32


def build(client: httpx.Client, url: str = URL, **blob: Any) -> Any:
    made = client.post("/apps/shop/builds", json={"source_blob": {"url": url, **blob}})
    assert made.status_code == 201, made.text
    return made.json()


def test_a_source_is_two_presigned_urls(alice: httpx.Client, rows: Any) -> None:
    made = alice.post("/sources")
    assert made.status_code == 201
    source = made.json()
    for url in source["source_blob"].values():
        assert url.startswith(f"https://objects.black.test/black/sources/{source['id']}?")
    assert rows.one("SELECT id::text FROM sources") == (source["id"],)


def test_a_build_is_written_down_for_psmgr(alice: httpx.Client, shop: str, rows: Any) -> None:
    source = alice.post("/sources").json()
    made = build(alice, source["source_blob"]["get_url"], version="abc", checksum=SUM.replace("ab", "AB"))
    assert (made["status"], made["slug"], made["release"]) == ("pending", None, None)
    assert made["source_blob"]["checksum"] == SUM
    row = rows.one("SELECT source_id::text, source_checksum, source_version, status FROM builds")
    assert row == (source["id"], SUM, "abc", "pending")
    assert alice.get(f"/apps/shop/builds/{made['id']}").json() == made
    assert alice.get("/apps/shop/builds").json() == [made]


def test_a_build_may_be_asked_to_end_without_a_release(alice: httpx.Client, shop: str, rows: Any) -> None:
    build(alice)
    body = {"source_blob": {"url": URL}, "release": False}
    made = alice.post("/apps/shop/builds", json=body)
    assert (made.status_code, made.json()["release"]) == (201, None)
    assert rows.one("SELECT array_agg(releases ORDER BY created_at) FROM builds") == ([True, False],)
    for bad in ("false", 0, None):
        assert alice.post("/apps/shop/builds", json={**body, "release": bad}).status_code == 422


def test_the_slug_of_a_build_without_a_release_is_released_later(alice: httpx.Client, shop: str, rows: Any) -> None:
    id = alice.post("/apps/shop/builds", json={"source_blob": {"url": URL}, "release": False}).json()["id"]
    slug = rows.one("SELECT slug_id FROM releases WHERE version = 2")[0]
    rows.set_build(id, status="succeeded", slug_id=slug)
    shown = alice.get(f"/apps/shop/builds/{id}").json()
    assert (shown["status"], shown["slug"], shown["release"]) == ("succeeded", {"id": str(slug)}, None)
    made = alice.post("/apps/shop/releases", json={"slug": shown["slug"]["id"], "description": "Upgrade"}).json()
    assert (made["version"], made["status"], made["slug"]) == (3, "pending", {"id": str(slug)})


def test_a_source_from_elsewhere_is_left_to_the_build(alice: httpx.Client, shop: str, rows: Any) -> None:
    build(alice)
    assert rows.one("SELECT source_id, source_url FROM builds") == (None, URL)


def test_a_finished_build_shows_its_slug_and_release(alice: httpx.Client, shop: str, rows: Any) -> None:
    id = build(alice)["id"]
    rows.set_build(id, status="running")
    assert alice.get(f"/apps/shop/builds/{id}").json()["status"] == "pending"
    slug, release = rows.one("SELECT slug_id, id FROM releases WHERE version = 2")
    rows.set_build(id, status="succeeded", slug_id=slug, release_id=release)
    shown = alice.get(f"/apps/shop/builds/{id}").json()
    assert (shown["status"], shown["slug"], shown["release"]) == ("succeeded", {"id": str(slug)}, {"id": str(release)})
    assert shown["buildpacks"] == [{"name": "python", "url": ""}]


def test_builds_are_listed_oldest_first(alice: httpx.Client, shop: str) -> None:
    made = [build(alice)["id"] for _ in range(4)]
    assert [one["id"] for one in alice.get("/apps/shop/builds").json()] == made
    newest = alice.get("/apps/shop/builds", headers={"Range": "created_at ..; order=desc,max=1"})
    assert [one["id"] for one in newest.json()] == made[-1:]


BAD: list[dict[str, Any]] = [
    {},
    {"url": ""},
    {"url": "file:///etc/passwd"},
    {"url": "ftp://example.com/x"},
    {"url": "-rf"},
    {"url": "https://"},
    {"url": "https://exa mple.com/x"},
    {"url": "https://example.com/\n"},
    {"url": "https://example.com:x/"},
    {"url": "https://example.com/" + "x" * 5000},
    {"url": URL, "checksum": "SHA256:xyz"},
    {"url": URL, "checksum": "MD5:" + "a" * 32},
    {"url": URL, "version": "x" * 201},
    {"url": URL, "version": "a\nb"},
]


@pytest.mark.parametrize("blob", BAD)
def test_a_bad_source_is_refused(alice: httpx.Client, shop: str, blob: dict[str, Any]) -> None:
    refused = alice.post("/apps/shop/builds", json={"source_blob": blob})
    assert (refused.status_code, refused.json()["id"]) == (422, "invalid_params")
    assert alice.get("/apps/shop/builds").json() == []


def test_choosing_buildpacks_is_refused_not_ignored(alice: httpx.Client, shop: str) -> None:
    body = {"source_blob": {"url": URL}, "buildpacks": [{"url": "https://example.com/buildpack"}]}
    assert alice.post("/apps/shop/builds", json=body).status_code == 422


def test_anothers_source_is_not_found(alice: httpx.Client, bob: httpx.Client, shop: str) -> None:
    bobs = bob.post("/sources").json()["source_blob"]["get_url"]
    for url in (bobs, bobs.replace("objects.black.test", "objects:5000"), bobs.replace("sources/", "slugs/")):
        refused = alice.post("/apps/shop/builds", json={"source_blob": {"url": url}})
        assert (refused.status_code, refused.json()["message"]) == (404, "Couldn't find that source.")


def test_a_waiting_build_is_cancelled_a_running_one_not(alice: httpx.Client, shop: str, rows: Any) -> None:
    id = build(alice)["id"]
    rows.set_build(id, status="running")
    assert alice.delete(f"/apps/shop/builds/{id}").status_code == 422
    rows.set_build(id, status="pending")
    assert alice.delete(f"/apps/shop/builds/{id}").json()["status"] == "failed"


class Reader:
    """Reads a stream in the background, as a user's terminal does."""

    def __init__(self, client: httpx.Client, url: str) -> None:
        self.text, self.error = "", ""
        self._changed = threading.Condition()
        self.thread = threading.Thread(target=self._read, args=(client, url))
        self.thread.start()

    def _read(self, client: httpx.Client, url: str) -> None:
        try:
            with client.stream("GET", url) as response:
                for chunk in response.iter_text():
                    with self._changed:
                        self.text += chunk
                        self._changed.notify_all()
        except httpx.HTTPError as error:
            self.error = repr(error)

    def until(self, text: str) -> None:
        with self._changed:
            assert self._changed.wait_for(lambda: text in self.text, timeout=20), (self.text, self.error)

    def whole(self) -> str:
        self.thread.join(timeout=20)
        assert not self.thread.is_alive(), "the stream does not end"
        assert self.error == ""
        return self.text


@pytest.fixture
def stream(bus: Any) -> Iterator[Any]:
    """Write to a build's stream as psmgr does."""
    with bus.client() as client:
        yield lambda id, **fields: client.xadd(f"build:{id}", fields)


def test_output_comes_while_the_build_runs_without_a_token(
    alice: httpx.Client, nobody: httpx.Client, shop: str, stream: Any
) -> None:
    made = build(alice)
    stream(made["id"], data="-----> Python app detected\n")
    reader = Reader(nobody, made["output_stream_url"])
    reader.until("detected\n")
    stream(made["id"], data="-----> ü\n")
    reader.until("ü\n")
    stream(made["id"], end="succeeded")
    assert reader.whole() == "-----> Python app detected\n-----> ü\n"


def test_output_of_an_ended_build_is_the_stored_one(
    alice: httpx.Client, nobody: httpx.Client, shop: str, rows: Any
) -> None:
    made = build(alice)
    rows.set_build(made["id"], status="failed", output=" !     No buildpack\n")
    answer = nobody.get(made["output_stream_url"])
    assert (answer.status_code, answer.text) == (200, " !     No buildpack\n")
    assert answer.headers["content-type"] == "text/plain; charset=utf-8"


def test_output_ends_when_only_the_database_says_so(
    alice: httpx.Client, nobody: httpx.Client, shop: str, rows: Any, stream: Any
) -> None:
    made = build(alice)
    stream(made["id"], data="one\n")
    reader = Reader(nobody, made["output_stream_url"])
    reader.until("one\n")
    rows.set_build(made["id"], status="failed", output="one\ntwo\n")
    assert reader.whole() == "one\ntwo\n"


def test_output_goes_on_from_the_database_when_the_bus_dies(
    alice: httpx.Client, nobody: httpx.Client, shop: str, rows: Any, stream: Any, bus: Any
) -> None:
    made = build(alice)
    stream(made["id"], data="one\n")
    reader = Reader(nobody, made["output_stream_url"])
    reader.until("one\n")
    bus.stop()
    rows.set_build(made["id"], status="running", output="one\ntwo\n")
    reader.until("two\n")
    rows.set_build(made["id"], status="succeeded", output="one\ntwo\nthree\n")
    assert reader.whole() == "one\ntwo\nthree\n"


def test_output_ends_when_the_app_is_deleted(alice: httpx.Client, nobody: httpx.Client, shop: str, stream: Any) -> None:
    made = build(alice)
    stream(made["id"], data="one\n")
    reader = Reader(nobody, made["output_stream_url"])
    reader.until("one\n")
    alice.delete("/apps/shop")
    assert reader.whole() == "one\n"
    assert nobody.get(made["output_stream_url"]).status_code == 404


def test_a_silent_build_is_kept_alive_by_something_invisible(
    alice: httpx.Client, nobody: httpx.Client, shop: str, stream: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.streams.SILENCE_SECONDS", 0.0)
    made = build(alice)
    reader = Reader(nobody, made["output_stream_url"])
    reader.until("\0")
    stream(made["id"], end="failed")
    assert reader.whole().strip("\0") == ""


def test_a_stream_needs_its_own_signature(alice: httpx.Client, nobody: httpx.Client, shop: str) -> None:
    one, two = build(alice), build(alice)
    signature = one["output_stream_url"].rpartition("/")[2]
    for path in (f"{two['id']}/{signature}", f"{one['id']}/x", f"{one['id']}/%C3%BC", f"-rf/{signature}"):
        assert nobody.get(f"/streams/builds/{path}").status_code == 404


def test_entries_are_joined_and_their_end_is_seen() -> None:
    live = read_entries([("1-0", {"data": "a"}), ("2-0", {"data": "b"}), ("3-0", {"end": "failed"})], "0-0")
    assert (live.text, live.position, live.ended) == ("ab", "3-0", True)
    assert read_entries([], "7-0").position == "7-0"


def test_the_stream_url_is_reached_as_the_api_was(alice: httpx.Client, shop: str) -> None:
    blob = {"source_blob": {"url": URL}}
    for host, forwarded, base in (
        ("localhost:5000", None, "http://localhost:5000/"),
        ("api.black.test", "https", "https://api.black.test/"),
        ("a/b@evil", None, "https://api.black.test/"),
    ):
        headers = {"Host": host, **({} if forwarded is None else {"X-Forwarded-Proto": forwarded})}
        made = alice.post("/apps/shop/builds", json=blob, headers=headers).json()
        assert made["output_stream_url"].startswith(f"{base}streams/builds/")
