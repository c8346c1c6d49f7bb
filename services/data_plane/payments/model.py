"""Charges of trips, on a double-entry ledger in integer minor units.

Each movement of money is one transaction of postings that sum to zero. Postings are immutable: a refund is another
transaction. An account stores the sum of its postings as ``balance_minor``, so that one conditional update can check
and debit it; the audit compares both.
"""

from __future__ import annotations

from uuid import uuid4

from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from perdure.errors import InvalidInput, NotFound, PerdureTerminalError, Refused
from services.contracts.payments import Charge, ChargeAccount, PaymentRequest, Refund, RefundCharge
from services.data_plane.payments.tables import OPERATIONS, AccountRow, ChargeRow, LedgerTransactionRow, PostingRow
from services.database import Database


class Payments:
    """Charge accounts and refund them.

    Args:
        database: The database of Payments.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def charge(self, request: ChargeAccount) -> Charge:
        """Charge a customer's account.

        Args:
            request: Trip, account, amount, currency and key.

        Raises:
            NotFound: The customer account does not exist.
            InvalidInput: The account has another currency.
            Refused: ``account_frozen``, ``card_declined`` or ``insufficient_funds``.
            Conflict: See `perdure.sql.IdempotencyTable.perform`.
        """

        async def take() -> Charge:
            payment = request.payment
            await _debit_customer(connection, payment)
            await credit(connection, merchant_account(payment.currency), payment.amount_minor)
            transaction_id = await record(
                connection,
                "charge",
                {payment.account: -payment.amount_minor, merchant_account(payment.currency): payment.amount_minor},
                trip_id=request.trip_id,
            )
            charge = Charge(payment_id=f"pay-{uuid4()}", trip_id=request.trip_id, payment=payment)
            await connection.execute(
                insert(ChargeRow).values(
                    payment_id=charge.payment_id,
                    key=request.key,
                    trip_id=request.trip_id,
                    account_id=payment.account,
                    amount_minor=payment.amount_minor,
                    charge_transaction=transaction_id,
                )
            )
            return charge

        async with self._database.transaction() as connection:
            return await OPERATIONS.perform(
                connection,
                request.key,
                take,
                action="charge",
                request=request,
                result=Charge,
                subject=request.trip_id,
            )

    async def refund(self, request: RefundCharge) -> Refund:
        """Refund the charge under a key, or void the key.

        Args:
            request: Trip and key of the charge.

        Raises:
            Conflict: See `perdure.sql.IdempotencyTable.compensate`.
        """

        async def reverse(charge: Charge) -> Refund:
            payment = charge.payment
            # Customer before merchant, as in a charge: one order of locks avoids deadlocks.
            await credit(connection, payment.account, payment.amount_minor)
            await credit(connection, merchant_account(payment.currency), -payment.amount_minor)
            transaction_id = await record(
                connection,
                "refund",
                {payment.account: payment.amount_minor, merchant_account(payment.currency): -payment.amount_minor},
                trip_id=request.trip_id,
            )
            await connection.execute(
                update(ChargeRow)
                .where(ChargeRow.payment_id == charge.payment_id)
                .values(status="refunded", refund_transaction=transaction_id)
            )
            return Refund(key=request.key, outcome="refunded", payment_id=charge.payment_id)

        async with self._database.transaction() as connection:
            return await OPERATIONS.compensate(
                connection,
                request.key,
                reverse,
                action="charge",
                request=request,
                performed=Charge,
                voided=Refund(key=request.key, outcome="voided"),
                subject=request.trip_id,
            )


def merchant_account(currency: str) -> str:
    """Return the merchant account of a currency."""
    return f"merchant-{currency.lower()}"


async def credit(connection: AsyncConnection, account_id: str, amount_minor: int) -> None:
    """Add an amount to an account's balance. Call `record` with the same amounts in the same transaction.

    Args:
        connection: An open transaction.
        account_id: The account.
        amount_minor: The amount in minor units; negative to debit.

    Raises:
        LookupError: The account does not exist.
    """
    changed = await connection.execute(
        update(AccountRow)
        .where(AccountRow.account_id == account_id)
        .values(balance_minor=AccountRow.balance_minor + amount_minor)
    )
    if changed.rowcount != 1:
        raise LookupError(
            f"the ledger has no account '{account_id}': add the merchant and equity accounts of this currency"
        )


async def record(
    connection: AsyncConnection, kind: str, postings: dict[str, int], *, trip_id: str | None = None
) -> str:
    """Write a transaction into the ledger.

    Args:
        connection: An open transaction.
        kind: ``opening``, ``charge`` or ``refund``.
        postings: Amount per account in minor units; all accounts have one currency.
        trip_id: The trip.

    Returns:
        The id of the transaction.

    Raises:
        ValueError: The postings do not sum to zero.
    """
    if sum(postings.values()) != 0:
        raise ValueError(f"a {kind} must sum to zero, not to {sum(postings.values())}: {postings}")
    transaction_id = f"txn-{uuid4()}"
    await connection.execute(
        insert(LedgerTransactionRow).values(transaction_id=transaction_id, kind=kind, trip_id=trip_id)
    )
    await connection.execute(
        insert(PostingRow),
        [
            {"transaction_id": transaction_id, "account_id": account_id, "amount_minor": amount_minor}
            for account_id, amount_minor in postings.items()
        ],
    )
    return transaction_id


async def _debit_customer(connection: AsyncConnection, payment: PaymentRequest) -> None:
    # The condition of the update contains every rule, so that no check can become stale.
    taken = await connection.execute(
        update(AccountRow)
        .where(
            AccountRow.account_id == payment.account,
            AccountRow.kind == "customer",
            AccountRow.currency == payment.currency,
            AccountRow.frozen.is_(False),
            AccountRow.card_declined.is_(False),
            AccountRow.balance_minor >= payment.amount_minor,
        )
        .values(balance_minor=AccountRow.balance_minor - payment.amount_minor)
    )
    if taken.rowcount == 0:
        raise await _refusal(connection, payment)


async def _refusal(connection: AsyncConnection, payment: PaymentRequest) -> PerdureTerminalError:
    """Return the error for an account that was not charged.

    The account itself isn't named: the engine keeps messages of failures in clear, where all else may be encrypted.
    """
    query = select(AccountRow.currency, AccountRow.frozen, AccountRow.card_declined).where(
        AccountRow.account_id == payment.account, AccountRow.kind == "customer"
    )
    account = (await connection.execute(query)).one_or_none()
    if account is None:
        return NotFound("payment.account: there is no such account", metadata={"field": "payment.account"})
    if account.currency != payment.currency:
        return InvalidInput(
            f"payment.currency: the account is in {account.currency}, not in {payment.currency}",
            metadata={"code": "currency_mismatch", "field": "payment.currency"},
        )
    if account.frozen:
        return Refused("the account is frozen", 403, "account_frozen")
    if account.card_declined:
        return Refused("the card was declined", 402, "card_declined")
    return Refused("the account does not hold that much", 402, "insufficient_funds")
