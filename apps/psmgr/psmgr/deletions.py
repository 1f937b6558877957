"""A deleted app leaves nothing: no service, row, object, or slug on a node. A component's volume is never removed."""

from __future__ import annotations

import uuid
from collections.abc import Iterable

from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from blackstart.model.tables import App, Build, Release, Slug, Source
from psmgr.store import Store, build_keys, cache_key, slug_key, source_key


def objects_of(session: Session, app_id: uuid.UUID) -> list[str]:
    """Return the keys of the objects that only this app uses."""
    own = select(Slug.sha256).where(Slug.app_id == app_id)
    shared = select(Slug.sha256).where(Slug.app_id != app_id)
    slugs = session.scalars(own.where(Slug.sha256.not_in(shared)).distinct())
    builds = session.execute(select(Build.id, Build.source_id).where(Build.app_id == app_id)).all()
    keys = [slug_key(slug) for slug in slugs]
    keys += [key for id_, _ in builds for key in build_keys(id_)]
    keys += [
        source_key(source) for _, source in builds if source is not None and not _elsewhere(session, source, app_id)
    ]
    return [*keys, cache_key(app_id)]


def forget_app(session: Session, app_id: uuid.UUID) -> None:
    """Remove the app's rows and its sources'. Call it when the objects are gone, so that none loses its owner."""
    sources = session.scalars(select(Build.source_id).where(Build.app_id == app_id, Build.source_id.is_not(None)))
    own = [source for source in sources if source is not None and not _elsewhere(session, source, app_id)]
    session.execute(delete(Release).where(Release.app_id == app_id))
    session.execute(delete(App).where(App.id == app_id, App.deleting))
    session.execute(delete(Source).where(Source.id.in_(own)))


def slugs_to_keep(session: Session, also: Iterable[str]) -> frozenset[str]:
    """Return the slugs that nodes keep: of each app's two newest releases that ran, and `also`."""
    keep = set(also)
    seen: dict[uuid.UUID, int] = {}
    query = (
        select(Release.app_id, Release.status, Slug.sha256)
        .join(Slug, Slug.id == Release.slug_id)
        .where(Release.status != "failed")
        .order_by(Release.app_id, Release.version.desc())
    )
    for app_id, status, slug in session.execute(query):
        if seen.get(app_id, 0) < 2:
            keep.add(slug)
            seen[app_id] = seen.get(app_id, 0) + (status == "succeeded")
    return frozenset(keep)


def remove_objects(store: Store, keys: Iterable[str]) -> None:
    """Remove the objects."""
    store.delete(keys)


def _elsewhere(session: Session, source: uuid.UUID, app_id: uuid.UUID) -> bool:
    query = select(Build.id).where(Build.source_id == source, Build.app_id != app_id).limit(1)
    return session.scalar(query) is not None
