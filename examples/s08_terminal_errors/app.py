"""Terminal and retried errors."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import restate
from pydantic import BaseModel, Field

from perdure import DataPlaneContext, DataPlaneService, RunConfig, ServiceClient, handler
from perdure.error_mapping import ErrorMapping
from perdure.errors import NotFound, Refused, TerminalError, error_code


class Withdrawal(BaseModel):
    """A withdrawal.

    Args:
        account: The account.
        amount: The amount.
    """

    account: str
    amount: int = Field(gt=0)


class UnknownAccountError(Exception):
    """An exception of the bank's library, which does not distinguish terminal errors."""


requests: Counter[str] = Counter()
accounts = DataPlaneService(
    "Accounts",
    run=RunConfig(initial_delay=timedelta(milliseconds=10)),
    errors=ErrorMapping({UnknownAccountError: NotFound}),  # for all handlers and their runs
)
shop = restate.Service("CornerShop")


def move_money(withdrawal: Withdrawal) -> None:
    """Simulate the bank: reject permanently, or fail temporarily."""
    requests[withdrawal.account] += 1
    if withdrawal.account.startswith("nobody"):
        raise UnknownAccountError("there is no such account")
    if withdrawal.amount > 50:
        raise Refused("the account holds 50", 402, "insufficient_funds", {"available": "50"})
    if requests[withdrawal.account] == 1:
        raise ConnectionError("the bank doesn't answer")


@accounts.handler()
async def withdraw(ctx: DataPlaneContext, withdrawal: Withdrawal) -> None:
    """Withdraw money. A `Refused` ends the run at once, with code and metadata."""
    await ctx.run("move-money", move_money, withdrawal)


@handler(shop)
async def buy(ctx: restate.Context, withdrawal: Withdrawal) -> str:
    """Pay, or offer a lower amount. The error's code crosses services."""
    try:
        await ServiceClient(ctx, withdraw).call(withdrawal)
    except TerminalError as error:  # never `except Exception`: it would catch errors that the engine retries
        if error_code(error) != "insufficient_funds":
            raise
        available = (error.metadata or {})["available"]
        return f"no: {error.message}; how about something for {available}?"
    return "sold"
