"""From bare machines to a self-hosted platform: the ordered steps of `bootstrap.py up`, and of its resumption."""

from __future__ import annotations

import concurrent.futures
import time

from blackstart import certificate, engine, hold, observe
from blackstart.bundle import gather
from blackstart.client import wait_for
from blackstart.deploys import run_deploy
from blackstart.errors import BlackstartError, HostError, PlatformError, ProofError
from blackstart.fencing import fence, is_fenced
from blackstart.host import HOST_PACKAGES, check_free_space, check_host, missing_packages
from blackstart.inventory import Host
from blackstart.observe import EngineSnapshot, require
from blackstart.ownership import check_machines
from blackstart.proofs.canary import remove_left
from blackstart.providers import Machine, Provider
from blackstart.remote import connected
from blackstart.report import write_certificate
from blackstart.run import OPTIONS, Run
from blackstart.stacks import cached_stacks, ensure_stacks
from blackstart.steps import Step

ANSWER_SECONDS = 90.0
BLACK_START_SECONDS = 300.0


# --- this host -------------------------------------------------------------------------------------------------------


def prepare_host(run: Run) -> None:
    """Install what makes machines and stacks; only where there is room for them."""
    check_free_space(run.cache)
    run_deploy("@local", "host", log=run.log("host"))


def host_is_prepared(run: Run) -> bool:
    """Whether this host has every package."""
    check_host()
    return not missing_packages(HOST_PACKAGES)


def build_stacks(run: Run) -> None:
    """Build the stack images, or take them from the cache."""
    ensure_stacks(run.cache, run.platform.stack_sources, run.log("stacks"))


def stacks_are_built(run: Run) -> bool:
    """Whether the cache has the stack images of this checkout."""
    return observe.holds(lambda: cached_stacks(run.cache, run.platform.stack_sources))


# --- machines --------------------------------------------------------------------------------------------------------


def _needed(run: Run) -> tuple[Host, ...]:
    """The hosts that must be reachable: all, or only the nodes once the platform is self-hosted."""
    return run.platform.inventory.nodes if run.pivoted else run.platform.inventory.hosts


def make_machines(run: Run) -> None:
    """Make and boot the local machines; for named hosts there is nothing to make."""
    if run.provider is None:
        check_reachable(_needed(run))
        return
    run.provider.prepare()
    _boot_made(run)
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        for _ in pool.map(lambda machine: _make_machine(run, machine), _needed_machines(run)):
            pass


def _boot_made(run: Run) -> None:
    """Boot the nodes that were made: they tell whether the platform was handed over, and stage 0 is never made again."""
    made = [machine for machine in run.provider.machines() if run.provider.exists(machine)] if run.provider else []
    with concurrent.futures.ThreadPoolExecutor(max_workers=4) as pool:
        for _ in pool.map(lambda machine: _make_machine(run, machine), made):
            pass
    check_machines(run.platform, run.nodes)


def _needed_machines(run: Run) -> list[Machine]:
    """The planned machines of the needed hosts."""
    names = {host.name for host in _needed(run)}
    return [machine for machine in run.provider.machines() if machine.name in names] if run.provider is not None else []


def _make_machine(run: Run, machine: Machine) -> None:
    if run.provider is not None:
        run.provider.create(machine)
        run.provider.boot(machine)
        run.progress.line("machines", f"{machine.name} is up at {machine.address}")


def machines_answer(run: Run) -> bool:
    """Whether every needed host answers over SSH. Raises HostError when one is another platform's."""
    needed = _needed(run)
    if not observe.holds(lambda: check_reachable(needed)):
        return False
    check_machines(run.platform, needed)
    return True


def check_reachable(hosts: tuple[Host, ...]) -> bool:
    """Open a connection to each host. Raises HostError naming every one that does not answer."""
    problems = []
    with concurrent.futures.ThreadPoolExecutor(max_workers=10) as pool:
        for outcome in pool.map(_reach, hosts):
            if outcome is not None:
                problems.append(outcome)
    if problems:
        whys = dict.fromkeys(problem.why for problem in problems if problem.why)
        fixes = dict.fromkeys(problem.fix for problem in problems if problem.fix)
        raise HostError("; ".join(problem.what for problem in problems), why="\n".join(whys), fix="\n".join(fixes))
    return True


def _reach(host: Host) -> BlackstartError | None:
    try:
        with connected(host) as remote:
            remote.check(["true"])
    except BlackstartError as error:
        return error
    return None


def bring_engine_back(run: Run) -> None:
    """Start daemons again that fell out of the engine, when it does not come to work by itself."""
    engine.bring_back(_needed(run), run.log("engine"), seed=_seed(run))


def engine_works(run: Run) -> bool:
    """Whether the machines' engine has a leader and every member takes part; before stage 0 there is none."""
    hosts = _needed(run)
    return engine.works(hosts) or engine.works(hosts, seconds=engine.patience(_seed(run)))


def _seed(run: Run) -> Host | None:
    """Return stage 0 while the engine's log on it says everything: until the pivot begins."""
    return None if _past_stage1(run) else run.platform.inventory.stage0


def release_held(run: Run) -> None:
    """Release the components that a proof which was killed left held, and wait until they run."""
    if wait_for(lambda: _released(run), "the engine", seconds=ANSWER_SECONDS):
        hold.wait_until_up(run.platform)


def _released(run: Run) -> list[str]:
    """Release what is held. Raises PlatformError while the engine does not answer: nodes that just booted need a while."""
    try:
        return hold.release_all(run.platform)
    except HostError as error:
        raise PlatformError(error.what, why=error.why) from error


def nothing_is_held(run: Run) -> bool:
    """Whether no component is held; before the pivot nothing can be."""
    return not run.pivoted or observe.holds(lambda: not hold.held(run.platform))


# --- stage 0 and 1 ---------------------------------------------------------------------------------------------------


def stand_up_stage0(run: Run) -> None:
    """Deploy stage 0; prepare the nodes beside it, for neither needs the other. Refuse unfit hosts before that."""
    run.deploy("stage-0", "checks")
    with concurrent.futures.ThreadPoolExecutor(max_workers=2) as pool:
        jobs = [
            pool.submit(run.deploy, "stage-0", "stage0", limit="stage0"),
            pool.submit(run.deploy, "stage-0", "nodes_only", limit="runtime"),
        ]
        for job in concurrent.futures.as_completed(jobs):
            job.result()
    if run.provider is not None:
        for machine in run.provider.machines():
            run.provider.harvest_packages(machine)


def stage0_works(run: Run) -> bool:
    """Whether stage 0's API answers, its engine has a manager and its compiler is seeded; later stages imply it."""
    return _past_stage1(run) or observe.holds(lambda: _stage0_answers(run))


def _past_stage1(run: Run) -> bool:
    """Whether the pivot was begun and not given back: stage 0's control plane must not be started again."""
    if run.pivoted:
        return True
    return run.stage0 is not None and observe.stage0_stage(run.stage0) in ("moving", "moved")


def _stage0_answers(run: Run) -> bool:
    with connected(run.platform.inventory.stage0) as remote:
        remote.check(["/opt/blackstart/check-stage0"])
    return True


def deploy_stage1(run: Run) -> None:
    """Join the nodes, bring the components up as apps."""
    run.deploy("stage-1", "stage1")


def components_are_apps(run: Run) -> bool:
    """Whether the nodes are in the engine and every component is an app that is up; later stages imply it."""
    return _past_stage1(run) or observe.holds(lambda: _nodes_joined(run) and _components_up(run))


def _nodes_joined(run: Run) -> bool:
    """Whether every node is a member of stage 0's engine, and those that shall manage it do."""
    stage0, nodes = run.platform.inventory.stage0, {node.address for node in run.platform.inventory.nodes}
    managers = {node.address for node in run.platform.managers}
    return managers <= set(observe.engine_managers(stage0)) and nodes <= observe.engine_member_addresses(stage0)


def _components_up(run: Run) -> bool:
    argv = [
        "env",
        "PYTHONPATH=/opt/blackstart/checkout",
        "/opt/blackstart/venvs/operator/bin/python",
        "-m",
        "blackstart.components",
    ]
    with connected(run.platform.inventory.stage0) as remote:
        remote.check([*argv, "check", "/etc/blackstart/stage0/components.json"])
    return True


# --- pivot -----------------------------------------------------------------------------------------------------------


def pivot(run: Run) -> None:
    """Move the state, hand over, move the managers; then show that nothing was re-created.

    Where it was handed over and stage 0 is gone, the nodes lost power: the platform comes back by itself. Where the fence
    began, stage 0 is told nothing more, so there is nothing to do but to wait.
    """
    handed_over = run.pivoted and (run.stage0 is None or observe.stage0_stage(run.stage0) is None)
    if handed_over or run.platform.state.epoch > 0:
        _wait_self_hosted(run, BLACK_START_SECONDS)
        return
    before = _snapshot_before(run)
    run.deploy("pivot", "pivot", limit="stage0")
    _wait_self_hosted(run)
    after = observe.engine_snapshot(run.platform.inventory.nodes)
    lost = before.lost(after)
    run.platform.state.write_json("pivot.json", {"before": before.__dict__, "after": after.__dict__, "lost": lost})
    require(
        not lost, "the pivot re-created something", why="; ".join(lost), fix="look at pivot.json in the state folder"
    )


def _snapshot_before(run: Run) -> EngineSnapshot:
    """Return the engine as it was before the pivot, so that a resumed pivot is held against it.

    While stage 0 is in charge nothing was handed over, and what an earlier try kept may be old.
    """
    kept = run.platform.state.read_json("before-pivot.json")
    if kept and (run.stage0 is None or observe.stage0_stage(run.stage0) != "stage-0"):
        return EngineSnapshot(**kept)
    run.platform.state.forget("pivot.json")
    snapshot = observe.engine_snapshot(run.platform.inventory.nodes)
    run.platform.state.write_json("before-pivot.json", snapshot.__dict__)
    return snapshot


def _wait_self_hosted(run: Run, seconds: float = ANSWER_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while not observe.is_self_hosted(run.platform):
        if time.monotonic() > deadline:
            raise ProofError(
                f"the platform's own API did not answer as self-hosted within {seconds:.0f} s",
                fix="look at `docker service ls` on a node; stage 0 is kept; run this again",
            )
        time.sleep(0.3)


def is_pivoted(run: Run) -> bool:
    """Whether the platform's own control plane acts, stage 0 manages no engine, and what was re-created is known."""
    begun, measured = (run.platform.state.read_hint(name) for name in ("before-pivot.json", "pivot.json"))
    if not observe.is_self_hosted(run.platform):
        return False
    # That something was re-created ends the run once. It cannot be undone: the proof `no-op-pivot` keeps saying so.
    if begun and "lost" not in measured and run.platform.state.epoch == 0 and not stage0_is_gone(run):
        return False
    stage0 = run.platform.inventory.stage0.address
    return observe.holds(lambda: stage0 not in observe.engine_managers(run.platform.managers[0]))


# --- teardown --------------------------------------------------------------------------------------------------------


def cut_off(run: Run) -> None:
    """Cut stage 0 off: every node's firewall refuses it. A certificate from before is of another platform."""
    run.platform.state.forget(certificate.FILE)
    run.deploy("cut-off", "cutoff", limit="runtime")


def is_cut_off(run: Run) -> bool:
    """Whether every node's firewall refuses stage 0, or stage 0 is gone."""
    return all(observe.bans_stage0(node) for node in run.platform.inventory.nodes) or stage0_is_gone(run)


def issue_certificate(run: Run) -> None:
    """See that stage 0 is unneeded. When something is not seen, stage 0 stays."""
    with observe.answering_client(run.platform) as client:
        remove_left(client)
    issued = certificate.certify(run)
    page = write_certificate(run.platform.state, issued)
    run.log("certificate")(f"the certificate is {page}")
    if issued["holds"]:
        return
    logs = gather(run.platform, run.platform.inventory.hosts, log=run.log("certificate"))
    raise ProofError(
        "stage 0 stays: it was not proven unneeded",
        why="; ".join(certificate.unproven(issued)),
        fix=f"look at {page} and at the machines' logs in {logs}; correct it and run `up` again",
    )


def is_certified(run: Run) -> bool:
    """Whether stage 0 was proven unneeded, or is gone."""
    return certificate.holds(run.platform.state) or stage0_is_gone(run)


def tear_down(run: Run) -> None:
    """Remove stage 0 from the engine, wipe it, destroy its machine."""
    run.deploy("teardown", "teardown")
    if run.provider is not None:
        run.provider.destroy(_stage0_machine(run.provider))
    run.remember("stage0_wiped", True)


def stage0_is_gone(run: Run) -> bool:
    """Whether stage 0 is no member of the engine, and its machine is gone (a named host: wiped)."""
    stage0 = run.platform.inventory.stage0
    if not run.pivoted or not observe.holds(lambda: _left_engine(run, stage0)):
        return False
    if run.provider is not None:
        return not run.provider.exists(_stage0_machine(run.provider))
    wiped = observe.is_wiped(stage0)
    return bool(run.platform.state.read_json(OPTIONS).get("stage0_wiped")) if wiped is None else wiped


def _stage0_machine(provider: Provider) -> Machine:
    return next(machine for machine in provider.machines() if machine.group == "stage0")


def _left_engine(run: Run, stage0: Host) -> bool:
    members = observe.engine_member_addresses(run.platform.managers[0])
    return bool(members) and stage0.address not in members


def wait_ready(run: Run) -> None:
    """Wait until every component is up and every router serves the API."""
    deadline = time.monotonic() + ANSWER_SECONDS
    while not is_ready(run):
        if time.monotonic() > deadline:
            raise ProofError("not every component is up", fix="look at `python3 bootstrap.py status`")
        time.sleep(0.5)


def is_ready(run: Run) -> bool:
    """Whether every component is up and every router serves the API."""
    return observe.all_up(run.platform)


STEPS: tuple[Step[Run], ...] = (
    Step("host", "Prepare this host", prepare_host, host_is_prepared),
    Step("stacks", "Build the stack images", build_stacks, stacks_are_built, needs=("host",)),
    Step("machines", "Boot the machines", make_machines, machines_answer, needs=("host",)),
    Step("engine", "Bring the engine back", bring_engine_back, engine_works, needs=("machines",)),
    Step("released", "Release what is held", release_held, nothing_is_held, needs=("engine",)),
    Step("stage-0", "Stand up stage 0, prepare the nodes", stand_up_stage0, stage0_works, needs=("stacks", "engine")),
    Step("stage-1", "Bring the components up as apps", deploy_stage1, components_are_apps, needs=("stage-0",)),
    Step("pivot", "Move the state and hand over", pivot, is_pivoted, needs=("stage-1",)),
    Step("fence", "Replace every credential that stage 0 knew", fence, is_fenced, needs=("pivot",)),
    Step("cut-off", "Cut stage 0 off", cut_off, is_cut_off, needs=("fence",)),
    Step("certificate", "See that stage 0 is unneeded", issue_certificate, is_certified, needs=("cut-off",)),
    Step("teardown", "Tear stage 0 down", tear_down, stage0_is_gone, needs=("certificate",)),
    Step("ready", "See every component up", wait_ready, is_ready, needs=("teardown",)),
)
