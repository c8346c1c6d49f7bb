"""Hotels: catalogue and room reservations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from perdure.sql.migrations import create_idempotency_table

revision = "hotels_0001"
down_revision = None


def upgrade() -> None:
    create_idempotency_table(op)
    op.create_table(
        "hotels",
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("rooms", sa.Integer(), nullable=False),
        sa.Column("rooms_left", sa.Integer(), nullable=False),
        sa.Column("latency_ms", sa.Integer(), nullable=False),
        sa.Column("fails_cancellations", sa.Integer(), nullable=False),
        sa.CheckConstraint("fails_cancellations >= -1", name=op.f("ck_hotels_fails_cancellations")),
        sa.CheckConstraint("latency_ms >= 0", name=op.f("ck_hotels_latency_ms")),
        sa.CheckConstraint("rooms_left >= 0 AND rooms_left <= rooms", name=op.f("ck_hotels_rooms_left")),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_hotels")),
    )
    op.create_table(
        "room_reservations",
        sa.Column("reservation_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("trip_id", sa.Text(), nullable=False),
        sa.Column("hotel", sa.Text(), nullable=False),
        sa.Column("nights", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("status IN ('active', 'cancelled')", name=op.f("ck_room_reservations_status")),
        sa.CheckConstraint("nights > 0", name=op.f("ck_room_reservations_nights")),
        sa.ForeignKeyConstraint(["hotel"], ["hotels.name"], name=op.f("fk_room_reservations_hotel")),
        sa.PrimaryKeyConstraint("reservation_id", name=op.f("pk_room_reservations")),
    )
    op.create_index(op.f("ix_room_reservations_trip_id"), "room_reservations", ["trip_id"], unique=False)
    op.create_index("uq_room_reservations_key", "room_reservations", ["key"], unique=True)


def downgrade() -> None:
    op.drop_table("perdure_operations")
    op.drop_table("room_reservations")
    op.drop_table("hotels")
