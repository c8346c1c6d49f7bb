"""Demo data of Payments: customers' accounts, with faults to try.

    account      currency  balance            charges
    acct-ada     EUR       10,000,000,000.00  go through
    acct-grace   USD       10,000,000,000.00  go through
    acct-poor    EUR       10.00              go through while money lasts
    acct-declined EUR      10,000.00          are declined by the card
    acct-frozen  EUR       10,000.00          are refused, the account is frozen

The merchant and equity accounts of both currencies belong to the first migration.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.payments.model import credit, record
from services.data_plane.payments.tables import AccountRow
from services.data_plane.tables import insert_if_missing


class Customer(NamedTuple):
    """A customer's account and its faults. ``opening_minor`` is the opening balance in minor units."""

    currency: str
    opening_minor: int
    frozen: bool = False
    card_declined: bool = False


CUSTOMERS: Final = {
    "acct-ada": Customer("EUR", 1_000_000_000_000),
    "acct-grace": Customer("USD", 1_000_000_000_000),
    "acct-poor": Customer("EUR", 1_000),
    "acct-declined": Customer("EUR", 1_000_000, card_declined=True),
    "acct-frozen": Customer("EUR", 1_000_000, frozen=True),
}


async def insert_demo_data(connection: AsyncConnection) -> None:
    """Insert missing accounts with their opening balances. Existing ones stay unchanged.

    Args:
        connection: An open transaction on a migrated database.
    """
    for account_id, customer in CUSTOMERS.items():
        missing = await insert_if_missing(
            connection,
            AccountRow,
            account_id=account_id,
            kind="customer",
            currency=customer.currency,
            frozen=customer.frozen,
            card_declined=customer.card_declined,
        )
        if missing:
            equity = f"equity-{customer.currency.lower()}"
            opening = {account_id: customer.opening_minor, equity: -customer.opening_minor}
            for account, amount in opening.items():
                await credit(connection, account, amount)
            await record(connection, "opening", opening)
