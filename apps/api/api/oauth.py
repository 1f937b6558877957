"""`/oauth/authorizations`: tokens. Their text is shown once, when they are made."""

from __future__ import annotations

import datetime
import uuid
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import select

from api import stamps
from api.account import find_account
from api.call import Call, Caller, as_uuid
from api.errors import invalid, not_found
from api.lists import listing
from blackstart.model.secrets import new_token, token_digest
from blackstart.model.tables import Token, now

router = APIRouter()
LONGEST_SECONDS = 10 * 365 * 86_400
MAX_DESCRIPTION = 200


class NewAuthorization(BaseModel):
    """POST /oauth/authorizations. `user` (ours, operators only): for whom. Every token is `global`."""

    description: str = ""
    expires_in: int | None = None
    scope: list[str] = ["global"]
    user: str = "~"


def view(token: Token, secret: str | None = None) -> dict[str, Any]:
    """Return a token as the API shows it; `secret` only in the answer that makes it."""
    left = None if token.expires_at is None else max(0, int((token.expires_at - now()).total_seconds()))
    access: dict[str, Any] = {"id": str(token.id), "expires_in": left}
    if secret is not None:
        access["token"] = secret
    return {
        "id": str(token.id),
        "access_token": access,
        "client": None,
        "created_at": stamps.time_of(token.created_at),
        "description": token.description,
        "grant": None,
        "refresh_token": None,
        "scope": ["global"],
        "session": None,
        "updated_at": stamps.time_of(token.updated_at),
        "user": {**stamps.user(token.account), "full_name": None},
    }


@router.get("/oauth/authorizations")
def authorization_list(call: Caller) -> JSONResponse:
    """List the caller's tokens, without their text."""
    query = select(Token).where(Token.account_id == call.account.id)
    columns = {"created_at": Token.created_at, "id": Token.id}
    return listing(call, query, columns, lambda tokens: [view(token) for token in tokens])


@router.get("/oauth/authorizations/{authorization}")
def authorization_info(call: Caller, authorization: str) -> dict[str, Any]:
    """Show a token, without its text."""
    return view(_find(call, authorization))


@router.post("/oauth/authorizations", status_code=201)
def authorization_create(call: Caller, body: NewAuthorization | None = None) -> dict[str, Any]:
    """Make a token: for the caller, or (operators) for another account."""
    wish = NewAuthorization() if body is None else body
    if wish.scope not in ([], ["global"]):
        raise invalid('scope: only ["global"] is supported')
    if len(wish.description) > MAX_DESCRIPTION or "\0" in wish.description:
        raise invalid(f"description must be up to {MAX_DESCRIPTION} characters")
    account, secret = find_account(call, wish.user), new_token()
    token = Token(
        id=uuid.uuid4(),
        account_id=account.id,
        account=account,
        digest=token_digest(secret),
        description=wish.description,
        expires_at=_expiry(wish.expires_in, call.token),
    )
    call.session.add(token)
    call.session.flush()
    call.commit("account", account.email)
    return view(token, secret)


@router.delete("/oauth/authorizations/{authorization}")
def authorization_delete(call: Caller, authorization: str) -> dict[str, Any]:
    """Revoke a token: refused from now on."""
    token = _find(call, authorization)
    shown = view(token)
    call.session.delete(token)
    call.commit("account", token.account.email)
    return shown


def _find(call: Call, identity: str) -> Token:
    id = as_uuid(identity)
    query = select(Token).where(Token.id == id)
    if not call.account.admin:
        query = query.where(Token.account_id == call.account.id)
    token = None if id is None else call.session.scalar(query)
    if token is None:
        raise not_found("authorization")
    return token


def _expiry(seconds: int | None, caller: Token) -> datetime.datetime | None:
    """Return when a token ends: as asked, but one made by an expiring token never outlives it by default."""
    if seconds is None:
        return caller.expires_at
    if not 1 <= seconds <= LONGEST_SECONDS:
        raise invalid(f"expires_in must be 1 to {LONGEST_SECONDS} seconds")
    return now() + datetime.timedelta(seconds=seconds)
