"""Payments: an account is charged, and refunded."""

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
    """The money that a trip costs.

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
    """Money that was taken from an account."""

    payment_id: str
    trip_id: TripId
    payment: PaymentRequest


class RefundCharge(CompensationRequest):
    """Give the money back that was charged under this key."""


class Refund(Message):
    """What a refund found.

    Args:
        key: The key of the charge.
        outcome: ``refunded``: the money is back. ``voided``: nothing was charged, and nothing can be any more.
        payment_id: The refunded charge, None for a voided one.
    """

    key: OperationKey
    outcome: Literal["refunded", "voided"]
    payment_id: str | None = None


charge = Target("Payments", "charge", ChargeAccount, Charge)
refund = Target("Payments", "refund", RefundCharge, Refund)
