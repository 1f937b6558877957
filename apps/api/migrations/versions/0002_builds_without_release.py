"""A build may end without a release; a slug keeps the statement of how it was made."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("builds", sa.Column("releases", sa.Boolean(), server_default=sa.true(), nullable=False))
    op.add_column("slugs", sa.Column("provenance", postgresql.JSONB(astext_type=sa.Text()), nullable=True))


def downgrade() -> None:
    op.drop_column("slugs", "provenance")
    op.drop_column("builds", "releases")
