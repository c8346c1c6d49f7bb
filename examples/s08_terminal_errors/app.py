"""Errors that end an invocation, and errors that are tried again."""

from __future__ import annotations

from collections import Counter
from datetime import timedelta

import restate
from pydantic import BaseModel, Field

from perdure import DataPlaneContext, DataPlaneService, RunConfig, ServiceClient, handler
from perdure.error_mapping import ErrorMapping
from perdure.errors import NotFound, Refused, TerminalError, error_code


class Withdrawal(BaseModel):
    """Money that leaves an account.

    Args:
        account: Which account.
        amount: How much.
    """

    account: str
    amount: int = Field(gt=0)


class UnknownAccountError(Exception):
    """What the bank's own library raises, which knows nothing of retries."""


requests: Counter[str] = Counter()
accounts = DataPlaneService(
    "Accounts",
    run=RunConfig(initial_delay=timedelta(milliseconds=10)),
    errors=ErrorMapping({UnknownAccountError: NotFound}),  # in one place, for all handlers and their runs
)
shop = restate.Service("CornerShop")


def move_money(withdrawal: Withdrawal) -> None:
    """Do what the bank does: refuse for good, or have a bad moment."""
    requests[withdrawal.account] += 1
    if withdrawal.account.startswith("nobody"):
        raise UnknownAccountError("there is no such account")
    if withdrawal.amount > 50:
        raise Refused("the account holds 50", 402, "insufficient_funds", {"available": "50"})
    if requests[withdrawal.account] == 1:
        raise ConnectionError("the bank doesn't answer")


@accounts.handler()
async def withdraw(ctx: DataPlaneContext, withdrawal: Withdrawal) -> None:
    """Withdraw money; a `Refused` in the run ends it at once, with type, code and metadata."""
    await ctx.run("move-money", move_money, withdrawal)


@handler(shop)
async def buy(ctx: restate.Context, withdrawal: Withdrawal) -> str:
    """Pay; offer something cheaper when the money doesn't suffice. The code crossed from one service to the other."""
    try:
        await ServiceClient(ctx, withdraw).call(withdrawal)
    except TerminalError as error:  # never `except Exception`: it would catch what the engine tries again
        if error_code(error) != "insufficient_funds":
            raise
        available = (error.metadata or {})["available"]
        return f"no: {error.message}; how about something for {available}?"
    return "sold"
