"""Seed data: the catalogue, accounts, and faults for experiments.

    flight    seats
    PD100     100,000   plenty
    PD200     180       an ordinary flight
    PD001     1         the last seat, for two trips to race for
    PD404     0         sold out

    hotel     rooms     answers  cancels
    Harbour   100,000   at once  always
    Garden    40        at once  always
    Attic     0         at once  (full)
    Sloth     100,000   in 2 s   always
    Stumble   100,000   at once  after two failed cancellations
    Fortress  100,000   at once  never: every cancellation fails

    account      currency  balance            charges
    acct-ada     EUR       10,000,000,000.00  go through
    acct-grace   USD       10,000,000,000.00  go through
    acct-poor    EUR       10.00              go through while money lasts
    acct-declined EUR      10,000.00          are declined by the card
    acct-frozen  EUR       10,000.00          are refused, the account is frozen

Only missing rows are inserted; existing rows stay unchanged.
"""

from __future__ import annotations

from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncConnection

from services.data_plane.database import insert_if_missing
from services.data_plane.flights.tables import FlightRow
from services.data_plane.hotels.tables import HotelRow
from services.data_plane.payments.model import credit, merchant_account, record
from services.data_plane.payments.tables import AccountRow


class Hotel(NamedTuple):
    """A hotel and its faults."""

    rooms: int
    latency_ms: int = 0
    fails_cancellations: int = 0


class Customer(NamedTuple):
    """A customer's account and its faults. ``opening_minor`` is the opening balance in minor units."""

    currency: str
    opening_minor: int
    frozen: bool = False
    card_declined: bool = False


FLIGHTS = {"PD100": 100_000, "PD200": 180, "PD001": 1, "PD404": 0}

HOTELS = {
    "Harbour": Hotel(rooms=100_000),
    "Garden": Hotel(rooms=40),
    "Attic": Hotel(rooms=0),
    "Sloth": Hotel(rooms=100_000, latency_ms=2_000),
    "Stumble": Hotel(rooms=100_000, fails_cancellations=2),
    "Fortress": Hotel(rooms=100_000, fails_cancellations=-1),
}

CURRENCIES = ("EUR", "USD")

CUSTOMERS = {
    "acct-ada": Customer("EUR", 1_000_000_000_000),
    "acct-grace": Customer("USD", 1_000_000_000_000),
    "acct-poor": Customer("EUR", 1_000),
    "acct-declined": Customer("EUR", 1_000_000, card_declined=True),
    "acct-frozen": Customer("EUR", 1_000_000, frozen=True),
}


async def seed(connection: AsyncConnection) -> None:
    """Insert missing rows.

    Args:
        connection: An open transaction on a migrated database.
    """
    for number, seats in FLIGHTS.items():
        await insert_if_missing(connection, FlightRow, number=number, seats=seats, seats_left=seats)
    for name, hotel in HOTELS.items():
        await insert_if_missing(connection, HotelRow, name=name, rooms_left=hotel.rooms, **hotel._asdict())
    for currency in CURRENCIES:
        for kind, account_id in (("merchant", merchant_account(currency)), ("equity", _equity_account(currency))):
            await insert_if_missing(connection, AccountRow, account_id=account_id, kind=kind, currency=currency)
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
            opening = {account_id: customer.opening_minor, _equity_account(customer.currency): -customer.opening_minor}
            for account, amount in opening.items():
                await credit(connection, account, amount)
            await record(connection, "opening", opening)


def _equity_account(currency: str) -> str:
    return f"equity-{currency.lower()}"
