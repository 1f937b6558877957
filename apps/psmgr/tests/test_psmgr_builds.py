"""Builds and one-off dynos, against a real database and bus."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import uuid
from typing import Any

import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from hypothesis import given
from hypothesis import strategies as st
from psmgr.builds import LOST, ResultRefused, parse_result
from psmgr.engine import EngineRefused
from psmgr.output import Forwarder, kept, whole_characters
from psmgr.store import ObjectTooLarge, Store
from sqlalchemy import select, update

from blackstart.model import provenance
from blackstart.model.bus import build_stream
from blackstart.model.tables import Account, App, Build, Dyno, Formation, Release, Slug

SLUG = b"hsqs a slug"
DIGEST = hashlib.sha256(SLUG).hexdigest()


def result(stack: str, **more: object) -> dict[str, object]:
    return {
        "slug": DIGEST,
        "size": len(SLUG),
        "process_types": {"web": "serve"},
        "buildpacks": [{"name": "python", "version": "1"}],
        "stack": stack,
        "source_sha256": "0" * 64,
    } | more


def new_build(world: Any, app: uuid.UUID, *, releases: bool = True) -> str:
    with world.transaction() as session:
        user = session.scalars(select(Account)).one()
        source = {"source_url": "http://x", "source_id": uuid.uuid4(), "source_version": "abc"}
        row = Build(app_id=app, user_id=user.id, releases=releases, **source)
        session.add(row)
        session.flush()
        return str(row.id)


def build(world: Any, id_: str) -> Build:
    with world.transaction() as session:
        found: Build = session.get_one(Build, uuid.UUID(id_))
        return found


def job(world: Any, id_: str) -> Any:
    return next((s for s in world.engine.running.values() if s.labels.get("blackstart.build") == id_), None)


def started(world: Any, name: str = "shop") -> tuple[uuid.UUID, str]:
    app = world.app(name)
    id_ = new_build(world, app)
    world.until(lambda: job(world, id_) is not None and build(world, id_).status == "running")
    return app, id_


def early(world: Any, id_: str) -> Any:
    return next((s for s in world.engine.running.values() if s.labels.get("blackstart.made_by") == id_), None)


def speaks(world: Any, id_: str) -> None:
    """Let a build print something, and wait until the nodes wait for its slug."""
    world.engine.logs[job(world, id_).id] = b"-----> "
    world.until(lambda: early(world, id_) is not None)


def waiting(spec: Any, task: Any) -> Any:
    """A node that waits for the slug of a build."""
    return dataclasses.replace(task, phase="running") if "blackstart.made_by" in spec.labels else task


def stored(world: Any, id_: str, slug: bytes = SLUG, **more: object) -> None:
    world.store.objects[f"builds/{id_}/slug"] = slug
    world.store.objects[f"builds/{id_}/result.json"] = json.dumps(result(world.settings.stack, **more)).encode()


def ended(world: Any, id_: str, exit_code: int = 0, message: str = "") -> Build:
    service = job(world, id_)
    world.engine.logs[service.id] = "-----> Python app detected\nüß".encode()
    world.engine.end(service.id, "complete" if exit_code == 0 else "failed", exit_code, message)
    world.until(lambda: build(world, id_).status in ("succeeded", "failed"))
    world.until(lambda: job(world, id_) is None)
    return build(world, id_)


def stream(world: Any, id_: str) -> list[dict[str, str]]:
    return [entry for _, entry in world.bus.xrange(build_stream(id_))]


def test_a_build_becomes_a_slug_a_release_and_a_dyno(world: Any) -> None:
    app, id_ = started(world)
    env = world.engine.specs[job(world, id_).id].env
    assert env["SLUG_PUT_URL"] == f"put:builds/{id_}/slug"
    assert env["CACHE_GET_URL"] == f"get:caches/{app}"
    assert "OBJECTS_SECRET" not in env
    stored(world, id_)
    row = ended(world, id_)
    assert (row.status, row.failure) == ("succeeded", None)
    assert row.output == "-----> Python app detected\nüß"
    assert "".join(entry.get("data", "") for entry in stream(world, id_)) == row.output
    assert stream(world, id_)[-1] == {"end": "succeeded"}
    assert list(world.store.objects) == [f"slugs/{DIGEST}.squashfs"]
    world.until(lambda: world.status(app, 1) == "succeeded")
    with world.transaction() as session:
        release = session.get_one(Release, row.release_id)
        assert release.description == "Deploy abc"
        assert release.slug is not None
        assert release.slug.process_types == {"web": "serve"}


def test_a_build_may_end_with_a_slug_and_no_release(world: Any) -> None:
    app = world.app("shop")
    id_ = new_build(world, app, releases=False)
    world.until(lambda: job(world, id_) is not None)
    world.engine.logs[job(world, id_).id] = b"-----> "
    world.until(lambda: stream(world, id_))
    for _ in range(3):
        world.step()
    stored(world, id_)
    row = ended(world, id_)
    assert (row.status, row.release_id) == ("succeeded", None)
    assert not any("_fetch_" in write for write in world.engine.writes if id_ in write)  # no dyno needs it
    assert list(world.store.objects) == [f"slugs/{DIGEST}.squashfs"]
    with world.transaction() as session:
        assert session.get_one(Slug, row.slug_id).sha256 == DIGEST
        assert session.scalars(select(Release).where(Release.app_id == app)).all() == []
        assert session.scalars(select(Formation).where(Formation.app_id == app)).all() == []


def test_nodes_wait_for_the_slug_while_it_is_built(world: Any) -> None:
    world.engine.behave = waiting
    app, id_ = started(world)
    assert early(world, id_) is None
    speaks(world, id_)
    made = world.engine.specs[early(world, id_).id]
    assert (made.command[-1], made.mode, made.capabilities) == ("await", "global-job", ())
    assert f"builds/{id_}/slug" in made.env["BLACKSTART_SLUG_URL"]
    stored(world, id_)
    world.engine.end(job(world, id_).id, "complete", 0)
    world.until(lambda: build(world, id_).status == "succeeded")
    for _ in range(3):
        world.step()
    # One node still reads the build's object, so it stays.
    assert f"builds/{id_}/slug" in world.store.objects
    world.engine.end(early(world, id_).id, "complete", 0)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.until(lambda: job(world, id_) is None)
    assert early(world, id_) is None
    assert list(world.store.objects) == [f"slugs/{DIGEST}.squashfs"]
    assert not any(f"fetch_{DIGEST[:32]}" in write for write in world.engine.writes)


def test_a_successor_ends_the_job_that_brings_the_slug(world: Any) -> None:
    world.engine.behave = waiting
    app, id_ = started(world)
    assert early(world, id_) is None
    speaks(world, id_)
    stored(world, id_)
    world.engine.end(job(world, id_).id, "complete", 0)
    world.until(lambda: build(world, id_).status == "succeeded")
    world.reconciler.close()
    world.reconciler = world.fresh_reconciler()
    world.engine.end(early(world, id_).id, "complete", 0)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.until(lambda: job(world, id_) is None and early(world, id_) is None)
    assert list(world.store.objects) == [f"slugs/{DIGEST}.squashfs"]


def test_a_failed_build_leaves_no_node_waiting(world: Any) -> None:
    world.engine.behave = waiting
    _, id_ = started(world)
    speaks(world, id_)
    ended(world, id_, 1, "boom")
    world.until(lambda: early(world, id_) is None)


def test_a_build_waits_for_no_other_one_s_slug(world: Any) -> None:
    world.engine.behave = waiting
    ids = [new_build(world, world.app(f"app{i}")) for i in range(3)]
    world.until(lambda: all(job(world, id_) is not None for id_ in ids[:2]))
    speaks(world, ids[0])
    stored(world, ids[0])
    world.engine.end(job(world, ids[0]).id, "complete", 0)
    world.until(lambda: job(world, ids[2]) is not None)
    assert early(world, ids[0]) is not None


def test_a_job_that_cannot_wait_for_the_slug_is_not_started_again_and_again(world: Any) -> None:
    world.engine.behave = waiting
    app, id_ = started(world)
    speaks(world, id_)
    world.engine.end(early(world, id_).id, "failed", 64)  # the program of an older stack does not know how
    world.until(lambda: early(world, id_) is None)
    for _ in range(3):
        world.step()
    assert early(world, id_) is None
    stored(world, id_)
    assert ended(world, id_).status == "succeeded"
    world.until(lambda: world.status(app, 1) == "succeeded")


def test_a_build_goes_on_where_the_engine_refuses_the_job_that_waits(world: Any, monkeypatch: Any) -> None:
    create = world.engine.create

    def refuses(spec: Any) -> Any:
        if "blackstart.made_by" in spec.labels:
            raise EngineRefused("no")
        return create(spec)

    monkeypatch.setattr(world.engine, "create", refuses)
    app, id_ = started(world)
    world.engine.logs[job(world, id_).id] = b"-----> "
    world.until(lambda: stream(world, id_))
    stored(world, id_)
    assert ended(world, id_).status == "succeeded"
    world.until(lambda: world.status(app, 1) == "succeeded")


def test_what_a_lost_build_stored_is_forgotten(world: Any) -> None:
    world.engine.behave = waiting
    _, id_ = started(world)
    speaks(world, id_)
    stored(world, id_)
    first = early(world, id_).id
    world.engine.remove(job(world, id_).id)
    world.until(lambda: job(world, id_) is not None)
    assert build(world, id_).failure == LOST
    assert world.store.objects == {}
    assert early(world, id_) is None
    speaks(world, id_)
    assert early(world, id_).id != first


def test_nothing_is_left_when_a_build_s_job_goes_before_the_one_that_waits(world: Any) -> None:
    world.engine.behave = waiting
    app, id_ = started(world)
    speaks(world, id_)
    stored(world, id_)
    world.engine.end(job(world, id_).id, "complete", 0)
    world.until(lambda: build(world, id_).status == "succeeded")
    world.engine.remove(job(world, id_).id)
    world.step()
    world.engine.end(early(world, id_).id, "complete", 0)
    world.until(lambda: world.status(app, 1) == "succeeded")
    world.until(lambda: list(world.store.objects) == [f"slugs/{DIGEST}.squashfs"])
    assert early(world, id_) is None


def test_the_store_reads_no_more_than_a_slug_may_have(settings: Any, monkeypatch: Any) -> None:
    monkeypatch.setattr("psmgr.store.SLUG_BYTES", 10)
    store = Store(settings)
    for data in (b"." * 10, b"." * 11):
        with Stubber(store._inner) as stubber:
            stubber.add_response("get_object", {"Body": StreamingBody(io.BytesIO(data), len(data))})
            if len(data) <= 10:
                assert store.digest("k") == (hashlib.sha256(data).hexdigest(), 10)
            else:
                with pytest.raises(ObjectTooLarge, match="more than the 10 bytes"):
                    store.digest("k")


def test_a_slug_over_the_limit_is_refused(world: Any) -> None:
    _, id_ = started(world)
    stored(world, id_, slug=b"." * 101)
    row = ended(world, id_)
    assert (row.status, row.failure) == ("failed", f"builds/{id_}/slug")
    assert world.store.objects == {}


def test_a_slug_keeps_how_it_was_made(world: Any) -> None:
    _, id_ = started(world)
    compiler = job(world, id_).labels["blackstart.slug"]
    assert world.engine.specs[job(world, id_).id].env["BLACKSTART_SLUG"] == compiler
    stored(world, id_)
    row = ended(world, id_)
    with world.transaction() as session:
        kept = session.get_one(Slug, row.slug_id).provenance
    assert kept is not None
    assert (kept["_type"], kept["predicateType"]) == ("https://in-toto.io/Statement/v1", provenance.PREDICATE)
    assert kept["subject"] == [{"name": "shop.squashfs", "digest": {"sha256": DIGEST}}]
    definition, builder = kept["predicate"]["buildDefinition"], kept["predicate"]["runDetails"]["builder"]
    named = {one["name"]: one["digest"]["sha256"] for one in definition["resolvedDependencies"]}
    stacks = (world.settings.stack, world.settings.stack_build)
    assert named == {"source": "0" * 64} | {stack.rpartition(":")[0]: stack.rpartition(":")[2] for stack in stacks}
    assert definition["internalParameters"] == {"buildpacks": [{"name": "python", "version": "1"}]}
    assert builder["id"] == provenance.COMPILER
    assert builder["builderDependencies"] == [{"name": "compile.squashfs", "digest": {"sha256": compiler}}]


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "push rejected, failed to compile app"),
        (2, "the source cannot be read"),
        (3, "longer than its limit of 900 seconds"),
        (4, "the platform failed during the build on "),
        (137, "more memory than its limit of 1536 MB"),
        (77, r"exit code 77\): boom"),
    ],
)
def test_a_failed_build_says_why(world: Any, code: int, text: str) -> None:
    app, id_ = started(world)
    row = ended(world, id_, code, "boom")
    assert row.status == "failed"
    assert row.failure is not None
    assert text.replace("\\", "") in row.failure
    assert stream(world, id_)[-1] == {"end": "failed"}
    with world.transaction() as session:
        assert session.scalars(select(Release).where(Release.app_id == app)).all() == []


def test_a_slug_that_is_not_what_the_build_said_is_refused(world: Any) -> None:
    _, id_ = started(world)
    stored(world, id_, slug=b"other bytes")
    row = ended(world, id_)
    assert row.status == "failed"
    assert row.failure is not None
    assert row.failure.startswith("the stored slug has the sha256")
    assert world.store.objects == {}


@pytest.mark.parametrize(
    ("more", "text"),
    [
        ({"stack": "evil/image"}, "stack: 'evil/image' is not"),
        ({"process_types": {"a;b": "x"}}, "process type 'a;b' is refused"),
        ({"slug": "../x"}, "slug: "),
        ({"process_types": None}, "process_types: "),
    ],
)
def test_what_a_build_says_is_not_taken_on_trust(more: dict[str, object], text: str) -> None:
    with pytest.raises(ResultRefused, match=text):
        parse_result(json.dumps(result("stack") | more).encode(), "stack")


def test_a_build_without_a_result_fails(world: Any) -> None:
    _, id_ = started(world)
    row = ended(world, id_)
    assert row.failure is not None
    assert row.failure.startswith("the build ended without a slug")


def test_only_so_many_builds_run_at_once(world: Any) -> None:
    ids = [new_build(world, world.app(f"app{i}")) for i in range(4)]
    world.until(lambda: sum(job(world, id_) is not None for id_ in ids) == 2)
    for _ in range(5):
        world.step()
    assert [build(world, id_).status for id_ in ids].count("running") == 2
    stored(world, ids[0])
    ended(world, ids[0])
    world.until(lambda: job(world, ids[2]) is not None)


def test_a_successor_ends_what_ended_meanwhile(world: Any) -> None:
    app, id_ = started(world)
    world.reconciler.close()
    stored(world, id_)
    world.bus.xadd(build_stream(id_), {"data": "-----> Python"})
    world.reconciler = world.fresh_reconciler()
    row = ended(world, id_)
    assert row.status == "succeeded"
    assert "".join(entry.get("data", "") for entry in stream(world, id_)) == row.output
    world.until(lambda: world.status(app, 1) == "succeeded")


def test_a_lost_build_is_tried_once_more_and_then_fails(world: Any) -> None:
    _, id_ = started(world)
    world.engine.remove(job(world, id_).id)
    world.until(lambda: job(world, id_) is not None)
    assert build(world, id_).failure == LOST
    world.engine.remove(job(world, id_).id)
    world.until(lambda: build(world, id_).status == "failed")
    assert "lost twice" in (build(world, id_).failure or "")


def test_a_second_attempt_that_works_is_no_failure(world: Any) -> None:
    _, id_ = started(world)
    world.engine.remove(job(world, id_).id)
    world.until(lambda: job(world, id_) is not None)
    stored(world, id_)
    assert (ended(world, id_).status, build(world, id_).failure) == ("succeeded", None)


def one_off(world: Any, app: uuid.UUID, **more: object) -> uuid.UUID:
    with world.transaction() as session:
        release = session.scalars(select(Release).where(Release.app_id == app)).first()
        values: dict[str, Any] = {
            "app_id": app,
            "release_id": None if release is None else release.id,
            "type": "run",
            "name": "run.1",
            "command": "echo hi",
            "one_off": True,
            "state": "pending",
            "env": world.sealer.seal({"EXTRA": "1"}, str(app)),
        } | more
        row = Dyno(**values)
        session.add(row)
        session.flush()
        return row.id


def dyno(world: Any, id_: uuid.UUID) -> Dyno:
    with world.transaction() as session:
        found: Dyno = session.get_one(Dyno, id_)
        return found


def run(world: Any, id_: uuid.UUID) -> Any:
    return next((s for s in world.engine.running.values() if s.labels.get("blackstart.dyno") == str(id_)), None)


@pytest.mark.parametrize(("code", "state"), [(0, "complete"), (3, "failed")])
def test_a_one_off_runs_and_its_end_is_kept(world: Any, code: int, state: str) -> None:
    app = world.app("shop")
    world.release(app, config={"COLOUR": "blue"})
    id_ = one_off(world, app)
    world.until(lambda: dyno(world, id_).state == "up")
    made = world.engine.specs[run(world, id_).id]
    assert made.command[-2:] == ("start", "echo hi")
    assert (made.env["COLOUR"], made.env["EXTRA"], made.env["DYNO"]) == ("blue", "1", "run.1")
    world.engine.logs[run(world, id_).id] = b"hi\n"
    world.engine.end(run(world, id_).id, "complete" if code == 0 else "failed", code)
    world.until(lambda: run(world, id_) is None)
    row = dyno(world, id_)
    assert (row.state, row.exit_code, row.output) == (state, code, "hi\n")


def test_a_one_off_is_stopped_on_request_and_at_its_limit(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    stopped, limited = one_off(world, app), one_off(world, app, name="run.2", time_limit_s=0)
    world.until(lambda: dyno(world, limited).state == "failed")
    assert dyno(world, limited).output == "stopped: it ran longer than its limit of 0 s\n"
    with world.transaction() as session:
        session.execute(update(Dyno).where(Dyno.id == stopped).values(stop_requested=True))
    world.until(lambda: dyno(world, stopped).state == "failed" and run(world, stopped) is None)
    assert dyno(world, stopped).exit_code == 143


def test_a_one_off_whose_node_lost_the_slug_begins_elsewhere(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    id_ = one_off(world, app)
    world.until(lambda: dyno(world, id_).state == "up")
    first = run(world, id_).id
    (task,) = world.engine.running[first].tasks
    slug = world.engine.specs[first].env["BLACKSTART_SLUG"]
    world.engine.behave = lambda spec, task: (
        task if spec.mode != "global-job" else dataclasses.replace(task, phase="failed", exit_code=44)
    )
    world.engine.logs[first] = f"dyno: slug {slug} is not on this node\n".encode()
    world.engine.end(first, "failed", 44)
    world.until(lambda: run(world, id_) is not None and run(world, id_).id != first)
    assert world.engine.specs[run(world, id_).id].constraints == (f"node.id!={task.node_id}",)
    assert (dyno(world, id_).exit_code, dyno(world, id_).output) == (None, "")


def test_a_one_off_that_ends_with_the_status_of_a_missing_slug_has_ended(world: Any) -> None:
    app = world.app("shop")
    world.release(app)
    id_ = one_off(world, app)
    world.until(lambda: dyno(world, id_).state == "up")
    world.engine.logs[run(world, id_).id] = b"forty-four\n"
    world.engine.end(run(world, id_).id, "failed", 44)
    world.until(lambda: dyno(world, id_).state == "failed")
    assert (dyno(world, id_).exit_code, dyno(world, id_).output) == (44, "forty-four\n")


def test_a_one_off_of_an_app_without_a_slug_says_so(world: Any) -> None:
    id_ = one_off(world, world.app("shop"))
    world.until(lambda: dyno(world, id_).state == "failed")
    assert "no slug yet" in dyno(world, id_).output


def test_jobs_of_a_deleted_app_are_removed(world: Any) -> None:
    app, id_ = started(world)
    with world.transaction() as session:
        session.execute(update(App).where(App.id == app).values(deleting=True))
    world.until(lambda: job(world, id_) is None)
    world.until(lambda: not world.engine.running)


@given(st.text(), st.integers(0, 40))
def test_a_character_is_never_cut(text: str, cut: int) -> None:
    data = text.encode()
    first, size = whole_characters(data[:cut])
    rest, _ = whole_characters(data[size:])
    assert first + rest == text.replace("\0", "?")


@given(st.binary(max_size=200))
def test_any_bytes_become_text_of_the_same_length_or_wait(data: bytes) -> None:
    text, size = whole_characters(data)
    assert len(text.encode()) == size
    assert len(data) - size <= 3


def test_a_long_output_keeps_its_start_and_its_end() -> None:
    text = kept(b"a" * 600_000 + b"b" * 600_000)
    assert text.startswith("a")
    assert text.endswith("b")
    assert "[… 200000 bytes left out …]" in text


def test_output_is_forwarded_once_though_the_connection_breaks(world: Any) -> None:
    class Breaking:
        def __init__(self) -> None:
            self.parts = iter([[b"one ", b"two "], [b"one two ", b"three "], [b"one two three four"]])

        def follow(self, _: str) -> Any:
            yield from next(self.parts, [])

    forwarder = Forwarder(Breaking(), world.bus, "s", "build:x")  # type: ignore[arg-type]
    for _ in range(3):
        position = 0
        for chunk in forwarder._engine.follow("s"):
            position += len(chunk)
            forwarder._take(chunk, position)
    forwarder.finish(b"one two three four five")
    assert "".join(entry["data"] for _, entry in world.bus.xrange("build:x")) == "one two three four five"
