"""The fence: everything that stage 0 knew is replaced and refused. Run from the operator's side, after the pivot.

Stage 0 handed every component its credentials, was a manager of the engine and held the operator's API token. So a copy
of its machine would keep them for ever. Order, and why a kill at any point is harmless:

1. each credential is seen to work (`fencing.json`), then what replaces it is made, durably, before it is used;
2. the new ones are accepted beside the old: a second login of the database, a second password of the bus, a second key
   of the object store;
3. the components that use them get the new ones;
4. the stores accept the new ones only, and the old API token is deleted;
5. the engine forgets stage 0, and its CA (whose key every manager holds) and its join tokens are replaced.

Each part looks at what is there and does the rest. Dynos of users are not touched, and routers hand over.
"""

from __future__ import annotations

import datetime
import json
import shlex
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

from blackstart import observe
from blackstart.ca import retire_leaf
from blackstart.client import Client, wait_for
from blackstart.dynos import inside, run_argv
from blackstart.errors import ProofError
from blackstart.model.dyno import BUNDLE
from blackstart.ownership import IDENTITY, carried_identity, identity
from blackstart.platform import OBJECTS_PORT, TRUST_CA, Platform, bus_url, database_url
from blackstart.remote import Remote, connected
from blackstart.rolling import ConfigVars, Correction, configure, differing, is_configured, is_to_change
from blackstart.run import Run

KEPT = "fencing.json"
TRIAL = Path(__file__).with_name("trial.py")
"""Only read here: it runs in a dyno, on libraries that the operator's side does not have."""
STORES = ("bus", "objects", "postgres")
CONSUMERS = ("api", "psmgr", "router")
LEAVES = ("api", "bus", "objects", "postgres", "router")
CREDENTIALS = ("database", "objects", "bus", "api")
CREDENTIAL_VARS = (
    "BUS_PASSWORD",
    "BUS_URL",
    "DATABASE_URL",
    "OBJECTS_KEY",
    "OBJECTS_SECRET",
    "POSTGRES_PASSWORD",
    "POSTGRES_ROLE",
)
TLS_VARS = ("TLS_CERT", "TLS_KEY")
BOOTSTRAP = "operator (bootstrap)"
FENCED = "operator (fenced)"
ANSWER_SECONDS = 90.0
ENGINE_SECONDS = 120.0
TRIAL_SECONDS = 120.0
ENGINE_POLL_SECONDS = 0.5


# --- the step --------------------------------------------------------------------------------------------------------


def fence(run: Run) -> None:
    """Replace and refuse what stage 0 knew, or the rest of it."""
    platform, started = run.platform, time.monotonic()
    with _client(platform) as client:
        _retire(run, client)
    with ThreadPoolExecutor(max_workers=1) as pool:
        engine = pool.submit(fence_engine, run)
        _fence_stores(run)
        engine.result()
    _tell_nodes(platform)
    platform.state.remember(KEPT, "seconds", round(time.monotonic() - started, 1))


def is_fenced(run: Run) -> bool:
    """Whether the components run with the new credentials, the old API token is refused and the engine knows no stage 0.

    That each store refuses the old ones is what `verify --fencing` shows.
    """
    return observe.holds(lambda: _is_fenced(run.platform))


def _is_fenced(platform: Platform) -> bool:
    retired = platform.state.retired()
    if not retired or retired["api_token"] == platform.secrets["api_token"]:
        return False
    with _client(platform) as client:
        corrections = _corrections(platform, (*STORES, *CONSUMERS))
        if not all(is_configured(client, name, correct) for name, correct in corrections.items()):
            return False
        if _outdated_authorizations(platform, client):
            return False
    ours = identity(platform.state)
    if any(carried_identity(node) not in (None, ours) for node in platform.inventory.nodes):
        return False
    with connected(platform.managers[0]) as remote:
        return engine_is_fenced(platform, remote)


def _tell_nodes(platform: Platform) -> None:
    """Let every node know whose it is by the new secrets, so that a state folder from before the fence is refused."""
    text = json.dumps(identity(platform.state), sort_keys=True) + "\n"
    replaced = f"cat > {IDENTITY}.new && chmod 0644 {IDENTITY}.new && mv {IDENTITY}.new {IDENTITY}"
    for node in platform.inventory.nodes:
        with connected(node) as remote:
            remote.check(["sh", "-c", replaced], stdin=text)


def _client(platform: Platform) -> Client:
    """Return a client of the API as soon as a router answers: a component may just be restarting."""
    return wait_for(lambda: observe.answering_client(platform), "the platform's API", seconds=ANSWER_SECONDS)


def _retire(run: Run, client: Client) -> None:
    """See that stage 0's credentials work, then make what replaces them; only once."""
    platform = run.platform
    if platform.state.epoch > 0:
        return
    _check_database(platform)
    tried = try_credentials(platform, client, {"stage0": known_credentials(platform)})["sets"]["stage0"]
    broken = {store: answer for store, answer in tried.items() if answer["answer"] != "accepted"}
    if broken:
        raise ProofError("not every credential works before the fence", why=json.dumps(broken))
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    platform.state.write_json(KEPT, {"worked_before": tried, "at": now})
    with connected(platform.managers[0]) as remote:
        also = engine_secrets(remote)
    for name in LEAVES:
        retire_leaf(platform.state, name)
    platform.state.retire_secrets(also)
    run.log("fence")("every credential worked; new ones are made")


# --- stores and the components that use them ---------------------------------------------------------------------------


def _fence_stores(run: Run) -> None:
    platform = run.platform
    say = run.log("fence")
    with _client(platform) as client:
        replace_token(platform, client)
    with _client(platform) as client:
        consumers = _corrections(platform, CONSUMERS)
        # Not when one is merely being released: what was closed is never opened again.
        if any(is_to_change(client, name, correct) for name, correct in consumers.items()):
            add_login(platform)
            configure(
                client, {name: partial(credential_changes, _both(platform, name)) for name in ("bus", "objects")}, say
            )
            say("the stores accept the new credentials beside the old")
        configure(client, consumers, say)
        say("the components use the new credentials")
        # The database comes last: then nobody answers.
        configure(client, _corrections(platform, STORES), say)
        say("the stores accept the new credentials only")
        wait_for(partial(_delete_outdated, platform, client), "the old API token's end", seconds=ANSWER_SECONDS)
    say("the operator's old API token is deleted")


def _both(platform: Platform, name: str) -> dict[str, str]:
    """Return the config of a store that accepts the old credential too."""
    names = {"bus": ("bus_password",), "objects": ("objects_key", "objects_secret")}[name]
    retired = platform.state.retired()
    return {**_wanted(platform, name), **{f"OLD_{secret.upper()}": retired[secret] for secret in names}}


def _wanted(platform: Platform, name: str) -> dict[str, str]:
    """Return the part of a component's config that is the fence's matter; `upgrade` changes the rest."""
    config = platform.component_config(name)
    return {key: value for key, value in config.items() if key in (*CREDENTIAL_VARS, *TLS_VARS)}


def credential_changes(wanted: dict[str, str], have: dict[str, str]) -> ConfigVars:
    """Return the change of config vars that makes `have` `wanted`: none while the credentials are right.

    A certificate changes with the credentials only: one that is renewed later must not open the fence again.
    """
    differs = differing(wanted)(have)
    gone: ConfigVars = {key: None for key in have if key.startswith("OLD_") and key not in wanted}
    return {} if not gone and set(differs) <= set(TLS_VARS) else {**differs, **gone}


def _corrections(platform: Platform, names: Iterable[str]) -> dict[str, Correction]:
    return {name: partial(credential_changes, _wanted(platform, name)) for name in names}


def add_login(platform: Platform) -> None:
    """Let the new role log in to the running database, beside the old one."""
    app = 'for file in .profile.d/*.sh; do . "./$file"; done; exec bin/add-login "$1"'
    with connected(platform.volume_nodes["postgres"]) as remote:
        database = inside(remote, platform.name, "postgres")
        argv = [*database, "bash", "-c", app, "add-login", platform.database_login]
        remote.check(argv, stdin=platform.secrets["database_password"] + "\n")


def _check_database(platform: Platform) -> None:
    """Refuse a database whose release is older than the fence, before anything is retired."""
    with connected(platform.volume_nodes["postgres"]) as remote:
        if remote.run([*inside(remote, platform.name, "postgres"), "test", "-x", "bin/add-login"]).code != 0:
            raise ProofError(
                "the database cannot be fenced; nothing was changed",
                why="its release is older than bin/add-login",
                fix="run `python3 bootstrap.py upgrade`, then `up` again",
            )


# --- the operator's token ----------------------------------------------------------------------------------------------


def replace_token(platform: Platform, client: Client) -> None:
    """Have the API make another token for the operator; it is on disk before the old one is deleted.

    One that was made but not written down, because this was killed in between, is deleted with the old ones.
    """
    if platform.state.retired()["api_token"] != platform.secrets["api_token"]:
        return
    made = client.call("POST", "/oauth/authorizations", {"description": FENCED})
    platform.state.replace_token(made["access_token"]["token"], made["id"])


def _outdated_authorizations(platform: Platform, client: Client) -> list[str]:
    """Return the ids of the operator's authorizations that bootstrap made, but for the present one."""
    current = platform.secrets.get("api_authorization")
    ours = (BOOTSTRAP, FENCED)
    listed = client.call("GET", "/oauth/authorizations")
    return [each["id"] for each in listed if each["description"] in ours and each["id"] != current]


def _delete_outdated(platform: Platform, client: Client) -> bool:
    for outdated in _outdated_authorizations(platform, client):
        client.call("DELETE", f"/oauth/authorizations/{outdated}")
    return True


# --- the engine --------------------------------------------------------------------------------------------------------


def engine_secrets(remote: Remote) -> dict[str, str]:
    """Return what lets a machine into the engine: the join tokens, and the CA that every certificate is signed by."""
    token = ["docker", "swarm", "join-token", "--quiet"]
    return {
        "engine_worker_token": remote.check([*token, "worker"]).strip(),
        "engine_manager_token": remote.check([*token, "manager"]).strip(),
        "engine_ca": remote.check(["docker", "swarm", "ca"]).strip(),
    }


def fence_engine(run: Run) -> None:
    """Remove stage 0 from the engine, then replace the engine's CA and its join tokens."""
    platform = run.platform
    with connected(platform.managers[0]) as remote:
        for node in stage0_members(platform, remote):
            remote.run(["docker", "node", "demote", node])
            remote.check(["docker", "node", "rm", "--force", node])
        if not engine_is_fenced(platform, remote):
            _rotate(remote)
        if not engine_is_fenced(platform, remote):
            raise ProofError(
                "the engine still has what stage 0 knew",
                why="a member at its address, its CA or a join token is as it was",
                fix="look at `docker node ls` on a manager; run this again",
            )
    run.log("fence")("the engine has forgotten stage 0; its CA and join tokens are new")


def engine_is_fenced(platform: Platform, remote: Remote) -> bool:
    """Whether the engine has no stage-0 member and nothing of the secrets that stage 0 had."""
    retired, now = platform.state.retired(), engine_secrets(remote)
    kept = [name for name, value in now.items() if retired.get(name) == value]
    return not kept and not stage0_members(platform, remote) and not _rotation_runs(remote)


def stage0_members(platform: Platform, remote: Remote) -> list[str]:
    """Return the engine's ids of members at stage 0's address."""
    form = "{{.ID}} {{.Status.Addr}} {{if .ManagerStatus}}{{.ManagerStatus.Addr}}{{end}}"
    ids = remote.check(["docker", "node", "ls", "--quiet"]).split()
    stage0 = platform.inventory.stage0.address
    lines = [line.split() for line in remote.check(["docker", "node", "inspect", "--format", form, *ids]).splitlines()]
    return [words[0] for words in lines if words and stage0 in {address.partition(":")[0] for address in words[1:]}]


def _rotate(remote: Remote) -> None:
    """Make the engine a new CA: every member gets a certificate of it, none of the old one counts, tokens change.

    Stage 0 was a manager, so a copy of it holds the old CA's key and could sign itself in as anybody.
    """
    if not _rotation_runs(remote):
        remote.check(["docker", "swarm", "ca", "--rotate", "--detach"])
    deadline = time.monotonic() + ENGINE_SECONDS
    while _rotation_runs(remote):
        if time.monotonic() > deadline:
            raise ProofError(
                f"the engine's CA was not replaced within {ENGINE_SECONDS:.0f} s",
                why="a member that is down cannot get its new certificate",
                fix="boot it, or remove it from the engine (docker node rm); run this again",
            )
        time.sleep(ENGINE_POLL_SECONDS)
    for role in ("worker", "manager"):
        remote.check(["docker", "swarm", "join-token", "--rotate", "--quiet", role])


def _rotation_runs(remote: Remote) -> bool:
    form = "{{.Swarm.Cluster.RootRotationInProgress}}"
    return remote.check(["docker", "info", "--format", form]).strip() != "false"


# --- trying credentials --------------------------------------------------------------------------------------------------


def known_credentials(platform: Platform) -> dict[str, Any]:
    """Return the credentials of now, as `blackstart.trial` takes them."""
    return _credentials(platform, platform.secrets, platform.database_login)


def retired_credentials(platform: Platform) -> dict[str, Any]:
    """Return the credentials that stage 0 knew, as `blackstart.trial` takes them."""
    return _credentials(platform, platform.state.retired(), "platform")


def _credentials(platform: Platform, secrets: dict[str, str], login: str) -> dict[str, Any]:
    store = {"url": f"https://objects:{OBJECTS_PORT}", "bucket": platform.name}
    return {
        "database": database_url(secrets["database_password"], "postgres", login=login),
        "objects": {**store, "key": secrets["objects_key"], "secret": secrets["objects_secret"]},
        "bus": bus_url(secrets["bus_password"], "bus"),
        "api": {"url": "https://api:5000", "token": secrets["api_token"]},
    }


def try_credentials(platform: Platform, client: Client, sets: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Try sets of credentials in a dyno on the platform's network; return what `blackstart.trial` says."""
    stack = client.call("GET", "/apps/psmgr/config-vars")["STACK"]
    slug = client.running_slug("psmgr")
    order = {"ca": TRUST_CA, "sets": sets, "epoch": known_credentials(platform)["objects"]}
    program = TRIAL.read_text()
    options = ["--interactive", "--network", platform.name, "--env", f"SSL_CERT_FILE={BUNDLE}"]
    argv = run_argv(stack, slug, f"exec python -c {shlex.quote(program)}", options=options)
    with connected(platform.managers[0]) as remote:
        said = remote.check(argv, stdin=json.dumps(order), seconds=TRIAL_SECONDS)
    answers: dict[str, Any] = json.loads(said.strip().splitlines()[-1])
    return answers
