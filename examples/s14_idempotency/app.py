"""Keys that make the same request, sent twice, one."""

from __future__ import annotations

from collections import Counter

from pydantic import BaseModel

from perdure import ControlPlaneService, DataPlaneContext, DataPlaneService, Orchestration, ServiceClient


class Charge(BaseModel):
    """Money that is taken for an order.

    Args:
        order: For which order.
        amount: How much.
    """

    order: str
    amount: int


charged: Counter[str] = Counter()
"""How often each order was charged."""

payments = DataPlaneService("Payments", public=True)
subscriptions = ControlPlaneService("Subscriptions", idempotency_prefix="order")


def take(charge: Charge) -> None:
    """Take the money."""
    charged[charge.order] += 1


@payments.handler()
async def charge_once(ctx: DataPlaneContext, charge: Charge) -> None:
    """Take the money, once for each invocation."""
    await ctx.run("take", take, charge)


@subscriptions.main
async def renew(cp: Orchestration, charge: Charge) -> list[str]:
    """Have the money taken, and return the two kinds of keys.

    One invocation needs no key, since the journal does each send once. Two invocations that may send the same (two
    renewals of one order, here) need one that both of them come to: made of business data.
    """
    business = cp.generate_idempotency_key_deterministic(charge.order, "renewal")
    await ServiceClient(cp.ctx, charge_once).send(charge, idempotency_key=business)
    return [business, cp.generate_idempotency_key("payment")]
