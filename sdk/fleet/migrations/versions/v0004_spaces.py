"""How long a code is in every feature space of a release, not only in that of the precision that serves."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table. Releases from before are in it once they are published again."""
    op.create_table(
        "spaces",
        sa.Column("space", sa.String(length=64), nullable=False),
        sa.Column("feature_size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("space"),
    )


def downgrade() -> None:
    """A fleet does not go back: an older Headway refuses a newer database."""
    raise NotImplementedError
