"""Tables of Payments."""

from __future__ import annotations

from typing import Final

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, Text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from perdure.sql import IdempotencyTable
from services.data_plane.tables import Timestamped, new_metadata


class Base(DeclarativeBase):
    """Base of the tables in this service's database."""

    metadata = new_metadata()


OPERATIONS: Final = IdempotencyTable(Base.metadata)


class AccountRow(Base):
    """An account in one currency.

    ``customer`` accounts are charged, ``merchant`` accounts take the money in, ``equity`` accounts are where opening
    balances come from, and the only ones that may be below zero. A frozen account, and one whose card is declined,
    refuses charges but takes refunds.
    """

    __tablename__ = "accounts"
    __table_args__ = (
        CheckConstraint("kind IN ('customer', 'merchant', 'equity')", name="kind"),
        CheckConstraint("balance_minor >= 0 OR kind = 'equity'", name="balance_minor"),
    )

    account_id: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    currency: Mapped[str] = mapped_column(Text)
    balance_minor: Mapped[int] = mapped_column(BigInteger, default=0)
    frozen: Mapped[bool] = mapped_column(default=False)
    card_declined: Mapped[bool] = mapped_column(default=False)


class LedgerTransactionRow(Timestamped, Base):
    """A movement of money: an opening balance, a charge or a refund."""

    __tablename__ = "ledger_transactions"
    __table_args__ = (CheckConstraint("kind IN ('opening', 'charge', 'refund')", name="kind"),)

    transaction_id: Mapped[str] = mapped_column(Text, primary_key=True)
    kind: Mapped[str] = mapped_column(Text)
    trip_id: Mapped[str | None] = mapped_column(Text)


class PostingRow(Base):
    """A line of a transaction: the amount added to an account; negative for a debit."""

    __tablename__ = "ledger_postings"

    transaction_id: Mapped[str] = mapped_column(Text, ForeignKey(LedgerTransactionRow.transaction_id), primary_key=True)
    account_id: Mapped[str] = mapped_column(Text, ForeignKey(AccountRow.account_id), primary_key=True)
    amount_minor: Mapped[int] = mapped_column(BigInteger)


class ChargeRow(Timestamped, Base):
    """A charge of a trip, with its ledger transactions."""

    __tablename__ = "charges"
    __table_args__ = (
        CheckConstraint("status IN ('charged', 'refunded')", name="status"),
        CheckConstraint("amount_minor > 0", name="amount_minor"),
        Index("uq_charges_key", "key", unique=True),
    )

    payment_id: Mapped[str] = mapped_column(Text, primary_key=True)
    key: Mapped[str] = mapped_column(Text)
    trip_id: Mapped[str] = mapped_column(Text, index=True)
    account_id: Mapped[str] = mapped_column(Text, ForeignKey(AccountRow.account_id))
    amount_minor: Mapped[int] = mapped_column(BigInteger)
    status: Mapped[str] = mapped_column(Text, default="charged")
    charge_transaction: Mapped[str] = mapped_column(Text, ForeignKey(LedgerTransactionRow.transaction_id))
    refund_transaction: Mapped[str | None] = mapped_column(Text, ForeignKey(LedgerTransactionRow.transaction_id))
