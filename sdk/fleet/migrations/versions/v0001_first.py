"""The first schema: channels, releases, publications, devices, assignments, entries."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Make all tables."""
    op.create_table(
        "channels",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("log_length", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("name"),
    )
    op.create_table(
        "releases",
        sa.Column("release_id", sa.String(length=64), nullable=False),
        sa.Column("name", sa.String(length=500), nullable=False),
        sa.Column("size_bytes", sa.BigInteger(), nullable=False),
        sa.Column("descriptor", sa.LargeBinary(), nullable=False),
        sa.Column("space", sa.String(length=64), nullable=False),
        sa.Column("feature_size", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("release_id"),
    )
    op.create_table(
        "devices",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("registered_utc", sa.Double(), nullable=False),
        sa.Column("last_seen_utc", sa.Double(), nullable=False),
        sa.Column("state", sa.LargeBinary(), nullable=False),
        sa.Column("last_seq", sa.BigInteger(), nullable=False),
        sa.Column("last_hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("last_counter", sa.BigInteger(), nullable=False),
        sa.Column("refused", sa.Text(), nullable=True),
        sa.ForeignKeyConstraint(
            ["channel"],
            ["channels.name"],
        ),
        sa.PrimaryKeyConstraint("device"),
    )
    op.create_index(op.f("ix_devices_channel"), "devices", ["channel"], unique=False)
    op.create_table(
        "publications",
        sa.Column("id", sa.Integer(), autoincrement=True, nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("release_id", sa.String(length=64), nullable=False),
        sa.Column("published_utc", sa.Double(), nullable=False),
        sa.Column("announced", sa.Boolean(), nullable=False),
        sa.Column("cleared", sa.Boolean(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel"],
            ["channels.name"],
        ),
        sa.ForeignKeyConstraint(
            ["release_id"],
            ["releases.release_id"],
        ),
        sa.PrimaryKeyConstraint("id"),
    )
    op.create_index(op.f("ix_publications_channel"), "publications", ["channel"], unique=False)
    op.create_table(
        "assignments",
        sa.Column("publication_id", sa.Integer(), nullable=False),
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("state", sa.String(length=20), nullable=True),
        sa.Column("reason", sa.String(length=500), nullable=False),
        sa.Column("updated_utc", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(
            ["device"],
            ["devices.device"],
        ),
        sa.ForeignKeyConstraint(
            ["publication_id"],
            ["publications.id"],
        ),
        sa.PrimaryKeyConstraint("publication_id", "device"),
    )
    op.create_index(op.f("ix_assignments_device"), "assignments", ["device"], unique=False)
    op.create_table(
        "entries",
        sa.Column("device", sa.String(length=63), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("counter", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(length=32), nullable=False),
        sa.Column("channel", sa.String(length=64), nullable=False),
        sa.Column("position", sa.BigInteger(), nullable=False),
        sa.Column("record", sa.LargeBinary(), nullable=False),
        sa.Column("received_utc", sa.Double(), nullable=False),
        sa.ForeignKeyConstraint(
            ["channel"],
            ["channels.name"],
        ),
        sa.ForeignKeyConstraint(
            ["device"],
            ["devices.device"],
        ),
        sa.PrimaryKeyConstraint("device", "seq"),
        sa.UniqueConstraint("channel", "position"),
    )
    op.create_index(op.f("ix_entries_counter"), "entries", ["counter"], unique=False)


def downgrade() -> None:
    """There is nothing before the first schema."""
    raise NotImplementedError
