"""How Alembic reaches the fleet's database: over the connection and in the transaction of `sdk.fleet.store`."""

from __future__ import annotations

from alembic import context

from sdk.fleet.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
