"""Payments: ledger and charges, with the platform's own accounts."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from perdure.sql.migrations import create_idempotency_table

revision = "payments_0001"
down_revision = None


def upgrade() -> None:
    create_idempotency_table(op)
    accounts = op.create_table(
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
        "ledger_transactions",
        sa.Column("transaction_id", sa.Text(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("trip_id", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.func.now(), nullable=False),
        sa.CheckConstraint("kind IN ('opening', 'charge', 'refund')", name=op.f("ck_ledger_transactions_kind")),
        sa.PrimaryKeyConstraint("transaction_id", name=op.f("pk_ledger_transactions")),
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
    platform = [
        {"account_id": f"{kind}-{currency.lower()}", "kind": kind, "currency": currency}
        for currency in ("EUR", "USD")
        for kind in ("merchant", "equity")
    ]
    op.bulk_insert(
        accounts, [{**account, "balance_minor": 0, "frozen": False, "card_declined": False} for account in platform]
    )


def downgrade() -> None:
    op.drop_table("perdure_operations")
    op.drop_table("ledger_postings")
    op.drop_table("charges")
    op.drop_table("ledger_transactions")
    op.drop_table("accounts")
