"""One API call: who calls, on which database session, may this control plane act. Every look-up of an app is here."""

from __future__ import annotations

import base64
import binascii
import re
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from anyio import CapacityLimiter
from fastapi import Depends, Request
from redis import asyncio as aioredis
from sqlalchemy import ColumnElement, select
from sqlalchemy.exc import ProgrammingError
from sqlalchemy.orm import Session

from api.database import Database
from api.errors import forbidden, not_found, unauthorized, unavailable
from api.events import Events
from api.settings import Role, Settings
from api.signing import Signer
from blackstart.model.epoch import EpochWatch
from blackstart.model.names import DNS_LABEL
from blackstart.model.secrets import Sealer, token_digest
from blackstart.model.tables import Account, App, Platform, Token, now

READS = ("GET", "HEAD", "OPTIONS")
HOST = re.compile(rf"(({DNS_LABEL}\.)*{DNS_LABEL}|\[[0-9a-f:]+\])(:[0-9]{{1,5}})?", re.IGNORECASE)


@dataclass
class Services:
    """What lives as long as the process."""

    settings: Settings
    database: Database
    events: Events
    sealer: Sealer
    signer: Signer
    reader: aioredis.Redis | None = None
    watchers: CapacityLimiter | None = None
    epochs: EpochWatch | None = None

    @property
    def later_epoch(self) -> str | None:
        """Why this stage 0 is no longer in charge, as the platform itself says; None for an API that is no stage 0."""
        return None if self.epochs is None else self.epochs.reason or None


@dataclass
class Call:
    """One authenticated request."""

    services: Services
    session: Session
    platform: Platform
    account: Account
    token: Token
    base_url: str
    range: str | None

    def commit(self, kind: str, name: str) -> None:
        """Make the changes durable, then tell the bus."""
        self.session.commit()
        self.services.events.announce(kind, name)

    def require_admin(self) -> None:
        """Refuse everybody but the platform's operators."""
        if not self.account.admin:
            raise forbidden("Only an operator of the platform may do this.")

    def app(self, identity: str, *, lock: bool = False) -> App:
        """Return the app with this name or id, if the caller may touch it: his own, or any for an operator."""
        query = select(App).where(App.deleting.is_(False), _identity(identity))
        if not self.account.admin:
            query = query.where(App.owner_id == self.account.id, App.component.is_(None))
        if lock:
            query = query.with_for_update(of=App)
        app = self.session.scalar(query)
        if app is None:
            raise not_found("app")
        return app


def services_of(request: Request) -> Services:
    """Return the process's services."""
    services: Services = request.app.state.services
    return services


def authenticated(request: Request) -> Iterator[Call]:
    """Give the call its session and caller. Raises 503 when we must not act, 401 without a good token."""
    services = services_of(request)
    with services.database.session() as session:
        writes = request.method not in READS
        platform = active_platform(services, session, writes=writes)
        token = _token(session, request.headers.get("authorization"))
        request.state.account = token.account.email
        yield Call(
            services=services,
            session=session,
            platform=platform,
            account=token.account,
            token=token,
            base_url=base_url(request, services.settings.domain),
            range=request.headers.get("range"),
        )


Caller = Annotated[Call, Depends(authenticated)]


def active_platform(services: Services, session: Session, *, writes: bool) -> Platform:
    """Return the platform's row, if this control plane may act now.

    A write holds the row shared until it commits: whoever sets `stage` to `moving` waits for the writes that
    began before, and no write begins after.
    """
    query = select(Platform).where(Platform.id == 1)
    if writes:
        query = query.with_for_update(read=True)
    try:
        platform = session.scalar(query)
    except ProgrammingError as error:
        raise unavailable("schema_outdated", "The database has no schema yet; run bin/migrate.") from error
    if platform is None:
        raise unavailable("not_active", "The database holds no platform yet; run bin/admin init.")
    problem = services.later_epoch or inactive(services.settings.role, platform.stage, writes=writes)
    if problem is not None:
        raise unavailable("not_active", problem)
    outdated = services.database.schema_problem(session) if writes else None
    if outdated is not None:
        raise unavailable("schema_outdated", f"Nothing can be changed now: {outdated}.")
    return platform


def inactive(role: Role, stage: str, *, writes: bool) -> str | None:
    """Return why an API of this role must not act at this stage, or None when it may."""
    if role == "app":
        return None if stage == "self-hosted" else f"This API is not in charge yet: the platform's stage is {stage}."
    if stage == "stage-0" or (stage == "moving" and not writes):
        return None
    return f"Stage 0's API is no longer in charge: the platform's stage is {stage}."


def base_url(request: Request, domain: str) -> str:
    """Return the URL under which the caller reached us, so that URLs we give out work through a tunnel as well."""
    host = request.headers.get("host", "")
    if HOST.fullmatch(host) is None:
        return f"https://api.{domain}"
    scheme = request.headers.get("x-forwarded-proto", request.url.scheme)
    return f"{scheme if scheme in ('http', 'https') else 'https'}://{host}"


def as_uuid(value: str) -> uuid.UUID | None:
    """Return `value` as a UUID, or None when it is none."""
    try:
        return uuid.UUID(value)
    except ValueError:
        return None


def _identity(identity: str) -> ColumnElement[bool]:
    id = as_uuid(identity)
    return App.name == identity if id is None else App.id == id


def _token(session: Session, header: str | None) -> Token:
    secret = _secret(header)
    if secret is None:
        raise unauthorized()
    token = session.scalar(select(Token).where(Token.digest == token_digest(secret)))
    if token is None or (token.expires_at is not None and token.expires_at <= now()):
        raise unauthorized()
    return token


def _secret(header: str | None) -> str | None:
    """Return the token in an Authorization header: Bearer, or Basic with any user."""
    scheme, _, value = (header or "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip() or None
    if scheme.lower() != "basic":
        return None
    try:
        text = base64.b64decode(value.strip(), validate=True).decode()
    except (binascii.Error, UnicodeDecodeError):
        return None
    return text.partition(":")[2] or None
