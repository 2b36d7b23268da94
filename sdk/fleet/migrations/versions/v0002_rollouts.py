"""Rollouts in waves: which publications are staged, which wave reached a device, and how well it did before."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns and the table."""
    op.add_column("publications", sa.Column("staged", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("assignments", sa.Column("wave", sa.Integer(), nullable=False, server_default=sa.text("0")))
    op.add_column("assignments", sa.Column("before", sa.LargeBinary(), nullable=True))
    op.create_table(
        "rollouts",
        sa.Column("publication_id", sa.Integer(), nullable=False),
        sa.Column("plan", sa.LargeBinary(), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=False),
        sa.Column("wave", sa.Integer(), nullable=False),
        sa.Column("wave_began_utc", sa.Double(), nullable=False),
        sa.Column("well_since_utc", sa.Double(), nullable=True),
        sa.Column("approved", sa.Integer(), nullable=False),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("version", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(["publication_id"], ["publications.id"]),
        sa.PrimaryKeyConstraint("publication_id"),
    )


def downgrade() -> None:
    """A fleet does not go back: an older Headway refuses a newer database."""
    raise NotImplementedError
