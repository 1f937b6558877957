"""`/account` and `/users`: who calls; operators make accounts."""

from __future__ import annotations

import re
from typing import Any

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from sqlalchemy import func, select

from api import stamps
from api.call import Call, Caller, as_uuid
from api.errors import forbidden, invalid, not_found
from api.lists import listing
from blackstart.model.tables import Account, App

router = APIRouter()
EMAIL = re.compile(r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9.-]{1,189}")


class NewUser(BaseModel):
    """POST /users (ours)."""

    email: str
    admin: bool = False


def view(account: Account) -> dict[str, Any]:
    """Return an account as the API shows it."""
    return {
        "id": str(account.id),
        "email": account.email,
        "name": None,
        "admin": account.admin,
        "allow_tracking": False,
        "beta": False,
        "federated": False,
        "verified": True,
        "two_factor_authentication": False,
        "last_login": None,
        "suspended_at": None,
        "delinquent_at": None,
        "created_at": stamps.time_of(account.created_at),
        "updated_at": stamps.time_of(account.updated_at),
    }


def find_account(call: Call, identity: str) -> Account:
    """Return the account with this email or id; `~` is the caller. Others only for operators."""
    if identity in ("~", call.account.email, str(call.account.id)):
        return call.account
    id = as_uuid(identity)
    same = Account.email == identity if id is None else Account.id == id
    account = call.session.scalar(select(Account).where(same)) if call.account.admin else None
    if account is None:
        raise not_found("user")
    return account


@router.get("/account")
def account_info(call: Caller) -> dict[str, Any]:
    """Show the caller."""
    return view(call.account)


@router.get("/users")
def user_list(call: Caller) -> JSONResponse:
    """List all accounts (operators)."""
    call.require_admin()
    return listing(
        call,
        select(Account),
        {"email": Account.email, "id": Account.id},
        lambda accounts: [view(account) for account in accounts],
    )


@router.get("/users/{user}")
def user_info(call: Caller, user: str) -> dict[str, Any]:
    """Show an account."""
    return view(find_account(call, user))


@router.post("/users", status_code=201)
def user_create(call: Caller, body: NewUser) -> dict[str, Any]:
    """Make an account (operators). Its first token comes from POST /oauth/authorizations."""
    call.require_admin()
    if EMAIL.fullmatch(body.email) is None:
        raise invalid(f"email {body.email[:80]!r} is not an email address")
    email = body.email.lower()
    if call.session.scalar(select(Account.id).where(Account.email == email)) is not None:
        raise invalid(f"email {email} has an account already")
    account = Account(email=email, admin=body.admin)
    call.session.add(account)
    call.session.flush()
    call.commit("account", email)
    return view(account)


@router.delete("/users/{user}")
def user_delete(call: Caller, user: str) -> dict[str, Any]:
    """Remove an account that did nothing yet, with its tokens (operators)."""
    call.require_admin()
    account = find_account(call, user)
    if account.id == call.account.id:
        raise forbidden("An operator cannot remove the account that is calling.")
    if call.session.scalar(select(func.count()).select_from(App).where(App.owner_id == account.id)):
        raise invalid(f"{account.email} still owns apps; delete them first")
    shown = view(account)
    call.session.delete(account)
    call.commit("account", account.email)
    return shown
