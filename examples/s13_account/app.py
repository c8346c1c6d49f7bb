"""An account: one balance per key, one writer at a time."""

from __future__ import annotations

from decimal import Decimal

import restate

from perdure import MutableState, ReadOnlyState, State, handler
from perdure.errors import Refused

accounts = restate.VirtualObject("UserAccount")


@handler(accounts, "exclusive")
async def update_balance(ctx: restate.ObjectContext, amount: Decimal) -> Decimal:
    """Deposit an amount, or withdraw a negative one; return the new balance."""
    balance = MutableState(ctx, "balance", Decimal, default=Decimal(0))
    new = await balance.get() + amount
    if new < 0:
        raise Refused("insufficient funds", 400, "insufficient_funds")
    await balance.set(new)
    return new


@handler(accounts, "shared")
async def get_balance(ctx: restate.ObjectSharedContext) -> Decimal:
    """Return the balance. Runs concurrently with writers."""
    return await ReadOnlyState(ctx, "balance", Decimal, default=Decimal(0)).get()


@handler(accounts, "shared")
async def cook_the_books(ctx: restate.ObjectSharedContext) -> None:
    """Write from a shared handler, which fails."""
    await State(ctx, "balance", Decimal).set(Decimal(1_000_000))  # type: ignore[misc] # as the type checker says
