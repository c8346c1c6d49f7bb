"""Index for the purge of reversed writes."""

from __future__ import annotations

from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_index(
        "ix_operations_service_state_created_at", "operations", ["service", "state", "created_at"], unique=False
    )


def downgrade() -> None:
    op.drop_index("ix_operations_service_state_created_at", table_name="operations")
