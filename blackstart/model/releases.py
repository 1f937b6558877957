"""Making releases: the one place where a slug and a config become a numbered version."""

from __future__ import annotations

import uuid

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from blackstart.model.secrets import Sealer
from blackstart.model.tables import Account, App, Formation, Release, Slug


def current_release(session: Session, app: App) -> Release | None:
    """Return the newest release that did not fail: its config is the app's config."""
    return session.scalar(
        select(Release)
        .where(Release.app_id == app.id, Release.status != "failed")
        .order_by(Release.version.desc())
        .limit(1)
    )


def config_of(session: Session, sealer: Sealer, app: App) -> dict[str, str]:
    """Return the app's config vars."""
    release = current_release(session, app)
    return {} if release is None else sealer.open(release.config, str(app.id))


def lock_app(session: Session, app: App) -> None:
    """Wait until no other transaction changes `app`'s releases or formation, and keep others out until this one ends.

    Take it before reading the config (`config_of`) that the next release starts from: else two changes at
    once start from the same config and one is lost.
    """
    session.execute(select(App.id).where(App.id == app.id).with_for_update())


def create_release(
    session: Session,
    sealer: Sealer,
    app: App,
    *,
    user: Account,
    description: str,
    slug: Slug | None,
    config: dict[str, str],
) -> Release:
    """Add the next release of `app` and return it (flushed, not committed).

    The app's row is locked, so versions have no gap and no twin. A release without a slug has nothing to
    start and is `succeeded` at once.
    """
    lock_app(session, app)
    newest = session.scalar(select(func.max(Release.version)).where(Release.app_id == app.id)) or 0
    release = Release(
        id=uuid.uuid4(),
        app_id=app.id,
        version=newest + 1,
        slug_id=None if slug is None else slug.id,
        config=sealer.seal(config, str(app.id)),
        description=description,
        status="succeeded" if slug is None else "pending",
        user_id=user.id,
    )
    session.add(release)
    session.flush()
    if slug is not None:
        _add_formations(session, app, slug)
    return release


def _add_formations(session: Session, app: App, slug: Slug) -> None:
    """Give each new process type a formation: one `web` dyno for an ordinary app, else none."""
    known = set(session.scalars(select(Formation.type).where(Formation.app_id == app.id)))
    for type_ in sorted(set(slug.process_types) - known):
        quantity = 1 if type_ == "web" and app.component is None else 0
        session.add(Formation(app_id=app.id, type=type_, quantity=quantity))
    session.flush()
