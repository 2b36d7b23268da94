"""Whether the one service hears its broker: what devices last said of themselves is old where it does not."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the table, of one row at most."""
    op.create_table(
        "broker",
        sa.Column("number", sa.Integer(), nullable=False),
        sa.Column("address", sa.String(length=300), nullable=False),
        sa.Column("away_utc", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("number"),
    )


def downgrade() -> None:
    """A fleet does not go back: an older Headway refuses a newer database."""
    raise NotImplementedError
