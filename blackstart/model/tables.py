"""The platform's database, as SQLAlchemy 2 tables. `apps/api/migrations` (Alembic) creates it.

Times are UTC with zone. Ids are UUIDs made here, so that a row keeps its id when the database moves.
"""

from __future__ import annotations

import datetime
import uuid
from typing import Any, ClassVar

from sqlalchemy import (
    BigInteger,
    Boolean,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    String,
    Text,
    UniqueConstraint,
    true,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship


def now() -> datetime.datetime:
    """Return the present time in UTC."""
    return datetime.datetime.now(datetime.UTC)


class Base(DeclarativeBase):
    """The base of all tables."""

    type_annotation_map: ClassVar[dict[Any, Any]] = {
        # Without none_as_null, None is stored as JSON's null, which `IS NULL` does not find.
        dict[str, Any]: JSONB(none_as_null=True),
        dict[str, str]: JSONB,
        list[dict[str, Any]]: JSONB,
        datetime.datetime: DateTime(timezone=True),
    }


class Identified:
    """A row with an id and its times."""

    id: Mapped[uuid.UUID] = mapped_column(primary_key=True, default=uuid.uuid4)
    created_at: Mapped[datetime.datetime] = mapped_column(default=now)
    updated_at: Mapped[datetime.datetime] = mapped_column(default=now, onupdate=now)


class Platform(Base):
    """One row: which stage this control plane is in, and its epoch.

    `stage` is `stage-0`, `moving` or `self-hosted`. A `psmgr` or `api` that runs as an app acts only when it
    reads `self-hosted`; stage 0's own act only on `stage-0` (so neither acts while the state moves).
    """

    __tablename__ = "platform"
    id: Mapped[int] = mapped_column(primary_key=True, default=1)
    name: Mapped[str] = mapped_column(String(12))
    domain: Mapped[str] = mapped_column(String(253))
    stage: Mapped[str] = mapped_column(String(16))
    epoch: Mapped[int] = mapped_column(BigInteger, default=0)
    settings: Mapped[dict[str, Any]] = mapped_column(default=dict)


class Account(Identified, Base):
    """A person or program that owns apps."""

    __tablename__ = "accounts"
    email: Mapped[str] = mapped_column(String(254), unique=True)
    admin: Mapped[bool] = mapped_column(Boolean, default=False)


class Token(Identified, Base):
    """A bearer token; only its sha256 is kept."""

    __tablename__ = "tokens"
    account_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))
    digest: Mapped[str] = mapped_column(String(64), unique=True)
    description: Mapped[str] = mapped_column(String(200), default="")
    expires_at: Mapped[datetime.datetime | None]
    account: Mapped[Account] = relationship(lazy="joined")


class App(Identified, Base):
    """An app. `component` holds the validated component.toml of the platform's own apps, else null."""

    __tablename__ = "apps"
    name: Mapped[str] = mapped_column(String(30), unique=True)
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id"))
    maintenance: Mapped[bool] = mapped_column(Boolean, default=False)
    component: Mapped[dict[str, Any] | None]
    deleting: Mapped[bool] = mapped_column(Boolean, default=False)
    owner: Mapped[Account] = relationship(lazy="joined")


class Source(Identified, Base):
    """An uploaded source: its object is `sources/<id>`."""

    __tablename__ = "sources"
    owner_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id", ondelete="CASCADE"))


class Slug(Identified, Base):
    """A compiled app. Its object is `slugs/<sha256>.squashfs`; several rows may share one.

    `provenance` is an in-toto statement of how it was made, null where nobody said.
    """

    __tablename__ = "slugs"
    app_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    sha256: Mapped[str] = mapped_column(String(64), index=True)
    size: Mapped[int] = mapped_column(BigInteger)
    stack: Mapped[str] = mapped_column(String(200))
    source_sha256: Mapped[str] = mapped_column(String(64))
    source_version: Mapped[str | None] = mapped_column(String(200))
    process_types: Mapped[dict[str, str]]
    buildpacks: Mapped[list[dict[str, Any]]]
    provenance: Mapped[dict[str, Any] | None]


class Build(Identified, Base):
    """A build. `status` is `pending`, `running`, `succeeded` or `failed`; `output` is kept when it ended.

    One with `releases` false ends with a slug and no release.
    """

    __tablename__ = "builds"
    app_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id"))
    status: Mapped[str] = mapped_column(String(16), default="pending")
    source_url: Mapped[str] = mapped_column(Text)
    source_id: Mapped[uuid.UUID | None]
    source_checksum: Mapped[str | None] = mapped_column(String(80))
    source_version: Mapped[str | None] = mapped_column(String(200))
    releases: Mapped[bool] = mapped_column(Boolean, default=True, server_default=true())
    slug_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("slugs.id", ondelete="SET NULL"))
    release_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("releases.id", ondelete="SET NULL"))
    output: Mapped[str] = mapped_column(Text, default="")
    failure: Mapped[str | None] = mapped_column(Text)
    app: Mapped[App] = relationship()
    user: Mapped[Account] = relationship(lazy="joined")


class Release(Identified, Base):
    """Slug + config + process types, numbered. `status` is `pending`, `succeeded` or `failed`.

    `config` is AES-GCM of the config vars' JSON (see `secrets.py`).
    """

    __tablename__ = "releases"
    __table_args__ = (UniqueConstraint("app_id", "version"),)
    app_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"), index=True)
    version: Mapped[int] = mapped_column(Integer)
    slug_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("slugs.id"))
    config: Mapped[bytes] = mapped_column(LargeBinary)
    description: Mapped[str] = mapped_column(String(300))
    status: Mapped[str] = mapped_column(String(16), default="pending")
    failure: Mapped[str | None] = mapped_column(Text)
    user_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("accounts.id"))
    app: Mapped[App] = relationship()
    slug: Mapped[Slug | None] = relationship(lazy="joined")
    user: Mapped[Account] = relationship(lazy="joined")


class Formation(Identified, Base):
    """How many dynos of a process type should run."""

    __tablename__ = "formations"
    __table_args__ = (UniqueConstraint("app_id", "type"),)
    app_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(30))
    quantity: Mapped[int] = mapped_column(Integer, default=0)
    size: Mapped[str] = mapped_column(String(30), default="standard-1X")


class Dyno(Identified, Base):
    """A dyno as `psmgr` last saw it, and the wish for a one-off.

    `state` is `starting`, `up`, `crashed`, `down`, or for a one-off also `pending` (asked for), `complete`, `failed`.
    `task` is the engine's task id; `port` is where a routed dyno listens on its node: the engine forgets it
    when another of its managers leads (tried), so it is kept here.
    One-offs carry their command and sealed environment; a `stop_requested` one is stopped.
    """

    __tablename__ = "dynos"
    __table_args__ = (Index("dynos_app_name", "app_id", "name"),)
    app_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    release_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("releases.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(30))
    name: Mapped[str] = mapped_column(String(40))
    command: Mapped[str] = mapped_column(Text)
    one_off: Mapped[bool] = mapped_column(Boolean, default=False)
    env: Mapped[bytes | None] = mapped_column(LargeBinary)
    size: Mapped[str] = mapped_column(String(30), default="standard-1X")
    state: Mapped[str] = mapped_column(String(16))
    node: Mapped[str | None] = mapped_column(String(64))
    task: Mapped[str | None] = mapped_column(String(64))
    port: Mapped[int | None] = mapped_column(Integer)
    exit_code: Mapped[int | None] = mapped_column(Integer)
    output: Mapped[str] = mapped_column(Text, default="")
    stop_requested: Mapped[bool] = mapped_column(Boolean, default=False)
    time_limit_s: Mapped[int | None] = mapped_column(Integer)
    app: Mapped[App] = relationship()
    release: Mapped[Release | None] = relationship()


class Domain(Identified, Base):
    """A host name that routes to an app. Every app also answers at `<app>.<platform domain>` (kind `heroku`)."""

    __tablename__ = "domains"
    app_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("apps.id", ondelete="CASCADE"))
    hostname: Mapped[str] = mapped_column(String(253), unique=True)


class Node(Identified, Base):
    """A machine of the engine as `psmgr` last saw it. `state` is `ready`, `down` or `drained`."""

    __tablename__ = "nodes"
    name: Mapped[str] = mapped_column(String(64), unique=True)
    address: Mapped[str] = mapped_column(String(64))
    role: Mapped[str] = mapped_column(String(16))
    state: Mapped[str] = mapped_column(String(16))
    seen_at: Mapped[datetime.datetime] = mapped_column(default=now)
