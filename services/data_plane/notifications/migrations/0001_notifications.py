"""Notifications: the outbox and delivered approval notices."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from perdure.sql.migrations import create_idempotency_table

revision = "notifications_0001"
down_revision = None


def upgrade() -> None:
    create_idempotency_table(op)
    op.create_table(
        "notifications",
        sa.Column("notification_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("trip_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("kind IN ('trip-confirmed', 'trip-refused')", name=op.f("ck_notifications_kind")),
        sa.PrimaryKeyConstraint("notification_id", name=op.f("pk_notifications")),
    )
    op.create_index(op.f("ix_notifications_trip_id"), "notifications", ["trip_id"], unique=False)
    op.create_index("uq_notifications_key", "notifications", ["key"], unique=True)
    op.create_table(
        "approval_notices",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("approval_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("recipient", sa.Text(), nullable=False),
        sa.Column("text", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("key", name=op.f("pk_approval_notices")),
    )
    op.create_index(op.f("ix_approval_notices_approval_id"), "approval_notices", ["approval_id"], unique=False)


def downgrade() -> None:
    op.drop_table("perdure_operations")
    op.drop_table("approval_notices")
    op.drop_table("notifications")
