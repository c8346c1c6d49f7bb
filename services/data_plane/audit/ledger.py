"""Invariants of the ledger: postings balance, and each movement belongs to a charge, refund or opening balance."""

from __future__ import annotations

from collections import defaultdict

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.audit.report import Invariant, invariant
from services.data_plane.payments.model import merchant_account
from services.data_plane.payments.tables import AccountRow, ChargeRow, LedgerTransactionRow, PostingRow


async def check(connection: AsyncConnection) -> list[Invariant]:
    """Check postings, transactions, charges and balances."""
    return [
        await _currencies(connection),
        await _transactions(connection),
        await _charges(connection),
        await _balances(connection),
    ]


async def _currencies(connection: AsyncConnection) -> Invariant:
    query = (
        select(AccountRow.currency, func.sum(PostingRow.amount_minor))
        .join(PostingRow, PostingRow.account_id == AccountRow.account_id)
        .group_by(AccountRow.currency)
    )
    sums = [(currency, int(total)) for currency, total in await connection.execute(query)]
    return invariant(
        "ledger-currencies",
        "the ledger sums to zero in each currency",
        len(sums),
        ((currency, f"sums to {total} minor units") for currency, total in sums if total != 0),
    )


async def _transactions(connection: AsyncConnection) -> Invariant:
    query = (
        select(
            LedgerTransactionRow.transaction_id,
            func.count(PostingRow.account_id),
            func.count(func.distinct(AccountRow.currency)),
            func.count(AccountRow.account_id),
            func.coalesce(func.sum(PostingRow.amount_minor), 0),
        )
        .outerjoin(PostingRow, PostingRow.transaction_id == LedgerTransactionRow.transaction_id)
        .outerjoin(AccountRow, AccountRow.account_id == PostingRow.account_id)
        .group_by(LedgerTransactionRow.transaction_id)
    )
    transactions = list(await connection.execute(query))
    return invariant(
        "ledger-transactions",
        "each transaction has at least two postings, on accounts of one currency, that sum to zero",
        len(transactions),
        (
            (
                transaction_id,
                f"{postings} postings on {accounts} accounts in {currencies} currencies sum to {int(total)}",
            )
            for transaction_id, postings, currencies, accounts, total in transactions
            if postings < 2 or currencies != 1 or accounts != postings or int(total) != 0
        ),
    )


async def _charges(connection: AsyncConnection) -> Invariant:
    """Compare charges with the ledger in both directions."""
    postings: dict[str, dict[str, int]] = defaultdict(dict)
    kinds: dict[str, tuple[str, str | None]] = {}
    ledger = (
        select(
            LedgerTransactionRow.transaction_id,
            LedgerTransactionRow.kind,
            LedgerTransactionRow.trip_id,
            PostingRow.account_id,
            PostingRow.amount_minor,
        )
        .join(PostingRow, PostingRow.transaction_id == LedgerTransactionRow.transaction_id)
        .where(LedgerTransactionRow.kind != "opening")
    )
    for transaction_id, kind, trip_id, account_id, amount in await connection.execute(ledger):
        kinds[transaction_id] = (kind, trip_id)
        postings[transaction_id][account_id] = amount
    charges = list(
        await connection.execute(
            select(
                ChargeRow.payment_id,
                ChargeRow.trip_id,
                ChargeRow.account_id,
                ChargeRow.amount_minor,
                ChargeRow.status,
                ChargeRow.charge_transaction,
                ChargeRow.refund_transaction,
                AccountRow.currency,
            ).outerjoin(AccountRow, AccountRow.account_id == ChargeRow.account_id)
        )
    )
    breaches: list[tuple[str, str]] = []
    unexplained = dict(kinds)
    for charge in charges:
        expected = {
            charge.account_id: -charge.amount_minor,
            merchant_account(charge.currency or ""): charge.amount_minor,
        }
        moves = [("charge", charge.charge_transaction, expected)]
        if charge.refund_transaction is not None:
            moves.append(
                ("refund", charge.refund_transaction, {account: -amount for account, amount in expected.items()})
            )
        if (charge.status == "refunded") != (charge.refund_transaction is not None):
            breaches.append((charge.payment_id, f"is {charge.status}, but the ledger says otherwise"))
        for kind, transaction_id, amounts in moves:
            if unexplained.pop(transaction_id, None) != (kind, charge.trip_id) or postings[transaction_id] != amounts:
                breaches.append((charge.payment_id, f"the ledger has no matching {kind} of trip '{charge.trip_id}'"))
    breaches += [
        (transaction_id, f"a {kind} that no payment explains") for transaction_id, (kind, _) in unexplained.items()
    ]
    return invariant(
        "charges",
        "each charge and refund is one transaction of exactly its amount, and the ledger contains no other movement",
        len(charges),
        breaches,
    )


async def _balances(connection: AsyncConnection) -> Invariant:
    query = (
        select(
            AccountRow.account_id,
            AccountRow.kind,
            AccountRow.balance_minor,
            func.coalesce(func.sum(PostingRow.amount_minor), 0),
        )
        .outerjoin(PostingRow, PostingRow.account_id == AccountRow.account_id)
        .group_by(AccountRow.account_id)
    )
    accounts = list(await connection.execute(query))
    return invariant(
        "balances",
        "each balance is the sum of the postings, and only permitted accounts are negative",
        len(accounts),
        (
            (account_id, f"holds {balance} minor units, its postings sum to {int(total)}")
            for account_id, kind, balance, total in accounts
            if balance != int(total) or (balance < 0 and kind != "equity")
        ),
    )
