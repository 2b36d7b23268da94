"""Which devices are gone for good: their certificates revoked, or forgotten."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Add the columns. Who was revoked before is not known: `headway fleet forget` takes it off the list."""
    op.add_column("devices", sa.Column("revoked_utc", sa.Double(), nullable=True))
    op.add_column("devices", sa.Column("forgotten", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    """A fleet does not go back: an older Headway refuses a newer database."""
    raise NotImplementedError
