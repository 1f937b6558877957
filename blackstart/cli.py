"""The command line of bootstrap.py."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from blackstart import __version__, observe
from blackstart.bundle import gather
from blackstart.deploys import run_deploy
from blackstart.errors import BlackstartError, InventoryError, StopRequested, in_words
from blackstart.graph import Graph, read_graph
from blackstart.graph_svg import graph_svg
from blackstart.graph_text import print_graph
from blackstart.inventory import load_inventory
from blackstart.journal import Journal
from blackstart.ownership import check_machines
from blackstart.platform import Platform
from blackstart.programs import end_running
from blackstart.progress import Progress, error
from blackstart.proofs import blast_radius
from blackstart.providers.options import (
    DEFAULT_NODES,
    DEFAULT_PLATFORM,
    DEFAULT_SUBNET,
    local_platform,
    remember_options,
)
from blackstart.report import report_line, reported
from blackstart.run import Run
from blackstart.sources import checkout_root, folder_source
from blackstart.state import State
from blackstart.status import platform_status, print_status
from blackstart.steps import Step, Took, run_steps
from blackstart.up import STEPS
from blackstart.upgrade import Upgrade, upgrade_order
from blackstart.verify import PROVERS, run_proofs

LOCAL = "inventories/local.py"
BUILD_SECONDS = 1200.0
TYPED = (
    "blackstart",
    "deploys",
    "bootstrap.py",
    "apps/api/api",
    "apps/bus/server",
    "apps/compile/compiler",
    "apps/objects/store",
    "apps/postgres/database",
    "apps/psmgr/psmgr",
    "apps/router/router",
)

SIDE_BY_SIDE = ("--numprocesses=3", "--dist=loadscope")
"""The whole suite: the platform's tests wait a lot, so all others run beside them (tests/conftest.py)."""

DESCRIPTION = """\
Blackstart turns bare machines into a platform that runs, compiles and repairs itself as apps on itself.

First time:     sudo python3 bootstrap.py up
Look at it:     sudo python3 bootstrap.py status
Newer version:  sudo python3 bootstrap.py upgrade
Your own app:   sudo python3 bootstrap.py deploy hello tests/fixtures/flask
Remove it all:  sudo python3 bootstrap.py down

Without --inventory it works on machines that it makes on this host. For machines of yours, copy
inventories/prod.py, name your hosts in it, and give it with --inventory.
"""


def main() -> None:
    """Run the command and exit with its code."""
    arguments = _parser().parse_args()
    os.environ["BLACKSTART_PLATFORM"] = arguments.platform
    _stop_cleanly()
    try:
        code = arguments.command(arguments)
    except StopRequested as stop:
        error(str(stop))
        code = 130
    except BlackstartError as failure:
        error(str(failure))
        code = 1
    except OSError as failure:
        error(
            in_words(
                "this host failed", str(failure), "remove the cause (a full disk?); then run the same command again"
            )
        )
        code = 1
    sys.exit(code)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="bootstrap.py", description=DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    up = _command(
        commands, "up", "from bare machines to a self-hosted platform; run it again to go on after a failure", _up
    )
    up.add_argument(
        "--nodes", type=int, metavar="N", help=f"local machines to run on, 1 to 9 (default {DEFAULT_NODES})"
    )
    up.add_argument("--subnet", metavar="NET", help=f"a free private /24 for local machines (default {DEFAULT_SUBNET})")
    up.add_argument(
        "--until",
        choices=[step.name for step in STEPS],
        metavar="STEP",
        help="stop after this step; `up` without it goes on",
    )

    upgrade = _command(
        commands, "upgrade", "compile this checkout's components on the platform and replace them one by one", _upgrade
    )
    upgrade.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="NAME",
        help="only this component, no stacks, no nodes; may be repeated",
    )

    verify = _command(commands, "verify", "carry out the proofs on the live platform; without a choice, all", _verify)
    for name in PROVERS:
        verify.add_argument(f"--{name}", action="append_const", dest="chosen", const=name, help=f"only {name}")

    graph = _command(
        commands, "graph", "what the components need, which stage breaks which cycle, and the order", _graph
    )
    graph.add_argument("--svg", type=Path, metavar="FILE", help="also draw it into FILE")

    _command(commands, "status", "what runs, and where", _status)
    _command(commands, "bundle", "gather the logs of every machine into one file, without secrets", _bundle)
    down = _command(commands, "down", "remove the local machines, their network and the state of the platform", _down)
    down.add_argument(
        "--without-state",
        action="store_true",
        help="remove everything of this name, also machines that were made from a state folder that is lost",
    )

    deploy = _command(commands, "deploy", "compile and release a folder as an app", _deploy)
    deploy.add_argument("app", help="the app's name; made when it is not there")
    deploy.add_argument("folder", type=Path, help="the source")

    api = _command(commands, "api", "call the Platform API: api GET /apps", _api)
    api.add_argument("method", choices=["GET", "POST", "PUT", "PATCH", "DELETE"])
    api.add_argument("path", help="for example /apps/hello/formation")
    api.add_argument("body", nargs="?", help="JSON")

    _command(commands, "check", "lint and types", _check)
    test = _command(commands, "test", "run the whole test suite, real machines included", _test)
    test.add_argument("pytest", nargs="*", help="what pytest takes; give options after --")
    return parser


def _command(
    commands: Any, name: str, text: str, function: Callable[[argparse.Namespace], int]
) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    parser.add_argument("--inventory", default=LOCAL, metavar="FILE", help=f"a pyinfra inventory (default {LOCAL})")
    default = os.environ.get("BLACKSTART_PLATFORM", DEFAULT_PLATFORM)
    parser.add_argument(
        "--platform", default=default, metavar="NAME", help=f"the local platform's name (default {default})"
    )
    parser.add_argument("--json", action="store_true", help="print JSON on standard output")
    parser.set_defaults(command=function)
    return parser


def _load(arguments: argparse.Namespace) -> Platform:
    inventory = load_inventory(Path(arguments.inventory))
    return Platform(inventory=inventory, state=State.of(inventory.platform))


def _run(arguments: argparse.Namespace) -> Run:
    platform = _load(arguments)
    provider = local_platform(platform.state) if _is_local(arguments) else None
    progress = Progress(quiet=arguments.json)
    return Run(inventory_argument=arguments.inventory, platform=platform, provider=provider, progress=progress)


def _state(arguments: argparse.Namespace) -> State:
    """Return the state folder without a look at what it says of machines."""
    return State.of(arguments.platform) if _is_local(arguments) else _load(arguments).state


def _is_local(arguments: argparse.Namespace) -> bool:
    return Path(arguments.inventory).resolve() == (checkout_root() / LOCAL).resolve()


def _up(arguments: argparse.Namespace) -> int:
    with _state(arguments).lock("up"):
        if _is_local(arguments):
            remember_options(_state(arguments), nodes=arguments.nodes, subnet=arguments.subnet)
        elif arguments.nodes is not None or arguments.subnet is not None:
            raise InventoryError(
                "--nodes and --subnet are for local machines", fix=f"name the hosts in {arguments.inventory}"
            )
        run = _run(arguments)
        check_machines(run.platform, tuple(filter(None, (run.stage0, *run.nodes))))
        platform, progress = run.platform, run.progress
        with reported(run, "up") as ending:
            took = run_steps(
                _steps_until(arguments.until), run, progress=progress, journal=Journal(platform.state.journal_path)
            )
            _remember_times(platform.state, took, progress.elapsed)
            status = ending.status = platform_status(platform)
    if arguments.until not in (None, STEPS[-1].name):
        return _stopped_after(arguments)
    if arguments.json:
        print(json.dumps(status))
    else:
        print_status(status)
        _print_next(platform)
        print(report_line(platform.state))
    return 0


def _steps_until(last: str | None) -> tuple[Step[Run], ...]:
    """Return the steps up to and including `last`."""
    names = [step.name for step in STEPS]
    return STEPS if last is None else STEPS[: names.index(last) + 1]


def _stopped_after(arguments: argparse.Namespace) -> int:
    """Say how to go on."""
    if arguments.json:
        print(json.dumps({"until": arguments.until}))
    else:
        flag = "" if arguments.platform == DEFAULT_PLATFORM else f" --platform {arguments.platform}"
        print(f"The step {arguments.until} is done. To go on: python3 bootstrap.py up{flag}")
    return 0


def _remember_times(state: State, took: list[Took], elapsed: float) -> None:
    """Keep the times of the run that did the work, not of one that found all done."""
    if any(step.seconds for step in took):
        steps = [{"name": step.name, "seconds": round(step.seconds, 1)} for step in took]
        state.write_json("times.json", {"elapsed_s": round(elapsed, 1), "steps": steps})


def _print_next(platform: Platform) -> None:
    node, domain = platform.node_addresses[0], platform.domain
    flag = "" if platform.name == DEFAULT_PLATFORM else f" --platform {platform.name}"
    ca, token = platform.state.ca_path, platform.state.token_path
    print(f"""
The platform is self-hosted; stage 0 is gone.

  API     https://api.{domain}   (through any router: {", ".join(platform.node_addresses)})
  Token   {token}
  CA      {ca}

Deploy your first app:

  python3 bootstrap.py deploy{flag} hello tests/fixtures/flask
  curl --cacert {ca} --resolve hello.{domain}:443:{node} https://hello.{domain}/
  python3 bootstrap.py api{flag} PATCH /apps/hello/formation '{{"updates":[{{"type":"web","quantity":3}}]}}'
  curl --cacert {ca} --resolve api.{domain}:443:{node} -H "Authorization: Bearer $(cat {token})" https://api.{domain}/apps/hello/dynos
""")


def _upgrade(arguments: argparse.Namespace) -> int:
    """Bring the platform to this checkout; print what was replaced."""
    run = _run(arguments)
    platform, progress = run.platform, run.progress
    journal = Journal(platform.state.journal_path)
    upgrade = Upgrade(checkout_root(), upgrade_order(checkout_root(), arguments.only), whole=not arguments.only)
    with platform.state.lock("upgrade"), reported(run, "upgrade", components=upgrade.order) as ending:
        took = run_steps(upgrade.steps(), run, progress=progress, journal=journal)
        replaced = [step.name for step in took if step.name in upgrade.order and step.seconds]
        nothing = "nothing changed: the platform runs this checkout"
        ending.text = f"replaced: {', '.join(replaced)}" if replaced else nothing
    steps = [{"name": step.name, "seconds": round(step.seconds, 1)} for step in took]
    if arguments.json:
        print(json.dumps({"replaced": replaced, "elapsed_s": round(progress.elapsed, 1), "steps": steps}))
    else:
        print(ending.text)
        print(report_line(platform.state))
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    """Print every proof; exit 0 only when all that were asked for hold."""
    run = _run(arguments)
    with run.platform.state.lock("verify"), reported(run, "verify") as ending:
        proofs = run_proofs(arguments.chosen or tuple(PROVERS), run, named=arguments.chosen or ())
        fails = [proof.name for proof in proofs if not proof.holds]
        ending.good = not fails
        ending.text = f"not every proof holds: {', '.join(fails)}" if fails else "every proof asked for holds"
    if arguments.json:
        print(json.dumps({"proofs": [proof.as_json() for proof in proofs]}))
    else:
        for proof in proofs:
            print(f"{'holds' if proof.holds else 'FAILS'}  {proof.name:14} {proof.detail}")
            if proof.name == blast_radius.NAME and proof.evidence:
                blast_radius.print_matrix(proof.evidence)
        print(report_line(run.platform.state))
    return 1 if fails else 0


def _graph(arguments: argparse.Namespace) -> int:
    """Show the graph of this checkout; exit 1 when something of it cannot be."""
    graph = read_graph(checkout_root())
    if arguments.svg is not None:
        _write_svg(arguments.svg, graph)
    if arguments.json:
        print(json.dumps(graph.as_json()))
    else:
        print_graph(graph)
    problems = graph.problems()
    for problem in problems:
        error(str(problem))
    return 1 if problems else 0


def _write_svg(path: Path, graph: Graph) -> None:
    try:
        path.write_text(graph_svg(graph), encoding="utf-8")
    except OSError as problem:
        raise BlackstartError(f"the drawing could not be written to {path}", why=str(problem)) from problem


def _status(arguments: argparse.Namespace) -> int:
    platform = _load(arguments)
    status = platform_status(platform)
    if arguments.json:
        print(json.dumps(status))
    else:
        print_status(status)
    return 0 if status["stage"] == "self-hosted" and not status["problems"] else 1


def _bundle(arguments: argparse.Namespace) -> int:
    run = _run(arguments)
    path = gather(run.platform, run.platform.inventory.hosts, log=run.progress.say)
    print(json.dumps({"bundle": str(path)}) if arguments.json else path)
    return 0


def _down(arguments: argparse.Namespace) -> int:
    if not _is_local(arguments):
        raise InventoryError("down removes local machines only", fix="wipe named hosts yourself: reinstall them")
    state = _state(arguments)
    progress = Progress(quiet=arguments.json)
    with state.lock("down"):
        provider = local_platform(state, damaged_too=True)
        if not arguments.without_state:
            provider.check_ours()
        removed = list(provider.leftovers())
        provider.down()
        left = list(provider.leftovers())
        if left:
            raise BlackstartError(
                f"not everything of {state.platform} could be removed", why=", ".join(left), fix="run this again"
            )
        state.remove()
    for trace in removed:
        progress.say(f"removed {trace}")
    if arguments.json:
        print(json.dumps({"removed": removed}))
    return 0


def _deploy(arguments: argparse.Namespace) -> int:
    if not arguments.folder.is_dir():
        raise BlackstartError(f"there is no folder {arguments.folder}", fix="name the folder with the app's source")
    platform = _load(arguments)
    with observe.answering_client(platform) as client:
        if client.maybe(f"/apps/{arguments.app}") is None:
            client.call("POST", "/apps", {"name": arguments.app})
        source = folder_source(arguments.folder)
        build = client.build(arguments.app, source, version=source.sha256[:12])
        release = client.deployed(arguments.app, build, seconds=BUILD_SECONDS, show=_show)
    if arguments.json:
        print(json.dumps(release))
    else:
        print(f"https://{arguments.app}.{platform.domain}/ serves v{release['version']}")
    return 0


def _show(text: str) -> None:
    """Show a piece of a build's output at once."""
    sys.stderr.write(text)
    sys.stderr.flush()


def _api(arguments: argparse.Namespace) -> int:
    platform = _load(arguments)
    try:
        body = None if arguments.body is None else json.loads(arguments.body)
    except ValueError as problem:
        raise BlackstartError(
            "the body is not JSON", why=str(problem), fix='quote it for the shell: \'{"name": "hello"}\''
        ) from problem
    with observe.answering_client(platform) as client:
        print(json.dumps(client.call(arguments.method, arguments.path, body), indent=1))
    return 0


def _test(arguments: argparse.Namespace) -> int:
    progress = Progress()
    run_deploy("@local", "host", log=lambda text: progress.line("host", text))
    run_deploy("@local", "host_tests", log=lambda text: progress.line("host", text))
    chosen = arguments.pytest or SIDE_BY_SIDE
    return subprocess.call([sys.executable, "-m", "pytest", *chosen], cwd=checkout_root())


def _check(arguments: argparse.Namespace) -> int:
    """Run every check, also when an earlier one failed."""
    checks = (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["mypy", *TYPED])
    return max(subprocess.call([sys.executable, "-m", *check], cwd=checkout_root()) for check in checks)


def _stop_cleanly() -> None:
    """Turn Ctrl-C and SIGTERM into StopRequested, so that what was started is ended and the lock is dropped.

    The first one counts; while we end, further ones would only leave something behind.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM):
            signal.signal(each, signal.SIG_IGN)
        end_running()
        raise StopRequested(
            in_words(
                f"stopped by {signal.Signals(number).name}",
                "nothing is lost: each step can be run again",
                "run the same command again to go on",
            )
        )

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
