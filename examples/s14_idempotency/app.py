"""Idempotency keys: repeated requests have one effect."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel

from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration, ServiceClient


class Charge(BaseModel):
    """A charge for an order.

    Args:
        order: The order.
        amount: The amount.
    """

    order: str
    amount: int


charged: Counter[str] = Counter()
"""Number of charges per order."""

payments = DataPlaneService("Payments", public=True)
subscriptions = ControlPlaneService("Subscriptions", idempotency_prefix="order")


def take(charge: Charge) -> None:
    """Record the charge."""
    charged[charge.order] += 1


@payments.handler()
async def charge_once(ctx: DataPlaneContext, charge: Charge) -> None:
    """Charge once per invocation."""
    await ctx.run("take", take, charge)


@subscriptions.main
async def renew(cp: Orchestration, charge: Charge) -> list[str]:
    """Request the charge and return both kinds of keys.

    Two renewals of one order are two invocations, so they need the same key, made of business data.
    """
    business = cp.generate_idempotency_key_deterministic(charge.order, "renewal")
    await ServiceClient(cp.ctx, charge_once).send(charge, idempotency_key=business)
    return [business, cp.generate_idempotency_key("payment")]
