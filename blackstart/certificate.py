"""The teardown certificate: stage 0 is destroyed only after each of these was seen, with stage 0 cut off by firewall.

deploy         an app is compiled, released and served
no-connection  for 30 s under load no packet but the engine's own gossip goes to stage 0 or comes from it
no-write       in these 30 s stage 0's control plane is stopped and changes no row and no object
restore        a backup taken after the pivot is restored beside, and holds a row written after the pivot
reboots        every node is rebooted, one after another, and every component comes back

The certificate is `certificate.json` in the state folder:
`{"platform","domain","issued_at","blackstart_version","stage0":{"name","address"},"items":[item],"holds"}`, an item being
`{"name","holds","detail","evidence","seconds"}`.
"""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from typing import Any

from blackstart import __version__, observe, power
from blackstart.client import wait_for
from blackstart.dynos import inside, run_argv
from blackstart.errors import ProofError
from blackstart.inventory import Host
from blackstart.load import Load
from blackstart.platform import Platform
from blackstart.proofs import Proof, carried_out
from blackstart.proofs.canary import Canary, canary, new_word
from blackstart.remote import connected
from blackstart.run import Run
from blackstart.state import State

FILE = "certificate.json"
STEP = "certificate"
ITEMS = ("deploy", "no-connection", "no-write", "restore", "reboots")
QUIET_SECONDS = 30.0
BACK_SECONDS = 240.0
BACKUP_SECONDS = 300.0
REHEARSAL_SECONDS = 600.0
WITNESS = "teardown witness"
STAGE0_UNITS = ("blackstart-api.service", "blackstart-psmgr.service", "blackstart-objects.service")
CHANGED_ROWS = "SELECT coalesce(sum(n_tup_ins + n_tup_upd + n_tup_del), 0) FROM pg_stat_user_tables"


Check = Callable[[], Proof]


def certify(run: Run) -> dict[str, Any]:
    """Look at everything and return the certificate, whether it holds or not."""
    items: list[dict[str, Any]] = []
    with canary(run.platform, lambda: observe.answering_client(run.platform)) as app:
        items.append(_timed(run, "deploy", lambda: _deploys(run, app)))
        if items[0]["holds"]:
            with Load(run.platform, app.name) as load:
                items += _under_load(run, load)
            items.append(_timed(run, "reboots", lambda: _reboots(run, app)))
    return {
        "platform": run.platform.name,
        "domain": run.platform.domain,
        "issued_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "blackstart_version": __version__,
        "stage0": {"name": run.platform.inventory.stage0.name, "address": run.platform.inventory.stage0.address},
        "items": items,
        "holds": not unproven({"items": items}),
    }


def holds(state: State) -> bool:
    """Whether the state folder has a certificate that holds."""
    return bool(state.read_json(FILE).get("holds"))


def unproven(certificate: dict[str, Any]) -> list[str]:
    """Say what a certificate does not show: each item that does not hold, and each that it lacks."""
    items = {str(item["name"]): item for item in certificate.get("items", [])}
    return [
        f"{name}: {items[name]['detail'] if name in items else 'was not looked at'}"
        for name in ITEMS
        if name not in items or not items[name]["holds"]
    ]


def _timed(run: Run, name: str, check: Check) -> dict[str, Any]:
    """Return what `check` saw and how long it took; an error means that it was not seen."""
    started = time.monotonic()
    seen = carried_out(name, lambda _: check(), run)
    run.log(STEP)(f"{name}: {'seen' if seen.holds else 'NOT seen'}: {seen.detail}")
    return {**asdict(seen), "seconds": round(time.monotonic() - started, 1)}


def _under_load(run: Run, load: Load) -> list[dict[str, Any]]:
    """Watch stage 0 for a while; meanwhile back up and restore, so that the stores work too."""
    checks: dict[str, Check] = {
        "no-connection": lambda: _no_connection(run.platform, load),
        "no-write": lambda: _no_write(run.platform.inventory.stage0),
        "restore": lambda: _restores(run.platform),
    }
    with ThreadPoolExecutor(max_workers=len(checks)) as pool:
        return list(pool.map(lambda name: _timed(run, name, checks[name]), checks))


# --- deploy and reboots ----------------------------------------------------------------------------------------------


def _deploys(run: Run, app: Canary) -> Proof:
    word = new_word()
    with observe.answering_client(run.platform) as client:
        release = app.deploy(client, word)
    for node in run.platform.inventory.nodes:
        app.wait_for_page(node, word)
    routers = list(run.platform.node_addresses)
    return Proof(
        "deploy",
        holds=True,
        detail=f"{app.name} was compiled, released and served through {len(routers)} router(s)",
        evidence={"app": app.name, "release": release["id"], "slug": release["slug"]["id"], "routers": routers},
    )


def _reboots(run: Run, app: Canary) -> Proof:
    """Reboot node after node; each must be back, with every component up, before the next goes."""
    took = {}
    for node in run.platform.inventory.nodes:
        started = time.monotonic()
        power.reboot(run, node)
        wait_for(
            lambda: _all_back(run.platform, app),
            f"every component after the reboot of {node.name}",
            seconds=BACK_SECONDS,
        )
        took[node.name] = round(time.monotonic() - started, 1)
        run.log(STEP)(f"{node.name} rebooted, all back after {took[node.name]} s")
    return Proof(
        "reboots",
        holds=True,
        detail=f"{len(took)} node(s) rebooted one after another, all back after at most {max(took.values())} s",
        evidence={"seconds until all is back": took},
    )


def _all_back(platform: Platform, app: Canary) -> bool | None:
    served = all(observe.holds(lambda node=node: bool(app.page(node))) for node in platform.inventory.nodes)
    return True if served and observe.all_up(platform) else None


# --- quiet -----------------------------------------------------------------------------------------------------------


def _no_connection(platform: Platform, load: Load) -> Proof:
    """Count packets between nodes and stage 0 while requests are served. The engine's gossip ends when stage 0 leaves it."""
    nodes = platform.inventory.nodes
    before, answered = _counted(nodes), load.answers.total()
    time.sleep(QUIET_SECONDS)  # this is the measurement: the time in which nothing may happen
    after, answers = _counted(nodes), load.answers.total() - answered
    other = sum(after[name]["banned_other"] - before[name]["banned_other"] for name in after)
    engine = sum(after[name]["banned_engine"] - before[name]["banned_engine"] for name in after)
    return Proof(
        "no-connection",
        holds=other == 0 and answers > 0 and not load.failures,
        detail=f"{other} packets to or from stage 0 in {QUIET_SECONDS:.0f} s, beside {engine} of the engine's gossip; "
        f"{answers} requests answered, {sum(load.failures.values())} failed",
        evidence={"before": before, "after": after, "answers": dict(load.answers)},
    )


def _counted(nodes: tuple[Host, ...]) -> dict[str, dict[str, int]]:
    """Return `{node: {counter: packets}}` of the firewall's counters of banned packets."""
    counted = {}
    for node in nodes:
        with connected(node) as remote:
            listed = json.loads(remote.check(["nft", "--json", "list", "counters", "table", "inet", "blackstart"]))
        counters = [entry["counter"] for entry in listed["nftables"] if "counter" in entry]
        counted[node.name] = {counter["name"]: int(counter["packets"]) for counter in counters}
        if "banned_other" not in counted[node.name]:
            raise ProofError(
                f"{node.name} does not count packets of stage 0", fix="run `up` again: its firewall is old"
            )
    return counted


def _no_write(stage0: Host) -> Proof:
    """See on stage 0 that its control plane is stopped, and that neither rows nor objects change."""
    with connected(stage0) as remote:
        mark = remote.check(["mktemp"]).strip()
        states = [remote.run(["systemctl", "is-active", unit]).out.strip() for unit in STAGE0_UNITS]
        query = ["runuser", "-u", "postgres", "--", "psql", "-d", "platform", "-qtAX", "-c", CHANGED_ROWS]
        before = int(remote.check(query))
        time.sleep(QUIET_SECONDS)  # this is the measurement
        after = int(remote.check(query))
        newer = remote.check(["find", "/var/lib/blackstart/objects", "-newer", mark, "-type", "f"]).split()
        remote.run(["rm", "-f", mark])
    running = [unit for unit, state in zip(STAGE0_UNITS, states, strict=True) if state == "active"]
    return Proof(
        "no-write",
        holds=not running and after == before and not newer,
        detail=f"{after - before} rows and {len(newer)} objects changed on stage 0 in {QUIET_SECONDS:.0f} s; "
        f"its services are {'stopped' if not running else 'running: ' + ', '.join(running)}",
        evidence={
            "rows changed before": before,
            "rows changed after": after,
            "objects changed": newer,
            "running": running,
        },
    )


# --- restore ---------------------------------------------------------------------------------------------------------


def _restores(platform: Platform) -> Proof:
    """Write a row, back up, restore the backup in a dyno of its own, and find the row there."""
    with observe.answering_client(platform) as client:
        row = client.call("POST", "/oauth/authorizations", {"description": WITNESS, "expires_in": 3600})["id"]
        try:
            backup, report = _back_up_and_restore(platform, client.running_slug("postgres"), row)
        finally:
            client.call("DELETE", f"/oauth/authorizations/{row}")
    rows = sum(table["rows"] for table in report["tables"].values())
    return Proof(
        "restore",
        holds=report["holds"] == f"tokens={row}",
        detail=f"backup {backup['backup']} was restored in {report['seconds']} s: {len(report['tables'])} tables, {rows} rows, "
        "among them one written after the pivot",
        evidence={"backup": backup, "restored": report},
    )


def _back_up_and_restore(platform: Platform, slug: str, row: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what `bin/backup` and `bin/rehearse` of the database report."""
    with connected(platform.volume_nodes["postgres"]) as remote:
        database = inside(remote, platform.name, "postgres")
        backup = json.loads(remote.check([*database, "python3", "bin/backup"], seconds=BACKUP_SECONDS))
        settings = _rehearsal_environment(platform)
        argv = _rehearsal(platform, slug, backup["cluster"], row)
        report = json.loads(remote.check(argv, stdin=settings, seconds=REHEARSAL_SECONDS))
    return backup, report


def _rehearsal(platform: Platform, slug: str, cluster: str, row: str) -> list[str]:
    """Return the vector that restores in a container of its own; its secrets come on standard input, in no process list."""
    limits = ["--memory", "1g", "--cpus", "1", "--pids-limit", "256"]
    options = ["--network", platform.name, "--env-file", "/dev/stdin", *limits]
    command = f"bin/rehearse --cluster {cluster} --holds tokens={row}"
    return run_argv(platform.stacks.run.name, slug, command, options=options)


def _rehearsal_environment(platform: Platform) -> str:
    """Return the database's settings for its store, one a line."""
    config = platform.component_config("postgres")
    return "".join(
        f"{name}={value}\n"
        for name, value in config.items()
        if name.startswith("OBJECTS_") or name == "BACKUP_PASSPHRASE"
    )
