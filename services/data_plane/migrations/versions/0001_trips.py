"""The tables of the trips platform: catalogue, reservations, ledger, outbox, and the idempotency table."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "accounts",
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("currency", sa.Text(), nullable=False),
        sa.Column("balance_minor", sa.BigInteger(), nullable=False),
        sa.Column("frozen", sa.Boolean(), nullable=False),
        sa.Column("card_declined", sa.Boolean(), nullable=False),
        sa.CheckConstraint("balance_minor >= 0 OR kind = 'equity'", name=op.f("ck_accounts_balance_minor")),
        sa.CheckConstraint("kind IN ('customer', 'merchant', 'equity')", name=op.f("ck_accounts_kind")),
        sa.PrimaryKeyConstraint("account_id", name=op.f("pk_accounts")),
    )
    op.create_table(
        "flights",
        sa.Column("number", sa.Text(), nullable=False),
        sa.Column("seats", sa.Integer(), nullable=False),
        sa.Column("seats_left", sa.Integer(), nullable=False),
        sa.CheckConstraint("seats_left >= 0 AND seats_left <= seats", name=op.f("ck_flights_seats_left")),
        sa.PrimaryKeyConstraint("number", name=op.f("pk_flights")),
    )
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
        "ledger_transactions",
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("trip_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("kind IN ('opening', 'charge', 'refund')", name=op.f("ck_ledger_transactions_kind")),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_ledger_transactions")),
    )
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
        "operations",
        sa.Column("service", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("trip_id", sa.Text(), nullable=False),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("request_digest", sa.Text(), nullable=True),
        sa.Column("result", sa.Text(), nullable=True),
        sa.Column("compensation_digest", sa.Text(), nullable=True),
        sa.Column("compensation_result", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("state IN ('performed', 'compensated', 'voided')", name=op.f("ck_operations_state")),
        sa.PrimaryKeyConstraint("service", "key", name=op.f("pk_operations")),
    )
    op.create_table(
        "charges",
        sa.Column("payment_id", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("trip_id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.Column("status", sa.Text(), nullable=False),
        sa.Column("charge_transaction", sa.Text(), nullable=False),
        sa.Column("refund_transaction", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("status IN ('charged', 'refunded')", name=op.f("ck_charges_status")),
        sa.CheckConstraint("amount_minor > 0", name=op.f("ck_charges_amount_minor")),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name=op.f("fk_charges_account_id")),
        sa.ForeignKeyConstraint(
            ["charge_transaction"], ["ledger_transactions.transaction_id"], name=op.f("fk_charges_charge_transaction")
        ),
        sa.ForeignKeyConstraint(
            ["refund_transaction"], ["ledger_transactions.transaction_id"], name=op.f("fk_charges_refund_transaction")
        ),
        sa.PrimaryKeyConstraint("payment_id", name=op.f("pk_charges")),
    )
    op.create_index(op.f("ix_charges_trip_id"), "charges", ["trip_id"], unique=False)
    op.create_index("uq_charges_key", "charges", ["key"], unique=True)
    op.create_table(
        "ledger_postings",
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("account_id", sa.Text(), nullable=False),
        sa.Column("amount_minor", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["account_id"], ["accounts.account_id"], name=op.f("fk_ledger_postings_account_id")),
        sa.ForeignKeyConstraint(
            ["transaction_id"], ["ledger_transactions.transaction_id"], name=op.f("fk_ledger_postings_transaction_id")
        ),
        sa.PrimaryKeyConstraint("transaction_id", "account_id", name=op.f("pk_ledger_postings")),
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
    op.drop_table("seat_reservations")
    op.drop_table("room_reservations")
    op.drop_table("ledger_postings")
    op.drop_table("charges")
    op.drop_table("operations")
    op.drop_table("notifications")
    op.drop_table("ledger_transactions")
    op.drop_table("hotels")
    op.drop_table("flights")
    op.drop_table("accounts")
