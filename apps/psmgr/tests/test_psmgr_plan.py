"""The plan as a pure function, and that following it always arrives."""

from __future__ import annotations

import dataclasses
import uuid
from collections.abc import Sequence

from hypothesis import given, settings
from hypothesis import strategies as st
from psmgr import spec
from psmgr.desired import WantedApp, WantedProcess, WantedRelease
from psmgr.engine import Mode, Node, Service, Task
from psmgr.plan import (
    Action,
    Create,
    Drain,
    Facts,
    Fail,
    Fetch,
    Forget,
    Remove,
    Replace,
    Scale,
    Succeed,
    plan_app,
    serving,
    version_of,
)

NODES = (
    Node("n1", "node1", "10.0.0.1", "manager", "ready"),
    Node("n2", "node2", "10.0.0.2", "worker", "ready"),
    Node("n3", "node3", "10.0.0.3", "worker", "down"),
)
NOW = 1000.0


def slug(version: int) -> str:
    return f"{version:064x}"


def release(version: int, *processes: WantedProcess, status: str = "succeeded") -> WantedRelease:
    return WantedRelease(uuid.UUID(int=version), version, status, slug(version), "stack", processes)


def pending(version: int, *processes: WantedProcess) -> WantedRelease:
    return release(version, *processes, status="pending")


def process(type_: str, quantity: int = 1, *, recreate: bool = False) -> WantedProcess:
    return WantedProcess(type_, f"run {type_}", quantity, routed=type_ == "web", recreate=recreate)


def app(current: WantedRelease | None = None, rolling: WantedRelease | None = None, **more: object) -> WantedApp:
    return WantedApp(uuid.UUID(int=99), "shop", current=current, rolling=rolling, **more)  # type: ignore[arg-type]


def task(id_: str, slot: int = 1, node: str = "n1", **more: object) -> Task:
    return dataclasses.replace(Task(id_, slot, node, "running", since=NOW - 10), **more)  # type: ignore[arg-type]


def service(type_: str, version: int, *tasks: Task, replicas: int | None = 1) -> Service:
    labels = {spec.KIND: "process", spec.PROCESS: type_, spec.VERSION: str(version), spec.SLUG: slug(version)}
    mode: Mode = "global" if replicas is None else "replicated"
    return Service(f"{type_}-{version}", f"{type_}-{version}", labels, mode, replicas, NOW - 20, tasks)


TAKEN = frozenset({"shop"})


def facts(*, has: Sequence[int] = (1, 2, 3), **more: object) -> Facts:
    present = frozenset((node.id, slug(version)) for node in NODES for version in has)
    return dataclasses.replace(Facts(NOW, NODES, present, taken=TAKEN), **more)  # type: ignore[arg-type]


def plan(wanted: WantedApp, services: Sequence[Service] = (), known: Facts | None = None) -> list[Action]:
    return list(plan_app(wanted, services, facts() if known is None else known))


WEB, WORKER = process("web"), process("worker")


def test_an_app_without_a_release_needs_nothing() -> None:
    assert plan(app()) == []


def test_the_slug_is_on_the_nodes_before_a_dyno_starts() -> None:
    assert plan(app(rolling=pending(1, WEB, WORKER)), (), facts(has=())) == [Fetch(slug(1))]


def test_a_node_that_is_down_blocks_no_deploy() -> None:
    present = frozenset({("n1", slug(1)), ("n2", slug(1))})
    rolling = pending(1, WEB)
    assert plan(app(rolling=rolling), (), facts(present=present)) == [Create(rolling, WEB)]


def test_no_ready_node_means_no_service() -> None:
    assert plan(app(rolling=pending(1, WEB)), (), Facts(NOW, ())) == [Fetch(slug(1))]


def test_a_release_without_processes_succeeds_at_once() -> None:
    rolling = pending(1)
    assert plan(app(rolling=rolling), (), facts(has=())) == [Succeed(rolling)]


def test_a_running_release_is_left_alone() -> None:
    assert plan(app(release(1, WEB)), [service("web", 1, task("a"))]) == []


def test_what_matches_is_adopted_whoever_made_it() -> None:
    wanted = app(release(1, process("web", 2), WORKER))
    running = [service("web", 1, task("a"), replicas=2), service("worker", 1, task("b"))]
    assert plan(wanted, running, facts(has=())) == []


def test_scaling_happens_in_place() -> None:
    running = service("web", 1, task("a"))
    assert plan(app(release(1, process("web", 3))), [running]) == [Scale(running, 3)]


def test_what_an_operator_holds_is_left_alone() -> None:
    held = service("web", 1, replicas=0)
    held = dataclasses.replace(held, labels={**held.labels, spec.HELD: "replicas=1"})
    worker = service("worker", 1, task("b"))
    assert plan(app(release(1, WEB, WORKER)), [held, worker]) == []
    assert plan(app(release(1, WEB, process("worker", 2))), [held, worker]) == [Scale(worker, 2)]
    assert plan(app(release(1, WEB), pending(2, WEB)), [held]) == []
    assert plan(app(release(1)), [held]) == []
    assert plan(app(release(1, WEB), deleting=True), [held]) == [Remove(held)]


def test_a_process_type_scaled_to_nothing_is_drained_then_removed() -> None:
    running = service("web", 1, task("a"))
    assert plan(app(release(1)), [running]) == [Drain(running)]
    assert plan(app(release(1)), [running], facts(drained=frozenset({"web-1"}))) == [Remove(running)]


def test_the_old_release_runs_until_the_new_one_is_healthy() -> None:
    old, new, rolling = service("web", 1, task("a")), service("web", 2, task("b")), pending(2, WEB)
    both = app(release(1, WEB), rolling)
    assert plan(both, [old]) == [Create(rolling, WEB)]
    assert plan(both, [old, new], facts(healthy=frozenset({"a"}))) == []
    assert plan(both, [old, new], facts(healthy=frozenset({"a", "b"}))) == [Succeed(rolling)]
    assert plan(both, [old, new], facts(healthy=frozenset({"a", "b"}), taken=frozenset())) == []
    assert plan(app(release(2, WEB)), [old, new]) == [Drain(old)]


def test_a_new_release_gets_requests_from_the_moment_it_is_healthy() -> None:
    old, new, current, rolling = (
        service("web", 1, task("a")),
        service("web", 2, task("b")),
        release(1, WEB),
        pending(2, WEB),
    )
    both = app(current, rolling)
    assert serving(both, [old, new], facts(healthy=frozenset({"a"}))) == current
    assert serving(both, [old, new], facts(healthy=frozenset({"a", "b"}))) == rolling
    assert serving(app(rolling=rolling), [new], facts()) is None


def test_a_worker_is_healthy_after_two_seconds() -> None:
    rolling = pending(1, WORKER)
    young, old = task("a", since=NOW - 1.9), task("a", since=NOW - 2.0)
    assert plan(app(rolling=rolling), [service("worker", 1, young)]) == []
    assert plan(app(rolling=rolling), [service("worker", 1, old)]) == [Succeed(rolling)]


def test_every_dyno_of_a_release_must_be_healthy() -> None:
    rolling = pending(1, process("web", 2))
    running = service("web", 1, task("a"), task("b", 2), replicas=2)
    assert plan(app(rolling=rolling), [running], facts(healthy=frozenset({"a"}))) == []
    assert plan(app(rolling=rolling), [running], facts(healthy=frozenset({"a", "b"}))) == [Succeed(rolling)]


def test_a_process_on_every_node_must_run_on_every_ready_node() -> None:
    everywhere = WantedProcess("agent", "run", 1, everywhere=True)
    rolling = pending(1, everywhere)
    one = service("agent", 1, task("a", 0, "n1"), replicas=None)
    both = service("agent", 1, task("a", 0, "n1"), task("b", 0, "n2"), replicas=None)
    assert plan(app(rolling=rolling), [one]) == []
    assert plan(app(rolling=rolling), [both]) == [Succeed(rolling)]


def test_a_release_over_its_deadline_fails_with_the_reason() -> None:
    rolling = pending(2, WEB)
    stuck = service("web", 2, task("b", phase="starting", message="no suitable node"))
    known = facts(overdue=frozenset({rolling.id}))
    reason = "not healthy within the deadline: web is not up: no suitable node"
    assert plan(app(release(1, WEB), rolling), [stuck], known) == [Fail(rolling.id, 2, reason)]
    assert plan(app(release(1, WEB)), [service("web", 1, task("a")), stuck]) == [Drain(stuck)]


def test_a_slug_that_cannot_be_fetched_is_the_reason() -> None:
    rolling = pending(2, WEB)
    known = facts(has=(1,), overdue=frozenset({rolling.id}), obstacles={slug(2): "the slug could not be fetched on n1"})
    (action,) = plan(app(release(1), rolling), (), known)
    assert action == Fail(rolling.id, 2, "not healthy within the deadline: the slug could not be fetched on n1")


def test_a_release_that_crashes_on_boot_fails_fast() -> None:
    rolling = pending(2, WORKER)
    failed = [task(f"f{i}", phase="failed", exit_code=1, since=NOW - i, message="non-zero exit (1)") for i in range(3)]
    assert plan(app(rolling=rolling), [service("worker", 2, *failed[:2])]) == []
    (action,) = plan(app(rolling=rolling), [service("worker", 2, *failed)])
    assert action == Fail(rolling.id, 2, "worker crashed 3 times (exit code 1): non-zero exit (1)")


def test_a_missing_slug_is_fetched_again_and_is_no_crash() -> None:
    rolling = pending(2, WORKER)
    failed = [task(f"f{i}", phase="failed", exit_code=44, since=NOW - i) for i in range(5)]
    assert plan(app(rolling=rolling), [service("worker", 2, *failed)]) == [Fetch(slug(2))]


def test_a_web_dyno_that_never_listens_fails_after_the_boot_timeout() -> None:
    rolling = pending(2, WEB)
    silent = service("web", 2, task("b", since=NOW - 61))
    (action,) = plan(app(rolling=rolling), [silent])
    assert action == Fail(rolling.id, 2, "web did not listen on $PORT (5000) within 60 seconds of its start")


def test_a_new_process_manager_must_show_that_it_could_lead() -> None:
    manager = WantedProcess("worker", "bin/worker", 1, proves=True)
    rolling, running = pending(2, manager), service("worker", 2, task("b"))
    assert plan(app(rolling=rolling), [running], facts(proven=frozenset())) == []
    assert plan(app(rolling=rolling), [running], facts(proven=frozenset({"b"}))) == [Succeed(rolling)]
    fresh = service("worker", 2, task("b", since=NOW - 9))  # one that dies after some seconds must not take over
    assert plan(app(rolling=rolling), [fresh], facts(proven=frozenset({"b"}))) == []
    assert plan(app(rolling=rolling), [running], facts(proven=None)) == [Succeed(rolling)]


def test_a_replacement_that_the_engine_may_still_undo_is_no_success() -> None:
    db = process("db", recreate=True)
    both, new = app(release(1, db), pending(2, db)), service("db", 2, task("b"))
    assert plan(both, [dataclasses.replace(new, in_change=True)]) == []
    assert plan(both, [new]) == [Succeed(pending(2, db))]


def test_skipped_releases_fail_as_superseded() -> None:
    wanted = app(rolling=pending(3, WEB), superseded=((uuid.UUID(int=2), 2),))
    assert plan(wanted)[0] == Fail(uuid.UUID(int=2), 2, "superseded by v3")


def test_where_two_may_not_run_at_once_the_old_one_goes_first() -> None:
    db = process("db", recreate=True)
    rolling, old = pending(2, db), service("db", 1, task("a"))
    both = app(release(1, db), rolling)
    assert plan(both, [old], facts(has=(1,))) == [Fetch(slug(2))]
    assert plan(both, [old]) == [Replace(old, rolling, db)]
    assert plan(both, []) == [Create(rolling, db)]
    assert plan(both, [service("db", 2, task("b"))]) == [Succeed(rolling)]


def test_a_replacement_that_the_engine_undid_is_a_failed_release() -> None:
    db = process("db", recreate=True)
    rolling, failed = pending(2, db), task("b", phase="failed", exit_code=1, version="2", wanted=False)
    undone = dataclasses.replace(service("db", 1, failed, task("c", version="1")), went_back=True)
    both = app(release(1, db), rolling)
    assert plan(both, [undone]) == [Fail(rolling.id, 2, "db failed soon after its start; v1 runs again")]
    of_an_older_one = dataclasses.replace(undone, tasks=(task("c", version="1"),))
    assert plan(both, [of_an_older_one]) == [Replace(of_an_older_one, rolling, db)]


def test_a_replaced_process_is_healthy_when_its_new_dyno_is() -> None:
    db = process("db", recreate=True)
    both, replaced = app(release(1, db), pending(2, db)), service("db", 2, task("a", version="1"))
    assert plan(both, [replaced]) == []


def test_a_routed_process_that_is_alone_is_not_drained_to_nowhere() -> None:
    web = process("web", recreate=True)
    old = service("web", 1, task("a"))
    assert plan(app(release(1, web), pending(2, web)), [old], facts(healthy=frozenset({"a"}))) == [
        Replace(old, pending(2, web), web)
    ]


def test_the_old_one_returns_where_the_new_one_failed_alone() -> None:
    db = process("db", recreate=True)
    current, new = release(1, db), service("db", 2, task("b"))
    assert plan(app(current), [new]) == [Replace(new, current, db)]
    assert plan(app(current), []) == [Create(current, db)]


def test_a_deleted_app_loses_its_services_then_its_rows() -> None:
    running = service("web", 1, task("a"))
    assert plan(app(release(1, WEB), deleting=True), [running]) == [Remove(running)]
    assert plan(app(release(1, WEB), deleting=True)) == [Forget(uuid.UUID(int=99))]


# Follow the plan in a simple model of an engine: whatever is there at first, it arrives, and then does nothing.
QUANTITIES = st.dictionaries(st.sampled_from(["web", "worker", "db"]), st.integers(1, 3))


def processes(quantities: dict[str, int]) -> tuple[WantedProcess, ...]:
    return tuple(process(type_, count, recreate=type_ == "db") for type_, count in sorted(quantities.items()))


@st.composite
def leftovers(draw: st.DrawFn) -> list[Service]:
    keys = draw(st.sets(st.tuples(st.sampled_from(["web", "worker", "db"]), st.integers(1, 4))))
    return [service(type_, version, replicas=draw(st.integers(1, 3))) for type_, version in sorted(keys)]


@settings(max_examples=300, deadline=None)
@given(st.none() | QUANTITIES, st.none() | QUANTITIES, leftovers(), st.booleans())
def test_following_the_plan_arrives_and_then_rests(
    current: dict[str, int] | None, rolling: dict[str, int] | None, services: list[Service], crash: bool
) -> None:
    wanted = app(
        None if current is None else release(2, *processes(current)),
        None if rolling is None else pending(3, *processes(rolling)),
    )
    present: set[tuple[str, str]] = set()
    for _ in range(50):
        services = [_filled(found, crash and version_of(found) == 3) for found in services]
        healthy = frozenset(t.id for found in services for t in found.tasks if t.phase == "running")
        routed = wanted.current.version if wanted.current is not None else 0
        drained = frozenset(found.id for found in services if version_of(found) != routed)
        known = Facts(NOW, NODES, frozenset(present), healthy=healthy, drained=drained, taken=TAKEN)
        actions = plan_app(wanted, services, known)
        assert plan_app(wanted, services, known) == actions
        _never_both(services)
        if not [action for action in actions if not isinstance(action, Drain)]:
            break
        for action in actions:
            wanted, services = _done(wanted, services, action, present)
    else:
        raise AssertionError("the plan does not come to rest")
    runs = {(found.labels[spec.PROCESS], version_of(found)): found.replicas for found in services}
    serves = wanted.current
    assert wanted.rolling is None
    gone = {(found.labels[spec.PROCESS], version_of(found)) for found in services if found.id not in drained}
    expected = {} if serves is None else {(p.type, serves.version): p.quantity for p in serves.processes}
    assert {key: value for key, value in runs.items() if key in expected or key not in gone} == expected


def _filled(found: Service, crash: bool) -> Service:
    if crash:
        failed = tuple(task(f"{found.id}.{i}", i, phase="failed", exit_code=1) for i in range(3))
        return dataclasses.replace(found, tasks=failed)
    return dataclasses.replace(found, tasks=tuple(task(f"{found.id}.{i}", i) for i in range(found.replicas or 0)))


def _never_both(services: list[Service]) -> None:
    created = [found for found in services if found.name == "made db"]
    assert len(created) <= 1


def _done(
    wanted: WantedApp, services: list[Service], action: Action, present: set[tuple[str, str]]
) -> tuple[WantedApp, list[Service]]:
    match action:
        case Fetch(digest):
            present.update((node.id, digest) for node in NODES)
        case Create(made, proc):
            new = service(proc.type, made.version, replicas=proc.quantity)
            services = [*services, dataclasses.replace(new, name=f"made {proc.type}")]
        case Replace(found, made, proc):
            services = [other for other in services if other.id != found.id]
            new = service(proc.type, made.version, replicas=proc.quantity)
            services = [*services, dataclasses.replace(new, name=f"made {proc.type}")]
        case Scale(found, replicas):
            scaled = dataclasses.replace(found, replicas=replicas)
            services = [scaled if other.id == found.id else other for other in services]
        case Remove(found):
            services = [other for other in services if other.id != found.id]
        case Succeed(made):
            wanted = dataclasses.replace(wanted, current=dataclasses.replace(made, status="succeeded"), rolling=None)
        case Fail(_, version, _) if wanted.rolling is not None and version == wanted.rolling.version:
            wanted = dataclasses.replace(wanted, rolling=None)
    return wanted, services
