"""Contract of Payments: charge and refund an account."""

from __future__ import annotations

from typing import Literal

from perdure import Target
from services.contracts.messages import (
    AmountMinor,
    CompensationRequest,
    Currency,
    Message,
    Name,
    OperationKey,
    TripId,
    Write,
)


class PaymentRequest(Message):
    """The price of a trip.

    Args:
        account: The account to charge, for example ``acct-ada``.
        amount_minor: Amount in minor units (cents).
        currency: ISO 4217 code; must be the account's.
    """

    account: Name
    amount_minor: AmountMinor
    currency: Currency


class ChargeAccount(Write):
    """Charge an account for a trip."""

    payment: PaymentRequest


class Charge(Message):
    """Charge of an account."""

    payment_id: str
    trip_id: TripId
    payment: PaymentRequest


class RefundCharge(CompensationRequest):
    """Refund the charge under a key."""


class Refund(Message):
    """Result of a refund.

    Args:
        key: The key of the charge.
        outcome: ``refunded`` if the charge was reversed, ``voided`` if nothing was charged under the key.
        payment_id: The refunded charge; None if voided.
    """

    key: OperationKey
    outcome: Literal["refunded", "voided"]
    payment_id: str | None = None


charge = Target("Payments", "charge", ChargeAccount, Charge)
refund = Target("Payments", "refund", RefundCharge, Refund)
