"""`python -m api.admin`: what the operator's scripts do on the database directly, before or beside the API."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from sqlalchemy import Engine, create_engine, delete, pool, select, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from api.errors import reason
from api.schema import HEAD, migrate
from blackstart.model import names
from blackstart.model.secrets import token_digest
from blackstart.model.tables import Account, Platform, Token

STAGES = ("stage-0", "moving", "self-hosted")
OPERATOR_TOKEN = "operator (bootstrap)"  # noqa: S105 - a token's description
SHORTEST_TOKEN = 32


class AdminRefused(Exception):
    """The operator asked for what cannot be; the message says why and what to do."""


def main(arguments: Sequence[str], env: Mapping[str, str]) -> int:
    """Run a command. Returns 0, or 1 with a reason on stderr."""
    asked = _parser().parse_args(arguments)
    try:
        url = env.get("DATABASE_URL", "")
        if not url.startswith("postgresql+psycopg://"):
            raise AdminRefused("DATABASE_URL is not set (it starts with postgresql+psycopg://)")
        print(_run(asked, url))
    except (AdminRefused, names.NameRefused) as error:
        print(f"api.admin {asked.command}: {error}", file=sys.stderr)
        return 1
    except DBAPIError as error:
        detail = str(error.orig).strip().replace("\n", " ")
        print(f"api.admin {asked.command}: the database refused ({reason(error)}): {detail}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bin/admin", description="Works on the database in DATABASE_URL.")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("migrate", help="bring the schema to this version; safe to repeat")
    init = commands.add_parser("init", help="make the platform's row and the operator; the token comes on stdin")
    init.add_argument("--name", required=True)
    init.add_argument("--domain", required=True)
    init.add_argument(
        "--stage", choices=STAGES, default="stage-0", help="of a new platform; an existing one keeps its own"
    )
    stage = commands.add_parser("stage", help="say which control plane may act; raises the epoch")
    stage.add_argument("stage", choices=STAGES)
    stage.add_argument("--from", dest="before", choices=STAGES, help="refuse unless this is the stage now")
    return parser


def _run(asked: argparse.Namespace, url: str) -> str:
    if asked.command == "migrate":
        migrate(url)
        return f"schema: {HEAD}"
    engine = create_engine(url, poolclass=pool.NullPool, connect_args={"connect_timeout": 10})
    if asked.command == "stage":
        return set_stage(engine, asked.stage, asked.before)
    return init(engine, name=asked.name, domain=asked.domain, stage=asked.stage, token=sys.stdin.readline().strip())


def init(engine: Engine, *, name: str, domain: str, stage: str, token: str) -> str:
    """Make the platform's row and its operator, if absent; the operator's bootstrap token becomes `token`."""
    names.platform_name(name)
    domain = names.domain(domain)
    if len(token) < SHORTEST_TOKEN:
        raise AdminRefused(f"the token on stdin must have at least {SHORTEST_TOKEN} characters")
    with Session(engine) as session, session.begin():
        platform = session.get(Platform, 1, with_for_update=True)
        if platform is None:
            platform = Platform(id=1, name=name, domain=domain, stage=stage, epoch=0, settings={})
            session.add(platform)
            session.flush()
        if (platform.name, platform.domain) != (name, domain):
            raise AdminRefused(
                f"this database belongs to platform {platform.name} at {platform.domain}, not {name} at {domain};"
                " check DATABASE_URL"
            )
        operator = _operator(session, f"operator@{domain}")
        _operator_token(session, operator, token_digest(token))
        return f"platform {name} at {domain}, stage {platform.stage}, operator {operator.email}"


def set_stage(engine: Engine, stage: str, before: str | None) -> str:
    """Set the stage and raise the epoch. Waits for the writes that began before (they hold the row shared)."""
    with Session(engine) as session, session.begin():
        platform = session.get(Platform, 1, with_for_update=True)
        if platform is None:
            raise AdminRefused("this database holds no platform yet; run init first")
        if platform.stage == stage:
            return f"stage {stage}, epoch {platform.epoch} (as it was)"
        if before is not None and platform.stage != before:
            raise AdminRefused(f"the stage is {platform.stage}, not {before}; nothing was changed")
        session.execute(update(Platform).values(stage=stage, epoch=Platform.epoch + 1))
        session.refresh(platform)
        return f"stage {stage}, epoch {platform.epoch}"


def _operator(session: Session, email: str) -> Account:
    account = session.scalar(select(Account).where(Account.email == email))
    if account is None:
        account = Account(email=email, admin=True)
        session.add(account)
    account.admin = True
    session.flush()
    return account


def _operator_token(session: Session, operator: Account, digest: str) -> None:
    """Keep exactly one bootstrap token: an older one is refused from now on."""
    mine = (Token.account_id == operator.id, Token.description == OPERATOR_TOKEN)
    session.execute(delete(Token).where(*mine, Token.digest != digest))
    if session.scalar(select(Token.id).where(Token.digest == digest)) is None:
        session.add(Token(account_id=operator.id, digest=digest, description=OPERATOR_TOKEN))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
