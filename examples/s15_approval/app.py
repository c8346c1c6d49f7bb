"""A purchase that requires approval."""

from __future__ import annotations

from datetime import timedelta

from pydantic import BaseModel

from perdure import ControlPlaneService, Orchestration
from perdure.errors import Refused


class Purchase(BaseModel):
    """A purchase.

    Args:
        what: The item.
        by: The buyer.
        decide_within: Time limit of the decision.
    """

    what: str
    by: str
    decide_within: timedelta = timedelta(days=1)


purchases = ControlPlaneService("Purchases")


@purchases.main
async def buy(cp: Orchestration, purchase: Purchase) -> str:
    """Request approval, wait, and buy."""
    approved = await cp.await_human_approval(
        cp.key, purchase.decide_within, title=f"Buy {purchase.what}?", subject=purchase.by
    )
    if not approved:
        raise Refused("approval denied", 403, "approval_denied")
    return f"bought {purchase.what}"
