"""Flights: catalogue and seat reservations."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from perdure.sql.migrations import create_idempotency_table

revision = "flights_0001"
down_revision = None


def upgrade() -> None:
    create_idempotency_table(op)
    op.create_table(
        "flights",
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("seats", sa.Integer(), nullable=False),
        sa.Column("seats_left", sa.Integer(), nullable=False),
        sa.CheckConstraint("seats_left >= 0 AND seats_left <= seats", name=op.f("ck_flights_seats_left")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_flights")),
    )
    op.create_table(
        "seat_reservations",
        sa.Column("reservation_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("trip_id", sa.Text(), nullable=False),
        sa.Column("flight", sa.Text(), nullable=False),
        sa.Column("seats", sa.Integer(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("status IN ('active', 'cancelled')", name=op.f("ck_seat_reservations_status")),
        sa.CheckConstraint("seats > 0", name=op.f("ck_seat_reservations_seats")),
        sa.ForeignKeyConstraint(["flight"], ["flights.number"], name=op.f("fk_seat_reservations_flight")),
        sa.PrimaryKeyConstraint("reservation_id", name=op.f("pk_seat_reservations")),
    )
    op.create_index(op.f("ix_seat_reservations_trip_id"), "seat_reservations", ["trip_id"], unique=False)
    op.create_index("uq_seat_reservations_key", "seat_reservations", ["key"], unique=True)


def downgrade() -> None:
    op.drop_table("perdure_operations")
    op.drop_table("seat_reservations")
    op.drop_table("flights")
