"""What Alembic runs for each command. The connection, and its transaction, are given by the package."""

from __future__ import annotations

from alembic import context

from services.data_plane.tables import Base

context.configure(connection=context.config.attributes["connection"], target_metadata=Base.metadata)
with context.begin_transaction():
    context.run_migrations()
